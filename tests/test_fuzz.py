"""Bad input by the thousand: no traceback, no row lost silently, nothing written elsewhere, memory bounded.

Hypothesis makes inputs for the programs' own functions, the same ones each time; a corpus of hand-made bad files goes
through the programs themselves. FUZZ=<inputs for each property> tries as many new ones, adds the heavy files of the
corpus, and notes what was tried in results/fuzz.json:

  FUZZ=3000 .venv/bin/python -m pytest tests/test_fuzz.py --hypothesis-seed=1
"""

import asyncio
import base64
import bz2
import csv
import gzip
import io
import json
import lzma
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections import Counter, defaultdict
from contextlib import redirect_stdout, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import catalogue
import chat_server
import generate
import pictures
import prepare_data
import pytest
import report
import scores
from adgen import ROOT, installed_versions, parse_attributes, printable, read_json_lines, whole_file
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

SOAK = "FUZZ" in os.environ
EXAMPLES = int(os.environ.get("FUZZ", 40))
settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not SOAK,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("fuzz")
# Runs of a whole report take half a second, and pictures more.
FEW = settings(max_examples=max(4, EXAMPLES // 20))

# Target → inputs, those refused with one line, and the largest peak of memory of a program.
tried = defaultdict(Counter)


@pytest.fixture(scope="module", autouse=True)
def results(request):
    """Writes results/fuzz.json after a soak."""
    start, failed = time.monotonic(), request.session.testsfailed
    yield
    if SOAK:
        found = {
            "command": f"FUZZ={EXAMPLES} python -m pytest tests/test_fuzz.py",
            "seed": request.config.getoption("--hypothesis-seed"),
            "seconds": round(time.monotonic() - start),
            "inputs": sum(counts["inputs"] for counts in tried.values()),
            "failures": request.session.testsfailed - failed,
            "targets": tried,
            "versions": {"python": sys.version.split()[0], **installed_versions(["hypothesis", "numpy"])},
        }
        with whole_file(ROOT / "results/fuzz.json") as file:
            json.dump(found, file, ensure_ascii=False, indent=1)
            file.write("\n")


def is_one_line(message: object) -> bool:
    """Whether this is an error for people: one line of bounded length, which does nothing to a terminal."""
    if not isinstance(message, str) or not message.startswith("error: ") or len(message) > 1600:
        return False
    return len(message.splitlines()) == 1 and "\x1b" not in message


def attempt(target: str, function, *arguments):
    """What a program's function gives; None where it ended the program with one clear line."""
    tried[target]["inputs"] += 1
    try:
        return function(*arguments)
    except SystemExit as end:
        assert is_one_line(end.code), end.code
        tried[target]["refused"] += 1
        return None


def run_main(module, *words) -> str:
    """The whole program, in this process; gives what it printed."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = [module.__file__, *map(str, words)]
    try:
        with redirect_stdout(printed):
            module.main()
    finally:
        sys.argv = before
    return printed.getvalue()


# --- what is generated ---

# Lone surrogates among them.
texts = st.text(st.characters(exclude_categories=[]), max_size=30)
words = st.sampled_from(
    ["类型", "颜色", "裙", "白色", "雪纺", "𠮷", " ", "#", "*", "＃", "＊", "<UNK>", "。", "！", "\u3000"]
)
attributes = st.lists(words | st.text(max_size=3), max_size=12).map("".join)
pairs = st.tuples(st.sampled_from(["类型", "颜色", "材质"]), st.sampled_from(["裙", "白色", "雪纺", "碎花"]))
plain_rows = st.tuples(
    st.lists(pairs.map("#".join), min_size=1).map("*".join),
    st.lists(st.sampled_from(["白色的裙", "很好看", "<UNK>", "。", "！"]), min_size=1, max_size=6).map("".join),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | attributes,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(texts, values, max_size=3),
    max_leaves=6,
)
columns = st.sampled_from([("content", "summary"), ("prompt", "response"), ("instruction", "output")])


@st.composite
def row_objects(draw):
    """A row that is good, or nearly."""
    names = draw(columns)
    row = dict(zip(names, draw(plain_rows | st.tuples(attributes | json_values, texts | json_values)), strict=True))
    return row | draw(st.dictionaries(st.sampled_from(["input", "id", *names]), json_values, max_size=2))


def is_row(line: bytes) -> bool:
    """Whether a line is blank in no encoding."""
    return any(33 <= byte < 127 for byte in line)


@st.composite
def raw_lines(draw):
    """A line of a file, in some encoding, whole or cut off."""
    if draw(st.integers(0, 5)) == 0:
        line = draw(
            st.binary(max_size=40) | st.sampled_from([b"", b"   ", b"\r", b"[" * 3000, b'{"content": 1}', b"nul"])
        )
    else:
        value = draw(row_objects() | json_values)
        text = json.dumps(value, ensure_ascii=draw(st.booleans()))
        encoding = draw(st.sampled_from(["utf-8"] * 4 + ["gb18030", "utf-16", "latin-1"]))
        line = text.encode(encoding, "surrogatepass" if encoding == "utf-8" else "replace")
        line = line[: draw(st.none() | st.integers(0, len(line)))]
    line = line.replace(b"\n", b" ") + draw(st.sampled_from([b"", b"", b"\r"]))
    # White space of other encodings is a row in some and none in others.
    return line if is_row(line) else b""


@st.composite
def raw_files(draw):
    """A file as bytes and how many rows it has."""
    if draw(st.integers(0, 4)) == 0:
        values = draw(st.lists(row_objects() | json_values, max_size=8))
        text = json.dumps(values, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
        return text.encode("utf-8", "surrogatepass"), len(values)
    lines = draw(st.lists(raw_lines(), max_size=8))
    content, summary = draw(plain_rows)
    lines.insert(draw(st.integers(0, len(lines))), json.dumps({"content": content, "summary": summary}).encode())
    data = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + b"\n".join(lines)
    # What starts like an array is read as one.
    assume(data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[")
    return data, sum(map(is_row, lines))


@st.composite
def mutated(draw, data: bytes):
    """The bytes with some of them changed, left out, repeated or cut off."""
    for _ in range(draw(st.integers(0, 4))):
        place, size = draw(st.integers(0, len(data))), draw(st.integers(0, 16))
        put = draw(
            st.binary(max_size=8) | st.sampled_from([b"\0" * 8, b"\xff" * 8, b"77777777777", data[place : place + 64]])
        )
        data = data[:place] + put + data[place + size :]
    return data[: draw(st.none() | st.integers(0, len(data)))]


# --- data preparation ---


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def prepare_in(folder: Path, raw: Path, *flags) -> dict | None:
    """The card of a preparation, None if it was refused; in either case no other file than the output was touched."""
    out, before = folder / "out", snapshot(folder)
    if attempt("data preparation", run_main, prepare_data, raw, "--out", out, *flags) is None:
        assert snapshot(folder) == before
        return None
    names = {f"adgen_{name}" for name in ("train.jsonl", "val.jsonl", "dev.jsonl", "rejected.jsonl", "card.json")}
    after = snapshot(folder)
    assert {path: data for path, data in after.items() if path.parent != out} == before
    assert {path.name for path in after if path.parent == out} <= names
    return json.loads((out / "adgen_card.json").read_text(encoding="utf-8"))


@given(raw_files(), st.none() | raw_files(), st.sampled_from(["drop", "cut", "keep"]), st.booleans(), st.booleans())
def test_preparation_accounts_for_every_row(train, dev, unk, duplicates, plain):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw"
        raw.mkdir()
        files = {"train": train, "dev": dev} if dev else {"train": train}
        for split, (data, _) in files.items():
            (raw / f"{split}.json").write_bytes(data)
        choice = ("drop", "keep")
        card = prepare_in(folder, raw, "--unk", unk, "--duplicates", choice[duplicates], "--plain", choice[plain])
        if card is None:
            return
        rows = {}
        for split in ("train", "val", "dev", "rejected"):
            path = folder / f"out/adgen_{split}.jsonl"
            rows[split] = read_json_lines(path) if path.exists() else []
        left_out = Counter((row["file"], row["status"]) for row in rows["rejected"])
        assert len({(row["file"], row["line"]) for row in rows["rejected"]}) == len(rows["rejected"])
        for split, (data, count) in files.items():
            counts = card["input"][split]
            assert counts["read"] == count
            assert count == sum(counts[status] for status in ("kept", "repaired", "dropped", "rejected"))
            written = rows["dev"] if split == "dev" else rows["train"] + rows["val"]
            assert len(written) == counts["kept"] + counts["repaired"]
            for status in ("dropped", "rejected"):
                assert left_out[f"{split}.json", status] == counts[status]
            if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
                for row in (row for row in rows["rejected"] if row["file"] == f"{split}.json"):
                    found = base64.b64decode(row["base64"]) if "base64" in row else row["text"].encode()
                    line = lines[row["line"] - 1]
                    assert found in (line, line.removesuffix(b"\r"), gb18030_as_utf8(line))


def gb18030_as_utf8(line: bytes) -> bytes:
    return line.decode("gb18030", "replace").removesuffix("\r").encode("utf-8", "surrogatepass")


@given(st.binary(max_size=300) | raw_files().flatmap(lambda file: mutated(file[0])))
@example(b"[" * 100_000)
@example(b"[" * 990 + b"]" * 990)
@example(b"[" + b"9" * 5000 + b"]")
def test_any_bytes_are_rows_or_refused(data):
    rows = attempt("reading of rows", lambda: list(prepare_data.read_rows("a file", data)))
    for row in rows or []:
        assert row.problem or (row.content.strip() and row.summary.strip())
        (row.content + row.summary).encode()


@given(attributes | texts)
def test_tidied_attributes_are_the_same_attributes(text):
    tried["attribute strings"]["inputs"] += 1
    tidied = prepare_data.tidy(text)
    wide = text.replace("＃", "#").replace("＊", "*")
    assert prepare_data.tidy(tidied) == tidied and parse_attributes(tidied) == parse_attributes(wide)
    assert "<UNK>" not in prepare_data.cut_unk(text)


def lines_of(pairs) -> bytes:
    return b"".join(json.dumps({"content": c, "summary": s}, ensure_ascii=False).encode() + b"\n" for c, s in pairs)


GOOD = [(f"类型#裙*颜色#白色*编号#{number}", f"白色的裙，第{number}款。") for number in range(30)]


def tar_of(members: dict[str, bytes], mode="w", **header) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in header.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zip_of(members: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return file.getvalue()


MEMBERS = {"AdvertiseGen/train.json": lines_of(GOOD), "AdvertiseGen/dev.json": lines_of(GOOD[:2])}
ARCHIVES = [
    tar_of(MEMBERS),
    tar_of(MEMBERS, "w:gz"),
    tar_of(MEMBERS, "w:xz"),
    tar_of(MEMBERS, pax_headers={"comment": "公开" * 40}),
    zip_of(MEMBERS),
    zip_of({f"数据/{name}": data for name, data in MEMBERS.items()}, zipfile.ZIP_STORED),
]


@given(st.sampled_from(ARCHIVES).flatmap(mutated))
def test_archives_changed_anywhere(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archive").write_bytes(data)
        card = prepare_in(folder, folder / "archive")
        assert card is None or card["input"]["train"]["read"] > 0


# --- catalogues ---

KEYS = {"类型", "颜色", "材质"}
cells = (
    st.sampled_from(["", " ", "裙", "白色、红色", "-", "无", "类型#裙*颜色#白色", '"', "a,b", "1e999", "=1+1"]) | texts
)


@given(
    st.lists(st.lists(cells, min_size=3, max_size=4), max_size=6),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "gb18030"]),
    st.sampled_from([".csv", ".jsonl"]),
)
def test_tables_hand_on_every_cell(rows, separator, encoding, suffix):
    header = ["货号", "类型", "颜色"]
    rows = [[cell.encode(encoding, "replace").decode(encoding) for cell in row] for row in rows]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator).writerows([header, *rows])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "in.csv")
        path.write_bytes(file.getvalue().encode(encoding))
        table = attempt("catalogues", catalogue.read_catalogue, path, KEYS, [])
        while rows and not any(cell.strip() for cell in rows[-1]):
            rows.pop()
        if table is None:
            return
        assert [[catalogue.text(cell) for cell in row][: len(row)] for row in rows] == [
            list(row[: len(own)]) for row, own in zip(table.rows, rows, strict=True)
        ]
        assert all(
            bool(product) != bool(problem) for product, problem in zip(table.products, table.problems, strict=True)
        )
        check_written(Path(name, f"out{suffix}"), table)


def check_written(path: Path, table: catalogue.Catalogue) -> None:
    """The table is the same when written and read again."""
    generate.write_table(path, table.header, table.rows)
    # Lone surrogates are written as question marks, in whatever they are nested.
    rows = json.loads(printable(json.dumps(table.rows, ensure_ascii=False))) if path.suffix == ".jsonl" else table.rows
    expected = [[catalogue.text(cell) for cell in row] for row in rows]
    if path.suffix == ".jsonl":
        found = [list(map(catalogue.text, row.values())) for row in read_json_lines(path)]
    else:
        found = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))[1:]
    assert found == expected


@given(
    st.lists(st.dictionaries(st.sampled_from(["类型", "颜色", "id"]) | texts, json_values | attributes), max_size=5),
    st.booleans(),
    st.sampled_from([".csv", ".jsonl"]),
)
def test_objects_hand_on_every_row(rows, escaped, suffix):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "in.jsonl")
        data = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
        path.write_bytes(data.encode("utf-8", "surrogatepass"))
        table = attempt("catalogues", catalogue.read_catalogue, path, KEYS, [])
        if table is not None:
            assert len(table.rows) <= len(rows) and not any(
                catalogue.text(cell).strip() for row in rows[len(table.rows) :] for cell in row.values()
            )
            check_written(Path(name, f"out{suffix}"), table)


@given(st.binary(max_size=300), st.sampled_from([".csv", ".jsonl", ".xlsx"]), st.lists(texts, max_size=2))
def test_any_bytes_are_a_catalogue_or_refused(data, suffix, chosen):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, f"in{suffix}")
        path.write_bytes(data)
        attempt("catalogues", catalogue.read_catalogue, path, KEYS, chosen)


SPACE = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
BOOK = f'<workbook {SPACE} xmlns:r="{RELATIONS}"><sheets><sheet name="a" r:id="r1"/></sheets></workbook>'
BOOK_LINKS = '<Relationships><Relationship Id="r1" Target="worksheets/sheet1.xml"/></Relationships>'


def workbook(sheet: str, strings: str = "<sst><si><t>类型</t></si></sst>") -> bytes:
    parts = {"workbook.xml": BOOK, "_rels/workbook.xml.rels": BOOK_LINKS, "sharedStrings.xml": strings}
    parts["worksheets/sheet1.xml"] = f"<worksheet {SPACE}><sheetData>{sheet}</sheetData></worksheet>"
    return zip_of({f"xl/{name}": part.encode("utf-8", "replace") for name, part in parts.items()})


SHEET = (
    '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="inlineStr"><is><t>颜色</t></is></c></row>'
    '<row r="2"><c r="A2" t="inlineStr"><is><t>裙</t></is></c><c r="B2" t="str"><v>白色</v></c></row>'
)


@st.composite
def sheets(draw):
    """The XML of a sheet's rows, with numbers, kinds and places that are often wrong."""
    odd = st.sampled_from(
        ["", "0", "-1", "1", "2", "3", "99999999999", "1048577", "1e9", "٣", "x", "1.5", "nan", "inf"]
    )
    places = st.sampled_from(["A1", "B2", "C3", "ZZZZZZZ1", "XFE1", "a1", "一1", "1", "", "A", "B1048576"])
    kinds = st.sampled_from(["", ' t="s"', ' t="inlineStr"', ' t="str"', ' t="b"', ' t="e"', ' t="?"'])
    text = ""
    for _ in range(draw(st.integers(0, 4))):
        row = draw(st.none() | odd)
        text += "<row>" if row is None else f'<row r="{row}">'
        for _ in range(draw(st.integers(0, 4))):
            value = draw(odd | st.sampled_from(["类型", "颜色", "裙"]))
            inner = draw(st.sampled_from([f"<v>{value}</v>", f"<is><t>{value}</t></is>", "<v/>", ""]))
            place = draw(st.none() | places)
            text += "<c" + ("" if place is None else f' r="{place}"') + f"{draw(kinds)}>{inner}</c>"
        text += "</row>"
    return draw(st.sampled_from(["", SHEET])) + text


@given(
    sheets().map(workbook)
    | mutated(workbook(SHEET))
    | mutated(SHEET.encode()).map(lambda xml: workbook(xml.decode("utf-8", "replace")))
)
def test_workbooks_changed_anywhere(data):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "in.xlsx")
        path.write_bytes(data)
        table = attempt("catalogues", catalogue.read_catalogue, path, KEYS, [])
        assert table is None or len(table.rows) < 2**20


# --- generation ---


@given(st.lists(json_values | st.fixed_dictionaries({"product": json_values, "copy": json_values, "ads": json_values})))
@example([{"settings": {"n": 1}}, {"product": "类型#裙", "copy": 0, "ads": ["好。", None]}])
def test_any_journal_is_gone_on_from_or_refused(entries):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "ads.csv.journal")
        data = "".join(json.dumps(entry) + "\n" for entry in entries) + '{"torn'
        path.write_bytes(data.encode("utf-8", "surrogatepass"))
        opened = attempt("journals", generate.open_journal, path, {"n": 1})
        if opened:
            opened[0].close()
            assert all(isinstance(ad, str) for ads in opened[1].values() for ad in ads)


