"""Finds the features that an ad claims and its product does not imply.

Coverage and hallucination know attribute values only. Ads invent other things, too: 贴布装饰, 防风, 面料 of a lipstick.
The words for such features (materials, crafts, patterns, colours, parts, functions) are learnt from the training rows,
and so is what each of them follows from: 透气 from 棉, but not from 丝绒. No model is needed.
"""

import re
from collections import Counter, defaultdict
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from lib.attributes import parse_attributes
from lib.metrics import Values, find_values


def listed(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# A word that often stands before one of these names a feature: 贴布装饰, 花朵元素.
FRAMES = listed("设计 工艺 元素 图案 面料 装饰 点缀 材质 处理 效果 性 功能 领口 袖口")
# A noun that ends in one of these names a garment, a part, a pattern, a material or a colour.
HEADS = frozenset("领袖扣袋摆绳链裙裤衫纹绒纱棉麻绣褶肩纶珠坠花带边色白")
# What a thing can do, for whom it is, and another kind of thing. No product of a type has them by default.
FUNCTIONS = listed(
    "保暖 透气 弹力 弹性 防风 防晒 防水 防滑 防皱 防寒 抗皱 耐磨 耐脏 吸汗 吸湿 排汗 速干 起球 变形 掉色 褪色 "
    "磨损 可拆卸 收纳 置物 储物 宝宝 婴儿 儿童 孕妇 裙子 裤子 帽子"
)
# What every product of a type has, if ads of the type name it at all.
PARTS = listed(
    "面料 剪裁 裁剪 袖子 衣袖 袖口 袖型 领口 领子 衣领 领型 衣身 衣摆 下摆 门襟 裤腰 裤型 裙型 腰头 腰型 走线 "
    "缝线 车线 针脚 缝制 穿脱 垂坠 光泽 纹理"
)
# Words that the rules above find and that name no feature.
PLAIN = listed(
    "两种 两边 中带 主色 优质 作为 侧边 出色 创意 加以 双肩 同色 图案 实穿 富有 带领 常规 底色 延伸 开合 引领 "
    "形式 形状 携带 收束 收紧 收缩 整款 显白 本色 极具 染色 款型 款式 气色 流行 海边 版型 版式 特殊 特色 环保 "
    "留白 略带 线条 细节 美的 肤色 能带 自带 藏肉 边缘 进行 配色 音乐 颜色 香肩"
)
# Values of these keys are moods, cuts and kinds rather than features.
VAGUE = ("风格", "版型", "类型")
# A value is a cause of a word if this share of the ads of such products uses the word, and if the number of those ads
# lies this many standard deviations (of a Poisson distribution) above what is usual for the type.
SHARE, DEVIATIONS = 0.07, 3.0
# A word is usual for a type if this share of its ads uses the word without a cause.
USUAL = 0.06
# More rows teach little more, and take long.
MOST_ROWS = 10_000


class Lexicon(NamedTuple):
    """What training rows tell about the words for features.

    words: the words, as `find_values` takes them. causes: word → the attribute values that it follows from. usual:
    value of 类型 → the words that fit every product of this type.
    """

    words: Values
    causes: dict[str, set[str]]
    usual: dict[str, set[str]]


def learn(products: list[str], ads: list[str]) -> Lexicon:
    """The lexicon of training rows: attribute strings and their ads. Only the first 10,000 are read."""
    products, ads = products[:MOST_ROWS], ads[:MOST_ROWS]
    attributes = [parse_attributes(product) for product in products]
    kinds = [dict(pairs).get("类型", "") for pairs in attributes]
    lexicon = Lexicon(feature_words(attributes, ads), {}, {kind: set() for kind in kinds})
    values = sorted({value for pairs in attributes for key, value in pairs if key != "类型"}) or [""]
    place = {value: number for number, value in enumerate(values)}
    has = np.zeros((len(ads), len(values)), bool)
    for row, pairs in enumerate(attributes):
        has[row, [place[value] for key, value in pairs if key != "类型"]] = True
    rows_of = defaultdict(list)
    for row, (product, ad) in enumerate(zip(products, ads, strict=True)):
        for word in find_values(ad, lexicon.words):
            if not stated(word, product, lexicon):
                rows_of[word].append(row)
    of_kind = np.array([[kind == name for kind in kinds] for name in lexicon.usual])
    number = np.stack([has[kind].sum(0) for kind in of_kind])
    for word, rows in rows_of.items():
        causes, left = find_causes(np.array(rows), has, of_kind, number)
        lexicon.causes[word] = {values[number] for number in causes}
        for kind, share in zip(lexicon.usual, left, strict=True):
            if word not in FUNCTIONS and share > (0 if word in PARTS else USUAL):
                lexicon.usual[kind].add(word)
    return lexicon


def feature_words(attributes: list[list[tuple[str, str]]], ads: list[str]) -> Values:
    """The words for features: attribute values, functions, and words of ads that their place or form gives away."""
    import jieba

    jieba.setLogLevel("WARNING")
    count, framed, divided = Counter(), Counter(), Counter()
    for ad in ads:
        for token, following in pairwise([*jieba.cut(ad), ""]):
            count[token] += 1
            framed[token] += following in FRAMES
            if following in HEADS and len(token) > 1:
                divided[token, following] += 1
    words = {word for word in count if framed[word] >= max(3, 0.08 * count[word])}
    words |= {word for word in count if word[-1] in HEADS and count[word] >= 3}
    # jieba divides some words before their last character: 一字|肩.
    words |= {start + end for (start, end), number in divided.items() if number >= 3 and start not in words}
    words = {word for word in words if re.fullmatch("[一-龥a-z]{2,}", word) and is_noun(word)} | FUNCTIONS | PARTS
    words |= {value for pairs in attributes for key, value in pairs if key not in VAGUE and len(value) > 1}
    table = defaultdict(dict)
    for word in sorted(words - PLAIN, key=lambda word: (-len(word), word)):
        table[word[:2]][word] = ""
    return dict(table)


def is_noun(word: str) -> bool:
    """Whether no part of the word is a pronoun, an adverb or the like, and no verb stands before another part."""
    import jieba.posseg

    flags = [flag[0] for _, flag in jieba.posseg.lcut(word)]
    return not set(flags) & set("dprcuiqt") and "v" not in flags[:-1]


def stated(word: str, product: str, lexicon: Lexicon) -> bool:
    """Whether a product's attribute string holds the word, or a value that the word names in other characters."""
    if any(kind and kind in word and kind not in product for kind in lexicon.usual):
        return False
    for key, value in parse_attributes(product):
        core = value[:-1] if len(value) > 2 or key == "颜色" else value
        if word in value or value in word or (core and core in word) or (key == "颜色" and core[-1:] in word):
            return True
        # 贴袋 is a kind of 口袋, 金属扣 one of 纽扣; but 圆领 is not 翻领.
        if word[-1] in "袋扣" and word[-1] == value[-1]:
            return True
    return False


def find_causes(
    rows: np.ndarray, has: np.ndarray, of_kind: np.ndarray, number: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """The values that bring a word into ads, the strongest first; for each type, how usual the word is without them.

    rows: the rows whose ad uses the word. has: (all rows, values) of bool. of_kind: (types, all rows) of bool. number:
    (types, values), how many rows have a value. After each value the rows that have it are left out, so that a value
    which only stands beside a cause does not count.
    """
    causes, left = [], np.ones(len(has), bool)
    while True:
        share = of_kind[:, rows].sum(1) / np.maximum((of_kind & left).sum(1), 1)
        seen, expected = has[rows].sum(0), share @ number
        deviations = (seen - expected) / np.sqrt(np.maximum(expected, 0.5))
        deviations[seen < SHARE * np.maximum(number.sum(0), 1)] = 0
        best = int(deviations.argmax())
        if deviations[best] < DEVIATIONS:
            return causes, share
        causes.append(best)
        out = left & has[:, best]
        number = number - np.stack([has[out & kind].sum(0) for kind in of_kind])
        left &= ~out
        rows = rows[left[rows]]


def unsupported(product: str, ad: str, lexicon: Lexicon) -> list[str]:
    """The words for features in an ad that its product neither states nor implies, in the order of the ad."""
    pairs = parse_attributes(product)
    known = {value for key, value in pairs if key != "类型"}
    usual = lexicon.usual.get(dict(pairs).get("类型", ""), set())
    return [
        word
        for word in find_values(ad, lexicon.words)
        if word not in usual and not stated(word, product, lexicon) and known.isdisjoint(lexicon.causes.get(word, ()))
    ]
