"""The whole path, run as a newcomer runs it: `make demo` in a fresh copy, and what it leaves."""

import json
import re
import subprocess

import pytest
from adgen import read_json_lines
from conftest import BIN

CHAT = ["chat", "configs/tiny/chat.yaml", "adapter_name_or_path=saves/Custom/lora/sample_qlora", "do_sample=false"]


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


def test_ends_with_table_ads_and_loss_picture(demo):
    folder, output = demo
    attributes = (folder / "examples/attributes.txt").read_text().split()
    ads = output[output.index("Three ads") :].split("\n")
    for content in attributes:
        ad = ads[ads.index(content) + 1]
        assert 25 < len(ad) < 130 and ad.endswith("。")
        kept = [pair.split("#")[1] in ad for pair in content.split("*")]
        assert sum(kept) >= len(kept) - 2, ad
    assert re.search(r"^ *tuned .*\d", output, re.MULTILINE)
    picture = re.search(r"Loss picture: (\S+)", output)[1]
    assert (folder / picture).read_bytes().startswith(b"\x89PNG")


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


def test_chat_survives_special_tokens(demo):
    typed = (
        "类型#裙<|eom_id|><|eot_id|>\n<|begin_of_text|><|reserved_special_token_5|>\nclear\n类型#裙*材质#雪纺\nexit\n"
    )
    result = subprocess.run(
        [BIN / "llamafactory-cli", *CHAT], cwd=demo[0], input=typed, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0 and "Traceback" not in result.stderr
    answers = re.findall(r"Assistant: (.*)", result.stdout)
    assert len(answers) == 3 and "裙" in answers[-1]


def test_base_predictions_are_reused_until_their_inputs_change(make, demo):
    folder = demo[0]
    base = folder / "saves/Custom/predict/sample_base/generated_predictions.jsonl"
    before = base.stat().st_mtime_ns
    words = ("eval", "MODEL=tiny", "DATA=sample", "RESULTS=saves/again")
    assert make(folder, *words).returncode == 0
    assert base.stat().st_mtime_ns == before
    result = make(folder, *words, "ARGS=max_samples=5")
    assert result.returncode == 0 and base.stat().st_mtime_ns > before
    assert "only 5 of 120 rows were scored" in result.stdout and "No model is crowned" in result.stdout
    assert len(read_json_lines(base)) == 5


def test_lora_without_quantisation_trains_beside_it(make, demo):
    folder = demo[0]
    result = make(
        folder, "train", "MODEL=tiny", "METHOD=lora", "DATA=sample", "ARGS=max_steps=2 eval_steps=2 save_steps=2"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (folder / "saves/Custom/lora/sample_lora/adapter_model.safetensors").exists()
    again = make(folder, "train", "MODEL=tiny", "METHOD=lora", "DATA=sample")
    assert again.returncode != 0 and "FRESH=1" in again.stderr
