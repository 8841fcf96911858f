"""Bad catalogues: read whole or refused with one line; no cell lost silently, memory bounded."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import openpyxl
import pytest
from corpus import MANY, MIB, SMALL, attempt, attributes, json_values, mutated, run_program, texts, zip_bomb, zip_of
from hypothesis import given
from hypothesis import strategies as st
from lib.catalogue import Catalogue, read_catalogue
from lib.files import printable, read_json_lines
from lib.output import NOT_XML, guarded, write_table
from lib.sheets import text

KEYS = {"类型", "颜色", "材质"}
cells = (
    st.sampled_from(["", " ", "裙", "白色、红色", "-", "无", "类型#裙*颜色#白色", '"', "a,b", "1e999", "=1+1"]) | texts
)


# --- text files ---


@given(
    st.lists(st.lists(cells, min_size=3, max_size=4), max_size=6),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "gb18030"]),
    st.sampled_from([".csv", ".jsonl", ".xlsx"]),
)
def test_tables_hand_on_every_cell(rows, separator, encoding, suffix):
    header = ["货号", "类型", "颜色"]
    rows = [[cell.encode(encoding, "replace").decode(encoding) for cell in row] for row in rows]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator).writerows([header, *rows])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "in.csv")
        path.write_bytes(file.getvalue().encode(encoding))
        table = attempt(read_catalogue, path, KEYS, [])
        while rows and not any(cell.strip() for cell in rows[-1]):
            rows.pop()
        if table is None:
            return
        assert [[text(cell) for cell in row][: len(row)] for row in rows] == [
            list(row[: len(own)]) for row, own in zip(table.rows, rows, strict=True)
        ]
        assert all(
            bool(product) != bool(problem) for product, problem in zip(table.products, table.problems, strict=True)
        )
        check_written(Path(name, f"out{suffix}"), table)


def check_written(path: Path, table: Catalogue) -> None:
    """The table is the same when it was written and read again."""
    write_table(path, table.header, table.rows, {})
    # Lone surrogates are written as question marks, however deep they are nested.
    rows = json.loads(printable(json.dumps(table.rows, ensure_ascii=False))) if path.suffix == ".jsonl" else table.rows
    expected = [[text(cell) for cell in row] for row in rows]
    if path.suffix == ".jsonl":
        found = [list(map(text, row.values())) for row in read_json_lines(path)]
    elif path.suffix == ".csv":
        found = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))[1:]
        expected = [list(map(guarded, row)) for row in expected]
    else:
        book = openpyxl.load_workbook(path)
        assert {cell.data_type for row in book["ads"] for cell in row} <= {"s", "n"}
        found = [[cell or "" for cell in row] for row in book["ads"].iter_rows(min_row=2, values_only=True)]
        expected = [[NOT_XML.sub("�", cell) for cell in row] for row in expected]
    assert found == expected


@given(
    st.lists(st.dictionaries(st.sampled_from(["类型", "颜色", "id"]) | texts, json_values | attributes), max_size=5),
    st.booleans(),
    st.sampled_from([".csv", ".jsonl", ".xlsx"]),
)
def test_objects_hand_on_every_row(rows, escaped, suffix):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "in.jsonl")
        data = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
        path.write_bytes(data.encode("utf-8", "surrogatepass"))
        table = attempt(read_catalogue, path, KEYS, [])
        if table is not None:
            left_out = rows[len(table.rows) :]
            assert len(table.rows) <= len(rows) and not any(
                text(cell).strip() for row in left_out for cell in row.values()
            )
            check_written(Path(name, f"out{suffix}"), table)


@given(st.binary(max_size=300), st.sampled_from([".csv", ".jsonl", ".xlsx"]), st.lists(texts, max_size=2))
def test_any_bytes_are_a_catalogue_or_refused(data, suffix, chosen):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, f"in{suffix}")
        path.write_bytes(data)
        attempt(read_catalogue, path, KEYS, chosen)


# --- workbooks ---

SCHEMAS = "http://schemas.openxmlformats.org"
SPACE = f'xmlns="{SCHEMAS}/spreadsheetml/2006/main"'
RELATIONS = f"{SCHEMAS}/officeDocument/2006/relationships"
KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"
PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{SCHEMAS}/package/2006/content-types">'
    f'<Override PartName="/xl/workbook.xml" ContentType="{KIND}.sheet.main+xml"/>'
    f'<Override PartName="/xl/sharedStrings.xml" ContentType="{KIND}.sharedStrings+xml"/></Types>',
    "xl/workbook.xml": f'<workbook {SPACE} xmlns:r="{RELATIONS}"><sheets>'
    '<sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{SCHEMAS}/package/2006/relationships">'
    f'<Relationship Id="r1" Type="{RELATIONS}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
}
STRINGS = f"<sst {SPACE}><si><t>类型</t></si></sst>"


def parts_of(sheet: str, strings: str = STRINGS) -> dict[str, bytes]:
    """The files within a workbook, from the XML of its rows and of its shared strings."""
    parts = PARTS | {
        "xl/sharedStrings.xml": strings,
        "xl/worksheets/sheet1.xml": f"<worksheet {SPACE}><sheetData>{sheet}</sheetData></worksheet>",
    }
    return {name: part.encode("utf-8", "replace") for name, part in parts.items()}


def workbook(sheet: str, strings: str = STRINGS) -> bytes:
    return zip_of(parts_of(sheet, strings))


SHEET = (
    '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="inlineStr"><is><t>颜色</t></is></c></row>'
    '<row r="2"><c r="A2" t="inlineStr"><is><t>裙</t></is></c><c r="B2" t="str"><v>白色</v></c></row>'
)


@st.composite
def sheets(draw):
    """The XML of a sheet's rows, with numbers, types and places that are often wrong."""
    odd = st.sampled_from(
        ["", "0", "-1", "1", "2", "3", "99999999999", "1048577", "1e9", "٣", "x", "1.5", "nan", "inf"]
    )
    places = st.sampled_from(["A1", "B2", "C3", "ZZZZZZZ1", "XFE1", "a1", "一1", "1", "", "A", "B1048576"])
    kinds = st.sampled_from(["", ' t="s"', ' t="inlineStr"', ' t="str"', ' t="b"', ' t="e"', ' t="d"', ' t="?"'])
    rows = ""
    for _ in range(draw(st.integers(0, 4))):
        row = draw(st.none() | odd)
        rows += "<row>" if row is None else f'<row r="{row}">'
        for _ in range(draw(st.integers(0, 4))):
            value = draw(odd | st.sampled_from(["类型", "颜色", "裙"]))
            inner = draw(st.sampled_from([f"<v>{value}</v>", f"<is><t>{value}</t></is>", "<v/>", ""]))
            place = draw(st.none() | places)
            rows += "<c" + ("" if place is None else f' r="{place}"') + f"{draw(kinds)}>{inner}</c>"
        rows += "</row>"
    return draw(st.sampled_from(["", SHEET])) + rows


