"""Reads tables from .csv, .xlsx and .jsonl files, within bounds of memory."""

import csv
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple
from xml.etree.ElementTree import iterparse

from lib.archives import open_zip
from lib.files import LARGEST_FILE, fail, printable, read_bounded, read_json_lines

# Excel's own limits on a sheet.
MOST_ROWS, MOST_COLUMNS = 2**20, 2**14
# Cells of a table in memory. The empty cells of a row count, too.
MOST_CELLS = 10**7
# The headings stand in one of the first lines.
HEAD = 20
# Excel's built-in date formats of East Asia, which openpyxl does not know (ECMA-376, part 1, 18.8.30).
DATES = {*range(27, 37), *range(50, 59)}


class Table(NamedTuple):
    """The lines of a file or of a workbook's sheet, from the first on; blank lines at the end are left out."""

    # Cells of .csv and .xlsx are text; cells of .jsonl are JSON values, and its first line holds their keys.
    lines: list[list]
    # The name of the sheet, and of the visible sheets that are not read.
    sheet: str = ""
    unread: tuple[str, ...] = ()


def text(value: object) -> str:
    """A cell as text: lists joined by 、, objects as JSON, nothing for null."""
    if isinstance(value, list):
        return "、".join(map(text, value))
    if isinstance(value, dict):
        return printable(json.dumps(value, ensure_ascii=False))
    return "" if value is None else printable(str(value))


def read_table(path: Path, rate: Callable[[list[list]], int]) -> Table:
    """A table; ends the program if the file cannot be read.

    Of a workbook's visible sheets, the one is read whose first lines get the highest rate; the first one if some are
    equal.
    """
    readers = {".csv": read_csv, ".jsonl": read_objects, ".xlsx": lambda path: read_workbook(path, rate)}
    if path.suffix.lower() not in readers:
        fail(f"{path}: INPUT is a .csv, .xlsx or .jsonl file; save it as one of these")
    try:
        table = readers[path.suffix.lower()](path)
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    lines = table.lines
    while lines and not any(text(cell).strip() for cell in lines[-1]):
        lines.pop()
    check_size(path, len(lines), max(map(len, lines), default=0))
    return table


def check_size(path: Path, rows: int, columns: int) -> None:
    """Ends the program if a table has more cells than memory should hold."""
    if rows * columns > MOST_CELLS:
        fail(f"{path} has {rows:,} rows of {columns:,} columns, more than {MOST_CELLS:,} cells: split it")


# --- text files ---


def decode(path: Path) -> str:
    """A file of lines and columns as text, in UTF-8, UTF-16 with its mark, GB18030 or Big5."""
    with path.open("rb") as file:
        data = read_bounded(file, str(path), b",;\t\n")
    with suppress(UnicodeDecodeError):
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    found = []
    for encoding in ("gb18030", "big5hkscs"):
        with suppress(UnicodeDecodeError):
            found.append(data.decode(encoding))
    # Most bytes of the one can be read as the other. The wrong one gives rare characters.
    best = max(found, key=share_of_common, default="")
    if share_of_common(best) < 0.8:
        fail(f"{path} is not clearly UTF-8, UTF-16, GB18030 or Big5 text; save it as UTF-8")
    return best


def share_of_common(content: str) -> float:
    """The share of the Chinese characters of a text, 0 to 1, that are common, simplified or traditional."""
    letters = re.findall("[\u3400-\u9fff\ue000-\uffff\U00020000-\U0003ffff]", content[:100_000])
    return sum(map(is_common, letters)) / max(1, len(letters))


def is_common(letter: str) -> bool:
    """Whether a character stands in level 1 of GB 2312 or of Big5, which hold the common ones."""
    codes = letter.encode("gb2312", "ignore"), letter.encode("big5", "ignore")
    return b"\xb0\xa1" <= codes[0] <= b"\xd7\xf9" or b"\xa4\x40" <= codes[1] <= b"\xc6\x7e"


def read_csv(path: Path) -> Table:
    """The lines of a CSV file, separated by commas, semicolons or tabs."""
    content = decode(path)
    # Excel writes semicolons or tabs in some languages. The first line that is more than a title shows which.
    lines = [line for line in content[:10_000].splitlines() if re.search("[,;\t]", line)]
    separator = max(",;\t", key=lines[0].count) if lines else ","
    # Below a single heading, 颜色:白色;材质:雪纺 is one cell. No cell holds the separator of units.
    parts = [part for line in lines for part in line.split(separator) if part.strip()]
    if parts and all(re.search("[:：]", part) for part in parts):
        separator = "\x1f"
    # If it were not strict, a forgotten quotation mark would swallow the rows up to the next one.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        return Table(list(reader))
    except csv.Error as error:
        fail(f"{path}, line {reader.line_num}: not CSV ({error}); is a quotation mark missing?")


def read_objects(path: Path) -> Table:
    """The keys of all objects of a JSON lines file as headings, and below them the values of each object."""
    rows = read_json_lines(path)
    header = list(dict.fromkeys(key for row in rows for key in row))
    check_size(path, len(rows), len(header))
    try:
        # A value can be nested so deep that it can be read but not written. It is refused here, not at the end.
        for row in rows:
            json.dumps([row]), text([*row.values()])
    except RecursionError:
        fail(f"{path} holds values that are nested too deep")
    return Table([header, *([row.get(key) for key in header] for row in rows)])


# --- workbooks ---


