"""Ads for a catalogue: the real program against the real server, which a relay makes fail, hold and stop."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import generate
import httpx
import psutil
import pytest
import scores
from adgen import ROOT, read_json_lines
from chat_server import free_port

KEY = "a-key-of-the-tests"
DEV = ROOT / "data/sample/dev.jsonl"
PRODUCTS = ROOT / "examples/products.csv"
# Of the first three kinds in the example catalogue.
ATTRIBUTES = {
    "C-001": "类型#裙*材质#雪纺*颜色#白色*风格#甜美*图案#碎花",
    "L-002": "类型#口红*质地#水光*颜色#蜜桃粉*功效#保湿*功效#淡唇纹*场景#上班",
    "E-002": "类型#耳机*佩戴#头戴式*连接#有线*功能#低延迟*场景#打游戏",
}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextmanager
def serving(folder: Path, **variables):
    """The base URL of `make api` in a folder with a trained stand-in."""
    port = free_port()
    command = ["make", f"BIN={Path(sys.executable).parent}", "api", "MODEL=tiny", "DATA=sample"]
    server = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"API_PORT": str(port)} | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def is_up():
        assert server.poll() is None, "the server did not start"
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).status_code
        except httpx.RequestError:
            return False

    try:
        wait_for(is_up)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture(scope="module")
def api(demo):
    with serving(demo[0], API_KEY=KEY) as url:
        yield url


class Relay(BaseHTTPRequestHandler):
    """Hands requests on to the real server, save those that its server's `fault` answers otherwise."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = json.loads(body) if body else {}
        fault = None
        if request:
            with self.server.lock:
                self.server.asked.append((request["messages"][-1]["content"], request["n"]))
                fault = self.server.fault(len(self.server.asked), request) if self.server.fault else None
        if fault == "hold":
            self.server.released.wait()
            fault = "close"
        if fault == "close":
            self.close_connection = True
        elif fault == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            self.close_connection = True
        elif fault:
            self.answer(fault, b'{"detail": "a fault\\nof the relay"}')
        else:
            if self.server.ignores_n and request:
                body = json.dumps(request | {"n": 1}).encode()
            headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
            got = self.server.client.request(
                self.command, self.server.target + self.path, content=body, headers=headers
            )
            self.answer(got.status_code, got.content)

    do_GET = do_POST = handle_request


@pytest.fixture
def relay(api):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    server.daemon_threads = True
    server.target, server.client = api, httpx.Client(timeout=120, trust_env=False)
    server.lock, server.released = threading.Lock(), threading.Event()
    server.asked, server.fault, server.ignores_n = [], None, False
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def command(*words):
    recipe = ["--recipe", ROOT / "configs/tiny/chat.yaml"]
    return [sys.executable, ROOT / "scripts/generate.py", *map(str, words), *map(str, recipe)]


def run(*words, key=KEY):
    environment = os.environ | {"API_KEY": key}
    result = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in result.stderr and key not in result.stdout + result.stderr
    return result


def one_error(*words, **options):
    result = run(*words, **options)
    lines = [line for line in result.stderr.split("\n") if line.startswith("error: ")]
    assert result.returncode == 1 and len(lines) == 1 and result.stderr.endswith(f"{lines[0]}\n"), result.stderr
    return lines[0]


def read_ads(path: Path) -> list[dict]:
    data = path.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def write_rows(path: Path, rows: list[list[str]], encoding="utf-8", separator=",") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def example_rows() -> list[list[str]]:
    lines = list(csv.reader(PRODUCTS.open(encoding="utf-8")))
    return [lines[0], *(line for line in lines if line[0] in ATTRIBUTES)]