@given(
    sheets().map(workbook)
    | mutated(workbook(SHEET))
    | mutated(SHEET.encode()).map(lambda xml: workbook(xml.decode("utf-8", "replace")))
)
def test_workbooks_changed_anywhere(data):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "in.xlsx")
        path.write_bytes(data)
        table = attempt(read_catalogue, path, KEYS, [])
        assert table is None or len(table.rows) < 2**20


# --- bad catalogues, through a program ---

# Reads a catalogue as `make generate` does, and prints how many rows there are, and how many have neither product nor
# problem, or both.
READER = """
import sys
from pathlib import Path

from lib.catalogue import read_catalogue

table = read_catalogue(Path(sys.argv[1]), {"类型", "颜色", "材质"}, [])
odd = sum(bool(product) == bool(problem) for product, problem in zip(table.products, table.problems, strict=True))
print(len(table.rows), odd)
"""
LAUGHS = '<!DOCTYPE a [<!ENTITY a0 "haha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
CLAIM = f'<worksheet {SPACE}><dimension ref="A1:XFD1048576"/><sheetData>{SHEET}</sheetData></worksheet>'
WIDE = "".join(f'<row r="{number}"><c r="XFD{number}"><v>1</v></c></row>' for number in range(1, 20_000))


def product_line(content: str) -> bytes:
    return json.dumps({"attributes": content}).encode() + b"\n"


