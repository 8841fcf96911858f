"""Reads tables from .csv, .xlsx and .jsonl files, within bounds of memory."""

import csv
import io
import json
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from lib.archives import open_zip
from lib.files import LARGEST_FILE, fail, printable, read_bounded

# Excel's own limits on a sheet.
MOST_ROWS, MOST_COLUMNS = 2**20, 2**14
# Cells of a table in memory. The empty cells of a row count, too.
MOST_CELLS = 10**7
# The heading of cells that stand to the right of the last heading.
UNNAMED = "more cells than names"


def text(value: object) -> str:
    """A cell as text: lists joined by 、, nothing for null."""
    if isinstance(value, list):
        return "、".join(map(text, value))
    return "" if value is None else printable(str(value))


def read_table(path: Path) -> tuple[list[str], list[list]]:
    """The headings of a table, and its rows, each as long as the headings; blank rows at the end are left out.

    Cells of .csv and .xlsx are text; cells of .jsonl are JSON values. Ends the program if the file cannot be read.
    """
    readers = {".csv": read_csv, ".jsonl": read_objects, ".xlsx": read_workbook}
    if path.suffix.lower() not in readers:
        fail(f"{path}: INPUT is a .csv, .xlsx or .jsonl file; save it as one of these")
    try:
        lines = readers[path.suffix.lower()](path)
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    while lines and not any(text(cell).strip() for cell in lines[-1]):
        lines.pop()
    if len(lines) < 2:
        fail(f"{path} holds no products: its first line names the columns, each line below it is a product")
    columns = max(map(len, lines))
    check_size(path, len(lines), columns)
    header = [text(name).strip() for name in lines[0]]
    header += [UNNAMED] * (columns - len(header))
    return header, [[*row, *[""] * (columns - len(row))] for row in lines[1:]]


def check_size(path: Path, rows: int, columns: int) -> None:
    """Ends the program if a table has more cells than memory should hold."""
    if rows * columns > MOST_CELLS:
        fail(f"{path} has {rows:,} rows of {columns:,} columns, more than {MOST_CELLS:,} cells: split it")


# --- text files ---


