"""Reading catalogues: every form of table, the columns that are attributes, and errors that fit on one line."""

import csv
import json
import zipfile
from pathlib import Path

import openpyxl
import pytest
from common import ODD_ROWS
from corpus import is_one_line
from lib.attributes import parse_attributes
from lib.catalogue import Catalogue, read_catalogue
from lib.files import ROOT, read_json_lines

PRODUCTS = ROOT / "examples/products.csv"
KEYS = {key for row in read_json_lines(ROOT / "data/sample/train.jsonl") for key, _ in parse_attributes(row["content"])}
# Products of the example catalogue, one of each of its first three kinds.
ATTRIBUTES = {
    "C-001": "类型#裙*材质#雪纺*颜色#白色*风格#甜美*图案#碎花",
    "L-002": "类型#口红*质地#水光*颜色#蜜桃粉*功效#保湿*功效#淡唇纹*场景#上班",
    "E-002": "类型#耳机*佩戴#头戴式*连接#有线*功能#低延迟*场景#打游戏",
}


def example_rows() -> list[list[str]]:
    """The headings of the example catalogue and the rows of those products."""
    with PRODUCTS.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    return [lines[0], *(line for line in lines if line[0] in ATTRIBUTES)]


def write_csv(path: Path, rows: list[list[str]], encoding: str = "utf-8", separator: str = ",") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def write_objects(path: Path, rows: list[list[str]]) -> Path:
    """JSON lines with lists for several values, null for none, and blank lines between."""
    cells = [[cell.split("/") if "/" in cell else cell or None for cell in row] for row in rows[1:]]
    objects = [dict(zip(rows[0], row, strict=True)) for row in cells]
    path.write_text("".join(json.dumps(row) + "\n\n" for row in objects))
    return path


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
    schemas = "http://schemas.openxmlformats.org"
    main, links = f'xmlns="{schemas}/spreadsheetml/2006/main"', f"{schemas}/officeDocument/2006/relationships"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{schemas}/package/2006/content-types">'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/sharedStrings.xml" ContentType="{kind}.sharedStrings+xml"/></Types>',
        "xl/workbook.xml": f'<workbook {main} xmlns:r="{links}"><sheets><sheet name="商品" sheetId="2" r:id="rId2"/>'
        '<sheet name="x" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{schemas}/package/2006/relationships">'
        f'<Relationship Id="rId1" Type="{links}/worksheet" Target="worksheets/sheet1.xml"/>'
        f'<Relationship Id="rId2" Type="{links}/worksheet" Target="worksheets/sheet2.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f"<worksheet {main}><sheetData/></worksheet>",
        "xl/worksheets/sheet2.xml": f"<worksheet {main}><sheetData>{cells}</sheetData></worksheet>",
        "xl/sharedStrings.xml": f"<sst {main}>{''.join(strings)}</sst>",
    }
    with zipfile.ZipFile(path, "w") as book:
        for name, content in parts.items():
            book.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{content}')
    return path


def save_workbook(path: Path, rows: list[list]) -> Path:
    """A workbook as openpyxl writes it."""
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


# Blank rows at the end are what Excel leaves of deleted ones.
BLANK = [[""] * 16, []]
FORMS = {
    "csv": lambda folder, rows: write_csv(folder / "in.csv", rows + BLANK),
    "byte order mark": lambda folder, rows: write_csv(folder / "in.csv", rows + BLANK, "utf-8-sig"),
    "GB18030": lambda folder, rows: write_csv(folder / "in.csv", rows + BLANK, "gb18030"),
    "semicolons": lambda folder, rows: write_csv(folder / "in.csv", rows + BLANK, separator=";"),
    "tabs": lambda folder, rows: write_csv(folder / "in.csv", rows + BLANK, separator="\t"),
    "workbook": lambda folder, rows: write_workbook(folder / "in.XLSX", rows),
    "workbook of openpyxl": lambda folder, rows: save_workbook(folder / "in.xlsx", rows + BLANK),
    "objects": lambda folder, rows: write_objects(folder / "in.jsonl", rows),
}


