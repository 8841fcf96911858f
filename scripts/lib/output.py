"""Writes tables of ads as CSV, JSON lines or Excel workbooks, and labels them as written by AI."""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import IO

from lib.files import fail, printable, whole_file
from lib.sheets import MOST_COLUMNS, MOST_ROWS, text
from lib.tables import width

# The words that the market regulator's guide of 2023 proposes. docs/safety.md says who has to label what.
MARK = "本广告由AI技术生成"
# Excel's limit on a cell, in characters.
LONGEST_CELL = 32_767
# How wide a column of a workbook gets, in characters; longer texts are wrapped.
WIDEST = 60
# What Excel would run as a formula (OWASP, CSV Injection), but no number, no dashes alone, and no ="007", by which
# tables keep the zeros of a code.
FORMULA = re.compile(r"""[@\t\r＝＠＋－]|=(?!"[^"]*"$)|[+-](?![\d.,%]*$|-+$)""")
# Characters that the XML of a workbook cannot hold.
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


# --- the label ---


def check_output(path: Path) -> None:
    """Ends the program if OUTPUT is no table that can be written, or if LABEL cannot stand in its metadata."""
    if path.suffix.lower() not in (".csv", ".xlsx", ".jsonl"):
        fail(f"{path}: OUTPUT must be a .csv, .xlsx or .jsonl file")
    if not re.fullmatch(r"[ !#-\[\]-~]*", producer()):
        fail("LABEL is 1, or the code of whoever publishes: ASCII without quotation marks and backslashes")


def producer() -> str:
    """The code of the maker, if LABEL holds one."""
    label = os.environ.get("LABEL", "")
    return "" if label == "1" else label


def labelled(ad: str) -> str:
    """The ad; if LABEL is set, the visible mark stands at its end, where the rules of 2025 allow it."""
    return f"{ad}（{MARK}）" if ad and os.environ.get("LABEL") else ad


def unlabelled(ad: str) -> str:
    """The ad without that mark at its end, as the model wrote it."""
    return ad.removesuffix(f"（{MARK}）")


def model_of(label: str) -> str:
    """The model that a cell `ai_label` names, as generate.py writes it: the mark, the model and the time."""
    found = re.fullmatch(rf"{MARK}（(.*)，[^，]*）", label, re.DOTALL)
    return found[1] if found else ""


def metadata(content: str) -> dict[str, str]:
    """The implicit label of a text in a file's metadata, with the fields of GB 45438-2025, annex E.

    Label 1 says: this is generated. The number of the content is made from the text, so equal texts have equal ones.
    """
    maker, number = producer(), hashlib.sha256(printable(content).encode()).hexdigest()[:32]
    return {
        "Label": "1",
        "ContentProducer": maker,
        "ProduceID": number,
        "ReservedCode1": "",
        "ContentPropagator": maker,
        "PropagateID": number,
        "ReservedCode2": "",
    }


# --- the table ---


def check_size(path: Path, header: list[str], rows: list[list]) -> None:
    """Ends the program if a workbook cannot hold the table whole."""
    if path.suffix.lower() != ".xlsx":
        return
    if len(rows) >= MOST_ROWS or len(header) > MOST_COLUMNS:
        fail(f"{path}: a workbook has at most {MOST_ROWS:,} rows and {MOST_COLUMNS:,} columns; name a .csv file")
    if any(len(text(cell)) > LONGEST_CELL for row in [header, *rows] for cell in row):
        fail(f"{path}: a cell of the table is longer than Excel's {LONGEST_CELL:,} characters; name a .csv file")


def write_table(path: Path, header: list[str], rows: list[list], about: dict[str, str]) -> None:
    """Writes a table in the form that the file's name asks for, whole or not at all.

    `about`: what the second sheet of a workbook says of the table, a name and a text on each line.
    """
    form = path.suffix.lower()
    with whole_file(path, "wb" if form == ".xlsx" else "w") as file:
        if form == ".xlsx":
            write_workbook(file, header, rows, about)
        elif form == ".jsonl":
            names = different(header)
            for row in rows:
                line = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False)
                file.write(printable(line) + "\n")
        else:
            # The byte order mark tells Excel that this is UTF-8.
            file.write("\ufeff")
            csv.writer(file).writerows([guarded(text(cell)) for cell in row] for row in [header, *rows])


def guarded(cell: str) -> str:
    """The cell of a CSV file, after an apostrophe if Excel would run it as a formula."""
    return f"'{cell}" if FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """The cell without that apostrophe."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell[1:]) else cell


def different(names: list[str]) -> list[str]:
    """The names, numbered where one occurs again, because a JSON object holds each key only once."""
    found, counts = {}, Counter()
    for name in names:
        label = name
        while label in found:
            counts[name] += 1
            label = f"{name} ({counts[name] + 1})"
        found[label] = None
    return list(found)


def write_workbook(file: IO[bytes], header: list[str], rows: list[list], about: dict[str, str]) -> None:
    """Writes the table as a sheet `ads` with a frozen header, and what is known of it as a sheet `about`.

    All cells are text: codes keep their zeros, and nothing is run as a formula. The label stands in
    docProps/custom.xml, as TC260-PG-20258A asks of Office files.
    """
    import openpyxl
    from openpyxl.packaging.custom import StringProperty

    book = openpyxl.Workbook(write_only=True)
    add_sheet(book, "ads", header, rows)
    add_sheet(book, "about", ["what", "value"], list(about.items()))
    label = metadata("\n".join(text(cell) for row in rows for cell in row))
    book.custom_doc_props.append(StringProperty(name="AIGC", value=json.dumps(label)))
    book.save(file)


def add_sheet(book, name: str, header: list[str], rows: list) -> None:
    """Adds a sheet of text cells to a workbook in openpyxl's write-only mode."""
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.styles import Alignment, Font
    from openpyxl.utils import get_column_letter

    sheet = book.create_sheet(name)
    sheet.freeze_panes = "A2"
    lines = [[NOT_XML.sub("�", text(cell)) for cell in row] for row in [header, *rows]]
    for place, column in enumerate(zip(*lines, strict=True), 1):
        widest = max(width(cell) for cell in column) + 2
        sheet.column_dimensions[get_column_letter(place)].width = min(widest, WIDEST)
    wrapped, bold = Alignment(wrap_text=True, vertical="top"), Font(bold=True)
    for number, line in enumerate(lines):
        cells = [WriteOnlyCell(sheet, value or None) for value in line]
        for cell, value in zip(cells, line, strict=True):
            cell.alignment = wrapped
            if value:
                cell.data_type = "s"
            if number == 0:
                cell.font = bold
            if FORMULA.match(value):
                # Excel would run it as soon as somebody edits the cell.
                cell.quotePrefix = True
        sheet.append(cells)
