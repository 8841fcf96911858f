"""Finds the attribute columns of a catalogue, and writes each of its products as an attribute string."""

import re
from pathlib import Path
from typing import NamedTuple, NoReturn

from lib.attributes import join_attributes
from lib.cells import is_attribute_string, read_cell
from lib.files import fail
from lib.headings import Names, is_container, is_literal, key_of, known_names, listed, normal
from lib.sheets import HEAD, Table, cell_name, read_table, text

# The heading of cells that stand to the right of the last heading of a CSV file.
UNNAMED = "more cells than names"
# What Excel writes for a formula that failed. #N/A is none of these: it means that there is no value.
ERROR = re.compile("#[A-Z_/0]+[!?]")
# Characters of an attribute string. AdGen's longest has 129.
LONGEST_PRODUCT = 10_000


class Catalogue(NamedTuple):
    """A table of products. `rows`, `products` and `problems` are parallel lists."""

    header: list[str]
    # Each as long as the header; as they stand in the file.
    rows: list[list]
    # The headings of the columns that are read.
    columns: list[str]
    # The attribute string of each row. Where it is empty, the problem says why.
    products: list[str]
    problems: list[str]
    # One line: what is read, what is only copied, and how to change it.
    note: str


# Place of a column, from 0 → the attribute key of its cells; no key if each attribute in a cell has its own.
Columns = dict[int, str]


def read_catalogue(path: Path, keys: set[str], chosen: list[str]) -> Catalogue:
    """The products of a .csv, .xlsx or .jsonl file; ends the program if there are none, or no attributes.

    `keys`: the attribute keys of the training data; a column or a name within a cell is an attribute if it is one of
    them. `chosen`: further names that are attributes. If some of them are headings, only those columns are read.
    """
    names = known_names(keys, chosen)
    table = read_table(path, lambda lines: known_headings(lines[find_headings(lines, names)] if lines else [], names))
    top = find_headings(table.lines, names)
    if not table.lines[top + 1 :]:
        fail(f"{path} holds no products: a row of headings and a row for each product, or a JSON object for each")
    header = [text(name).strip() for name in table.lines[top]]
    width = max(map(len, table.lines[top:]))
    header += [UNNAMED if path.suffix.lower() == ".csv" else ""] * (width - len(header))
    rows = [[*row, *[""] * (width - len(row))] for row in table.lines[top + 1 :]]
    if any(is_attribute_string(name, names) for name in header):
        fail(f"{path}: the first line is a product; put a line that names the columns, such as `attributes`, above it")
    columns = choose_columns(header, chosen, names) or find_columns(header, rows, names)
    if not columns:
        refuse(path, table.sheet, header, keys)
    products, problems, found, left_out = [], [], set(columns.values()), {}
    for number, row in enumerate(rows, top + 2):
        problem = row_problem(header, row, columns, table.sheet, number)
        pairs, unknown = ([], []) if problem else read_row(row, columns, names)
        product = join_attributes(pairs)
        problems.append(problem or product_problem(product, pairs, names))
        products.append("" if problems[-1] else product)
        found |= {key for key, _ in pairs}
        left_out |= dict.fromkeys(unknown)
    same = [name for name in chosen if name in header or any(is_same(heading, name, names) for heading in header)]
    missing = [name for name in chosen if name not in same and key_of(name, names) not in found - {""}]
    if missing:
        fail(f"{path} has no column {listed(missing)}; it has {listed(header)}")
    note = describe(table, top, header, columns, found, list(left_out))
    return Catalogue(header, rows, [header[place] for place in columns], products, problems, note)


# --- columns ---


def known_headings(line: list, names: Names) -> int:
    """How many cells of a line name an attribute, or a column of several attributes."""
    cells = [text(cell) for cell in line]
    return sum(bool(key_of(cell, names)) or is_container(cell) for cell in cells)


def find_headings(lines: list[list], names: Names) -> int:
    """The place of the line of headings, from 0: of the first lines, the one that names the most attributes.

    What stands above it must be titles: lines with fewer filled cells.
    """
    best, most, widest = 0, 0, 0
    for number, line in enumerate(lines[:HEAD]):
        known, filled = known_headings(line, names), sum(bool(text(cell).strip()) for cell in line)
        if known > most and filled > widest:
            best, most = number, known
        widest = max(widest, filled)
    return best


