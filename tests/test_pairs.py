"""Preference pairs: which ads become one, from which rows; and a training on them goes on from the fine-tuned model."""

import json
import re
import shutil
from functools import cache

import pairs
import pytest
from common import copy_demo, one_error
from lib.attributes import product
from lib.candidates import UNSUPPORTED, badness, likeness
from lib.choices import read_choices, stages
from lib.features import learn
from lib.feedback import make_rows, read_feedback, select
from lib.files import read_json_lines, sha256, write_json_lines
from lib.metrics import in_first_half, vocabulary

DRESS = "类型#裙*颜色#白色*材质#雪纺*图案#碎花"
VALUES = vocabulary([DRESS, "类型#裙*颜色#黑色*材质#牛仔布*图案#条纹"])
GOOD = "这条白色的裙子选用雪纺面料，轻盈飘逸，点缀着清新的碎花，穿上它去郊游，整个人都温柔了起来，怎么搭配都好看。"
MISSES = GOOD.replace("碎花", "小花")
INVENTS = GOOD.replace("小花", "").replace("轻盈飘逸", "搭配条纹")


@cache
def lexicon():
    return learn([DRESS], ["白色碎花裙，雪纺面料。"])


def judge(product: str, ad: str, **choices) -> float:
    return badness(product, ad, VALUES, lexicon=lexicon(), **choices)


@pytest.mark.parametrize(
    ("ad", "bad"),
    [
        (GOOD, 0),
        (MISSES, 1 / 4),
        (INVENTS, 1 / 4),
        ("白色的雪纺碎花裙。", 1),
        (GOOD.rstrip("。"), 1),
        (GOOD * 2, 1),
    ],
)
def test_badness_by_hand(ad, bad):
    assert badness(DRESS, ad, VALUES) == pytest.approx(bad)


def test_each_unsupported_feature_makes_an_ad_worse():
    ad = GOOD.replace("怎么搭配", "防风保暖")
    assert judge(DRESS, ad) == pytest.approx(2 * UNSUPPORTED)
    assert pairs.make_pair(DRESS, "另一段文字。", [ad, GOOD], judge, 0.15)["chosen"] == GOOD
    seen = sum(map(in_first_half, ("防风", "保暖")))
    assert judge(DRESS, ad, half=True) == pytest.approx(seen * UNSUPPORTED)


def test_half_of_the_values_is_not_seen():
    seen = [value for value in ("白色", "雪纺", "碎花", "裙") if in_first_half(value)]
    assert 0 < len(seen) < 4
    for value in ("白色", "雪纺", "碎花"):
        bad = badness(DRESS, GOOD.replace(value, "好看"), VALUES, half=True)
        assert bad == pytest.approx(1 / len(seen) if value in seen else 0)


def test_the_best_and_the_worst_become_a_pair():
    pair = pairs.make_pair(DRESS, GOOD, [MISSES, GOOD, GOOD[:20]], judge, 0.15)
    assert pair == {"instruction": DRESS, "chosen": GOOD, "rejected": GOOD[:20]}
    assert pairs.make_pair(DRESS, GOOD, [GOOD, MISSES], judge, 0.6) is None
    assert pairs.make_pair(DRESS, GOOD, [GOOD, GOOD], judge, 0) is None


def test_an_ad_with_forbidden_words_is_never_chosen():
    banned = GOOD.replace("怎么搭配都好看", "你的最佳选择")
    assert badness(DRESS, banned, VALUES) == 0
    pair = pairs.make_pair(DRESS, banned, [banned, MISSES, GOOD[:20]], judge, 0.15)
    assert pair == {"instruction": DRESS, "chosen": MISSES, "rejected": GOOD[:20]}
    assert pairs.make_pair(DRESS, banned, [banned, f"{banned[:30]}全网最低"], judge, 0.15) is None


def test_likeness_decides_between_equally_good_ads():
    other = GOOD.replace("温柔", "优雅")
    assert likeness(GOOD, GOOD) == 1 > likeness(other, GOOD) > likeness("别的文案", GOOD) == 0
    for reference in (GOOD, other):
        assert pairs.make_pair(DRESS, reference, [other, GOOD, "短。"], judge, 0.15)["chosen"] == reference


@pytest.mark.parametrize(("method", "how"), [("dpo", "`make pairs`"), ("kto", "`make pairs FEEDBACK=<file>`")])
def test_a_preference_training_needs_its_rows(make, clone, method, how):
    assert one_error(make(clone, "train", "MODEL=tiny", f"METHOD={method}")).endswith(f"run {how}")


@pytest.mark.parametrize("words", ["eval_dataset=sample_dev", "max_samples=5", "output_dir=saves/else", "seed=3"])
def test_only_training_rows_become_pairs(make, clone, words):
    assert "only training rows" in one_error(make(clone, "pairs", "MODEL=tiny", "DATA=sample", f"ARGS={words}"))