class Server(BaseHTTPRequestHandler):
    """Answers each request with its server's `reply`: status and body."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self.server.reply if self.command == "POST" or self.server.odd_models else MODELS
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


MODELS = (200, b'{"data": [{"id": "model"}]}')
AD = (200, '{"choices": [{"message": {"content": "白色的裙，很好看。"}}]}'.encode())


@pytest.fixture(scope="module")
def server():
    """A server of this machine that answers as it is told."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.reply, server.odd_models = AD, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


replies = st.one_of(
    st.binary(max_size=60),
    json_values.map(json.dumps).map(str.encode),
    json_values.map(lambda value: json.dumps({"choices": value, "data": value}).encode()),
    json_values.map(
        lambda value: json.dumps({"choices": [{"message": {"content": value}}], "data": [{"id": value}]}).encode()
    ),
)


@given(st.sampled_from([200, 200, 200, 201, 204, 302, 400, 404, 422]), replies)
@example(200, b"[" * 100_000)
def test_any_answer_of_a_server_is_an_ad_or_a_reason(server, status, body):
    server.reply, server.odd_models = (status, b"" if status == 204 else body), True
    found = {}
    try:
        model = attempt("server answers", chat_server.find_model, server.url)
        assert model is None or isinstance(model, str)
        write = chat_server.write_ads(
            server.url, {"messages": []}, {("类型#裙", 0): 1}, 1, lambda key, ads: found.update({key: ads})
        )
        with suppress(chat_server.Stopped):
            reasons = asyncio.run(write)
            assert bool(found) != bool(reasons)
    finally:
        server.reply, server.odd_models = AD, False
    assert all(isinstance(ad, str) and ad for ads in found.values() for ad in ads)


