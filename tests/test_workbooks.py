"""Reading Excel workbooks: every kind of cell and sheet is read as Excel shows it, or refused by its name."""

import datetime
import zipfile
from pathlib import Path

import openpyxl
import pytest
from corpus import is_one_line
from lib.catalogue import Catalogue, read_catalogue
from lib.sheets import read_table

KEYS = {"类型", "颜色", "材质", "续航"}
ROWS = [["SKU", "类型", "颜色"], ["1", "裙", "白色"], ["2", "裤", "黑色"]]
PRODUCTS = ["类型#裙*颜色#白色", "类型#裤*颜色#黑色"]


def save(path: Path, *sheets: list[list], merged: tuple[str, ...] = (), **states: str) -> Path:
    """A workbook as openpyxl writes it, its sheets named s1, s2 …; states: sheet name → hidden or veryHidden."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets, 1):
        sheet = book.create_sheet(f"s{number}")
        for row in rows:
            sheet.append(row)
        sheet.sheet_state = states.get(sheet.title, "visible")
    for cells in merged:
        book.worksheets[0].merge_cells(cells)
    book.save(path)
    return path


def change_parts(path: Path, old: bytes, new: bytes) -> None:
    """Puts `new` for `old` in all files within a workbook."""
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    assert any(old in part for part in parts.values())
    with zipfile.ZipFile(path, "w") as book:
        for name, part in parts.items():
            book.writestr(name, part.replace(old, new))


def read(path: Path, *chosen: str) -> Catalogue:
    return read_catalogue(path, KEYS, list(chosen))


def error_of(path: Path) -> str:
    with pytest.raises(SystemExit) as end:
        read(path)
    assert is_one_line(end.value.code), end.value.code
    return end.value.code


# --- cells ---

# Value of a cell, its number format if it has one, and its text.
CELLS = [
    (299.0, None, "299"),
    (0.1 + 0.2, None, "0.3"),
    (6.90123456789e12, None, "6901234567890"),
    (True, None, "TRUE"),
    (datetime.date(2026, 11, 26), None, "2026-11-26"),
    (datetime.datetime(2024, 1, 2, 12, 30), None, "2024-01-02 12:30:00"),
    (datetime.time(8, 5), None, "08:05:00"),
    (46352, 'yyyy"年"m"月"d"日"', "2026-11-26"),
    (0.125, "0.00%", "12.5%"),
    (7, "00000", "00007"),
    (12.5, "0", "12.5"),
    ("", None, ""),
    ("  白色 ", None, "  白色 "),
    ("白色_x000D_\n黑色", None, "白色\r\n黑色"),
]


def test_values_of_cells(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["类型", "值"])
    for number, (value, form, _) in enumerate(CELLS, 2):
        book.active.cell(number, 1, "裙")
        cell = book.active.cell(number, 2, value)
        cell.number_format = form or cell.number_format
    book.save(tmp_path / "in.xlsx")
    lines = read_table(tmp_path / "in.xlsx", len).lines[1:]
    assert [[*row, ""][1] for row in lines] == [found for *_, found in CELLS]


@pytest.mark.parametrize("form", [14, 22, 31, 57])
def test_dates_in_formats_that_excel_has_built_in(tmp_path, form):
    """Chinese Excel stores some date formats as a number alone; openpyxl knows only those of the West."""
    path = save(tmp_path / "in.xlsx", [["类型", "日期"], ["裙", datetime.date(2026, 11, 26)]])
    # openpyxl knows a format that is defined, so only its number is kept.
    change_parts(path, b'<numFmts count="1"><numFmt numFmtId="164" formatCode="yyyy-mm-dd"/></numFmts>', b"")
    change_parts(path, b'numFmtId="164"', f'numFmtId="{form}"'.encode())
    assert read_table(path, len).lines[1] == ["裙", "2026-11-26"]


@pytest.mark.parametrize(
    "blank", ['<c r="C2" t="inlineStr"/>', '<c r="C2" t="s"/>', '<c r="C2" t="s"><v/></c>', '<c r="C2" t="e"/>', "<c/>"]
)
def test_blank_cells_of_any_kind(tmp_path, blank):
    path = save(tmp_path / "in.xlsx", [ROWS[0], ["1", "裙", 7]])
    change_parts(path, b'<c r="C2" t="n"><v>7</v></c>', blank.encode())
    assert read(path).products == ["类型#裙"]


@pytest.mark.parametrize("error", ["#REF!", "#DIV/0!", "#NAME?", "#SPILL!"])
def test_errors_are_refused_by_cell(tmp_path, error):
    table = read(save(tmp_path / "in.xlsx", [["注", "", ""], *ROWS, ["3", "裙", error], ["4", "裙", "#N/A"]]))
    assert table.products == [*PRODUCTS, "", "类型#裙"]
    assert table.problems[2] == f"sheet s1, cell C5 (颜色) is the error {error}, not a value"
    # In a column that is no attribute, the error is copied.
    copied = read(save(tmp_path / "b.xlsx", [[*ROWS[0], "价格"], [*ROWS[1], error]]))
    assert copied.products == PRODUCTS[:1] and copied.rows[0][3] == error


def test_formulas_are_read_as_their_last_values(tmp_path):
    """Excel stores the last value beside a formula. openpyxl computes nothing and stores none."""
    path = save(tmp_path / "in.xlsx", [["类型", "价格", "颜色"], ["裙", "=100+99", '=""']])
    assert "sheet s1, cell B2: Excel never computed its formula" in error_of(path)
    change_parts(path, b"<f>100+99</f><v></v>", b"<f>100+99</f><v>199</v>")
    assert "sheet s1, cell C2" in error_of(path)
    change_parts(path, b'<c r="C2"', b'<c t="str" r="C2"')
    table = read(path)
    assert table.rows == [["裙", "199", ""]] and table.products == ["类型#裙"]


def test_a_cell_that_cannot_be_read_is_named_by_sheet_and_row(tmp_path):
    path = save(tmp_path / "in.xlsx", [ROWS[0], ["1", "裙", 7]])
    change_parts(path, b'<c r="C2" t="n"><v>7</v></c>', b'<c r="C2" t="s"><v>99</v></c>')
    assert "sheet s1, row 2: IndexError" in error_of(path)


# --- merged cells ---


# Rows, merged cells, and the products. Cells merged to the right are no value of other columns; a row without a cell of
# its own is no product.
MERGED = {
    "down": (
        [["SKU", "类型", "颜色"], ["1", "裙", "白色"], ["2", None, "黑色"], ["3", "裤", "红色"]],
        ("B2:B3",),
        ["类型#裙*颜色#白色", "类型#裙*颜色#黑色", "类型#裤*颜色#红色"],
    ),
    "to the right": (
        [["类型", "颜色", "材质"], ["裙", "白色", None], ["裤", "黑色", "棉"]],
        ("B2:C2",),
        ["类型#裙*颜色#白色", "类型#裤*颜色#黑色*材质#棉"],
    ),
    "a block, and nothing": (
        [["类型", "颜色", "材质", "SKU"], ["裙", "白色", None, "1"], [None, None, None, "2"], ["裤", None, None, "3"]],
        ("A2:A3", "B2:C3", "B4:C9"),
        ["类型#裙*颜色#白色", "类型#裙*颜色#白色", "类型#裤"],
    ),
    "a row of nothing else": (
        [["类型", "颜色"], ["裙", "白色"], [None, None], ["裤", "黑色"]],
        ("A2:A3", "B2:B3"),
        ["类型#裙*颜色#白色", "", "类型#裤*颜色#黑色"],
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_a_merged_cell_counts_for_each_of_its_rows(tmp_path, name):
    rows, merged, products = MERGED[name]
    assert read(save(tmp_path / "in.xlsx", rows, merged=merged)).products == products


def test_headings_in_two_rows(tmp_path):
    """A group of columns is merged over their names, and single names over both rows."""
    rows = [["SKU", "属性", None], [None, "类型", "颜色"], *ROWS[1:]]
    table = read(save(tmp_path / "in.xlsx", rows, merged=("A1:A2", "B1:C1")))
    assert table.header == ["SKU", "类型", "颜色"] and table.products == PRODUCTS


# --- sheets ---

GUIDE = [["填写说明"], ["带 * 的列必填"], ["颜色", "写商品的颜色"]]
SHEETS = {
    "instructions first": ([GUIDE, ROWS], {}, "read: sheet s2, not s1"),
    "a hidden sheet first": ([[["类型", "颜色", "材质"], ["x", "y", "z"]], ROWS], {"s1": "hidden"}, ""),
    "an empty sheet first": ([[], ROWS], {}, "read: sheet s2, not s1"),
    "a price list first": ([[["SKU", "采购价"], ["1", 12.5]], ROWS], {}, "read: sheet s2, not s1"),
    "a second table": ([ROWS, ROWS[:2]], {}, "read: sheet s1, not s2"),
}


@pytest.mark.parametrize("name", SHEETS)
def test_the_sheet_with_the_products_is_read(tmp_path, name):
    sheets, states, words = SHEETS[name]
    table = read(save(tmp_path / "in.xlsx", *sheets, **states))
    assert table.products == PRODUCTS and words in table.note and (words or "read:" not in table.note)


def test_no_sheet_with_products(tmp_path):
    assert "sheet s1: none of the columns SKU, 采购价" in error_of(
        save(tmp_path / "in.xlsx", [["SKU", "采购价"], ["1", 12.5]], GUIDE[:2])
    )


TITLES = {
    "one title": ([["春季商品表"]], 1),
    "a title and its date": ([["商品表", datetime.date(2026, 11, 26)], []], 2),
    "notes": ([["说明：带 * 的列必填"], ["联系人", "张三"], ["颜色"]], 3),
    "many notes": ([[f"第 {number} 条"] for number in range(1, 13)], 12),
}


@pytest.mark.parametrize("name", TITLES)
def test_titles_above_the_headings(tmp_path, name):
    titles, count = TITLES[name]
    table = read(save(tmp_path / "in.xlsx", [*titles, *ROWS]))
    assert table.header == ROWS[0] and table.products == PRODUCTS and len(table.rows) == 2
    assert f"left out above the headings: {count} row" in table.note


def test_what_stands_beside_the_table_is_copied(tmp_path):
    """In a workbook, no comma can have split a cell; so a note to the right is a column without a heading."""
    table = read(save(tmp_path / "in.xlsx", [ROWS[0], [*ROWS[1], None, "缺货"], ROWS[2]]))
    assert table.products == PRODUCTS and table.rows[0][4] == "缺货" and table.header == [*ROWS[0], "", ""]


def test_settings_behind_the_cells_do_not_matter(tmp_path):
    """openpyxl refuses this validation rule. It stands behind the cells, which are read all the same."""
    path = save(tmp_path / "in.xlsx", ROWS)
    rule = b'<dataValidations count="1"><dataValidation type="nonsense" sqref="A1"/></dataValidations>'
    change_parts(path, b"</sheetData>", b"</sheetData>" + rule)
    with pytest.raises(ValueError):
        list(openpyxl.load_workbook(path, read_only=True).worksheets[0].iter_rows())
    assert read(path).products == PRODUCTS


def test_a_workbook_in_the_strict_format_is_refused(tmp_path):
    """Excel can save it. openpyxl finds no sheet in it, and a table without rows would be a wrong answer."""
    path = save(tmp_path / "in.xlsx", ROWS)
    change_parts(
        path, b"http://schemas.openxmlformats.org/officeDocument/2006", b"http://purl.oclc.org/ooxml/officeDocument"
    )
    change_parts(
        path, b"http://schemas.openxmlformats.org/spreadsheetml/2006", b"http://purl.oclc.org/ooxml/spreadsheetml"
    )
    assert "strict format" in error_of(path)