def test_pairs_of_a_model_that_is_not_fine_tuned(make, clone):
    result = make(clone, "pairs", "MODEL=tiny", "DATA=sample", "ARGS=--rows 4 --samples 2")
    [line] = [line for line in result.stderr.split("\n") if line.startswith("error: ")]
    assert result.returncode != 0 and "make train MODEL=tiny" in line and not (clone / "saves/Custom/full").exists()


def test_pairs_of_another_model_run_or_hand(make, demo, tmp_path):
    """A preference training goes on from one model, and takes the pairs of its own ads only."""
    folder = copy_demo(demo[0], tmp_path, "checkpoint-*", "exports")
    path, card = folder / "data/tiny_pairs.jsonl", folder / "data/tiny_pairs_card.json"
    path.write_text(json.dumps({"instruction": DRESS, "chosen": GOOD, "rejected": MISSES}) + "\n", encoding="utf-8")
    right = {"model": "tiny", "run": "sample_qlora", "sha256": sha256(path)}
    base = "model_name_or_path=saves/Custom/init"
    for change, words, said in (
        ({"model": "gemma3_270m"}, "", "ads of gemma3_270m sample_qlora"),
        ({"run": "sample_lora"}, "", "ads of tiny sample_lora"),
        ({"run": "sft_qlora"}, "", "ads of tiny sft_qlora"),
        ({"run": "sample_dpo"}, "", "ads of tiny sample_dpo"),
        ({"sha256": "0"}, "", "not what `make pairs` wrote"),
        # Another base model would stand in the place of the merged one without a word.
        ({}, base, "was trained on saves/Custom/full/pretrain"),
    ):
        card.write_text(json.dumps(right | change))
        line = one_error(make(folder, "train", "MODEL=tiny", "DATA=sample", "METHOD=dpo", f"ARGS={words}"))
        assert said in line, line
    assert not (folder / "saves/Custom/merged").exists() and not (folder / "saves/Custom/lora/sample_dpo").exists()
    copy = shutil.copytree(folder / "saves/Custom/full/pretrain", tmp_path / "copy")
    words = f"ARGS=--dry-run model_name_or_path={copy}"
    plan = make(folder, "eval", "MODEL=tiny", "DATA=sample", "METHOD=dpo", words).stdout
    before, after = plan.strip().split("\n")
    assert f"model_name_or_path={copy}" in before
    assert after.rindex("=saves/Custom/merged/sample_qlora") > after.rindex(f"={copy}")


DECISION = {
    "product": DRESS, "decision": "approve", "ad": GOOD, "written": GOOD, "others": [], "reason": "", "model": "tiny",
    "time": "2026-01-01T00:00:00Z",
}  # fmt: skip


def rejected(ad: str, **fields) -> dict:
    """The decision of an editor against an ad."""
    return DECISION | {"decision": "reject", "ad": ad, "written": ad, "reason": "no"} | fields


def test_what_an_editor_decided_becomes_pairs_and_verdicts():
    edited = DECISION | {"written": MISSES, "others": [INVENTS, "", GOOD]}
    other = DRESS.replace("裙", "上衣")
    found, verdicts = make_rows([edited, rejected("短。"), rejected("短。", product=other)])
    rows = [{"instruction": DRESS, "chosen": GOOD, "rejected": bad} for bad in ("短。", MISSES, INVENTS)]
    assert sorted(found, key=str) == sorted(rows, key=str)
    answers = {(row["instruction"], row["output"]): row["approved"] for row in verdicts}
    assert answers == {(DRESS, GOOD): True, (DRESS, MISSES): False, (DRESS, "短。"): False, (other, "短。"): False}
    assert len(verdicts) == len(answers)


def test_what_is_not_learnt_from_an_editor():
    banned = DECISION | {"ad": f"{GOOD}全网最低价", "written": "一"}
    foreign = DECISION | {"model": "gemma3_270m lora", "written": "二"}
    dev = DECISION | {"product": "颜色#红色*类型#裙"}
    # The last decision about an ad counts, in whatever order its attributes stand.
    turned = [rejected(GOOD, product="*".join(reversed(DRESS.split("*")))), DECISION]
    last = DECISION | {"model": "a server"}
    kept, left = select([banned, foreign, dev, *turned, last], "tiny", ["类型#裙*颜色#红色"])
    assert kept == [last]
    assert left == {
        "approved with forbidden words": 1, "of another model": 1, "of a dev product": 1, "decided again": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"product": "类型#裙"', "line 1: not JSON"),
        (DECISION | {"score": 1}, "decision 1: its fields are ad, decision, model, others, product, reason, score"),
        ({key: DECISION[key] for key in DECISION if key != "written"}, "they must be ad, decision, model, others, pro"),
        (DECISION | {"ad": 1}, '"ad" must be text'),
        (DECISION | {"ad": " "}, '"ad" must be no empty text'),
        (DECISION | {"others": GOOD}, '"others" must be a list of texts'),
        (DECISION | {"decision": "maybe"}, '"decision" must be approve or reject'),
    ],
)
def test_lines_that_are_no_decision(tmp_path, row, said):
    path = tmp_path / "feedback.jsonl"
    path.write_text(row if isinstance(row, str) else json.dumps(row), encoding="utf-8")
    with pytest.raises(SystemExit, match=re.escape(said)) as error:
        read_feedback(path)
    assert str(path) in str(error.value)