def column(table: Catalogue, name: str) -> list:
    return [row[table.header.index(name)] for row in table.rows]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_products(tmp_path, form):
    rows = example_rows()
    table = read_catalogue(FORMS[form](tmp_path, rows), KEYS, [])
    assert table.header == rows[0] and table.problems == [""] * 3
    assert dict(zip(column(table, "SKU"), table.products, strict=True)) == ATTRIBUTES
    for name in ("名称", "价格"):
        assert column(table, name) == [row[rows[0].index(name)] for row in rows[1:]]
    assert [name for name in table.header if name not in table.columns] == ["SKU", "名称", "价格"]


def test_attribute_strings_in_one_column(tmp_path):
    rows = [[row[0], row[1], ATTRIBUTES[row[0]], row[-1]] for row in example_rows()[1:]]
    table = read_catalogue(write_csv(tmp_path / "in.csv", [["SKU", "名称", "商品属性", "价格"], *rows]), KEYS, [])
    assert table.columns == ["商品属性"] and table.rows == rows
    assert table.products == [ATTRIBUTES[row[0]] for row in rows]


def test_chosen_columns(tmp_path):
    header = ["product_id", "商品", "类型*", "颜色", "产地", "width", "上架日期", "颜色"]
    path = write_csv(tmp_path / "a.csv", [header, ["7", "靴", "靴", "红*黑，白", "-", "3", "2024/1/2", "N/A"]])
    table = read_catalogue(path, KEYS, [])
    assert table.products == ["类型#靴*颜色#红×黑*颜色#白"]
    assert "上架日期" not in table.columns and column(table, "上架日期") == ["2024/1/2"]
    named = read_catalogue(path, KEYS, ["商品", "颜色", "width"])
    assert named.products == ["商品#靴*颜色#红×黑*颜色#白*width#3"]
    assert named.columns == ["商品", "颜色", "width", "颜色"]


def test_no_row_is_dropped(tmp_path):
    """Rows without attributes, with too many cells, twice the same, and with the special tokens of chat templates."""
    rows = [*ODD_ROWS, ["7", "裙", "长" * 10_000]]
    table = read_catalogue(write_csv(tmp_path / "in.csv", rows), KEYS, [])
    assert column(table, "SKU") == ["1", "2", "", "4", "5", "6", "7"]
    assert table.products[:4] == ["类型#裙*颜色#白色", "", "", "类型#裙*颜色#白色"]
    assert table.products[4] == table.products[6] == "" and "eot_id" in table.products[5]
    assert table.problems[1:3] == ["the row has no attributes"] * 2
    assert "more cells than names" in table.problems[4] and "characters" in table.problems[6]
    assert [bool(problem) for problem in table.problems] == [not product for product in table.products]


BAD = {
    "none.csv": (None, "none.csv cannot be read"),
    "none.xlsx": (None, "none.xlsx cannot be read"),
    "a.xls": ("x", "a .csv, .xlsx or .jsonl file"),
    "a.csv": (b"\xff\xfe\x00", "not clearly UTF-8"),
    "b.csv": ("类型,颜色\n", "holds no products"),
    "c.csv": ('类型,颜色\n裙,白色\n裙,"白色\n裙,黑色\n', "a quotation mark missing"),
    "d.csv": ("类型#裙*颜色#白色\n类型#裙*颜色#黑色\n", "first line is a product"),
    "e.csv": ("SKU,价格\n1,2\n", "none of the columns SKU, 价格"),
    "f.csv": ("155046,1,U盘,47.70\n137276,1,网线,14.80", "if these are no headings"),
    "g.xlsx": ("PK", "Excel workbook"),
    "h.jsonl": ('{"类型": "裙"}\n{"类', "line 2: not JSON"),
    "i.jsonl": ('{"类型": "裙"}\n[]', "line 2: a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_one_line(tmp_path, name):
    content, words = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in error_of(tmp_path / name)


def error_of(path: Path, columns: list[str] | None = None) -> str:
    with pytest.raises(SystemExit) as end:
        read_catalogue(path, KEYS, columns or [])
    assert is_one_line(end.value.code), end.value.code
    return end.value.code


def test_a_named_column_that_is_missing(tmp_path):
    path = write_csv(tmp_path / "good.csv", [["类型", "颜色"], ["裙", "白色"]])
    assert "no column 材质; it has 类型, 颜色" in error_of(path, ["材质"])
