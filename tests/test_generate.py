"""Ads for a catalogue: what is asked of a real server, what is written, and how it can fail."""

import json
import re
from collections import Counter

import openpyxl
import pytest
from common import ODD_ROWS
from generating import ATTRIBUTES, DEV, PRODUCTS, example_rows, one_error, read_ads, run, write_rows
from lib import chat_client
from lib.candidates import known_products
from lib.files import read_json_lines
from lib.metrics import covered, find_values, vocabulary
from lib.servers import free_port


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(chat_client, "PAUSES", (0.01,) * len(chat_client.PAUSES))


@pytest.mark.parametrize("form", ["csv", "xlsx", "jsonl"])
def test_forms_of_a_catalogue(relay, tmp_path, form):
    rows, path = example_rows(), tmp_path / f"in.{form}"
    if form == "csv":
        # Excel leaves blank rows where rows were deleted.
        write_rows(path, [*rows, [""] * 16, []], "gb18030")
    elif form == "xlsx":
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append([int(cell) if cell.isdigit() else cell or None for cell in row])
        book.save(path)
    else:
        cells = [[cell.split("/") if "/" in cell else cell or None for cell in row] for row in rows[1:]]
        objects = [dict(zip(rows[0], row, strict=True)) for row in cells]
        path.write_text("".join(json.dumps(row) + "\n\n" for row in objects))
    result = run(path, tmp_path / "out.csv", "--n", 1, "--server", relay.url + "/v1/")
    assert result.returncode == 0, result.stderr
    assert sorted(relay.asked) == sorted((product, 1) for product in ATTRIBUTES.values())
    ads = read_ads(tmp_path / "out.csv")
    assert [(row["SKU"], row["名称"], row["价格"]) for row in ads] == [(row[0], row[1], row[-1]) for row in rows[1:]]
    assert all(row["ad"] for row in ads)


def test_chosen_columns(relay, tmp_path):
    """--columns names the attributes. Of two columns with one name, JSON lines keep both."""
    rows = [["id", "商品", "类型", "颜色", "颜色"], ["7", "靴", "靴", "红*黑，白", "N/A"]]
    path = write_rows(tmp_path / "a.csv", rows)
    assert run(path, tmp_path / "a.jsonl", "--n", 1, "--server", relay.url).returncode == 0
    assert relay.asked == [("类型#靴*颜色#红×黑*颜色#白", 1)]
    assert list(read_json_lines(tmp_path / "a.jsonl")[0])[:5] == ["id", "商品", "类型", "颜色", "颜色 (2)"]
    relay.asked.clear()
    result = run(path, tmp_path / "b.csv", "--n", 1, "--server", relay.url, "--columns", "商品,颜色")
    assert relay.asked == [("商品#靴*颜色#红×黑*颜色#白", 1)]
    assert "Attributes: 商品, 颜色, 颜色; only copied: id, 类型; " in result.stdout


def test_every_row_has_an_ad_or_a_reason(relay, tmp_path):
    """Rows without attributes, too long, twice the same, and with the special tokens of chat templates."""
    result = run(write_rows(tmp_path / "in.csv", ODD_ROWS), tmp_path / "out.csv", "--n", 2, "--server", relay.url)
    assert result.returncode == 0, result.stderr
    ads = read_ads(tmp_path / "out.csv")
    assert [row["SKU"] for row in ads] == ["1", "2", "", "4", "5", "6"]
    assert [bool(row["ad"]) for row in ads[:5]] == [True, False, False, True, False]
    # What a model writes for thousands of equal characters may be nothing.
    assert all(bool(row["ad"]) != bool(row["reason"]) for row in ads)
    assert [row["reason"] for row in ads[1:3]] == ["the row has no attributes"] * 2
    assert "more cells than names" in ads[4]["reason"]
    # Equal products have ads of their own.
    assert Counter(relay.asked)["类型#裙*颜色#白色", 2] == 2
    bad = write_rows(tmp_path / "bad.csv", [ODD_ROWS[0], ODD_ROWS[2]])
    assert "no row has an ad" in one_error(bad, tmp_path / "bad_out.csv", "--server", relay.url)
    assert read_ads(tmp_path / "bad_out.csv")[0]["reason"] == "the row has no attributes"


