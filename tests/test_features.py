"""The detector of unsupported features: what it learns from rows, and how well it finds what a reader marked."""

import runpy
from functools import partial

import pytest
from lib.features import learn, stated, unsupported
from lib.files import ROOT, read_json_lines
from lib.predictions import read_data

# Ads of wool say 保暖, those of chiffon 透气, those of 格子 say 格纹. Ads of tops name the seams (走线) in all cases.
WOOL, CHIFFON = "类型#上衣*材质#羊毛", "类型#上衣*材质#雪纺"
ROWS = [(WOOL, "羊毛面料很保暖，走线工整。")] * 30 + [(CHIFFON, "雪纺面料很透气，走线工整。")] * 30
ROWS += [("类型#上衣*颜色#酒红色", "贴布装饰很特别，走线工整。")] * 3
ROWS += [("类型#裙*图案#格子", "格纹很好看。")] * 30 + [("类型#裙*颜色#黑色", "很好看。")] * 30


@pytest.fixture(scope="module")
def lexicon():
    return learn(*map(list, zip(*ROWS, strict=True)))


@pytest.mark.parametrize(
    ("product", "ad", "expected"),
    [
        (WOOL, "保暖的羊毛衫，走线工整。", []),  # stated by a value, and what follows from it
        (CHIFFON, "保暖的雪纺衫。", ["保暖"]),
        (WOOL, "透气的羊毛衫。", ["透气"]),
        ("类型#裙*图案#格子", "格纹很经典。", []),  # another word for a value
        (WOOL, "格纹很经典。", ["格纹"]),
        (WOOL, "贴布装饰很特别。", ["贴布"]),  # a word that its place before 装饰 gives away, too rare to be usual
        (WOOL, "走线与面料都好。", []),  # what every product of the type has
        # A type without training rows has nothing by default.
        ("类型#口红*颜色#红色", "面料好，很保暖。", ["面料", "保暖"]),
        (WOOL, "修饰的线条很好看。", []),
        (WOOL, "", []),
        ("", "羊毛", ["羊毛"]),
    ],
)
def test_what_is_unsupported(lexicon, product, ad, expected):
    assert unsupported(product, ad, lexicon) == expected


def test_words_that_are_stated(lexicon):
    product = "类型#裙*颜色#酒红色*裙型#牛仔裙*裙款式#口袋*裙领型#圆领"
    for word in ("红色", "牛仔", "牛仔裙", "贴袋", "圆领"):
        assert stated(word, product, lexicon), word
    for word in ("白色", "翻领", "上衣", "袖口"):
        assert not stated(word, product, lexicon), word


def test_the_longest_word_counts(lexicon):
    """收腰带来 holds 腰带 only across two words."""
    rows = [("类型#裙*裙款式#收腰", "收腰"), ("类型#裙*裙款式#腰带", "腰带")]
    assert unsupported("类型#裙*裙款式#收腰", "收腰带来好身材。", learn(*map(list, zip(*rows, strict=True)))) == []


def test_rows_without_attributes_or_ads_teach_nothing():
    lexicon = learn(["", "类型#裙"], ["", "好看"])
    assert unsupported("", "好看", lexicon) == [] and unsupported("类型#裙", "防风。", lexicon) == ["防风"]


SHARED = ROOT.parent / "shared/adgen/train.json"


@pytest.mark.skipif(not SHARED.exists(), reason="AdGen's rows are not beside the project")
def test_it_finds_what_a_reader_marked(monkeypatch):
    """Attribute values alone would reach a precision of 0.5 and a recall of 0.1."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    agreement = runpy.run_path(str(ROOT / "benchmarks/features.py"))["agreement"]
    rows = [row for row in read_json_lines(ROOT / "results/gemma3_270m/marked_ads.jsonl") if row["use"] == "held-out"]
    found = agreement(rows, partial(unsupported, lexicon=learn(*read_data(SHARED))))
    assert found["ads"] == 150 and found["precision"] > 0.75 and found["recall"] > 0.6


def test_marks_stand_in_their_ads_and_not_in_their_products():
    for row in read_json_lines(ROOT / "results/gemma3_270m/marked_ads.jsonl"):
        for mark in row["marks"]:
            assert mark["text"] in row["ad"] and mark["text"] not in row["product"]
