"""The product is its attributes, whatever stands around them and however their signs are written."""

import pytest
from corpus import SPELLINGS, WRAPPERS
from hypothesis import given
from hypothesis import strategies as st
from lib.attributes import parse_attributes, product, tidy
from lib.metrics import covered, invented, vocabulary

DRESS = [("类型", "裙"), ("颜色", "白色")]
VALUES = ["白色", "裙", "棉（95%）", "1.5米", "V领", "-20℃", "3/4袖", "邀请函", "手写笔", "广告衫", "加厚暖", "棉，麻"]
keys = st.sampled_from(["类型", "颜色", "材质", "重量（kg）", "sleeve length"])
products = st.lists(st.tuples(keys, st.sampled_from(VALUES)), min_size=1)


@pytest.mark.parametrize("before, after", WRAPPERS)
def test_what_stands_around_the_attributes_is_not_of_the_product(before, after):
    for star, mark in SPELLINGS:
        text = before + star.join(mark.join(pair) for pair in DRESS) + after
        assert parse_attributes(text) == DRESS, text
        assert product(text) == product("颜色#白色*类型#裙")


@given(products, st.sampled_from(WRAPPERS), st.sampled_from(SPELLINGS))
def test_values_of_every_kind_survive_their_wrapping(pairs, around, spelling):
    before, after = around
    star, mark = spelling
    assert parse_attributes(before + star.join(mark.join(pair) for pair in pairs) + after) == pairs


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("颜色#01#白", [("颜色", "01#白")]),
        ("sleeve length#short*skirt length#long", [("sleeve length", "short"), ("skirt length", "long")]),
        ("类型#裙，颜色#白色", DRESS),
        ('"类型"#"裙"*"颜色"#"白色"', DRESS),
        ("1. 类型#裙\n2. 颜色#白色", DRESS),
        ("用C#写一个冒泡排序", []),
        ("请你介绍一下自己", []),
        ("#夏日穿搭 #显瘦", []),
        ("#夏日穿搭#今天穿什么", []),
        ("类型#*#白色*颜色#", []),
    ],
)
def test_attributes_of_a_text(text, pairs):
    assert parse_attributes(text) == pairs


def test_another_product_is_none():
    dress = product("类型#裙*颜色#白色")
    for other in ("类型#裙*颜色#白色*图案#碎花", "类型#裙*颜色#白", "类型#裙", "颜色#裙*类型#白色", "类型#裙颜色#白色"):
        assert product(f"请写广告：{other}") != dress
    assert product("类型#裙*颜色#白色*颜色#白色") == product("类型＃裙*颜色# 白 色") == dress
    assert product("领型#V领") == product("领型#ｖ领")


def test_a_text_without_attributes_stays():
    assert tidy(" 你是谁？ ") == "你是谁？" and product(" 你是谁？ ") == product("你是谁？") != product("我是谁？")


def test_coverage_of_an_escaped_product():
    """Markdown's backslash belongs to no value: 白色 is named, and not invented."""
    content, ad = "类型#裙\\*颜色#白色", "这条白色的裙子清爽百搭。"
    assert covered(content, ad) == {("类型", "裙"): True, ("颜色", "白色"): True}
    assert invented(content, ad, vocabulary([content, "颜色#黑色"])) == ({"白色": "颜色"}, set())
