"""The model card of an export: licences and their duties, the training, and the scores of this model alone."""

import json
import shutil

import pytest
import yaml
from common import copy_demo
from lib.choices import read_choices
from lib.model_card import model_card

ADAPTER = "saves/Custom/lora/sample_qlora"


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    ("model", "base", "licence", "duties", "title"),
    [
        ("llama3_8b", "meta-llama/Meta-Llama-3-8B-Instruct", "llama3", "Built with Meta Llama 3.", "Llama 3 8B"),
        ("llama3_70b", "meta-llama/Meta-Llama-3-70B-Instruct", "llama3", "begins with “Llama 3”", "Llama 3 70B"),
        ("llama3_8b", "meta-llama/Llama-3.1-8B-Instruct", "llama3.1", "Built with Llama.", "Llama 3.1 8B Instruct"),
        ("gemma3_270m", "google/gemma-3-270m", "gemma", "subject to the Gemma Terms of Use", "gemma 3 270m"),
        ("qwen3_8b", "Qwen/Qwen3-8B", "apache-2.0", "Apache License 2.0", "Qwen3 8B"),
        ("llama3_8b", "another/model", "other", "not known here", "model"),
    ],
)
def test_licences(tmp_path, model, base, licence, duties, title):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    card = model_card(read_choices({"MODEL": model, "DATA": "adgen"}), {"adapter_name_or_path": str(adapter)})
    data = metadata(card)
    assert data["license"] == licence and data["base_model"] == base and data["language"] == "zh"
    assert data["library_name"] == "transformers" and data["datasets"] == ["HasturOfficial/adgen"]
    assert duties in card and f"\n# {title}" in card and "Look up their licence" in card
    assert "Not scored" in card and "left no notes" in card and str(tmp_path) not in card


def test_local_copy_of_the_base_model_keeps_its_name(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for named, known in (("/disk/Meta-Llama-3-8B-Instruct", True), ("/disk/secret", False)):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
        card = model_card(read_choices({"MODEL": "llama3_8b"}), {"adapter_name_or_path": str(adapter)})
        assert ("base_model" in metadata(card)) == known and "/disk" not in card
        assert metadata(card)["license"] == ("llama3" if known else "other")


def test_scores_of_this_model_alone(demo, tmp_path, monkeypatch):
    folder = copy_demo(demo[0], tmp_path, "checkpoint-*", "exports")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RESULTS", "saves/Custom/report")
    choices = read_choices({"MODEL": "tiny", "DATA": "sample", "METHOD": "qlora"})
    results = json.loads((folder / "saves/Custom/report/eval_results.json").read_text())
    card = model_card(choices, {"adapter_name_or_path": ADAPTER})
    assert f"{results['systems']['tuned']['bleu-4']['value']:.2f} ±" in card and "120 of the 120 rows" in card
    epochs = choices.settings("sft_qlora")["num_train_epochs"]
    assert f"num_train_epochs: {epochs}\n" in card and "datasets" not in metadata(card)
    assert "1,960 rows (`train.jsonl`)" in card
    # Another adapter, other predictions, and a training after the scores.
    shutil.copytree(ADAPTER, "saves/other")
    assert "Not scored" in model_card(choices, {"adapter_name_or_path": "saves/other"})
    own = folder / "saves/Custom/predict/sample_qlora/predict_results.json"
    kept = own.read_text()
    own.write_text(json.dumps(json.loads(kept) | {"predict_rouge-l": 12}))
    assert "Not scored" in model_card(choices, {"adapter_name_or_path": ADAPTER})
    own.write_text(kept)
    assert "Not scored" not in model_card(choices, {"adapter_name_or_path": ADAPTER})
    (folder / ADAPTER / "adapter_model.safetensors").touch()
    assert "Not scored" in model_card(choices, {"adapter_name_or_path": ADAPTER})


def test_export_writes_it_and_uses_the_template_of_the_training(make, demo, tmp_path):
    """A training with a template of LLaMA-Factory's is exported and served with it, without naming it again."""
    folder = copy_demo(demo[0], tmp_path, "checkpoint-*", "exports")
    tiny = ("MODEL=tiny", "DATA=sample", "METHOD=lora")
    steps = "ARGS=template=alpaca max_steps=2 eval_steps=2 save_steps=2"
    (folder / "saves/Custom/full/pretrain/chat_template.jinja").unlink()
    refused = make(folder, "train", *tiny, steps.replace("template=alpaca ", ""))
    assert refused.returncode != 0 and "ARGS=template=alpaca" in refused.stderr
    for verb, words in (("train", steps), ("export", "ARGS=")):
        result = make(folder, verb, *tiny, words)
        assert result.returncode == 0, result.stderr[-2000:]
    export = folder / "exports/tiny"
    assert "### Instruction" in (export / "chat_template.jinja").read_text(encoding="utf-8")
    card = (export / "README.md").read_text(encoding="utf-8")
    assert metadata(card)["license"] == "apache-2.0" and "template: alpaca" in card and "max_steps: 2" in card
    other = make(folder, "export", *tiny, "ARGS=template=llama3")
    assert other.returncode != 0 and "template alpaca" in other.stderr and "has llama3" in other.stderr
    served = make(folder, "chat", *tiny, "EXPORTED=1")
    assert served.returncode == 0 and "Traceback" not in served.stderr