CSV = "id,类型,颜色\n1,裙,白色\n".encode()
# Name → suffix, what makes the catalogue, and a word of the error, or the number of its rows.
BAD_CATALOGUES = {
    "odd cells": ("csv", lambda: 'id,类型,颜色\n,,\n1,裙,"白\n色"\n1e999,NaN,=1+1\n'.encode(), 3),
    "no text": ("csv", lambda: CSV + b"\xff\xff\xff", "neither"),
    "UTF-16": ("csv", lambda: CSV.decode().encode("utf-16"), "error"),
    "an open quotation mark": ("csv", lambda: CSV + b'"' + CSV * 9, "quotation"),
    "a giant cell": ("csv", lambda: CSV + b"x" * 16 * MIB, "field limit"),
    "a million columns": ("csv", lambda: b"," * 10**6 + b"\n" + CSV * 20, "cells"),
    "commas alone": ("csv", lambda: b"," * 16 * MIB, "values"),
    "NUL bytes": ("csv", lambda: CSV + b"\0,\0,\0\n", 2),
    "many attributes": ("jsonl", lambda: b"".join(map(product_line, (MANY[: 2 * MIB], "类型#裙"))), 2),
    "numbers, null, lists": ("jsonl", lambda: '{"类型": 1}\n{"颜色": null}\n{"类型": [1, null, ["裙"]]}'.encode(), 3),
    "lone surrogates": ("jsonl", lambda: rb'{"\ud800": "\udfff", "\udc00": "x"}', 1),
    "deep arrays": ("jsonl", lambda: b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "not JSON"),
    "deeper arrays": ("jsonl", lambda: b"[" * 10**6, "not JSON"),
    "no two keys alike": ("jsonl", lambda: b"".join(b'{"k%d": 1}\n' % n for n in range(20_000)), "cells"),
    "a wide sheet": ("xlsx", lambda: workbook(WIDE), "cells"),
    "a row beyond all": ("xlsx", lambda: workbook(SHEET + '<row r="99999999999"/>'), "99999999999"),
    "a column beyond all": ("xlsx", lambda: workbook('<row r="1"><c r="ZZZZZZZ1"/></row>'), "ZZZZZZZ"),
    "a column beyond Excel's last": ("xlsx", lambda: workbook('<row r="1"><c r="XFE1"/></row>'), "column 16385"),
    "a row of too many cells": ("xlsx", lambda: workbook(f'<row r="1">{"<c/>" * 20_000}</row>'), "20,000 cells"),
    "a sheet that claims to be large": (
        "xlsx",
        lambda: zip_of(parts_of(SHEET) | {"xl/worksheets/sheet1.xml": CLAIM.encode()}),
        1,
    ),
    "one row twice": ("xlsx", lambda: workbook(SHEET + SHEET), "workbook"),
    "one cell twice": ("xlsx", lambda: workbook('<row r="1"><c r="A1"/><c r="A1"/></row>'), "column 1 of row 1"),
    "a billion laughs": ("xlsx", lambda: workbook("", LAUGHS + "]><sst><si><t>&a11;</t></si></sst>"), "workbook"),
    "a sheet that unpacks to too many values": (
        "xlsx",
        lambda: zip_bomb(b"<c/>", 48 * MIB, "xl/sharedStrings.xml", PARTS),
        "values",
    ),
    "no workbook": ("xlsx", lambda: zip_of({"a": b""}), "workbook"),
    "an encrypted workbook": ("xlsx", lambda: b"\xd0\xcf\x11\xe0" * 200, "workbook"),
}


@pytest.mark.parametrize("name", BAD_CATALOGUES)
def test_bad_catalogues(tmp_path, name):
    suffix, build, expected = BAD_CATALOGUES[name]
    (tmp_path / f"in.{suffix}").write_bytes(build())
    (tmp_path / "reader.py").write_text(READER, encoding="utf-8")
    code, printed, errors = run_program(tmp_path, tmp_path / "reader.py", f"in.{suffix}", peak=3 * SMALL)
    if isinstance(expected, str):
        assert code == 1 and expected in errors, errors
    else:
        assert code == 0 and printed == f"{expected} 0\n", errors


def test_workbook_that_unpacks_to_too_much(tmp_path, monkeypatch):
    """All of its files together, none of which is too large by itself."""
    monkeypatch.setattr("lib.sheets.LARGEST_FILE", 2 * MIB)
    pictures = {f"xl/media/{number}.bin": bytes(MIB) for number in range(3)}
    (tmp_path / "in.xlsx").write_bytes(zip_of(parts_of(SHEET) | pictures))
    with pytest.raises(SystemExit, match="unpacks to 3 MiB, more than 2 MiB"):
        read_catalogue(tmp_path / "in.xlsx", KEYS, [])


def test_file_names_that_are_no_text(tmp_path):
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\n\x1b[2J"))
    odd.mkdir()
    (odd / "products.csv").write_bytes(CSV)
    assert len(attempt(read_catalogue, odd / "products.csv", KEYS, []).rows) == 1
    for name in ("nowhere.csv", "nowhere.xlsx", "products.csv/x.csv"):
        assert attempt(read_catalogue, odd / name, KEYS, []) is None
