"""Finds the attribute columns of a catalogue, and writes each of its products as an attribute string."""

import re
from pathlib import Path
from typing import NamedTuple

from lib.attributes import join_attributes, parse_attributes, tidy
from lib.files import fail
from lib.sheets import UNNAMED, read_table, text

# Column names that are no attributes, unless the training data knows them as keys.
OTHER_COLUMNS = re.compile(
    "编号|编码|货号|款号|条码|序号|名称|品名|名$|^商品$|^产品$|标题|链接|网址|图片|主图|价|库存|销量|数量|备注|描述|文案|日期|时间"
    "|(?<![a-z])(id|sku|spu|no|code|barcode|name|title|url|link|image|price|stock|quantity|date|note|description)(?![a-z])"
)
SEPARATORS = re.compile(r"[、,，;；/|｜\n]")
# Values that mean: this product has no such attribute.
NOTHING = {"", "-", "--", "—", "无", "n/a", "#n/a", "na", "nan", "none", "null"}
# Characters of an attribute string. AdGen's longest has 129.
LONGEST_PRODUCT = 10_000


class Catalogue(NamedTuple):
    """A table of products. `rows`, `products` and `problems` are parallel lists."""

    header: list[str]
    # Each as long as the header; as they stand in the file.
    rows: list[list]
    # The names of the columns that are attributes.
    columns: list[str]
    # The attribute string of each row. Where it is empty, the problem says why.
    products: list[str]
    problems: list[str]


class Columns(NamedTuple):
    """Where the attributes stand: the places of their columns, from 0.

    `strings` says that it is a single column, and that its cells are whole attribute strings.
    """

    places: list[int]
    strings: bool


def read_catalogue(path: Path, keys: set[str], columns: list[str]) -> Catalogue:
    """The products of a .csv, .xlsx or .jsonl file; ends the program if there are none, or no attributes.

    `keys`: the attribute keys of the training data. `columns`: the names of the columns that are attributes; if none
    are named, they are found by their names and cells.
    """
    header, rows = read_table(path)
    check_header(path, header, keys, columns)
    found = find_columns(header, rows, keys, columns)
    if not found.places:
        fail(f"{path}: none of the columns {', '.join(header)} is an attribute; --columns names those that are")
    products, problems = [], []
    for row in rows:
        product, problem = read_product(header, row, found)
        products.append(product)
        problems.append(problem)
    return Catalogue(header, rows, [header[place] for place in found.places], products, problems)


def check_header(path: Path, header: list[str], keys: set[str], columns: list[str]) -> None:
    """Ends the program if the first line is a product, or if a column that the user named is missing."""
    if any(key in keys for name in header for key, _ in parse_attributes(name)):
        fail(f"{path}: the first line is a product; put a line that names the columns, such as `attributes`, above it")
    missing = sorted(set(columns) - set(header))
    if missing:
        fail(f"{path} has no column {', '.join(missing)}; it has {', '.join(header)}")


def key_of(name: str) -> str:
    """The attribute key of a column name: without the marks of attribute strings and of required fields in forms."""
    return re.sub("[#*＃＊]", "", name).strip()


def is_attribute(name: str, keys: set[str], columns: list[str]) -> bool:
    """Whether a column holds attributes, by its name."""
    if columns:
        return name in columns
    if not key_of(name) or name == UNNAMED:
        return False
    return key_of(name) in keys or not OTHER_COLUMNS.search(name.lower())


def find_columns(header: list[str], rows: list[list], keys: set[str], columns: list[str]) -> Columns:
    """The columns that hold attributes, possibly none.

    If a column holds whole attribute strings, it is the only one. One cell with a key of the training data shows that,
    or half of the cells if the column's name may be that of an attribute. Otherwise each column is one attribute key.
    """
    for place, name in enumerate(header):
        cells = [cell for cell in (text(row[place]).strip() for row in rows) if cell]
        parsed = [parse_attributes(tidy(cell)) for cell in cells]
        known = any(key in keys for pairs in parsed for key, _ in pairs)
        mostly = sum(map(bool, parsed)) * 2 >= len(cells) > 0
        if (known and not columns) or ((known or mostly) and is_attribute(name, keys, columns)):
            return Columns([place], strings=True)
    return Columns([place for place, name in enumerate(header) if is_attribute(name, keys, columns)], strings=False)


def read_product(header: list[str], row: list, columns: Columns) -> tuple[str, str]:
    """The attribute string of a row, and its problem; one of them is empty."""
    if any(text(cell).strip() for name, cell in zip(header, row, strict=True) if name == UNNAMED):
        return "", f"the row has {UNNAMED}: a cell that holds a comma needs quotation marks"
    product = attribute_string(header, row, columns)
    if not product:
        return "", "the row has no attributes"
    if len(product) > LONGEST_PRODUCT:
        return "", f"the row's attributes have {len(product):,} characters, more than {LONGEST_PRODUCT:,}"
    return product, ""


def attribute_string(header: list[str], row: list, columns: Columns) -> str:
    """`类型#裙*颜色#白色` of a row, the type first, as in the training data; empty if the row has no attributes."""
    if columns.strings:
        pairs = parse_attributes(tidy(text(row[columns.places[0]])))
    else:
        cells = [(key_of(header[place]), text(row[place]).strip()) for place in columns.places]
        pairs = [pair for key, cell in cells for pair in split_cell(key, cell)]
    pairs = [(key, value) for key, value in pairs if value.lower() not in NOTHING]
    return join_attributes(sorted(pairs, key=lambda pair: pair[0] != "类型"))


def split_cell(key: str, cell: str) -> list[tuple[str, str]]:
    """The (key, value) pairs of a cell, which may hold several values."""
    # `n/a` as a whole is no value, but it would be split at its separator.
    if cell.lower() in NOTHING:
        return []
    # An asterisk would end the value in the attribute string.
    return [(key, value.replace("*", "×").strip()) for value in SEPARATORS.split(cell)]
