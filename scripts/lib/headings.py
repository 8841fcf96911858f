"""Which headings of a table name an attribute: an allow-list of the keys that the training data knows."""

import re
import unicodedata
from functools import lru_cache

# Other plain names of a key, in normal form. Headings in the traditional form need none, see TRADITIONAL.
OTHER_NAMES = {
    "类型": "类别 品类 类目 分类 种类 type category",
    "颜色": "颜色分类 颜色名称 色彩 color colour colors colours",
    "材质": "材料 面料 面料材质 布料 material materials fabric fabrictype",
    "风格": "款式风格 服装风格 style",
    "图案": "花纹 花型 图案花纹 pattern",
    "版型": "版式 fit",
    "场景": "适用场景 使用场景 场合 适用场合 scene occasion",
    "质地": "texture",
    "功能": "function functions feature features",
    "功效": "effect effects benefit benefits",
    "适合肤色": "适用肤色 肤色 skintone",
    "佩戴": "佩戴方式 wearing",
    "连接": "连接方式 connection connectivity",
    "续航": "续航时间 续航时长 电池续航 batterylife",
    "音质": "soundquality",
    "衣领型": "领型 衣领 领口 collar neckline",
    "衣袖型": "袖型 衣袖 sleeve",
    "衣袖长": "袖长 sleevelength",
    "衣门襟": "门襟 closure",
    "裙长": "skirtlength",
    "裤长": "pantslength",
}
# Headings, in normal form, under which several attributes stand in one cell, each with its key.
CONTAINERS = {"属性", "属性串", "销售属性", "sku属性", "参数", "属性参数", "规格", "规格参数", "content"}
CONTAINERS |= {"attribute", "attributes", "attrs", "properties", "props", "specs", "specification", "specifications"}
# The traditional characters of all these names, and the simplified ones.
TRADITIONAL = str.maketrans(
    "類顏質風圖領褲長適場連續殼膚飾裝號碼產屬參數規種襯門闊鬆緊電時間觸繡紋絲銷稱條戶應價",
    "类颜质风图领裤长适场连续壳肤饰装号码产属参数规种衬门阔松紧电时间触绣纹丝销称条户应价",
)
# A unit or a hint in brackets. It is no hint if it says that the column is something else: `类型（供应商）`.
ELSE = "价|成本|供应|客户|内部|编码|代码|编号|货号|cost|price|supplier|customer|internal|code|id"
IN_BRACKETS = re.compile(rf"[(\[【〔<](?![^)\]】〕>]*(?:{ELSE})).*?[)\]】〕>]")
# What forms put beside a name: required or not, marks, spaces and line breaks.
DECORATION = re.compile(r"必填项?|选填项?|可选|required|optional|[\W_]+")
PREFIX = re.compile("^(商品|产品|宝贝|货品|product|item)?(属性|attributes?)?(?=.)")
# Characters of a heading. Longer ones are texts.
LONGEST_HEADING = 60

# Name of an attribute in normal form → the key that the model knows.
Names = dict[str, str]


@lru_cache(maxsize=10_000)
def normal(name: str) -> str:
    """A name without what forms add to it: `＊顏色（必填）` and `颜 色*` are both 颜色; empty if it is long."""
    if len(name) > LONGEST_HEADING:
        return ""
    name = unicodedata.normalize("NFKC", name).casefold().translate(TRADITIONAL)
    return (DECORATION.sub("", IN_BRACKETS.sub("", name)) or DECORATION.sub("", name)).strip("0123456789")


def known_names(keys: set[str], chosen: list[str]) -> Names:
    """The names of the keys that the training data knows, their other names, and the names that the user chose."""
    names = {normal(key): key for key in sorted(keys)}
    for key in OTHER_NAMES.keys() & keys:
        names = dict.fromkeys(OTHER_NAMES[key].split(), key) | names
    for name in chosen:
        if not is_container(name) and not key_of(name, names):
            names[normal(name)] = re.sub("[#*＃＊]", "", name).strip()
    names.pop("", None)
    return names


def is_decoration(value: str) -> bool:
    """Whether a cell holds nothing but what forms put beside names, such as 必填 below a heading."""
    return not DECORATION.sub("", value)


def key_of(name: str, names: Names) -> str:
    """The attribute key that a heading names; empty if none of the known ones."""
    short = normal(name)
    return names.get(short) or names.get(PREFIX.sub("", short), "")


def is_container(name: str) -> bool:
    """Whether several attributes may stand in one cell under this heading."""
    short = normal(name)
    return short in CONTAINERS or PREFIX.sub("", short) in CONTAINERS


def is_literal(name: str, key: str) -> bool:
    """Whether a heading is the key itself, and not another name of it."""
    return normal(key) in (normal(name), PREFIX.sub("", normal(name)))


def listed(names: list[str]) -> str:
    """Names for one line of a message: at most 20, each of at most 40 printable characters."""
    shown = ["".join(letter if letter.isprintable() else " " for letter in name[:40]).strip() for name in names[:20]]
    more = [f"and {len(names) - 20:,} more"] if len(names) > 20 else []
    return ", ".join([name or "(no heading)" for name in shown] + more)
