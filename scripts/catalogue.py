"""Catalogues: tables of products in CSV, Excel or JSON lines, and the attribute strings of their rows."""

import csv
import io
import json
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from adgen import fail, parse_attributes, printable, read_bounded
from prepare_data import UNREADABLE, tidy

# Names of columns that are no attributes, unless the training data knows them as such.
OTHER_COLUMNS = re.compile(
    "编号|编码|货号|款号|条码|序号|名称|品名|名$|^商品$|^产品$|标题|链接|网址|图片|主图|价|库存|销量|数量|备注|描述|文案|日期|时间"
    "|(?<![a-z])(id|sku|spu|no|code|barcode|name|title|url|link|image|price|stock|quantity|date|note|description)(?![a-z])"
)
SEPARATORS = re.compile(r"[、,，;；/|｜\n]")
NOTHING = {"", "-", "--", "—", "无", "n/a", "#n/a", "na", "nan", "none", "null"}
# Excel's own limits, and what this program keeps in memory, the empty cells of a row included.
MOST_ROWS, MOST_COLUMNS = 2**20, 2**14
MOST_CELLS = 10**7
# Characters of an attribute string: AdGen's longest takes 129.
LONGEST_PRODUCT = 10_000
# The heading of cells that stand to the right of all names.
UNNAMED = "more cells than names"


class Catalogue(NamedTuple):
    """Column names, rows as long as those, and of each row the attribute string or the problem that it has instead."""

    header: list[str]
    rows: list[list]
    columns: list[str]
    products: list[str]
    problems: list[str]


def read_catalogue(path: Path, keys: set[str], columns: list[str]) -> Catalogue:
    """The products of a .csv, .xlsx or .jsonl file; ends the program when it holds none.

    `keys`: the attribute keys that the training data knows; `columns`: the columns with attributes, found if empty.
    """
    header, rows = read_table(path)
    places, strings = attribute_columns(path, header, rows, keys, columns)
    products, problems = [], []
    for row in rows:
        product = attribute_string(header, row, places, strings)
        problem = "" if product else "the row has no attributes"
        if any(text(cell).strip() for name, cell in zip(header, row, strict=True) if name == UNNAMED):
            product, problem = "", f"the row has {UNNAMED}: a cell that holds a comma needs quotation marks"
        if len(product) > LONGEST_PRODUCT:
            problem = f"the row's attributes have {len(product):,} characters, more than {LONGEST_PRODUCT:,}"
            product = ""
        products.append(product)
        problems.append(problem)
    return Catalogue(header, rows, [header[place] for place in places], products, problems)


def text(value: object) -> str:
    """A cell as text: lists joined, nothing for null."""
    if isinstance(value, list):
        return "、".join(map(text, value))
    return "" if value is None else printable(str(value))


def read_table(path: Path) -> tuple[list[str], list[list]]:
    """The column names and the rows of a file, blank rows at its end left out."""
    readers = {".csv": read_csv, ".jsonl": read_objects, ".xlsx": read_xlsx}
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
    return header, [[*row, *[""] * (len(header) - len(row))] for row in lines[1:]]


def check_size(path: Path, rows: int, columns: int) -> None:
    """Ends the program where a table has more cells than memory should hold."""
    if rows * columns > MOST_CELLS:
        fail(f"{path} has {rows:,} rows of {columns:,} columns, more than {MOST_CELLS:,} cells: split it")


