"""What of a table reaches the model: only what the training data knows, whatever its headings and cells look like."""

import json
from pathlib import Path

import pytest
from corpus import decorated, is_one_line
from generating import one_error
from hypothesis import given
from lib.catalogue import Catalogue, read_catalogue
from lib.headings import key_of, known_names

KEYS = {"类型", "颜色", "材质", "风格", "功能", "续航", "衣领型"}


def read(folder: Path, content: str | list, *chosen: str, encoding: str = "utf-8") -> Catalogue:
    """The catalogue of a CSV file, or of JSON lines if the content is a list of objects."""
    path = folder / ("in.csv" if isinstance(content, str) else "in.jsonl")
    if not isinstance(content, str):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    path.write_bytes(content.encode(encoding, "surrogateescape"))
    return read_catalogue(path, KEYS, list(chosen))


def error_of(folder: Path, content: str | list, *chosen: str, encoding: str = "utf-8") -> str:
    with pytest.raises(SystemExit) as end:
        read(folder, content, *chosen, encoding=encoding)
    assert is_one_line(end.value.code), end.value.code
    return end.value.code


# --- columns ---

# A table with internal columns, and all of it that may reach the model.
TABLES = [
    ("商品名称,供应商,颜色,采购成本（人民币元）,起订量\n餐盒,甲工厂,深红,12.5,50", "颜色#深红"),
    ("goodsId,商品名称,类型,颜色\n365288,碎花裙,裙,白色", "类型#裙*颜色#白色"),
    ("订单号,客户,类型,颜色\nSO-1,张三,裙,白色", "类型#裙*颜色#白色"),
    ("类型,供应商类型,客户颜色偏好,包装颜色,颜色代码\n裙,工厂,红,白,FFF", "类型#裙"),
    ("颜色,手机号,收货地址,毛利率,内部备注\n白色,13800000000,杭州,40%,别写", "颜色#白色"),
    ("颜色（主色）,材质（成本价）,类型（供应商）,风格(ID)\n白色,3,甲,7", "颜色#白色"),
    ("颜色,颜色成本,颜色（元）价\n白色,3,4", "颜色#白色"),
    ("Color,Cost,Supplier,Customer email,Material\n白色,3,甲,a@b.c,棉", "颜色#白色*材质#棉"),
    ("Colour\tCategory\tPurchase price\n白色\t裙\t3", "类型#裙*颜色#白色"),
    ("颜色分类;面料;领型;成本\n白色;棉;圆领;3", "颜色#白色*材质#棉*衣领型#圆领"),
    ("類型,顏色,風格,進貨價\n裙,白色,甜美,3", "类型#裙*颜色#白色*风格#甜美"),
    ("商品类型,产品颜色,item_material,product style,商品编号\n裙,白,棉,甜美,7", "类型#裙*颜色#白*材质#棉*风格#甜美"),
    # Another name of a key does not count beside the key.
    ("类型,Type,颜色\n裙,simple,白色", "类型#裙*颜色#白色"),
    # The column of attribute strings is the only one that is read.
    ("供应商,颜色,文本\n甲,红,类型#裙*颜色#白色*采购成本#12.5\n乙,红,类型#裤", "类型#裙*颜色#白色"),
    # A note that mentions an attribute is not such a column.
    ("备注,类型\n客户要颜色:白色；张三,裙\n颜色#白色缺货,裤\n急,裤\n急,裤", "类型#裙"),
]


@pytest.mark.parametrize(("content", "product"), TABLES)
def test_only_attributes_reach_the_model(tmp_path, content, product):
    table = read(tmp_path, content)
    assert table.products[0] == product
    copied = [name for name in table.header if name not in table.columns]
    assert "only copied: " + (", ".join(copied) or "no other column") in table.note and "--columns" in table.note


