"""Bad workbooks and catalogues, through a program: read whole or refused with one line, memory bounded."""

import json
import tempfile
from pathlib import Path

import pytest
from corpus import MANY, MIB, SMALL, attempt, mutated, run_program, zip_bomb, zip_of
from hypothesis import given
from lib.catalogue import read_catalogue

KEYS = {"类型", "颜色", "材质"}

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
FORMULA = '<row r="3"><c><f>A1</f></c></row>'


def merged(cells: str) -> bytes:
    """A workbook with merged cells, from their XML."""
    sheet = f"<worksheet {SPACE}><sheetData>{SHEET}</sheetData><mergeCells>{cells}</mergeCells></worksheet>"
    return zip_of(parts_of("") | {"xl/worksheets/sheet1.xml": sheet.encode()})


@given(mutated(workbook(SHEET)) | mutated(SHEET.encode()).map(lambda xml: workbook(xml.decode("utf-8", "replace"))))
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
    "no text": ("csv", lambda: CSV + b"\xff\xff\xff", "not clearly"),
    "UTF-16, cut off": ("csv", lambda: CSV.decode().encode("utf-16")[:-1], "not clearly"),
    "colons alone": ("csv", lambda: CSV + ("1,颜色" + ":" * 9000 + ",x\n").encode() * 99, 100),
    "marks of HTML alone": ("csv", lambda: CSV + ("1," + "<a" * 4500 + ",x\n").encode() * 99, 100),
    "an open quotation mark": ("csv", lambda: CSV + b'"' + CSV * 9, "quotation"),
    "a giant cell": ("csv", lambda: CSV + b"x" * 16 * MIB, "field limit"),
    "a million columns": ("csv", lambda: b"," * 10**6 + b"\n" + CSV * 20, "cells"),
    "commas alone": ("csv", lambda: b"," * 16 * MIB, "values"),
    "many attributes": ("jsonl", lambda: b"".join(map(product_line, (MANY[: 2 * MIB], "类型#裙"))), 2),
    "deeper arrays": ("jsonl", lambda: b"[" * 10**6, "not JSON"),
    "deep objects": ("jsonl", lambda: b'{"attributes":' * 500 + b'{"type": "x"}' + b"}" * 500, 1),
    "no two keys alike": ("jsonl", lambda: b"".join(b'{"k%d": 1}\n' % n for n in range(20_000)), "cells"),
    "a wide sheet": ("xlsx", lambda: workbook(WIDE), "cells"),
    "a row beyond all": ("xlsx", lambda: workbook(SHEET + '<row r="99999999999"/>'), "99999999999"),
    "a column beyond all": ("xlsx", lambda: workbook('<row r="1"><c r="ZZZZZZZ1"/></row>'), "ZZZZZZZ"),
    "a sheet that claims to be large": (
        "xlsx",
        lambda: zip_of(parts_of(SHEET) | {"xl/worksheets/sheet1.xml": CLAIM.encode()}),
        1,
    ),
    "a billion laughs": ("xlsx", lambda: workbook("", LAUGHS + "]><sst><si><t>&a11;</t></si></sst>"), "workbook"),
    "a sheet that unpacks to too many values": (
        "xlsx",
        lambda: zip_bomb(b"<c/>", 48 * MIB, "xl/sharedStrings.xml", PARTS),
        "values",
    ),
    "a merge of all": ("xlsx", lambda: merged('<mergeCell ref="A2:XFD1048576"/>'), 1),
    "merges of no range": ("xlsx", lambda: merged('<mergeCell ref="A2:?"/><mergeCell/>'), "workbook"),
    "a million merges": ("xlsx", lambda: merged('<mergeCell ref="A1:A9999"/>' * 10**6), 1),
    "a formula without its value": ("xlsx", lambda: workbook(SHEET + FORMULA), "sheet a, cell in row 3"),
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