def decode(path: Path, marks: bytes) -> str:
    """A file as text, by the encodings that Excel and Chinese Windows write; `marks` as of `read_bounded`."""
    with path.open("rb") as file:
        data = read_bounded(file, str(path), marks)
    for encoding in ("utf-8-sig", "gb18030"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    fail(f"{path} is neither UTF-8 nor GB18030 text; save it as UTF-8")


def read_csv(path: Path) -> list[list[str]]:
    """The lines of a CSV file."""
    content = decode(path, b",;\t\n")
    # Excel writes semicolons or tabs in some languages.
    separator = max(",;\t", key=content.partition("\n")[0].count)
    # Not strict, a forgotten quotation mark would swallow the rows up to the next one.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        fail(f"{path}, line {reader.line_num}: not CSV ({error}); is a quotation mark missing?")


def read_objects(path: Path) -> list[list]:
    """The keys of all objects of a JSON lines file, and the values of each."""
    rows = []
    for number, line in enumerate(decode(path, b"[{,\n").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # What is nested too deep to be written at the end must not get so far.
            json.dumps([row]), text(list(row.values()) if isinstance(row, dict) else row)
        except (ValueError, RecursionError) as error:
            fail(f"{path}, line {number}: not JSON ({error}); is the file cut off?")
        if not isinstance(row, dict):
            fail(f"{path}, line {number}: a JSON object was expected, not {type(row).__name__}")
        rows.append(row)
    header = list(dict.fromkeys(key for row in rows for key in row))
    check_size(path, len(rows), len(header))
    return [header, *([row.get(key) for key in header] for row in rows)]


def read_xlsx(path: Path) -> list[list[str]]:
    """The cells of a workbook's first sheet: values, not formulas; a date is Excel's number of the day."""

    def tree(name: str) -> ElementTree.Element:
        return ElementTree.fromstring(read_bounded(book.open(name), f"{path}: {name}", b"<="))

    def words(item: ElementTree.Element) -> str:
        return "".join(part.text or "" for part in [*item.findall("{*}t"), *item.findall("{*}r/{*}t")])

    def value(cell: ElementTree.Element) -> str:
        kind, content = cell.get("t", "n"), cell.findtext("{*}v") or ""
        if kind == "inlineStr":
            return words(cell.find("{*}is"))
        if kind == "s":
            return words(strings[int(content)])
        # 299.0 is a price of 299, and a bar code has no exponent.
        number = float(content) if kind == "n" and content else None
        return content if number is None else str(int(number) if number.is_integer() else number)

    lines: list[list[str]] = []
    cells = 0
    try:
        with zipfile.ZipFile(path) as book:
            strings = tree("xl/sharedStrings.xml") if "xl/sharedStrings.xml" in book.namelist() else []
            first = tree("xl/workbook.xml").find("{*}sheets")[0]
            link = next(value for name, value in first.items() if name.endswith("}id"))
            target = next(item.get("Target") for item in tree("xl/_rels/workbook.xml.rels") if item.get("Id") == link)
            for row in tree(str(Path("/xl", target))[1:]).iterfind("{*}sheetData/{*}row"):
                number = int(row.get("r", len(lines) + 1))
                if not len(lines) < number <= MOST_ROWS:
                    raise ValueError(f"row {number}")
                lines += [[] for _ in range(number - len(lines))]
                for cell in row:
                    place = 0
                    for letter in filter(str.isalpha, cell.get("r", "")):
                        place = place * 26 + ord(letter) - ord("A") + 1
                        if not 0 < place <= MOST_COLUMNS:
                            raise ValueError(f"column of {cell.get('r')}")
                    if 0 < place <= len(lines[-1]):
                        raise ValueError(f"two cells {cell.get('r')}")
                    lines[-1] += [""] * (place - 1 - len(lines[-1])) + [value(cell)]
                cells += len(lines[-1])
                check_size(path, cells, 1)
    except (*UNREADABLE, ElementTree.ParseError, LookupError, StopIteration, AttributeError, TypeError) as error:
        fail(f"{path} cannot be read as an Excel workbook ({error!r}); save it as .xlsx anew, or as CSV")
    return lines


def key_of(name: str) -> str:
    """A column's name as attribute key: without the marks of attribute strings, or of a form's required fields."""
    return re.sub("[#*＃＊]", "", name).strip()


def attribute_columns(
    path: Path, header: list[str], rows: list[list], keys: set[str], columns: list[str]
) -> tuple[list[int], bool]:
    """The places of the columns with attributes, and whether it is a single one of attribute strings."""
    if any(key in keys for name in header for key, _ in parse_attributes(name)):
        fail(f"{path}: the first line is a product; put a line that names the columns, such as `attributes`, above it")
    if missing := set(columns) - set(header):
        fail(f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(header)}")

    def is_attribute(name: str) -> bool:
        named = bool(key_of(name)) and name != UNNAMED
        return (
            name in columns if columns else named and (key_of(name) in keys or not OTHER_COLUMNS.search(name.lower()))
        )

    for place, name in enumerate(header):
        cells = [cell for cell in (text(row[place]).strip() for row in rows) if cell]
        parsed = [parse_attributes(tidy(cell)) for cell in cells]
        known = any(key in keys for pairs in parsed for key, _ in pairs)
        if (known or sum(map(bool, parsed)) * 2 >= len(cells) > 0) and (is_attribute(name) or (known and not columns)):
            return [place], True
    places = [place for place, name in enumerate(header) if is_attribute(name)]
    if not places:
        fail(f"{path}: none of the columns {', '.join(header)} is an attribute; --columns names those that are")
    return places, False


def attribute_string(header: list[str], row: list, places: list[int], strings: bool) -> str:
    """`类型#裙*颜色#白色` of a row, the type first, as in the training data; empty if the row has no attributes."""
    if strings:
        pairs = parse_attributes(tidy(text(row[places[0]])))
    else:
        cells = [(key_of(header[place]), text(row[place]).strip()) for place in places]
        parts = [(key, SEPARATORS.split(cell)) for key, cell in cells if cell.lower() not in NOTHING]
        pairs = [(key, part.replace("*", "×").strip()) for key, values in parts for part in values]
    pairs = [(key, value) for key, value in pairs if value.lower() not in NOTHING]
    return "*".join(f"{key}#{value}" for key, value in sorted(pairs, key=lambda pair: pair[0] != "类型"))