def read_workbook(path: Path, rate: Callable[[list[list]], int]) -> Table:
    """The best rated of a workbook's visible sheets: the values last computed, not the formulas."""
    from openpyxl.reader.excel import ExcelReader

    with path.open("rb") as file:
        data = read_bounded(file, str(path), b"")
    try:
        with open_zip(data) as zipped, warnings.catch_warnings():
            check_parts(path, zipped)
            # openpyxl warns of styles and extensions that it does not know. They do not change the values.
            warnings.simplefilter("ignore")
            reader = ExcelReader(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
            reader.read()
            parts = {sheet.name: link.target for sheet, link in reader.parser.find_sheets()}
            sheets = [sheet for sheet in reader.wb.worksheets if sheet.sheet_state == "visible"]
            if not sheets:
                raise ValueError("no visible sheet was found; a workbook in Excel's strict format cannot be read")
            best = max(sheets, key=lambda sheet: rate(read_rows(sheet, HEAD))) if len(sheets) > 1 else sheets[0]
            with zipped.open(parts[best.title]) as part:
                rows, merged = look_through(best.title, part)
            lines = read_rows(best, rows)
            fill_merged(lines, merged)
    except Exception as error:
        # openpyxl hands on what its XML parsers and its own checks raise, and wraps some of it.
        cause = error.__cause__ or error
        words = cause if type(cause) is ValueError else f"{type(cause).__name__}: {cause}"
        fail(f"{path} cannot be read as an Excel workbook ({words}); save it as .xlsx anew, or as CSV")
    return Table(lines, best.title, tuple(sheet.title for sheet in sheets if sheet is not best))


def check_parts(path: Path, zipped: zipfile.ZipFile) -> None:
    """Ends the program if a workbook unpacks to more than memory should hold."""
    size = sum(part.file_size for part in zipped.infolist())
    if size > LARGEST_FILE:
        fail(f"{path} unpacks to {size // 2**20} MiB, more than {LARGEST_FILE // 2**20} MiB: split it")
    for part in zipped.infolist():
        # Each element and each attribute of XML becomes a Python object.
        read_bounded(zipped.open(part), f"{path}: {part.filename}", b"<=")


def look_through(sheet: str, part: IO[bytes]) -> tuple[int, list[str]]:
    """The number of a sheet's last row, and its merged ranges such as `A2:A3`.

    Raises ValueError for a formula whose value was never computed, which openpyxl would read as an empty cell.
    """
    last, merged = 0, []
    for _, element in iterparse(part):
        tag = element.tag.rpartition("}")[2]
        if tag == "row":
            last = int(element.get("r") or last + 1)
            for cell in element:
                if cell.find("{*}f") is not None and not cell.findtext("{*}v") and cell.get("t") != "str":
                    where = cell.get("r") or f"in row {last}"
                    raise ValueError(f"sheet {sheet}, cell {where}: Excel never computed its formula")
            element.clear()
        elif tag == "mergeCell":
            merged.append(element.get("ref"))
    return last, merged


def cell_name(sheet: str, row: int, place: int) -> str:
    """A cell's name as users read it: `sheet 商品, cell C3`. row: from 1; place: the number of its column, from 0."""
    from openpyxl.utils import get_column_letter

    return f"{f'sheet {sheet}, ' if sheet else ''}cell {get_column_letter(place + 1)}{row}"


def read_rows(sheet, count: int) -> list[list[str]]:
    """The texts of the first `count` rows of a sheet, which is openpyxl's, read only."""
    if count > MOST_ROWS:
        raise ValueError(f"sheet {sheet.title} has a row {count}")
    from openpyxl.cell.read_only import EMPTY_CELL

    # The size that a sheet claims to have may be wrong.
    sheet.reset_dimensions()
    lines: list[list[str]] = []
    cells, epoch = 0, sheet.parent.epoch
    try:
        # What stands behind the last row is not read. openpyxl would fail on odd settings there.
        for row in islice(sheet.iter_rows(), count):
            # Most cells of a wide sheet are empty.
            lines.append(["" if cell is EMPTY_CELL else value_text(cell, epoch) for cell in row])
            cells += len(row)
            if cells > MOST_CELLS:
                raise ValueError(f"there are more than {MOST_CELLS:,} cells")
    except Exception as error:
        raise ValueError(f"sheet {sheet.title}, row {len(lines) + 1}: {type(error).__name__}: {error}") from None
    return lines


def fill_merged(lines: list[list[str]], merged: list[str]) -> None:
    """Gives the value of a merged cell to each row that it spans and that has a value of its own."""
    from openpyxl.utils import range_boundaries

    blank = [not any(line) for line in lines]
    filled = 0
    for left, top, _, bottom in map(range_boundaries, merged):
        value = lines[top - 1][left - 1] if top <= len(lines) and left <= len(lines[top - 1]) else ""
        filled += min(bottom, len(lines)) - top
        if filled > MOST_CELLS:
            raise ValueError(f"more than {MOST_CELLS:,} cells are merged")
        for number in range(top, min(bottom, len(lines)) if value else 0):
            line = lines[number]
            line += [""] * (left - len(line))
            line[left - 1] = line[left - 1] or ("" if blank[number] else value)


def value_text(cell, epoch: datetime) -> str:
    """The value of an Excel cell as Excel shows it: 299.0 as 299, bar codes without exponent, dates as 2024-01-01."""
    from openpyxl.utils.escape import unescape

    value = cell.value
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        value = number_text(value, cell, epoch)
    # Excel writes a carriage return and other control characters as _x000D_.
    return unescape(text(value)).removesuffix(" 00:00:00")


def number_text(value: float, cell, epoch: datetime) -> object:
    """A number as text, with its percent sign or leading zeros; a date if its format is one of East Asia."""
    from openpyxl.utils.datetime import from_excel

    if cell.style_array.numFmtId in DATES:
        return from_excel(value, epoch)
    form = cell.number_format
    if "%" in form:
        return f"{value * 100:.15g}%"
    digits = str(int(value)) if value == value // 1 else f"{value:.15g}"
    return digits.zfill(len(form)) if set(form) == {"0"} else digits