def write_workbook(path: Path, rows: list[list[str]]) -> Path:
    """A workbook as Excel writes it: shared strings in runs, numbers, gaps; its first sheet is second in the file."""
    strings, cells = [], ""
    for number, row in enumerate(rows, 1):
        cells += f'<row r="{number}">'
        for place, value in enumerate(row):
            if value.isdigit():
                cells += f'<c r="{chr(65 + place)}{number}"><v>{value}.0</v></c>'
            elif value:
                cells += f'<c r="{chr(65 + place)}{number}" t="s"><v>{len(strings)}</v></c>'
                strings.append(f"<si><r><t>{value[:1]}</t></r><r><rPr><b/></rPr><t>{value[1:]}</t></r></si>")
        cells += "</row>"
    # Excel keeps rows that once had a format.
    cells += f'<row r="{len(rows) + 1}"><c r="A{len(rows) + 1}" s="1"/></row>'
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    links = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    packages = "http://schemas.openxmlformats.org/package/2006/relationships"
    parts = {
        "xl/workbook.xml": f'<workbook {main} xmlns:r="{links}"><sheets><sheet name="商品" sheetId="2" r:id="rId2"/>'
        '<sheet name="x" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{packages}">'
        '<Relationship Id="rId1" Target="worksheets/sheet1.xml"/>'
        '<Relationship Id="rId2" Target="worksheets/sheet2.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f"<worksheet {main}><sheetData/></worksheet>",
        "xl/worksheets/sheet2.xml": f"<worksheet {main}><sheetData>{cells}</sheetData></worksheet>",
        "xl/sharedStrings.xml": f"<sst {main}>{''.join(strings)}</sst>",
    }
    with zipfile.ZipFile(path, "w") as book:
        for name, content in parts.items():
            book.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{content}')
    return path


def test_make_generate_with_a_server_of_its_own(demo, make):
    folder, _ = demo
    result = make(folder, "generate", "MODEL=tiny", "DATA=sample", "N=2", "OUTPUT=ads.csv")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "12 of 12 rows have an ad" in result.stdout and "best of 2: coverage 0." in result.stdout
    assert "24/24" in result.stderr
    header, *rows = csv.reader(PRODUCTS.open(encoding="utf-8"))
    ads = read_ads(folder / "ads.csv")
    assert list(ads[0]) == [*header, "ad", "missing", "invented", "runner_up_1", "reason"]
    assert [[row[name] for name in header] for row in ads] == rows
    values = scores.vocabulary(row["content"] for row in read_json_lines(ROOT / "data/sample/train.jsonl"))
    for row in ads:
        own = {value for name in header[2:-1] for value in row[name].replace("/", "、").split("、") if value}
        assert row["ad"] and row["runner_up_1"] and not row["reason"]
        assert {value for value in own if value not in row["ad"]} == set(filter(None, row["missing"].split("、")))
        assert set(scores.find_values(row["ad"], values)) - own == set(filter(None, row["invented"].split("、")))
    assert not (folder / "ads.csv.journal").exists()


@pytest.mark.parametrize("form", ["csv", "bom", "gb18030", "semicolons", "xlsx", "jsonl", "strings"])
def test_forms_of_a_catalogue(relay, tmp_path, form):
    rows = example_rows()
    if form == "xlsx":
        path = write_workbook(tmp_path / "in.XLSX", rows)
    elif form == "jsonl":
        cells = [[cell.split("/") if "/" in cell else cell or None for cell in row] for row in rows[1:]]
        lists = [dict(zip(rows[0], row, strict=True)) for row in cells]
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(row) + "\n\n" for row in lists))
    elif form == "strings":
        rows = [
            ["SKU", "名称", "商品属性", "价格"],
            *([row[0], row[1], ATTRIBUTES[row[0]], row[-1]] for row in rows[1:]),
        ]
        path = write_rows(tmp_path / "in.csv", rows)
    else:
        encoding = {"bom": "utf-8-sig", "gb18030": "gb18030"}.get(form, "utf-8")
        # Blank rows at the end are what Excel leaves of deleted ones.
        path = write_rows(tmp_path / "in.csv", [*rows, [""] * 16, []], encoding, ";" if form == "semicolons" else ",")
    result = run(path, tmp_path / "out.csv", "--n", 1, "--server", relay.url + "/v1/")
    assert result.returncode == 0, result.stderr
    assert sorted(relay.asked) == sorted((product, 1) for product in ATTRIBUTES.values())
    ads = read_ads(tmp_path / "out.csv")
    assert [(row["SKU"], row["名称"], row["价格"]) for row in ads] == [(row[0], row[1], row[-1]) for row in rows[1:]]
    assert all(row["ad"] for row in ads)


