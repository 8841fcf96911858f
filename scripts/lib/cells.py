"""Reads the attributes out of a table's cells: plain values, several attributes in one cell, objects and lists."""

import re
from collections.abc import Iterator

from lib.attributes import parse_attributes, tidy
from lib.headings import Names, is_container, is_decoration, key_of
from lib.sheets import text

# Between values. A comma or slash between digits is part of a number or date.
SEPARATORS = re.compile(r"([、，;；|｜&\n\r\t]|(?<!\d)[,/]|[,/](?!\d))")
# After one of these, a value without a name belongs to the name before; after others it belongs to the heading.
SAME_NAME = set("、，,/")
# Between a name and its value. A space before such a name ends the value before it.
COLON = re.compile("[:：=]")
NEXT_NAME = re.compile(r"\s(?=[\u3400-\u9fff]{2,20}\s*[:：=])")
# Where the next attribute begins in an attribute string without asterisks.
NEXT_STRING = re.compile(r"[;；,，、|｜&\s](?=[^\W\d]\w{0,11}[#＃])")
# Marks of HTML, and of an object or list that was written as text.
MARKUP, BRACKETS = re.compile(r"</?\w[^<>]*>"), re.compile(r"""[{}\[\]"'“”]""")
# Values that mean: this product has no such attribute. Excel writes #N/A if a look-up finds nothing.
NOTHING = {"", "无", "暂无", "n/a", "#n/a", "na", "nan", "none", "null"}
# Objects in a list may hold one attribute each: {"name": "颜色", "value": "白色"}.
NAME_OF, VALUE_OF = ("name", "key", "属性名", "属性"), ("value", "val", "属性值", "值")


def read_cell(cell: object, key: str, names: Names) -> tuple[list[tuple[str, str]], list[str]]:
    """The (key, value) pairs of a cell, and the names in it that are left out, because they are not in `names`.

    `key` is what the heading names; it is empty if each attribute in the cell has a name of its own.
    """
    pairs, left_out = [], []
    try:
        found = list(named_values(cell, key, names))
    except RecursionError:
        return [], ["what is nested too deep"]
    for name, value in found:
        known = key_of(name, names)
        if known and value.lower() not in NOTHING and not is_decoration(value):
            pairs.append((known, value.replace("*", "×")))
        elif name and not known:
            left_out.append(name)
    return pairs, left_out


def named_values(cell: object, key: str, names: Names) -> Iterator[tuple[str, str]]:
    """Name and value of each attribute in a cell. The name is `key` where none is given, and may be unknown."""
    if isinstance(cell, list):
        for item in cell:
            yield from named_values(item, key, names)
    elif isinstance(cell, dict):
        name, value = (next((cell[k] for k in ks if k in cell), None) for ks in (NAME_OF, VALUE_OF))
        named = isinstance(name, str) and value is not None
        for inner, content in [(name, value)] if named else cell.items():
            yield from under_name(inner, content, names)
    elif is_attribute_string(text(cell), names):
        for name, value in parse_attributes(tidy(NEXT_STRING.sub("*", text(cell)))):
            yield from written_values(value, name) if COLON.search(value) else [(name, value)]
    elif text(cell).strip().lower() not in NOTHING:
        yield from written_values(text(cell), key)


def under_name(name: str, content: object, names: Names) -> Iterator[tuple[str, str]]:
    """Name and value of what an object holds under a name; an object below it is read if the name may have several."""
    if is_container(name):
        yield from named_values(content, "", names)
    elif isinstance(content, dict) or (isinstance(content, list) and any(isinstance(item, dict) for item in content)):
        yield name, ""
    elif key_of(name, names):
        yield from named_values(content, name, names)
    else:
        yield name, ""


def is_attribute_string(content: str, names: Names) -> bool:
    """Whether a text is written `类型#裙*颜色#白色`, with a known key."""
    return "#" in content.replace("＃", "#") and any(key_of(key, names) for key, _ in parse_attributes(tidy(content)))


def written_values(content: str, key: str) -> Iterator[tuple[str, str]]:
    """Name and value of each part of a text such as `白色、红色` or `颜色:白色;材质:雪纺`."""
    content = MARKUP.sub("\n", content).strip()
    if content.startswith(("{", "[")):
        content = BRACKETS.sub("", content)
    name, mark = key, ""
    for place, part in enumerate(SEPARATORS.split(NEXT_NAME.sub("\n", content))):
        own, *values = COLON.split(part)
        if place % 2:
            mark = part
        # A number before a colon is no name: 16:9.
        elif values and re.search(r"[^\W\d_]", own):
            name = own.strip()
            # A second name cannot be told from the value. Both are left out.
            yield (name, values[0].strip()) if len(values) == 1 else (part.strip(), "")
        else:
            name = name if mark in SAME_NAME else key
            yield name, part.strip()
