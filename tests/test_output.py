"""Tables of ads as Excel, CSV and JSON lines: what they hold, how they are labelled, and that no cell runs."""

import csv
import io
import json

import openpyxl
import pytest
from common import KEY
from generating import PRODUCTS, one_error, read_ads, run
from lib.files import read_json_lines
from lib.output import MARK, guarded, labelled, metadata, write_table

FIELDS = ["Label", "ContentProducer", "ProduceID", "ReservedCode1", "ContentPropagator", "PropagateID", "ReservedCode2"]
HARMFUL = ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "＝1＋1", '=HYPERLINK("http://x")']
HARMLESS = ["-", "--", "-5", "+8.5", "-1,000", "12-3", '="007"', "白色", "", "'=1"]


def test_a_workbook(relay, tmp_path):
    result = run(PRODUCTS, tmp_path / "ads.xlsx", "--n", 2, "--server", relay.url)
    assert result.returncode == 0, result.stderr
    book = openpyxl.load_workbook(tmp_path / "ads.xlsx")
    assert book.sheetnames == ["ads", "about"]
    sheet = book["ads"]
    header, *rows = ([cell or "" for cell in row] for row in sheet.iter_rows(values_only=True))
    own, *products = csv.reader(PRODUCTS.open(encoding="utf-8"))
    assert header == [*own, "ad", "missing", "invented", "risk", "basis", "runner_up_1", "reason", "ai_label"]
    assert [row[: len(own)] for row in rows] == products
    # The tiny model may have no ad for a product.
    ads = [row for row in (dict(zip(header, row, strict=True)) for row in rows) if row["ad"]]
    assert ads and all(row["ai_label"].startswith(MARK) for row in ads)
    assert sheet.freeze_panes == "A2" and sheet["A1"].font.bold
    widths = [sheet.column_dimensions[cell.column_letter].width for cell in sheet[1]]
    assert max(widths) == 60 == widths[header.index("ad")] and widths[0] < 15
    assert all(cell.alignment.wrap_text for row in sheet for cell in row)
    about = dict(book["about"].iter_rows(min_row=2, values_only=True))
    assert about["rows"] == "12" and about["rows with an ad"] == str(len(ads)) and about["label"] == MARK
    assert about["model"] in ads[0]["ai_label"] and about["written"] in ads[0]["ai_label"]
    assert '"n": 2' in about["settings"] and "no legal advice" in about["note"] and KEY not in str(about)
    banned = sum(row["risk"].startswith("ban: ") for row in ads)
    doubtful = sum(row["risk"].startswith("caution: ") for row in ads)
    assert about["ads with forbidden words"] == str(banned)
    assert about["ads with words to be proved"] == str(doubtful)
    assert f"ads with forbidden words: {banned}, ads with words to be proved: {doubtful}. " in result.stdout
    (label,) = book.custom_doc_props.props
    assert label.name == "AIGC" and list(json.loads(label.value)) == FIELDS
    # What Excel would make of a mark of reasoning, a formula or an error stays text.
    assert not {"f", "e"} & {cell.data_type for row in sheet for cell in row}


def test_json_lines_are_labelled(relay, tmp_path):
    assert run(PRODUCTS, tmp_path / "ads.jsonl", "--n", 1, "--server", relay.url).returncode == 0
    rows = [row for row in read_json_lines(tmp_path / "ads.jsonl") if row["ad"]]
    for row in rows:
        assert row["ai_label"].startswith(f"{MARK}（") and row["AIGC"] == metadata(row["ad"])
    assert list(rows[0]["AIGC"]) == FIELDS and rows[0]["AIGC"]["ContentProducer"] == ""


def test_the_visible_label(relay, tmp_path, monkeypatch):
    monkeypatch.setenv("LABEL", "1")
    assert run(PRODUCTS, tmp_path / "ads.csv", "--n", 2, "--server", relay.url).returncode == 0
    rows = [row for row in read_ads(tmp_path / "ads.csv") if row["ad"] and row["runner_up_1"]]
    assert rows and all(row[name].endswith(f"（{MARK}）") for row in rows for name in ("ad", "runner_up_1"))
    assert labelled("") == "" and metadata("裙")["ContentProducer"] == ""
    monkeypatch.setenv("LABEL", "91330000MA27")
    assert metadata("裙")["ContentProducer"] == metadata("裙")["ContentPropagator"] == "91330000MA27"
    for code in ("我的店", 'a"b', "a\\b"):
        monkeypatch.setenv("LABEL", code)
        assert "LABEL is 1" in one_error(PRODUCTS, tmp_path / "x.csv", "--server", relay.url)


def test_risky_ads_are_marked(relay, tmp_path, monkeypatch):
    """A word that every ad holds becomes a forbidden one."""
    words = tmp_path / "words.txt"
    words.write_text("，\n", encoding="utf-8")
    monkeypatch.setenv("WORDS", str(words))
    assert "words.txt, line 1" in one_error(PRODUCTS, tmp_path / "ads.csv", "--server", relay.url)
    words.write_text("的\n。，caution\n", encoding="utf-8")
    assert run(PRODUCTS, tmp_path / "ads.csv", "--n", 2, "--server", relay.url).returncode == 0
    for row in read_ads(tmp_path / "ads.csv"):
        assert ("ban: " in row["risk"]) == ("的" in row["ad"]) and ("words.txt: " in row["basis"]) == bool(row["risk"])


@pytest.mark.parametrize("form", ["csv", "jsonl", "xlsx"])
def test_no_cell_is_a_formula(tmp_path, form):
    path = tmp_path / f"out.{form}"
    write_table(path, ["=A1", "b"], [[cell, "#N/A"] for cell in HARMFUL + HARMLESS], {"=1": "=1"})
    if form == "csv":
        header, *rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
        assert header == ["'=A1", "b"]
        assert [row[0] for row in rows] == [f"'{cell}" for cell in HARMFUL] + HARMLESS
    elif form == "jsonl":
        assert [row["=A1"] for row in read_json_lines(path)] == HARMFUL + HARMLESS
    else:
        for sheet in openpyxl.load_workbook(path):
            for row in sheet:
                for cell in row:
                    assert cell.data_type == "s" or cell.value is None
                    assert cell.quotePrefix == (guarded(cell.value or "") != (cell.value or ""))


def test_a_table_is_written_whole_or_not_at_all(tmp_path):
    for form in ("csv", "jsonl", "xlsx"):
        path = tmp_path / f"out.{form}"
        write_table(path, ["类型"], [["裙"]], {})
        before = path.read_bytes()
        with pytest.raises((ValueError, TypeError)):
            write_table(path, ["类型"], [["裤"], 1], {})
        assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_workbook_cannot_hold_is_said_before_ads_are_written(relay, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(f"类型,备注\n裙,{'长' * 32_768}\n", encoding="utf-8")
    assert "longer than Excel's 32,767" in one_error(path, tmp_path / "out.xlsx", "--server", relay.url)
    assert not relay.asked
    assert run(path, tmp_path / "out.csv", "--n", 1, "--server", relay.url).returncode == 0
