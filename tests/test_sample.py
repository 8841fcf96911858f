"""The embedded sample is what the data card promises."""

from collections import Counter, defaultdict

import pytest
from lib import metrics
from lib.attributes import parse_attributes
from lib.files import ROOT, read_json_lines
from lib.sheets import read_table

SPLITS = ("train", "val", "dev")


@pytest.fixture(scope="module")
def sample():
    """Split → its rows."""
    return {split: read_json_lines(ROOT / f"data/sample/{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def goods(sample):
    """Product type → the (key, value) pairs that its products have."""
    pairs = defaultdict(set)
    for rows in sample.values():
        for row in rows:
            (_, kind), *others = parse_attributes(row["content"])
            pairs[kind].update(others)
    return pairs


def test_no_product_in_two_splits(sample):
    products = {split: {frozenset(parse_attributes(row["content"])) for row in rows} for split, rows in sample.items()}
    assert not products["train"] & products["val"]
    assert not products["dev"] & (products["train"] | products["val"])


def test_ads_keep_to_their_attributes(sample):
    rows = [row for split in SPLITS for row in sample[split]]
    values = metrics.vocabulary(row["content"] for row in rows)
    for row in rows:
        assert all(metrics.covered(row["content"], row["summary"]).values()), row
        assert not metrics.invented(row["content"], row["summary"], values)[1], row


def test_no_value_within_another_of_its_kind(goods):
    """An ad that names one value would otherwise name the other one, too."""
    assert len(goods) == 5
    for kind, pairs in goods.items():
        values = [value for _, value in pairs]
        assert len(values) == len(set(values)), kind
        assert not [(a, b) for a in values for b in values if a != b and a in b], kind


def test_ads_are_of_an_ads_length_and_vary(sample):
    lengths = [len(row["summary"]) for row in sample["train"]]
    assert min(lengths) >= 35 and max(lengths) <= 110
    assert len({row["summary"] for row in sample["train"]}) == len(sample["train"])
    contents = Counter(row["content"] for row in sample["train"])
    assert 0.03 < sum(count > 1 for count in contents.values()) / len(contents) < 0.08


def test_three_kinds_of_goods_in_equal_parts(sample):
    for rows in sample.values():
        kinds = Counter(row["content"].split("*")[0].removeprefix("类型#") for row in rows)
        clothes = kinds["上衣"] + kinds["裙"] + kinds["裤"]
        assert set(kinds) == {"上衣", "裙", "裤", "口红", "耳机"}
        assert max(clothes, kinds["口红"], kinds["耳机"]) <= 1.2 * min(clothes, kinds["口红"], kinds["耳机"])


def test_example_attributes_are_new_products(sample, goods):
    known = {frozenset(parse_attributes(row["content"])) for split in SPLITS for row in sample[split]}
    _, *examples = read_table(ROOT / "examples/attributes.csv", len).lines
    assert len(examples) == 3
    for (content,) in examples:
        (_, kind), *others = pairs = parse_attributes(content)
        assert frozenset(pairs) not in known and set(others) <= goods[kind]