# --- scores and reports ---

# How a file may end: seldom torn.
ends = st.sampled_from([b""] * 9) | st.binary(max_size=6)
any_texts = st.text(max_size=40) | st.lists(words, max_size=20).map("".join)


@given(st.lists(st.tuples(attributes, any_texts, any_texts), min_size=1, max_size=4))
def test_scores_of_any_texts_are_numbers_within_bounds(rows):
    tried["scoring"]["inputs"] += 1
    contents, ads, references = map(list, zip(*rows, strict=True))
    overlaps = [scores.overlap_scores(pair) for pair in zip(ads, references, strict=True)]
    assert all(0 <= score <= 100 + 1e-6 for row in overlaps for score in row)
    values = scores.vocabulary(contents)
    copies = scores.find_copies(ads, references)
    columns = scores.row_ratios(contents, ads, references, overlaps, overlaps, values, copies)
    for (score, _), column in columns.items():
        value = float(scores.ratio(column.sum(0)))
        assert math.isfinite(value)
        assert score in (*scores.OVERLAP, "length") or 0 <= value <= 1
    for value, samples in (scores.corpus_bleu(ads, references, scores.weights(len(ads))[:5]), scores.distinct(ads)):
        assert math.isfinite(value) and all(map(math.isfinite, samples))


