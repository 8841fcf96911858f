"""The embedded sample is what its program writes, and what it promises to be."""

import subprocess
import sys
from collections import Counter

import pytest
import scores
from adgen import ROOT, parse_attributes, read_json_lines
from build_sample import GOODS

SPLITS = ("train", "val", "dev")


@pytest.fixture(scope="module")
def sample():
    return {split: read_json_lines(ROOT / f"data/sample/{split}.jsonl") for split in SPLITS}


def test_tracked_files_are_what_the_program_writes(tmp_path):
    subprocess.run(
        [sys.executable, ROOT / "scripts/build_sample.py", "--out", tmp_path], check=True, capture_output=True
    )
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (ROOT / f"data/sample/{split}.jsonl").read_bytes()


def test_no_product_in_two_splits(sample):
    products = {split: {frozenset(parse_attributes(row["content"])) for row in rows} for split, rows in sample.items()}
    assert not products["train"] & products["val"]
    assert not products["dev"] & (products["train"] | products["val"])


def test_ads_keep_to_their_attributes(sample):
    rows = [row for split in SPLITS for row in sample[split]]
    values = scores.vocabulary(row["content"] for row in rows)
    for row in rows:
        assert all(scores.covered(row["content"], row["summary"]).values()), row
        assert not scores.invented(row["content"], row["summary"], values)[1], row


def test_no_value_within_another_of_its_kind():
    for kind, goods in GOODS.items():
        values = [value for _, said in goods["keys"].values() for value in said]
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


def test_example_attributes_are_new_products(sample):
    known = {frozenset(parse_attributes(row["content"])) for split in SPLITS for row in sample[split]}
    examples = (ROOT / "examples/attributes.txt").read_text(encoding="utf-8").split()
    assert len(examples) == 3
    for content in examples:
        pairs = parse_attributes(content)
        keys = GOODS[pairs[0][1]]["keys"]
        assert frozenset(pairs) not in known
        assert all(value in keys[key][1] for key, value in pairs[1:])
