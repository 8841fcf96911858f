"""The whole path, run as a newcomer runs it: `make demo` in a fresh copy, and what it leaves."""

import json
import re

import pytest


@pytest.fixture(scope="module")
def scores(demo):
    return json.loads((demo[0] / "saves/Custom/report/eval_results.json").read_text())


def test_tuned_is_plainly_better_than_base(scores):
    for score in ("bleu-4", "rouge-1", "rouge-2", "rouge-l", "coverage"):
        assert scores["tuned - base"][score]["ci95"][0] > 0, score
    assert scores["tuned - base"]["hallucination"]["ci95"][1] < 0
    assert scores["health"]["tuned"] == []
    assert scores["split"]["rows"] == 120


def test_scores_equal_llamafactorys_own(demo, scores):
    for system, run in (("base", "sample_base"), ("tuned", "sample_qlora")):
        own = json.loads((demo[0] / f"saves/Custom/predict/{run}/predict_results.json").read_text())
        for score in ("bleu-4", "rouge-1", "rouge-2", "rouge-l"):
            assert scores["systems"][system][score]["value"] == pytest.approx(own[f"predict_{score}"], abs=1e-4)


def test_shows_stages_then_scores_pictures_and_three_ads(demo):
    folder, output = demo
    lines = output.replace("\r", "\n").split("\n")
    # A terminal shows each bar in one line.
    shown = [line for line in lines if "%  " not in line or "100%" in line]
    assert len(shown) <= 60
    for stage in ("Base model", "Fine-tuning", "Evaluation", "Export", "Three ads"):
        assert re.search(rf"^{stage}.*100%  \d\d:\d\d", "\n".join(lines), re.MULTILINE), stage
    assert not re.search("warn|deprecat|token|traceback", output, re.IGNORECASE)
    assert re.search(r"^tuned .*\d", output, re.MULTILINE)
    for picture in re.findall(r"\S+\.png", output):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"\S+\.png", output)) == 2


def test_the_three_ads_are_the_best_of_four_and_marked(demo):
    folder, output = demo
    products = (folder / "examples/attributes.csv").read_text(encoding="utf-8").split()[1:]
    lines = output.split("\n")
    for product in products:
        place = lines.index(product)
        ad, marks = lines[place + 1], lines[place + 2]
        assert 25 < len(ad) < 130 and ad.endswith("。")
        values = [pair.split("#")[1] for pair in product.split("*")]
        assert sum(f"✓ {value}" in marks for value in values) >= len(values) - 1, marks
        assert all((f"✓ {value}" in marks) == (value in ad) for value in values)
        assert all(value in ad for value in re.findall(r"⚠ (\S+)", marks))


@pytest.mark.long
def test_a_stage_that_fails_names_its_log(make, copy_project):
    folder = copy_project()
    (folder / "data/sample/train.jsonl").write_text("no rows\n")
    result = make(folder, "demo")
    assert result.returncode != 0 and "Traceback" not in result.stderr + result.stdout
    assert re.search(r"^error: Base model failed: .*saves/Custom/demo.log", result.stderr, re.MULTILINE)


def test_export_loads_with_transformers_and_fits_its_tokenizer(demo):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo[0] / "exports/tiny"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == model.config.vocab_size
    assert tokenizer.eos_token == "<|eot_id|>"
    assert tokenizer.convert_tokens_to_ids("<|eom_id|>") in (None, tokenizer.unk_token_id)
    modelfile = (folder / "Modelfile").read_text()
    assert "SYSTEM" in modelfile and 'PARAMETER stop "<|eot_id|>"' in modelfile
    assert list(folder.glob("*.safetensors")) and not list(folder.glob("*.bin"))