DATA = report.Rows([content for content, _ in GOOD[:3]], [ad for _, ad in GOOD[:3]])
good_predictions = st.fixed_dictionaries({"predict": texts | any_texts}, optional={"extra": json_values})
odd_predictions = json_values | st.fixed_dictionaries(
    {"predict": any_texts | json_values},
    optional={
        "label": st.sampled_from(DATA.references) | json_values,
        "prompt": st.sampled_from(DATA.contents) | texts,
    },
)


@given(st.lists(good_predictions, max_size=3), st.lists(odd_predictions, max_size=1), st.booleans(), ends)
@example([{"predict": "好" * 10**6}], [], False, b"")
@example([{"predict": "好", "label": "白" * 10**6}], [], False, b"")
def test_any_predictions_are_read_or_refused(good, odd, escaped, end):
    rows = good + odd
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "generated_predictions.jsonl")
        data = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
        path.write_bytes(data.encode("utf-8", "surrogatepass") + end)
        found = attempt("predictions", report.read_predictions, path, DATA, path)
        assert found is None or len(found.texts) == len(found.labels) == len(rows) + bool(end.strip())
        "".join(found.texts if found else []).encode()


steps = st.integers(0, 10**4) | st.integers() | json_values
losses = st.floats(0, 20) | st.floats() | json_values
log_rows = st.fixed_dictionaries({"current_steps": steps, "loss": losses}, optional={"eval_loss": losses})