HEADERLESS = [
    "155046,1,U盘,47.70\n137276,1,网线,14.80",
    "裙,白色\n裤,黑色",
    "类型#裙*颜色#白色\n类型#裤*颜色#黑色",
    "SKU,属性名,属性值\n1,颜色,白色\n1,材质,棉",
]


@pytest.mark.parametrize("content", HEADERLESS)
def test_tables_without_a_heading_that_is_known(tmp_path, content):
    message = error_of(tmp_path, content)
    assert "if these are no headings" in message or "first line is a product" in message


def test_no_ad_without_an_attribute(tmp_path):
    """The program ends before it asks any server."""
    (tmp_path / "in.csv").write_text(HEADERLESS[0], encoding="utf-8")
    assert "none of the columns 155046" in one_error(tmp_path / "in.csv", tmp_path / "ads.csv", "--server", "nowhere")
    assert not (tmp_path / "ads.csv").exists()


@given(decorated(sorted(KEYS)))
def test_decorated_headings(case):
    heading, key = case
    assert key_of(heading, known_names(KEYS, [])) == key


def test_headings_that_only_begin_or_end_with_a_known_name():
    names = known_names(KEYS, [])
    for more in ("成本", "代码", "编号", "ID", " price", "_cost", "商"):
        for name in ("颜色", "Color", "类型"):
            assert key_of(name, names) and not key_of(name + more, names) and not key_of(more + name, names)


CHOSEN = [
    ("类型,产地,成本\n裙,杭州,3", ["产地"], "产地#杭州"),
    ("类型,产地*,成本\n裙,杭州,3", ["类型", "产地"], "类型#裙*产地#杭州"),
    ("Color,Type,成本\n白色,裙,3", ["颜色"], "颜色#白色"),
    ("颜色（内）,颜色（外）\n白色,红色", ["颜色（内）"], "颜色#白色"),
    ("SKU,商品属性\n1,类型:裙;产地:杭州;成本:3", ["产地"], "类型#裙*产地#杭州"),
    ("SKU,属性\n1,类型#裙*产地#杭州*成本#3", ["属性", "产地"], "类型#裙*产地#杭州"),
    ("SKU,文本\n1,颜色:白色;成本:3", ["文本"], "颜色#白色"),
]


@pytest.mark.parametrize(("content", "chosen", "product"), CHOSEN)
def test_the_user_names_attributes(tmp_path, content, chosen, product):
    assert read(tmp_path, content, *chosen).products == [product]


def test_a_name_that_is_neither_heading_nor_in_a_cell(tmp_path):
    assert "no column 产地; it has SKU, 属性" in error_of(tmp_path, "SKU,属性\n1,类型:裙;成本:3", "产地")


def test_what_is_no_product(tmp_path):
    table = read(tmp_path, "类型,颜色\n裙,白色\n类型,颜色\nType,Color\n,\n无,N/A\n裙,-\n裙,#REF!\n")
    assert table.products == ["类型#裙*颜色#白色", "", "", "", "", "类型#裙", ""]
    assert table.problems[1:3] == ["the row holds names of attributes, not values"] * 2
    assert table.problems[3:5] == ["the row has no attributes"] * 2
    assert table.problems[6] == "cell B8 (颜色) is the error #REF!, not a value"


def test_rows_that_only_look_like_products(tmp_path):
    """A row of marks below the headings, a table that stands on its side, and one of names and values."""
    assert read(tmp_path, "类型,颜色\n必填,*选填\n（必填）,--\n裙,白色").products == ["", "", "类型#裙*颜色#白色"]
    assert read(tmp_path, "类型,裙,裤\n颜色,白色,黑色\n材质,棉,麻").products == ["", ""]
    assert read(tmp_path, "属性,值\n颜色,白色\n材质,棉").products == ["", ""]


def test_the_note_is_one_line(tmp_path):
    header = ",".join(['"颜\n色"', '"\x1b[2J\n"', *(f"列{'长' * 90}{number}" for number in range(99))])
    note = read(tmp_path, f"{header}\n白色").note
    assert note.isprintable() and len(note) < 1600 and "and 80 more" in note


