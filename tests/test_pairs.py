"""Preference pairs: which ads become one, from which rows; and a training on them goes on from the fine-tuned model."""

import argparse
import json

import pairs
import pytest
from common import copy_demo, one_error
from lib.attributes import product
from lib.candidates import badness, likeness
from lib.files import read_json_lines
from lib.metrics import in_first_half, vocabulary

DRESS = "类型#裙*颜色#白色*材质#雪纺*图案#碎花"
VALUES = vocabulary([DRESS, "类型#裙*颜色#黑色*材质#牛仔布*图案#条纹"])
GOOD = "这条白色的裙子选用雪纺面料，轻盈飘逸，点缀着清新的碎花，穿上它去郊游，整个人都温柔了起来，怎么搭配都好看。"
MISSES = GOOD.replace("碎花", "小花")
INVENTS = GOOD.replace("小花", "").replace("轻盈飘逸", "搭配条纹")


def options(margin=0.15, half=False):
    return argparse.Namespace(margin=margin, half=half)


@pytest.mark.parametrize(
    ("ad", "bad"),
    [
        (GOOD, 0),
        (MISSES, 1 / 4),
        (INVENTS, 1 / 4),
        ("白色雪纺碎花裙。", 1),
        (GOOD.rstrip("。"), 1),
        (GOOD * 2, 1),
    ],
)
def test_badness_by_hand(ad, bad):
    assert badness(DRESS, ad, VALUES) == pytest.approx(bad)


def test_half_of_the_values_is_not_seen():
    seen = [value for value in ("白色", "雪纺", "碎花", "裙") if in_first_half(value)]
    assert 0 < len(seen) < 4
    for value in ("白色", "雪纺", "碎花"):
        bad = badness(DRESS, GOOD.replace(value, "好看"), VALUES, half=True)
        assert bad == pytest.approx(1 / len(seen) if value in seen else 0)


def test_the_best_and_the_worst_become_a_pair():
    pair = pairs.make_pair(DRESS, GOOD, [MISSES, GOOD, GOOD[:20]], VALUES, options())
    assert pair == {"instruction": DRESS, "chosen": GOOD, "rejected": GOOD[:20]}
    assert pairs.make_pair(DRESS, GOOD, [GOOD, MISSES], VALUES, options(margin=0.3)) is None
    assert pairs.make_pair(DRESS, GOOD, [GOOD, GOOD], VALUES, options(margin=0)) is None


def test_likeness_decides_between_equally_good_ads():
    other = GOOD.replace("温柔", "优雅")
    assert likeness(GOOD, GOOD) == 1 > likeness(other, GOOD) > likeness("别的文案", GOOD) == 0
    for reference in (GOOD, other):
        assert pairs.make_pair(DRESS, reference, [other, GOOD, "短。"], VALUES, options())["chosen"] == reference


def test_a_preference_training_needs_its_pairs(make, clone):
    line = one_error(make(clone, "train", "MODEL=tiny", "METHOD=dpo"))
    assert "tiny_pairs" in line and "`make pairs`" in line


def test_from_pairs_to_scores(make, demo, tmp_path):
    """Pairs from training rows, a training from the merged model on, an evaluation with all three systems."""
    folder = copy_demo(demo[0], tmp_path, "checkpoint-*", "exports")
    tiny = ("MODEL=tiny", "DATA=sample")
    result = make(folder, "pairs", *tiny, "ARGS=--rows 24 --samples 2")
    assert result.returncode == 0, result.stderr[-2000:]
    rows = read_json_lines(folder / "data/tiny_pairs.jsonl")
    card = json.loads((folder / "data/tiny_pairs_card.json").read_text(encoding="utf-8"))
    assert len(rows) == card["pairs"] > 5 and card["mean badness"]["chosen"] < card["mean badness"]["rejected"]
    train, dev = ({product(row["content"]) for row in read_json_lines(folder / f"data/sample/{name}.jsonl")}
                  for name in ("train", "dev"))  # fmt: skip
    assert {product(row["instruction"]) for row in rows} <= train - dev
    # Ads that are there already are used again.
    again = make(folder, "pairs", *tiny, "ARGS=--rows 24 --samples 2")
    assert again.returncode == 0 and "Ads 1" not in again.stderr
    result = make(folder, "train", *tiny, "METHOD=dpo", "ARGS=logging_steps=1")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (folder / "saves/Custom/merged/sample_qlora/model.safetensors").exists()
    adapter = json.loads((folder / "saves/Custom/lora/sample_dpo/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "saves/Custom/merged/sample_qlora"
    base = folder / "saves/Custom/predict/sample_base/generated_predictions.jsonl"
    before = base.stat().st_mtime_ns
    result = make(folder, "eval", *tiny, "METHOD=dpo", "RESULTS=saves/dpo")
    assert result.returncode == 0, result.stderr[-2000:]
    scores = json.loads((folder / "saves/dpo/eval_results.json").read_text())
    assert {"base", "fine-tuned", "tuned"} <= set(scores["systems"]) and base.stat().st_mtime_ns == before
