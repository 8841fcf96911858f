"""Bad catalogues: read whole or refused with one line; no cell lost silently, memory bounded."""

import csv
import io
import json
import tempfile
from pathlib import Path

import openpyxl
from corpus import attempt, attributes, decorated, json_values, texts
from hypothesis import given
from hypothesis import strategies as st
from lib.catalogue import Catalogue, read_catalogue
from lib.files import printable, read_json_lines
from lib.output import NOT_XML, guarded, write_table
from lib.sheets import text

KEYS = {"类型", "颜色", "材质"}
cells = (
    st.sampled_from(["", " ", "裙", "白色、红色", "-", "无", "类型#裙*颜色#白色", '"', "a,b", "1e999", "=1+1"]) | texts
)


@given(
    st.lists(st.lists(cells, min_size=3, max_size=4), max_size=6),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "gb18030"]),
    st.sampled_from([".csv", ".jsonl", ".xlsx"]),
)
def test_tables_hand_on_every_cell(rows, separator, encoding, suffix):
    header = ["货号", "类型", "颜色"]
    rows = [[cell.encode(encoding, "replace").decode(encoding) for cell in row] for row in rows]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator).writerows([header, *rows])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "in.csv")
        path.write_bytes(file.getvalue().encode(encoding))
        table = attempt(read_catalogue, path, KEYS, [])
        while rows and not any(cell.strip() for cell in rows[-1]):
            rows.pop()
        if table is None:
            return
        assert [[text(cell) for cell in row][: len(row)] for row in rows] == [
            list(row[: len(own)]) for row, own in zip(table.rows, rows, strict=True)
        ]
        assert all(
            bool(product) != bool(problem) for product, problem in zip(table.products, table.problems, strict=True)
        )
        check_written(Path(name, f"out{suffix}"), table)


def check_written(path: Path, table: Catalogue) -> None:
    """The table is the same when it was written and read again."""
    write_table(path, table.header, table.rows, {})
    # Lone surrogates are written as question marks, however deep they are nested.
    rows = json.loads(printable(json.dumps(table.rows, ensure_ascii=False))) if path.suffix == ".jsonl" else table.rows
    expected = [[text(cell) for cell in row] for row in rows]
    if path.suffix == ".jsonl":
        found = [list(map(text, row.values())) for row in read_json_lines(path)]
    elif path.suffix == ".csv":
        found = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))[1:]
        expected = [list(map(guarded, row)) for row in expected]
    else:
        book = openpyxl.load_workbook(path)
        assert {cell.data_type for row in book["ads"] for cell in row} <= {"s", "n"}
        found = [[cell or "" for cell in row] for row in book["ads"].iter_rows(min_row=2, values_only=True)]
        expected = [[NOT_XML.sub("�", cell) for cell in row] for row in expected]
    assert found == expected


@given(
    st.lists(st.dictionaries(st.sampled_from(["类型", "颜色", "id"]) | texts, json_values | attributes), max_size=5),
    st.booleans(),
    st.sampled_from([".csv", ".jsonl", ".xlsx"]),
)
def test_objects_hand_on_every_row(rows, escaped, suffix):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "in.jsonl")
        data = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
        path.write_bytes(data.encode("utf-8", "surrogatepass"))
        table = attempt(read_catalogue, path, KEYS, [])
        if table is not None:
            left_out = rows[len(table.rows) :]
            assert len(table.rows) <= len(rows) and not any(
                text(cell).strip() for row in left_out for cell in row.values()
            )
            check_written(Path(name, f"out{suffix}"), table)


# What a shop keeps to itself, and the names under which it may stand.
SECRET = "机密"
SECRET_NAMES = ["采购成本", "供应商", "客户", "goodsId", "备注", "颜色代码", "type_id", "材质供应商", "内部类型号"]


@st.composite
def several(draw):
    """A cell of several attributes, some of which are secret, as a text in any of the ways in which people write it."""
    pairs = draw(st.lists(st.sampled_from([("颜色", "白色"), ("材质", "雪纺"), ("color", "红")]), min_size=1))
    pairs += [(name, SECRET) for name in draw(st.lists(st.sampled_from(SECRET_NAMES), max_size=3))]
    pairs = draw(st.permutations(pairs))
    colon = draw(st.sampled_from([":", "：", "=", " : ", "："]))
    between = draw(st.sampled_from([";", "；", "\n", ",", "，", " | ", "|", "&", "、", "<br>", "; ", "/", "\t"]))
    forms = [
        between.join(f"{name}{colon}{value}" for name, value in pairs),
        "*".join(f"{name}#{value}" for name, value in pairs),
        json.dumps(dict(pairs), ensure_ascii=False),
        str(dict(pairs)),
        "".join(f"<p>{name}{colon}{value}</p>" for name, value in pairs),
    ]
    return draw(st.sampled_from(forms))


@given(
    st.lists(decorated(["类型", "颜色", "材质"]), min_size=1, max_size=3),
    st.lists(st.sampled_from(SECRET_NAMES), max_size=3),
    st.sampled_from(["属性", "商品属性", "attributes", "规格*"]),
    several(),
    st.booleans(),
    st.randoms(),
)
def test_what_is_secret_never_reaches_the_model(known, others, container, cell, as_csv, random):
    columns = [(name, random.choice(["裙", cell])) for name, _ in known] + [(name, SECRET) for name in others]
    columns += [(container, cell)]
    random.shuffle(columns)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "in.csv" if as_csv else "in.jsonl")
        if as_csv:
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(zip(*columns, strict=True))
        else:
            path.write_text(json.dumps(dict(columns) | {"attributes": {"颜色": "白", "成本": SECRET}}), "utf-8")
        table = attempt(read_catalogue, path, KEYS, [])
        assert table and SECRET not in table.products[0]


@given(st.binary(max_size=300), st.sampled_from([".csv", ".jsonl", ".xlsx"]), st.lists(texts, max_size=2))
def test_any_bytes_are_a_catalogue_or_refused(data, suffix, chosen):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, f"in{suffix}")
        path.write_bytes(data)
        attempt(read_catalogue, path, KEYS, chosen)