def choose_columns(header: list[str], chosen: list[str], names: Names) -> Columns:
    """The columns that the user chose: their headings are the chosen names, or else other forms of them."""
    places = []
    for name in chosen:
        same = [place for place, heading in enumerate(header) if heading == name]
        places += same or [place for place, heading in enumerate(header) if is_same(heading, name, names)]
    return {place: "" if is_container(header[place]) else key_of(header[place], names) for place in sorted(places)}


def is_same(one: str, other: str, names: Names) -> bool:
    """Whether two names are forms of one."""
    return bool(normal(one)) and (key_of(one, names) or normal(one)) == (key_of(other, names) or normal(other))


def find_columns(header: list[str], rows: list[list], names: Names) -> Columns:
    """The columns that hold attributes, by their headings; possibly none.

    If half of a column's cells are attribute strings, it is the only one. Another name of a key does not count beside
    the key itself.
    """
    for place in range(len(header)):
        cells = [text(row[place]) for row in rows if row[place]]
        if sum(is_attribute_string(cell, names) for cell in cells) * 2 >= len(cells) > 0:
            return {place: ""}
    found = {place: key_of(name, names) for place, name in enumerate(header) if key_of(name, names)}
    literal = {key for place, key in found.items() if is_literal(header[place], key)}
    found = {place: key for place, key in found.items() if key not in literal or is_literal(header[place], key)}
    containers = {place: "" for place, name in enumerate(header) if is_container(name) and place not in found}
    return dict(sorted((found | containers).items()))


def refuse(path: Path, sheet: str, header: list[str], keys: set[str]) -> NoReturn:
    """Ends the program: no column is an attribute."""
    where = f"{path}, sheet {sheet}" if sheet else path
    above = "if these are no headings, put a row of them above the products; " * (path.suffix.lower() != ".jsonl")
    fail(
        f"{where}: none of the columns {listed(header)} is an attribute that the training data knows "
        f"({listed(sorted(keys))}); {above}rename columns, or say which are attributes: --columns A,B"
    )


def describe(table: Table, top: int, header: list[str], columns: Columns, found: set[str], left_out: list[str]) -> str:
    """One line: what is read, what is only copied, and how to change it. found: the keys of all pairs."""
    inner = listed(sorted(found - {*columns.values()})) or "nothing else"
    read = [
        listed([header[place]]) + ("" if header[place] == key else f" (as {key})" if key else f" (holds {inner})")
        for place, key in columns.items()
    ]
    others = [name for place, name in enumerate(header) if place not in columns]
    parts = [f"Attributes: {', '.join(read)}", f"only copied: {listed(others) or 'no other column'}"]
    parts += [f"left out of the cells: {listed(left_out)}"] * bool(left_out)
    parts += [f"left out above the headings: {top} row{'s' * (top > 1)}"] * bool(top)
    parts += [f"read: sheet {table.sheet}, not {listed(list(table.unread))}"] * bool(table.unread)
    return "; ".join([*parts, 'to change this, rename headings or name the attributes: ARGS="--columns 类型,颜色"'])


# --- rows ---


def row_problem(header: list[str], row: list, columns: Columns, sheet: str, number: int) -> str:
    """Why a row cannot be read; empty if it can. number: of the row in its file, from 1."""
    if any(text(cell).strip() for name, cell in zip(header, row, strict=True) if name == UNNAMED):
        return f"the row has {UNNAMED}: a cell that holds a comma needs quotation marks"
    for place in columns:
        cell = text(row[place]).strip()
        if len(cell) > LONGEST_PRODUCT:
            return f"the row's attributes have {len(cell):,} characters, more than {LONGEST_PRODUCT:,}"
        if ERROR.fullmatch(cell):
            return f"{cell_name(sheet, number, place)} ({header[place]}) is the error {cell}, not a value"
    return ""


def read_row(row: list, columns: Columns, names: Names) -> tuple[list[tuple[str, str]], list[str]]:
    """The (key, value) pairs of a row, the type first, as in the training data; the names that are left out."""
    pairs, left_out = [], []
    for place, key in columns.items():
        found, unknown = read_cell(row[place], key, names)
        pairs += found
        left_out += unknown
    return sorted(dict.fromkeys(pairs), key=lambda pair: pair[0] != "类型"), left_out


def product_problem(product: str, pairs: list[tuple[str, str]], names: Names) -> str:
    """Why a row is no product; empty if it is one."""
    if not pairs:
        return "the row has no attributes"
    if all(key_of(value, names) for _, value in pairs):
        return "the row holds names of attributes, not values"
    if len(product) > LONGEST_PRODUCT:
        return f"the row's attributes have {len(product):,} characters, more than {LONGEST_PRODUCT:,}"
    return ""