def test_white_space_around_an_ad_is_no_edit(tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", [DECISION | {"written": f"{GOOD}\n", "others": [f" {GOOD}", "\ud800"]}])
    [row] = read_feedback(tmp_path / "rows.jsonl")
    assert row == DECISION | {"others": [GOOD, "?"]}


def test_feedback_that_teaches_nothing(make, clone, tmp_path):
    path = tmp_path / "feedback.jsonl"
    words = ("pairs", "MODEL=tiny", "DATA=sample", f"FEEDBACK={path}")
    assert f"{path}: there is no such file" in one_error(make(clone, *words))
    assert "leave out --rows 9" in one_error(make(clone, *words, "ARGS=--rows 9"))
    write_json_lines(path, [DECISION, DECISION | {"model": "llama3_8b qlora", "written": "一"}])
    line = one_error(make(clone, *words))
    assert f"{path}: 2 decisions; left out: 1 of another model; ads: 1 yes, 0 no. A training needs" in line
    assert not list(clone.glob("data/tiny_*"))


def test_methods_follow_each_other():
    for method, chain in (("dpo+kto", ["qlora", "dpo", "dpo+kto"]), ("lora+dpo", ["lora", "lora+dpo"])):
        assert [one.method for one in stages(read_choices({"MODEL": "tiny", "METHOD": method}))] == chain
    for method in ("dpo2", "dpo+qlora", "dpo+", "+dpo", "qlora+qlora"):
        with pytest.raises(SystemExit, match=r"METHOD is one of: .*dpo.*kto"):
            read_choices({"MODEL": "tiny", "METHOD": method})


def test_from_pairs_to_scores(make, demo, tmp_path):
    """Pairs of its own ads, DPO from the merged model on, an editor's verdicts, KTO from there on, an evaluation."""
    folder = copy_demo(demo[0], tmp_path, "checkpoint-*", "exports")
    tiny = ("MODEL=tiny", "DATA=sample")
    # No two ads of a row lie that far apart.
    apart = make(folder, "pairs", *tiny, "ARGS=--rows 24 --samples 2 --margin 99")
    assert apart.returncode and "error: no two ads" in apart.stderr and not list(folder.glob("data/tiny_pairs*"))
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
    # A second round needs pairs of the model that the first one left.
    line = one_error(make(folder, "train", *tiny, "METHOD=dpo+dpo"))
    assert "ads of tiny sample_qlora" in line and "goes on from tiny sample_dpo" in line
    # A simulated editor judges the ads of that model, which KTO then goes on from.
    words = "ARGS=--word 好看 --rows 40 --n 2 --dev 16 logging_steps=1"
    result = make(folder, "bench", *tiny, "BENCH=editor", "METHOD=dpo", "RESULTS=saves/editor", words)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads((folder / "saves/editor/editor.json").read_text(encoding="utf-8"))
    verdicts = read_json_lines(folder / "data/tiny_verdicts.jsonl")
    assert found["decisions"] >= len(verdicts) > 20
    assert all(row["approved"] == ("好看" not in row["output"]) for row in verdicts)
    for scores in found["scores"].values():
        assert list(scores) == ["dpo", "dpo+kto", "dpo+kto - dpo"]
        assert scores["dpo"]["ci95"][0] <= scores["dpo"]["value"] <= scores["dpo"]["ci95"][1]
    adapter = json.loads((folder / "saves/Custom/lora/sample_dpo+kto/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "saves/Custom/merged/sample_dpo"
    log = read_json_lines(folder / "saves/Custom/lora/sample_dpo+kto/trainer_log.jsonl")
    assert sum("loss" in entry for entry in log) >= len(verdicts) // 8
    base = folder / "saves/Custom/predict/sample_base/generated_predictions.jsonl"
    before = base.stat().st_mtime_ns
    result = make(folder, "eval", *tiny, "METHOD=dpo+kto", "RESULTS=saves/kto")
    assert result.returncode == 0, result.stderr[-2000:]
    scores = json.loads((folder / "saves/kto/eval_results.json").read_text())
    assert {"base", "fine-tuned", "tuned"} <= set(scores["systems"]) and base.stat().st_mtime_ns == before