@given(st.lists(log_rows | json_values.map(lambda value: {"loss": value}), max_size=5), ends)
def test_any_training_log_is_read_or_refused(rows, end):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "trainer_log.jsonl")
        path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + end)
        attempt("training logs", pictures.read_losses, path)


yaml_parts = [
    "a",
    "temperature",
    ": ",
    "\n",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "*a",
    "&a ",
    "!!int ",
    "2024-13-45",
    "._",
    '"',
    "|",
]
yaml_values = st.sampled_from(yaml_parts) | st.text(max_size=3) | json_values.map(json.dumps)
yaml_lines = st.tuples(st.sampled_from(report.DECODING) | st.text(max_size=3), yaml_values).map(": ".join)
yaml_texts = st.lists(yaml_lines, max_size=3).map("\n".join) | st.lists(yaml_values).map("".join)


@given(yaml_texts, st.lists(yaml_lines.map(lambda line: line.replace(": ", "=", 1)), max_size=2))
@example("[" * 5000, [])
@example("temperature: 2024-13-45", [])
def test_any_recipe_is_read_or_refused(text, overrides):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "predict.yaml")
        path.write_bytes(text.encode("utf-8", "replace"))
        found = attempt("recipes of reports", report.read_decoding, [str(path), *overrides])
        json.dumps(found, default=str)


@FEW
@given(
    st.lists(st.tuples(attributes, any_texts).filter(lambda row: row[0].strip() and row[1].strip()), max_size=3),
    st.lists(any_texts, min_size=3, max_size=5),
    st.sampled_from(["temperature: .nan", "temperature: 2024-01-01", "do_sample: ''"]),
    st.lists(st.tuples(st.integers(), st.floats() | st.integers()), max_size=3),
)
def test_reports_of_any_rows_are_whole(rows, ads, recipe, losses):
    # To a picture, this would be a formula.
    rows = [*GOOD[:2], ("$\\x$#^{", "一个公式。"), *rows]
    ads = ads[: len(rows)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data.json").write_bytes(lines_of(rows))
        (folder / "train.json").write_bytes(lines_of(rows[::-1]))
        (folder / "recipe.yaml").write_text(recipe)
        log = [{"current_steps": 1, "loss": 1.0}, *({"current_steps": step, "loss": loss} for step, loss in losses)]
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        predictions = [{"predict": ad, "label": row[1]} for ad, row in zip(ads, rows, strict=False)]
        (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in predictions))
        words = [f"$x^{{={folder / 'p.jsonl'}", "--data", folder / "data.json", "--train", folder / "train.json"]
        words += ["--decoding", folder / "recipe.yaml", "--trainer-log", folder / "log.jsonl", "--out", folder / "out"]
        if attempt("reports", run_main, report, *words) is None:
            assert not (folder / "out").exists()
            return
        found = json.loads((folder / "out/eval_results.json").read_text(encoding="utf-8"))
        assert found["rows"] == {"$x^{": len(predictions)} and found["split"]["rows"] == len(rows)
        names = {"eval_results.json", "eval.png", "examples.md", "train_loss.png"}
        assert {path.name for path in (folder / "out").iterdir()} == names


# --- the corpus, through the programs ---

MIB = 2**20
BLOCK = 16 * MIB
# Memory that a program may take at its peak: of the small files, and of those that unpack to half a gibibyte.
SMALL, LARGE = 200 * MIB, 2500 * MIB