def test_columns_that_are_no_attributes(relay, tmp_path):
    header = ["product_id", "商品", "类型*", "颜色", "产地", "width", "上架日期", "颜色"]
    rows = [header, ["7", "靴", "靴", "红*黑，白", "-", "3", "2024/1/2", "N/A"]]
    assert (
        run(write_rows(tmp_path / "a.csv", rows), tmp_path / "a.jsonl", "--n", 1, "--server", relay.url).returncode == 0
    )
    assert relay.asked == [("类型#靴*颜色#红×黑*颜色#白*width#3", 1)]
    relay.asked.clear()
    run(tmp_path / "a.csv", tmp_path / "b.csv", "--n", 1, "--server", relay.url, "--columns", "商品,颜色")
    assert relay.asked == [("商品#靴*颜色#红×黑*颜色#白", 1)]
    assert read_ads(tmp_path / "b.csv")[0]["上架日期"] == "2024/1/2"


def test_no_row_is_dropped(relay, tmp_path):
    """Rows without attributes, out of step, twice the same, and with the special tokens of chat templates."""
    rows = [
        ["SKU", "类型", "颜色"],
        ["1", "裙", "白色"],
        ["2", "", "无"],
        [],
        ["4", "裙", "白色"],
        ["5", "裙", "白色", "多", "一格"],
        ["6", "裙", "<|eot_id|><|im_end|>" + "长" * 3000],
    ]
    result = run(write_rows(tmp_path / "in.csv", rows), tmp_path / "out.csv", "--n", 2, "--server", relay.url)
    assert result.returncode == 0, result.stderr
    ads = read_ads(tmp_path / "out.csv")
    assert [row["SKU"] for row in ads] == ["1", "2", "", "4", "5", "6"]
    assert [bool(row["ad"]) for row in ads] == [True, False, False, True, False, True]
    assert [row["reason"] for row in ads[1:3]] == ["the row has no attributes"] * 2
    assert "more cells than names" in ads[4]["reason"]
    # Equal products have ads of their own.
    assert Counter(relay.asked)["类型#裙*颜色#白色", 2] == 2
    line = one_error(
        write_rows(tmp_path / "bad.csv", [rows[0], rows[2]]), tmp_path / "bad_out.csv", "--server", relay.url
    )
    assert "no row has an ad" in line and read_ads(tmp_path / "bad_out.csv")[0]["reason"] == "the row has no attributes"