def test_the_gain_of_the_best_and_json_lines(relay, tmp_path):
    head, requests = tmp_path / "head.jsonl", []
    head.write_text("".join(DEV.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    relay.fault = lambda _, request: requests.append(request)
    result = run(head, tmp_path / "out.jsonl", "--n", 3, "--server", relay.url, "temperature=7e-1")
    assert result.returncode == 0
    assert all(request["temperature"] == 0.7 and request["max_tokens"] == 256 for request in requests)
    rows = read_json_lines(tmp_path / "out.jsonl")
    assert [row["summary"] for row in rows] == [row["summary"] for row in read_json_lines(head)]
    hits = [hit for row in rows for hit in covered(row["content"], row["ad"]).values()]
    one, best = re.findall(r"^(?:one sample|best of 3): coverage ([\d.]+), hallucination", result.stdout, re.MULTILINE)
    assert float(best) == round(sum(hits) / len(hits), 3) >= float(one)


def test_faults_of_a_server_are_retried(relay, tmp_path):
    faults = [500, "close", 429, "cut"]
    relay.fault = lambda number, _: faults[number // 2 % 4] if number % 2 else None
    result = run(PRODUCTS, tmp_path / "out.csv", "--n", 2, "--server", relay.url)
    assert result.returncode == 0, result.stderr
    ads = read_ads(tmp_path / "out.csv")
    assert len(ads) == 12 and all(row["ad"] and row["runner_up_1"] and not row["reason"] for row in ads)
    # The values of AdGen are known, too, where `make data` has prepared it.
    values = vocabulary(known_products())
    for row in ads:
        # What stands between SKU and name before, and the price behind, are the attributes.
        own = {value for name in list(row)[2:15] for value in row[name].replace("/", "、").split("、") if value}
        assert {value for value in own if value not in row["ad"]} == set(filter(None, row["missing"].split("、")))
        assert set(find_values(row["ad"], values)) - own == set(filter(None, row["invented"].split("、")))
    assert len(relay.asked) >= 23 and not (tmp_path / "out.csv.journal").exists()


def test_a_refused_product_is_said_and_asked_for_again(relay, tmp_path):
    refused = ATTRIBUTES["L-002"]
    relay.fault = lambda _, request: 400 if request["messages"][-1]["content"] == refused else None
    words = (PRODUCTS, tmp_path / "out.csv", "--n", 2, "--server", relay.url)
    result = run(*words)
    assert result.returncode == 0 and "1 products were refused" in result.stdout, result.stderr
    ads = {row["SKU"]: row for row in read_ads(tmp_path / "out.csv")}
    assert ads["L-002"]["reason"] == 'the server answers 400: {"detail": "a fault\\nof the relay"}'
    assert sum(bool(row["ad"]) for row in ads.values()) == 11 and not ads["L-002"]["ad"]
    relay.asked.clear()
    relay.fault = None
    assert run(*words).returncode == 0
    again = {row["SKU"]: row for row in read_ads(tmp_path / "out.csv")}
    assert relay.asked == [(refused, 2)] and again.pop("L-002")["ad"]
    assert all(row == ads[name] for name, row in again.items())


def test_a_server_that_ignores_n(relay, tmp_path):
    relay.ignores_n = True
    assert run(PRODUCTS, tmp_path / "out.csv", "--n", 3, "--server", relay.url).returncode == 0
    assert all(row["ad"] and row["runner_up_2"] for row in read_ads(tmp_path / "out.csv"))
    assert Counter(number for _, number in relay.asked) == {3: 12, 2: 12, 1: 12}


def test_errors_are_one_line(relay, tmp_path):
    good = tmp_path / "good.csv"
    good.write_text("类型,颜色\n裙,白色\n", encoding="utf-8")
    (tmp_path / "ad.csv").write_text("类型,ad\n裙,x\n", encoding="utf-8")
    out, nowhere = tmp_path / "out.csv", f"http://127.0.0.1:{free_port()}"
    for name, words in (("none.csv", "none.csv cannot be read"), ("ad.csv", "has a column ad")):
        assert words in one_error(tmp_path / name, out, "--server", relay.url), name
    for output, words in (
        (good, "is INPUT"),
        (tmp_path, "OUTPUT must be"),
        (tmp_path / "x.xls", "OUTPUT must be"),
        (good / "x.csv", "cannot be written"),
    ):
        assert words in one_error(good, output, "--server", relay.url)
    assert "no column 材质" in one_error(good, out, "--columns", "材质", "--server", relay.url)
    assert "is not a base URL" in one_error(good, out, "--server", "nowhere")
    assert "no OpenAI-compatible server answers" in one_error(good, out, "--server", nowhere)
    assert "API_KEY" in one_error(good, out, "--server", relay.url, key="of-someone-else")
    assert "not ASCII" in one_error(good, out, "--server", relay.url, key="密钥")
    assert 'no key "temperatur"' in one_error(good, out, "--server", relay.url, "temperatur=1")
    assert not relay.asked and not list(tmp_path.glob("out.csv*"))