def decode(path: Path, marks: bytes) -> str:
    """A file as text, in UTF-8 or GB18030, as Excel and Chinese Windows write them; `marks` as in `read_bounded`."""
    with path.open("rb") as file:
        data = read_bounded(file, str(path), marks)
    for encoding in ("utf-8-sig", "gb18030"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    fail(f"{path} is neither UTF-8 nor GB18030 text; save it as UTF-8")


def read_csv(path: Path) -> list[list[str]]:
    """The lines of a CSV file, separated by commas, semicolons or tabs."""
    content = decode(path, b",;\t\n")
    # Excel writes semicolons or tabs in some languages. The line of headings shows which.
    separator = max(",;\t", key=content.partition("\n")[0].count)
    # If it were not strict, a forgotten quotation mark would swallow the rows up to the next one.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        fail(f"{path}, line {reader.line_num}: not CSV ({error}); is a quotation mark missing?")


def read_objects(path: Path) -> list[list]:
    """The keys of all objects of a JSON lines file as headings, and below them the values of each object."""
    rows = []
    for number, line in enumerate(decode(path, b"[{,\n").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # A value can be nested so deep that it can be read but not written. It is refused here, not at the end.
            json.dumps([row]), text(list(row.values()) if isinstance(row, dict) else row)
        except (ValueError, RecursionError) as error:
            fail(f"{path}, line {number}: not JSON ({error}); is the file cut off?")
        if not isinstance(row, dict):
            fail(f"{path}, line {number}: a JSON object was expected, not {type(row).__name__}")
        rows.append(row)
    header = list(dict.fromkeys(key for row in rows for key in row))
    check_size(path, len(rows), len(header))
    return [header, *([row.get(key) for key in header] for row in rows)]


# --- workbooks ---


def read_workbook(path: Path) -> list[list[str]]:
    """The rows of a workbook's first sheet: the values last computed, not the formulas."""
    with path.open("rb") as file:
        data = read_bounded(file, str(path), b"")
    try:
        with open_zip(data) as zipped:
            check_parts(path, zipped)
        with warnings.catch_warnings():
            # openpyxl warns of styles and extensions that it does not know. They do not change the values.
            warnings.simplefilter("ignore")
            return place_rows(path, first_sheet(data))
    except Exception as error:
        # openpyxl hands on what its XML parsers and its own checks raise, and wraps some of it.
        cause = error.__cause__ or error
        fail(
            f"{path} cannot be read as an Excel workbook ({type(cause).__name__}: {cause}); "
            "save it as .xlsx anew, or as CSV"
        )


def check_parts(path: Path, zipped: zipfile.ZipFile) -> None:
    """Ends the program if a workbook unpacks to more than memory should hold."""
    size = sum(part.file_size for part in zipped.infolist())
    if size > LARGEST_FILE:
        fail(f"{path} unpacks to {size // 2**20} MiB, more than {LARGEST_FILE // 2**20} MiB: split it")
    for part in zipped.infolist():
        # Each element and each attribute of XML becomes a Python object.
        read_bounded(zipped.open(part), f"{path}: {part.filename}", b"<=")


def first_sheet(data: bytes) -> Iterator[tuple[int, list[dict]]]:
    """Row number and cells of each row of a workbook's first sheet, in the order of the file.

    Each cell is a dictionary with openpyxl's `row`, `column` (both from 1), `value` and `data_type`.
    """
    import openpyxl
    from openpyxl.worksheet._reader import DATA_TAG, ROW_TAG, WorkSheetParser
    from openpyxl.xml.functions import iterparse

    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    if not book.worksheets:
        raise ValueError("no sheet with cells was found; a workbook in Excel's strict format cannot be read")
    sheet = book.worksheets[0]
    # The sheet's own iter_rows silently drops a row whose number occurs twice, takes memory for as many cells as a row
    # claims to have, and fails on odd settings that stand behind the cells. So its parser is given row after row.
    with sheet._get_source() as source:
        parser = WorkSheetParser(
            source,
            sheet._shared_strings,
            data_only=True,
            epoch=book.epoch,
            date_formats=book._date_formats,
            timedelta_formats=book._timedelta_formats,
        )
        for _, element in iterparse(source):
            if element.tag == DATA_TAG:
                return
            if element.tag == ROW_TAG:
                if len(element) > MOST_COLUMNS:
                    raise ValueError(f"a row has {len(element):,} cells, more than {MOST_COLUMNS:,}")
                yield parser.parse_row(element)
                element.clear()


def place_rows(path: Path, rows: Iterable[tuple[int, list[dict]]]) -> list[list[str]]:
    """The texts of a sheet, each row at its number; raises ValueError if two rows share one, or it is too large."""
    lines: list[list[str]] = []
    cells = 0
    for number, row in rows:
        if not len(lines) < number <= MOST_ROWS:
            raise ValueError(f"row {number} stands in the wrong place")
        lines += [[] for _ in range(number - len(lines))]
        lines[-1] = place_cells(number, row)
        cells += len(lines[-1])
        check_size(path, cells, 1)
    return lines


def place_cells(number: int, cells: list[dict]) -> list[str]:
    """The texts of a row, each in its column; raises ValueError if two cells share one, or it is too large."""
    line: list[str] = []
    for cell in cells:
        column = cell["column"]
        if not len(line) < column <= MOST_COLUMNS:
            raise ValueError(f"column {column} of row {number} stands in the wrong place")
        line += [""] * (column - 1 - len(line))
        line.append(value_text(cell["value"]))
    return line


def value_text(value: object) -> str:
    """The value of an Excel cell as text: 299.0 as 299, bar codes without exponent, dates as 2024-01-01."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    return text(value)