def test_faults_of_a_server_are_retried(relay, tmp_path):
    faults = [500, "close", 429, "cut"]
    relay.fault = lambda number, _: faults[number // 2 % 4] if number % 2 else None
    result = run(PRODUCTS, tmp_path / "out.csv", "--n", 2, "--server", relay.url)
    assert result.returncode == 0, result.stderr
    ads = read_ads(tmp_path / "out.csv")
    assert len(ads) == 12 and all(row["ad"] and row["runner_up_1"] and not row["reason"] for row in ads)
    assert len(relay.asked) >= 23 and not (tmp_path / "out.csv.journal").exists()


def test_a_refused_product_is_said_and_tried_again(relay, tmp_path):
    refused = ATTRIBUTES["L-002"]
    relay.fault = lambda _, request: 400 if request["messages"][-1]["content"] == refused else None
    words = (PRODUCTS, tmp_path / "out.csv", "--n", 2, "--server", relay.url)
    result = run(*words)
    assert result.returncode == 0 and "refused 1 products" in result.stdout, result.stderr
    ads = {row["SKU"]: row for row in read_ads(tmp_path / "out.csv")}
    assert ads["L-002"]["reason"] == 'the server answers 400: {"detail": "a fault\\nof the relay"}'
    assert sum(bool(row["ad"]) for row in ads.values()) == 11 and not ads["L-002"]["ad"]
    relay.asked.clear()
    relay.fault = None
    assert run(*words).returncode == 0
    again = {row["SKU"]: row for row in read_ads(tmp_path / "out.csv")}
    assert relay.asked == [(refused, 2)] and again.pop("L-002")["ad"]
    assert all(row == ads[name] for name, row in again.items())


def test_a_server_that_knows_no_n(relay, tmp_path):
    relay.ignores_n = True
    assert run(PRODUCTS, tmp_path / "out.csv", "--n", 3, "--server", relay.url).returncode == 0
    assert all(row["ad"] and row["runner_up_2"] for row in read_ads(tmp_path / "out.csv"))
    assert Counter(number for _, number in relay.asked) == {3: 12, 2: 12, 1: 12}


def journal_of(output: Path) -> list[str]:
    """The products in the whole lines of a journal."""
    path = output.with_name(output.name + ".journal")
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [json.loads(line)["product"] for line in lines if line.startswith(b'{"product"') and line.endswith(b"]}")]


def test_kill_at_any_point(relay, tmp_path):
    """Killed before the first answer and after 1, 4, 5 and 1 more; once in the middle of a line."""
    output = tmp_path / "out.csv"
    words = command(PRODUCTS, output, "--n", 2, "--in-flight", 3, "--server", relay.url)
    for answers in (0, 1, 4, 5, 1):
        before = journal_of(output)
        relay.asked.clear()
        relay.released.clear()
        relay.fault = lambda number, _, answers=answers: "hold" if number > answers else None
        with subprocess.Popen(words, env=os.environ | {"API_KEY": KEY}, stdout=-3, stderr=-3) as process:
            try:
                expected = len(before) + answers
                wait_for(lambda expected=expected: len(journal_of(output)) >= expected and relay.asked)
                if answers == 1:
                    assert f"another run is writing {output}" in one_error(*words[2:-2])
            finally:
                process.kill()
        relay.released.set()
        assert not output.exists() and len(journal_of(output)) == expected
        assert not set(before) & {product for product, _ in relay.asked}
        if answers == 4:
            journal = tmp_path / "out.csv.journal"
            # Within a character.
            journal.write_bytes(journal.read_bytes()[:-9])
    finished = journal_of(output)
    assert len(finished) == 10
    relay.asked.clear()
    relay.fault = None
    result = run(*words[2:-2])
    assert result.returncode == 0 and f"20 of 24 ads are in {output}.journal" in result.stdout, result.stderr
    products = Counter(product for product, _ in relay.asked)
    assert len(products) == 2 and not set(products) & set(finished) and set(products.values()) == {1}
    ads = read_ads(output)
    assert [row["SKU"] for row in ads] == [row[0] for row in list(csv.reader(PRODUCTS.open(encoding="utf-8")))[1:]]
    assert all(row["ad"] and row["runner_up_1"] for row in ads)
    assert not (tmp_path / "out.csv.journal").exists()


def test_kill_after_the_output(relay, tmp_path):
    """Between the output and the end of the journal: nothing is asked, and the output is the same."""
    output, journal = tmp_path / "out.csv", tmp_path / "out.csv.journal"
    relay.fault = lambda _, request: 400 if request["messages"][-1]["content"] == ATTRIBUTES["L-002"] else None
    words = (PRODUCTS, output, "--n", 2, "--server", relay.url)
    run(*words)
    relay.fault = None
    kept = journal.read_bytes()
    run(*words)
    whole = output.read_bytes()
    last = {
        "product": ATTRIBUTES["L-002"],
        "copy": 0,
        "ads": [read_ads(output)[6][name] for name in ("ad", "runner_up_1")],
    }
    journal.write_bytes(kept + json.dumps(last).encode())
    relay.asked.clear()
    assert run(*words).returncode == 0
    assert not relay.asked and output.read_bytes() == whole and not journal.exists()


def test_other_settings_and_another_catalogue_do_not_mix(relay, tmp_path):
    output, words = tmp_path / "out.csv", ("--server", relay.url)
    relay.fault = lambda _, request: 400 if request["messages"][-1]["content"] == ATTRIBUTES["L-002"] else None
    run(PRODUCTS, output, "--n", 2, *words)
    journal = (tmp_path / "out.csv.journal").read_bytes()
    assert "another n:" in one_error(PRODUCTS, output, "--n", 3, *words)
    assert "another request:" in one_error(PRODUCTS, output, "--n", 2, *words, "temperature=0.9")
    assert (tmp_path / "out.csv.journal").read_bytes() == journal
    relay.fault = None
    relay.asked.clear()
    rows = [*example_rows(), ["N-001", "", "裙", *[""] * 6, "黑色", *[""] * 6]]
    rows[1][2] = "上衣"
    assert run(write_rows(tmp_path / "new.csv", rows), output, "--n", 2, *words).returncode == 0
    # What changed or is new is asked for; what is as it was, is not.
    assert sorted(product for product, _ in relay.asked) == sorted(
        ["类型#上衣*材质#雪纺*颜色#白色*风格#甜美*图案#碎花", ATTRIBUTES["L-002"], "类型#裙*颜色#黑色"]
    )
    assert [row["SKU"] for row in read_ads(output)] == ["C-001", "L-002", "E-002", "N-001"]


def test_a_server_that_goes_away(relay, tmp_path):
    stop = threading.Thread(target=lambda: (relay.shutdown(), relay.server_close()))

    def fault(number, _):
        if number == 6:
            stop.start()
        return "close" if number > 5 else None

    relay.fault = fault
    words = (PRODUCTS, tmp_path / "out.csv", "--n", 2, "--in-flight", 2)
    line = one_error(*words, "--server", relay.url)
    assert "does not answer" in line and "of 24 ads are in" in line and "the same command goes on" in line
    assert not (tmp_path / "out.csv").exists() and len(journal_of(tmp_path / "out.csv")) == 5


def test_ctrl_c_and_kill_end_its_own_server(demo, tmp_path):
    folder, _ = demo
    words = [DEV, tmp_path / "out.csv", "--in-flight", "2", "adapter_name_or_path=saves/Custom/lora/sample_qlora"]
    program = [sys.executable, folder / "scripts/generate.py", *words, "--recipe", folder / "configs/tiny/chat.yaml"]

    def start():
        environment = os.environ | {"API_KEY": KEY}
        process = subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def server():
            children = psutil.Process(process.pid).children()
            return next((child for child in children if "api" in child.cmdline()), None)

        wait_for(lambda: server() or process.poll() is not None)
        return process, server()

    process, server = start()
    process.kill()
    wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
    process.communicate()

    process, server = start()
    wait_for(lambda: len(journal_of(tmp_path / "out.csv")) >= 3)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and not server.is_running(), errors
    assert "Stopped; " in printed and f"of 480 ads are in {tmp_path}/out.csv.journal" in printed
    assert "Traceback" not in errors and KEY not in printed + errors
    assert not (tmp_path / "out.csv").exists() and KEY not in (tmp_path / "out.csv.journal").read_text(encoding="utf-8")


def test_the_best_candidate():
    product = "类型#裙*颜色#白色*材质#雪纺"
    values = scores.vocabulary([product, "类型#裙*颜色#黑色*图案#碎花"])
    full = "这条裙子选用雪纺面料，白色清爽百搭，穿上它走路带风，怎么搭都好看，出门不用再纠结。"
    inventing, short, half = f"{full}碎花浪漫。", "裙，白色，雪纺。", full.replace("雪纺", "轻薄")
    ranked = sorted((half, short, inventing, full), key=lambda ad: generate.judge(product, ad, values).rank)
    assert ranked == [full, short, inventing, half]
    assert generate.judge(product, inventing, values)[1:3] == ([], ["碎花"])
    assert generate.judge(product, half, values)[1:3] == (["雪纺"], [])


def test_report_and_json_lines(relay, tmp_path):
    head = tmp_path / "head.jsonl"
    head.write_text("".join(DEV.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    report = tmp_path / "report.json"
    assert run(head, tmp_path / "out.jsonl", "--n", 3, "--server", relay.url, "--report", report).returncode == 0
    rows = read_json_lines(tmp_path / "out.jsonl")
    assert [row["summary"] for row in rows] == [row["summary"] for row in read_json_lines(head)]
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["rows"] == 20 and found["n"] == 3 and "--report" in found["command"]
    hits = [hit for row in rows for hit in scores.covered(row["content"], row["ad"]).values()]
    one, best = found["scores"]["one sample"]["coverage"], found["scores"]["best of 3"]["coverage"]
    assert best["value"] == round(sum(hits) / len(hits), 4) >= one["value"]
    assert best["ci95"][0] <= best["value"] <= best["ci95"][1]


def test_published_figures():
    """The best of several is better than one sample, beyond chance."""
    for path in (ROOT / "results").glob("best_of_n*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert (
            found["command"].startswith("python scripts/generate.py ") and f" results/{path.name}" in found["command"]
        )
        gain = found["scores"]["difference"]
        assert gain["coverage"]["ci95"][0] > 0 > gain["hallucination"]["ci95"][1]
    assert json.loads((ROOT / "results/best_of_n.json").read_text())["rows"] == len(read_json_lines(DEV))


def broken_model(folder: Path) -> Path:
    """A folder in which every file is whole, and none says anything."""
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    head = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    return folder


def test_errors_are_one_line(relay, tmp_path):
    def file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    good = file("good.csv", "类型,颜色\n裙,白色\n")
    for path, words in (
        (tmp_path / "none.csv", "none.csv cannot be read"),
        (file("a.xls", "x"), "a .csv, .xlsx or .jsonl file"),
        (file("a.csv", b"\xff\xfe\x00"), "neither UTF-8 nor GB18030"),
        (file("b.csv", "类型,颜色\n"), "holds no products"),
        (file("c.csv", '类型,颜色\n裙,白色\n裙,"白色\n裙,黑色\n'), "a quotation mark missing"),
        (file("d.csv", "类型#裙*颜色#白色\n类型#裙*颜色#黑色\n"), "first line is a product"),
        (file("e.csv", "SKU,价格\n1,2\n"), "none of the columns SKU, 价格"),
        (file("f.csv", "类型,ad\n裙,x\n"), "has a column ad"),
        (file("g.xlsx", "PK"), "Excel workbook"),
        (file("h.jsonl", '{"类型": "裙"}\n{"类'), "line 2: not JSON"),
        (file("i.jsonl", '{"类型": "裙"}\n[]'), "line 2: a JSON object"),
    ):
        assert words in one_error(path, tmp_path / "out.csv", "--server", relay.url), path
    for output, words in (
        (good, "is INPUT"),
        (tmp_path / "x.xlsx", "OUTPUT is a"),
        (good / "x.csv", "cannot be written"),
    ):
        assert words in one_error(good, output, "--server", relay.url)
    out = tmp_path / "out.csv"
    assert "no column 材质" in one_error(good, out, "--columns", "材质", "--server", relay.url)
    assert "is no base URL" in one_error(good, out, "--server", "nowhere")
    assert "no OpenAI-compatible server answers" in one_error(good, out, "--server", f"http://127.0.0.1:{free_port()}")
    assert "API_KEY" in one_error(good, out, "--server", relay.url, key="of-someone-else")
    assert 'no key "temperatur"' in one_error(good, out, "--server", relay.url, "temperatur=1")
    base = f"model_name_or_path={broken_model(tmp_path)}"
    assert "no adapter in nowhere" in one_error(good, out, "adapter_name_or_path=nowhere", base)
    # What only LLaMA-Factory finds out.
    assert "did not start" in one_error(good, out, "adapter_name_or_path=null", base)
    assert not relay.asked and not list(tmp_path.glob("out.csv*"))