# What goes wrong must not take the machine with it; the peak is the program's own, which wait4's is not after a fork.
LAUNCHER = """
import atexit, pathlib, re, resource, runpy, sys

def note(path=sys.argv[1]):
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
    pathlib.Path(path).write_text(peak)

atexit.register(note)
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
del sys.argv[:2]
sys.path[0] = str(pathlib.Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_program(target: str, folder: Path, *words, peak=SMALL, **variables) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a program; no traceback, and no more memory than `peak` bytes."""
    tried[target]["inputs"] += 1
    with tempfile.NamedTemporaryFile("r") as noted:
        result = subprocess.run(
            [sys.executable, "-c", LAUNCHER, noted.name, ROOT / "scripts" / words[0], *words[1:]],
            cwd=folder,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
        )
        used = int(noted.read()) * 1024
    printed, errors = result.stdout.decode(), result.stderr.decode()
    assert "Traceback" not in errors and result.returncode in (0, 1), errors[-3000:]
    if result.returncode:
        tried[target]["refused"] += 1
        assert is_one_line(errors.removesuffix("\n").split("\n")[-1]), errors[-3000:]
    tried[target]["peak_mib"] = max(tried[target]["peak_mib"], used // MIB)
    assert used < peak, f"{used / MIB:.0f} MiB"
    return result.returncode, printed, errors


def bomb(block: bytes, size: int, pack=gzip.compress, name="train.json", kind=tarfile.REGTYPE, start=b"") -> bytes:
    """A packed tar archive with one member of `start` and `block`s; streams of all three packers may be joined."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block *= BLOCK // len(block)
    return pack(info.tobuf() + start) + pack(block) * (size // len(block) + 1)


def zip_bomb(block: bytes, size: int, name="train.json", others=()) -> bytes:
    """A zip archive with one member of `size` bytes or a little more."""
    file, block = io.BytesIO(), block * (BLOCK // len(block))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for other, data in others:
            zipped.writestr(other, data)
        with zipped.open(name, "w") as member:
            for _ in range(size // len(block) + 1):
                member.write(block)
    return file.getvalue()


def patched_zip(place: int, value: int) -> bytes:
    """A zip archive with a byte of both headers of its member changed; `place` is that of the local header."""
    data = bytearray(zip_of({"train.json": lines_of(GOOD)}))
    data[place] = data[data.index(b"PK\x01\x02") + place + 2] = value
    return bytes(data)


csv.field_size_limit(2**30)
MANY = "*".join(f"键{number}#值{number}" for number in range(10**6))
# Name → the bytes of a train.json beside good rows, and how many rows these are.
BAD_ROWS = {
    "lone surrogates": (rb'{"content": "\ud800#\udfff", "summary": "\udc00"}' + b"\n", 1),
    "surrogates in UTF-8": ('{"content": "类型#\ud800", "summary": "x"}\n'.encode("utf-8", "surrogatepass"), 1),
    "three encodings": ("类型\n".encode("gb18030") + "类型\n".encode() + "类型".encode("utf-16-le") + b"\n", 3),
    "nulls": (b'null\n{"content": null, "summary": null}\n{}\n{"content": "a#b", "summary": null}\n', 4),
    "numbers": (b'{"content": 1, "summary": 2.5}\n1e999\n-0\n' + b"9" * 5000 + b"\n", 4),
    "NUL bytes": (b"\0\n" + b'{"content": "a#b\0", "summary": "\0"}\n', 2),
    "deep arrays": ((b"[" * 10**6 + b"\n") * 2, 2),
    "deep objects": (b'{"content":' * 10**5 + b"1" + b"}" * 10**5 + b"\n", 1),
    "a giant line": (b'{"content": "a#b", "summary": "' + b"x" * 16 * MIB + b'"}\n', 1),
    "a giant line of nothing": (b" " * 16 * MIB + b"x\n", 1),
    "a million attributes": (json.dumps({"content": MANY, "summary": "x"}, ensure_ascii=False).encode() + b"\n", 1),
    "a million blank lines": (b"\n" * 10**6, 0),
    "many tiny rows": (b"{}\n" * 50_000, 50_000),
    "old Mac lines": (b'{"content": "a#b", "summary": "c"}\r' * 9 + b"\n", 1),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_among_good_ones(tmp_path, name):
    data, count = BAD_ROWS[name]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/train.json").write_bytes(lines_of(GOOD[:15]) + data + lines_of(GOOD[15:]))
    before = set(tmp_path.rglob("*"))
    peak = SMALL + 4 * len(data)
    code, _, errors = run_program("data preparation", tmp_path, "prepare_data.py", "raw", "--out", "out", peak=peak)
    assert code == 0, errors
    assert {path for path in tmp_path.rglob("*") if (tmp_path / "out") not in (path, path.parent)} == before
    counts = json.loads((tmp_path / "out/adgen_card.json").read_text())["input"]["train"]
    assert counts["read"] == count + len(GOOD) == counts["kept"] + counts["repaired"] + counts["rejected"]
    assert counts["kept"] >= len(GOOD)
    assert len(read_json_lines(tmp_path / "out/adgen_rejected.jsonl")) == counts["rejected"]


LINKS = {
    name: {"type": kind, "linkname": "/etc/passwd"}
    for name, kind in {"symbolic": b"2", "hard": b"1", "pipe": b"6", "device": b"3"}.items()
}
NEGATIVE = tarfile.TarInfo("dev.json")
NEGATIVE.size = -1024
TRAIN = lines_of(GOOD)
# Name → what makes the file, and a word of the error; no word: it is read.
BAD_ARCHIVES = {
    "absolute path": (lambda: tar_of({"/train.json": TRAIN}), ""),
    "parent path": (lambda: tar_of({"../../../../tmp/train.json": TRAIN}, "w:gz"), ""),
    "absolute path in zip": (lambda: zip_of({"/train.json": TRAIN}), ""),
    "parent path in zip": (lambda: zip_of({"../../train.json": TRAIN}), ""),
    "name that is no Unicode": (lambda: tar_of({"\udcff\udcfe/train.json": TRAIN}), ""),
    "name with control characters": (lambda: tar_of({"a\n\x1b[2J/train.json": TRAIN}), ""),
    **{f"{name} link": (partial(tar_of, {"train.json": b""}, **header), "no train") for name, header in LINKS.items()},
    "folder": (lambda: tar_of({"train.json": b""}, type=tarfile.DIRTYPE), "no train.json"),
    "two of a split": (lambda: tar_of({"a/train.json": TRAIN, "b\n/train.json": TRAIN}), "two train files"),
    "no archive within": (lambda: gzip.compress(TRAIN), "cannot be read"),
    "empty archive": (lambda: tar_of({}), "no AdGen row"),
    "negative size": (lambda: NEGATIVE.tobuf(tarfile.GNU_FORMAT) + bytes(1024), "cannot be read"),
    "too many members": (lambda: tar_of({f"{n}": b"" for n in range(10_001)}, "w:gz"), "cannot be read"),
    "encrypted zip": (lambda: patched_zip(6, 1), "encrypted"),
    "unknown compression": (lambda: patched_zip(8, 99), "compression"),
    "wrong checksum": (lambda: patched_zip(14, 0), "CRC"),
    "smaller than it says": (lambda: patched_zip(22, 9), "cannot be read"),
    "gz bomb": (lambda: bomb(b" ", 513 * MIB), "512 MiB"),
    "gz bomb of empty rows": (lambda: bomb(b"{}\n", 400 * MIB), "values"),
    "gz bomb of lists": (lambda: bomb(b"[],", 300 * MIB, start=b"["), "values"),
}
HEAVY_ARCHIVES = {
    "zip bomb of blank lines": (lambda: zip_bomb(b"\n", 300 * MIB), "values"),
    "gz bomb in a header": (lambda: bomb(b"a", 2000 * MIB, kind=tarfile.XHDTYPE), "512 MiB"),
    "gz bomb beside": (lambda: bomb(b"a", 2000 * MIB, name="other"), "512 MiB"),
    "bz2 bomb": (lambda: bomb(b" ", 513 * MIB, pack=bz2.compress), "512 MiB"),
    "xz bomb": (lambda: bomb(b" ", 513 * MIB, pack=lzma.compress), "512 MiB"),
    "zip bomb": (lambda: zip_bomb(b" ", 513 * MIB), "512 MiB"),
    "zip bomb of one row": (lambda: zip_bomb(b"x", 500 * MIB), "rejected"),
    "gz bomb of one row": (lambda: bomb("𠮷".encode(), 400 * MIB), "rejected"),
    "gz bomb of short lines": (lambda: bomb(b"x" * 63 + b"\n", 400 * MIB), "rejected"),
}
ALL_ARCHIVES = BAD_ARCHIVES | (HEAVY_ARCHIVES if SOAK else {})


@pytest.mark.parametrize("name", ALL_ARCHIVES)
def test_bad_archives(tmp_path, name):
    build, expected = ALL_ARCHIVES[name]
    inner = tmp_path / "a/b/c/d/e"
    inner.mkdir(parents=True)
    (inner / "archive").write_bytes(build())
    before = set(tmp_path.rglob("*"))
    peak = LARGE if "bomb" in name else SMALL
    code, _, errors = run_program("archives", inner, "prepare_data.py", "archive", "--out", "out", peak=peak)
    assert bool(code) == bool(expected) and expected in errors, errors
    assert {path for path in tmp_path.rglob("*") if (inner / "out") not in (path, path.parent)} == before
    assert (inner / "out").exists() != bool(code)


def test_file_names_that_are_no_text(tmp_path, server):
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\n\x1b[2J"))
    odd.mkdir()
    (odd / "train.json").write_bytes(TRAIN)
    (odd / "products.csv").write_text("id,类型,颜色\n1,裙,白色\n")
    write_predictions(odd / "p.jsonl", [ad for _, ad in GOOD])
    words = ["--server", server.url, "--recipe", ROOT / "configs/tiny/chat.yaml", "--n", "1"]
    for encoding in ("utf-8", "ascii") if SOAK else ("ascii",):
        run = partial(run_program, "file names", tmp_path, peak=2 * SMALL, PYTHONIOENCODING=encoding)
        assert run("prepare_data.py", odd, "--out", odd / "out")[0] == 0
        assert run("generate.py", odd / "products.csv", odd / "ads.csv", *words)[0] == 0
        assert run("report.py", odd / "p.jsonl", "--data", odd / "train.json", "--out", odd / "out")[0] == 0
        for name in ("nowhere", "products.csv"):
            assert run("prepare_data.py", odd / name, "--out", odd / "out")[0] == 1
            assert run("generate.py", odd / name / "x.csv", odd / "y.csv", *words)[0] == 1
            assert run("report.py", odd / name, "--data", odd / "train.json")[0] == 1
    (odd / "file").write_text("")
    assert run("prepare_data.py", odd, "--out", odd / "file")[0] == 1


def write_predictions(path: Path, ads: list) -> None:
    rows = ({"predict": ad, "label": label} for ad, (_, label) in zip(ads, GOOD, strict=False))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# Name → the bytes of a predictions file or of its data, and a word of the error.
BAD_PREDICTIONS = {
    "a giant ad": (json.dumps({"predict": "白" * 2 * 10**6}).encode(), "characters"),
    "a long ad": (json.dumps({"predict": "白色的裙，" * 4_000}).encode(), ""),
    "a giant label": (json.dumps({"predict": "好", "label": "白" * 10**7}).encode(), "label"),
    "deep arrays": (b"[" * 10**6, "not JSON"),
    "null": (b"null", "object"),
    "null ad": (b'{"predict": null}', "predict"),
    "number": (b'{"predict": 1}', "predict"),
    "GB18030": ('{"predict": "白色的裙"}'.encode("gb18030"), "UTF-8"),
    "NUL bytes": (b"\0" * 1000, "not JSON"),
    "a million blank lines": (b"\n" * 10**6, "empty"),
    "a lone surrogate": (rb'{"predict": "\ud800"}', ""),
}
BAD_DATA = {
    "many attributes": ("*".join(f"k{n}#v" for n in range(90_000)), "裙。", "attribute keys"),
    "more than a mebibyte": (MANY, "裙。", "mebibyte"),
    "a giant reference": ("类型#裙", "白" * 10**5, "characters"),
    "a lone surrogate": ("类型#\ud800", "裙。", "Unicode"),
    "null": (None, "裙。", "not text"),
    "a thousand attributes of one key": ("*".join(f"颜色#白{n}" for n in range(1_000)), "裙。", ""),
}


@pytest.mark.parametrize("name", BAD_PREDICTIONS)
def test_bad_predictions(tmp_path, name):
    data, expected = BAD_PREDICTIONS[name]
    (tmp_path / "p.jsonl").write_bytes(data)
    (tmp_path / "data.json").write_bytes(TRAIN)
    words = ["tuned=p.jsonl", "--data", "data.json", "--out", "out"]
    code, _, errors = run_program("reports", tmp_path, "report.py", *words, peak=3 * SMALL)
    assert bool(code) == bool(expected) == (not (tmp_path / "out").exists()) and expected in errors, errors


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_references(tmp_path, name):
    content, summary, expected = BAD_DATA[name]
    (tmp_path / "data.json").write_text(json.dumps({"content": content, "summary": summary}) + "\n")
    (tmp_path / "p.jsonl").write_text('{"predict": "裙。"}\n')
    words = ["tuned=p.jsonl", "--data", "data.json", "--train", "data.json", "--out", "out"]
    code, _, errors = run_program("reports", tmp_path, "report.py", *words, peak=3 * SMALL)
    assert bool(code) == bool(expected) == (not (tmp_path / "out").exists()) and expected in errors, errors


LAUGHS = '<!DOCTYPE a [<!ENTITY a0 "haha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
WIDE = "".join(f'<row r="{number}"><c r="XFD{number}"><v>1</v></c></row>' for number in range(1, 20_000))


def product_line(content: str) -> bytes:
    return json.dumps({"attributes": content}).encode() + b"\n"


CSV = "id,类型,颜色\n1,裙,白色\n".encode()
# Name → suffix, what makes the catalogue, a word of the error; or the number of rows that OUTPUT then has.
BAD_CATALOGUES = {
    "odd cells": ("csv", lambda: 'id,类型,颜色\n,,\n1,裙,"白\n色"\n1e999,NaN,=1+1\n'.encode(), 3),
    "no text": ("csv", lambda: CSV + b"\xff\xff\xff", "neither"),
    "UTF-16": ("csv", lambda: CSV.decode().encode("utf-16"), "error"),
    "an open quotation mark": ("csv", lambda: CSV + b'"' + CSV * 9, "quotation"),
    "a giant cell": ("csv", lambda: CSV + b"x" * 16 * MIB, "field limit"),
    "a million columns": ("csv", lambda: b"," * 10**6 + b"\n" + CSV * 20, "cells"),
    "commas alone": ("csv", lambda: b"," * 16 * MIB, "values"),
    "NUL bytes": ("csv", lambda: CSV + b"\0,\0,\0\n", 2),
    "a million attributes": ("jsonl", lambda: b"".join(map(product_line, (MANY, "类型#裙"))), 2),
    "numbers, null, lists": ("jsonl", lambda: '{"类型": 1}\n{"颜色": null}\n{"类型": [1, null, ["裙"]]}'.encode(), 3),
    "lone surrogates": ("jsonl", lambda: rb'{"\ud800": "\udfff", "\udc00": "x"}', 1),
    "deep arrays": ("jsonl", lambda: b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "not JSON"),
    "deeper arrays": ("jsonl", lambda: b"[" * 10**6, "not JSON"),
    "no two keys alike": ("jsonl", lambda: b"".join(b'{"k%d": 1}\n' % n for n in range(20_000)), "cells"),
    "a wide sheet": ("xlsx", lambda: workbook(WIDE), "cells"),
    "a row beyond all": ("xlsx", lambda: workbook(SHEET + '<row r="99999999999"/>'), "99999999999"),
    "a column beyond all": ("xlsx", lambda: workbook('<row r="1"><c r="ZZZZZZZ1"/></row>'), "ZZZZZZZ1"),
    "one row twice": ("xlsx", lambda: workbook(SHEET + SHEET), "workbook"),
    "one cell twice": ("xlsx", lambda: workbook('<row r="1"><c r="A1"/><c r="A1"/></row>'), "A1"),
    "a billion laughs": ("xlsx", lambda: workbook("", LAUGHS + "]><sst><si><t>&a11;</t></si></sst>"), "workbook"),
    "a sheet that unpacks to too much": (
        "xlsx",
        lambda: zip_bomb(b"<c/>", 48 * MIB, "xl/sharedStrings.xml", [("xl/workbook.xml", BOOK)]),
        "values",
    ),
    "no workbook": ("xlsx", lambda: zip_of({"a": b""}), "workbook"),
    "an encrypted workbook": ("xlsx", lambda: b"\xd0\xcf\x11\xe0" * 200, "workbook"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CATALOGUES)
def test_bad_catalogues(tmp_path, server, name):
    suffix, build, expected = BAD_CATALOGUES[name]
    (tmp_path / f"in.{suffix}").write_bytes(build())
    words = [f"in.{suffix}", "out.csv", "--server", server.url, "--recipe", ROOT / "configs/tiny/chat.yaml", "--n", "1"]
    code, _, errors = run_program("generation", tmp_path, "generate.py", *words, peak=3 * SMALL)
    names = {path.name for path in tmp_path.iterdir()}
    if isinstance(expected, str):
        assert code == 1 and expected in errors and names == {f"in.{suffix}"}, errors
        return
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == expected and all(row["ad"] or row["reason"] for row in rows)
    assert names == {f"in.{suffix}", "out.csv"}