# --- several attributes in one cell ---

CELLS = [
    "颜色：白色；材质：雪纺；采购成本：12.5",
    "颜色=白色&材质=雪纺&cost=12.5",
    "颜色: 白色\n材质: 雪纺\n客户: 张三",
    "颜色：白色 材质：雪纺 采购成本：12.5",
    "颜色:白色|材质:雪纺|成本:12.5|30",
    "<ul><li>颜色:白色</li><li>材质:雪纺</li><li>成本:3</li></ul>",
    '{"颜色": "白色", "材质": "雪纺", "采购成本": 12.5}',
    "{'颜色': '白色', '材质': ['雪纺'], '采购成本': 12.5}",
    "color: 白色, fabric: 雪纺, cost: 12.5",
    "＊顏色：白色；材 质：雪纺；(成本)：3",
    "供应商#甲*颜色＃白色＊材质＃雪纺",
    "颜色#白色;材质#雪纺;成本#12.5",
    "颜色#白色 材质#雪纺 供应商#甲",
    "颜色#白色*材质#雪纺;采购成本:12.5",
    "甲工厂;颜色:白色;材质:雪纺;张三",
    "颜色:白色;材质:雪纺;风格:成本:12.5",
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("heading", ["商品属性", "attributes", "颜色"])
def test_several_attributes_in_one_cell(tmp_path, heading, cell):
    quoted = '"' + cell.replace('"', '""') + '"'
    product = read(tmp_path, f"SKU,{heading}\n1,{quoted}\n2,\n").products[0]
    # Under the heading of one attribute, what has no name is its value.
    assert (
        product.removeprefix("颜色#甲工厂*").removesuffix("*颜色#张三").removesuffix("*颜色#30")
        == "颜色#白色*材质#雪纺"
    )


@pytest.mark.parametrize("mark", [";", "；", ",", "\t"])
def test_one_column_of_several_attributes(tmp_path, mark):
    table = read(tmp_path, f"商品属性\n颜色:白色{mark}材质:雪纺\n\n颜色：黑色\n")
    assert table.products == ["颜色#白色*材质#雪纺", "", "颜色#黑色"]


def test_values_in_a_cell(tmp_path):
    rows = '"1,200小时、3/4/白",裙\n防水等级:IPX5；快充,裤\n16:9,裤\n颜色:白色、黑色；材质:棉/麻,裙\n'
    table = read(tmp_path, f"功能,类型\n{rows}")
    assert table.products == [
        "类型#裙*功能#1,200小时*功能#3/4*功能#白",
        "类型#裤*功能#快充",
        "类型#裤*功能#16:9",
        "类型#裙*颜色#白色*颜色#黑色*材质#棉*材质#麻",
    ]
    assert "left out of the cells: 防水等级" in table.note


OBJECTS = [
    {"sku": "A1", "attributes": {"类型": "裙", "颜色": "白色"}},
    {"sku": "A1", "attributes": {"类型": "裙", "颜色": ["白色"], "采购成本": 12.5, "供应商": {"类型": "工厂"}}},
    {"sku": "A1", "类型": "裙", "颜色": ["白色"], "供应商": {"类型": "工厂", "颜色": "红"}},
    {"attributes": [{"name": "类型", "value": "裙"}, {"name": "颜色", "value": "白色"}, {"name": "成本", "value": 3}]},
    {"属性": [{"属性名": "类型", "属性值": "裙"}, {"属性名": "颜色", "属性值": ["白色"]}]},
    {"attributes": [{"类型": "裙"}, {"color": "白色"}, "成本:3"]},
    {"properties": {"props": {"type": "裙", "colour": "白色"}, "cost": 3}},
    {"attributes": ["类型:裙", "颜色:白色", "客户:张三"]},
    {"attributes": '{"类型": "裙", "颜色": "白色", "成本": 3}'},
    {"类型": "裙", "颜色": {"颜色": "白色", "成本": 3}},
    {"类型": "裙", "颜色": "白色", "材质": {"主料": "棉", "成本": 3}, "风格": None, "功能": []},
    {"content": "类型#裙*颜色#白色*成本#3", "summary": "颜色:红"},
]


@pytest.mark.parametrize("row", OBJECTS)
def test_layouts_of_json(tmp_path, row):
    table = read(tmp_path, [row])
    assert table.products == ["类型#裙*颜色#白色"] and table.rows == [list(row.values())]


def test_objects_that_are_no_attributes(tmp_path):
    for row in ({"product": {"类型": "裙"}}, {"供应商": {"类型": "工厂"}}, {"a": {"attributes": {"类型": "裙"}}}):
        assert "--columns" in error_of(tmp_path, [row])
    assert read(tmp_path, [{"product": {"类型": "裙", "成本": 3}}], "product").products == ["类型#裙"]


# --- encodings ---

SIMPLIFIED = "类型,颜色,材质,价格\n裙,白色,雪纺,3\n耳机,曜石黑,金属,4\n"
TRADITIONAL = "類型,顏色,材質,價格\n裙,白色,雪紡,3\n耳機,曜石黑,金屬,4\n"
ENCODINGS = [
    (SIMPLIFIED, "gb18030"),
    (TRADITIONAL, "gbk"),
    (TRADITIONAL, "big5"),
    (TRADITIONAL, "big5hkscs"),
    (SIMPLIFIED, "utf-16"),
    (TRADITIONAL, "utf-8-sig"),
    ("颜色\n红\n", "gbk"),
    ("顏色\n紅\n", "big5"),
    ("\ufeff" + SIMPLIFIED.replace(",", "\t"), "utf-16-be"),
]


@pytest.mark.parametrize(("content", "encoding"), ENCODINGS)
def test_encodings(tmp_path, content, encoding):
    right = read(tmp_path, content.removeprefix("\ufeff"))
    found = read(tmp_path, content, encoding=encoding)
    assert (found.header, found.rows, found.products) == (right.header, right.rows, right.products)


# Name → content as text or bytes, and words of the error.
BAD = {
    "none.csv": (None, "none.csv cannot be read"),
    "none.xlsx": (None, "none.xlsx cannot be read"),
    "a.xls": ("x", "a .csv, .xlsx or .jsonl file"),
    "cp1252.csv": ("Größe,Farbe\nL,weiß".encode("cp1252"), "not clearly UTF-8"),
    "cp1251.csv": ("тип,цвет\nюбка,белый".encode("cp1251"), "not clearly UTF-8"),
    "euc_kr.csv": ("색상,유형\n흰색,치마".encode("euc_kr"), "none of the columns"),
    "shift_jis.csv": ("サイズ,カラー\nM,ホワイト".encode("shift_jis"), "not clearly UTF-8"),
    "broken.csv": (SIMPLIFIED.encode() * 9 + b"\xff", "not clearly UTF-8"),
    "empty.csv": ("类型,颜色\n", "holds no products"),
    "quote.csv": ('类型,颜色\n裙,白色\n裙,"白色\n裙,黑色\n', "a quotation mark missing"),
    "zip.xlsx": ("PK", "Excel workbook"),
    "cut.jsonl": ('{"类型": "裙"}\n{"类', "line 2: not JSON"),
    "list.jsonl": ('{"类型": "裙"}\n[]', "line 2: a JSON object"),
    "other.jsonl": ('{"SKU": 1}', "is an attribute that the training data knows (功能, 材质"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_one_line(tmp_path, name):
    content, words = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as end:
        read_catalogue(tmp_path / name, KEYS, [])
    assert is_one_line(end.value.code) and words in end.value.code
    assert "no headings" not in end.value.code or name.endswith(".csv")
