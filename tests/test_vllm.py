"""BACKEND=vllm: the server that is started, the prompt it gets, and the ads it writes. A stand-in plays vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from common import KEY, copy_demo, one_error
from generating import read_ads
from lib import vllm
from lib.files import read_json_lines
from lib.recipes import read_recipe
from served import PRODUCT, serve

STAND_IN = Path(__file__).with_name("vllm_stand_in.py")
ENGINE = ("BACKEND=vllm", "MODEL=tiny", "DATA=sample")


@pytest.fixture(scope="module")
def project(demo, tmp_path_factory):
    """A copy of the demo's folder."""
    return copy_demo(demo[0], tmp_path_factory.mktemp("vllm"), "checkpoint-*")


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A card of 48 GiB and the stand-in on PATH; returns a function that reads what the stand-in notes."""
    put(tmp_path, "nvidia-smi", "echo 49152")
    put(tmp_path, "vllm", f'exec {sys.executable} {STAND_IN} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", f"{tmp_path}/notes")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda: read_json_lines(tmp_path / "notes")


def put(folder, name, line):
    """Puts a program of one line into a folder."""
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)


def test_setup_adds_to_the_environment_that_is_there(copy_project, tmp_path):
    """Whatever the times of files: a checkout makes the lock newer than an environment that others use, too."""
    folder = copy_project()
    (folder / ".venv/bin").mkdir(parents=True)
    put(folder / ".venv/bin", "python", "echo Python 3.11")
    put(folder / ".venv/bin", "pip", f'echo "$@" >> {tmp_path}/asked')

    def asked(**variables):
        (tmp_path / "asked").write_text("")
        for lock in folder.glob("*.lock"):
            lock.touch()
        command = ["scripts/setup.sh", ".venv/bin"]
        subprocess.run(command, cwd=folder, env=os.environ | variables, check=True, stdout=subprocess.DEVNULL)
        return (tmp_path / "asked").read_text().split()[-1:]

    assert asked() == ["requirements.lock"] and asked() == []
    assert asked(VLLM="1") == ["requirements-vllm.lock"] and asked(VLLM="1") == asked() == []


def test_it_is_said_what_is_missing(make, clone, tmp_path, monkeypatch):
    assert "make setup VLLM=1" in one_error(make(clone, "api", *ENGINE))
    assert "BACKEND is vllm" in one_error(make(clone, "api", "MODEL=tiny", "BACKEND=sglang"))
    assert "LLaMA-Factory's" in one_error(make(clone, "webchat", *ENGINE))
    put(tmp_path, "vllm", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "CUDA GPU" in one_error(make(clone, "api", *ENGINE, CUDA_VISIBLE_DEVICES=""))
    put(tmp_path, "nvidia-smi", "echo 49152")
    assert "API_KEY" in one_error(make(clone, "api", *ENGINE, API_HOST="0.0.0.0"))


def test_the_api_has_the_recipes_prompt_and_sampling_and_one_door(project, card):
    with serve(project, "api", "BACKEND=vllm", API_KEY=KEY) as url, httpx.Client(base_url=url) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": PRODUCT}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        client.headers["Authorization"] = f"Bearer {KEY}"
        assert client.post("/invocations", json=body).status_code == 404
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    [noted], recipe = card(), read_recipe(project / "configs/tiny/chat.yaml")
    assert all(noted[name] == recipe[name] for name in ("temperature", "top_p", "max_new_tokens"))
    assert f"{recipe['default_system']}<|eot_id|>" in noted["prompt"] and PRODUCT in noted["prompt"]
    # 8 GB is the smallest card that a recipe names; 3.25 of them are left.
    assert noted["options"]["gpu_memory_utilization"] == round(4.75 / 48, 3) and noted["options"]["max_lora_rank"] == 8
    assert KEY not in json.dumps(noted)


def test_a_catalogue(make, project, card, tmp_path):
    words = ("generate", *ENGINE, "N=3", f"OUTPUT={tmp_path}/ads.csv")
    line = make(project, *words, "ARGS=vllm_maxlen=9").stderr.strip().split("\n")[-2]
    assert "the server did not start" in line and "memory" in line and "ARGS=quantization_bit=4" in line
    result = make(project, *words, API_KEY=KEY)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "12 of 12 rows have an ad" in result.stdout
    assert all(row["ai_label"].startswith("本广告由AI技术生成（tiny qlora，") for row in read_ads(tmp_path / "ads.csv"))
    assert {(noted["model"], noted["n"], noted["temperature"]) for noted in card()} == {("tiny", 3, 0.7)}


def test_the_benchmark_keeps_what_another_way_took(make, project, card, tmp_path):
    path, other = tmp_path / "bulk-49152.json", {"way": "make generate", "cards": 1, "ads": 4, "seconds": 2.0}
    own = {"way": "make api BACKEND=vllm EXPORTED=1", "cards": 1, "ads": 1}
    earlier = {"gpu": "49152", "model": "saves/Custom/full/pretrain", "max_tokens": 8, "written": [other, own]}
    path.write_text(json.dumps(earlier))
    words = f"ARGS=--products 3 --n 2 --tokens 8 --out {tmp_path}"
    result = make(project, "bench", "BENCH=bulk", *ENGINE, "EXPORTED=1", words)
    assert result.returncode == 0, result.stderr[-2000:]
    runs = json.loads(path.read_text())["written"]
    assert runs[0] == other and [(run["way"], run["ads"]) for run in runs[1:]] == [(own["way"], 6)]


def test_the_dev_rows(make, project, card, tmp_path):
    """Greedy ads in LLaMA-Factory's form, by the base model and the tuned one; the report says who wrote them."""
    result = make(project, "eval", *ENGINE, f"RESULTS={tmp_path}/scores", "ARGS=max_samples=6")
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads((tmp_path / "scores/eval_results.json").read_text())
    assert report["rows"] == {"base": 6, "tuned": 6} and report["decoding"]["infer_backend"] == "vllm"
    rows = read_json_lines(project / "saves/Custom/predict/sample_qlora/generated_predictions.jsonl")
    assert [set(row) for row in rows] == [{"prompt", "predict", "label"}] * 6
    asked = [(noted["temperature"], noted["n"], noted["options"]["enable_lora"]) for noted in card()]
    assert asked == [(0, 1, False)] * 6 + [(0, 1, True)] * 6


@pytest.fixture(scope="module")
def base(demo, tmp_path_factory):
    """The demo's tokenizer with the marks of other templates."""
    from transformers import AutoTokenizer

    folder = copy_demo(demo[0] / "exports/tiny", tmp_path_factory.mktemp("base"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = ["<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("template", [None, "gemma", "qwen3"])
def test_the_prompt_is_llamafactorys(base, monkeypatch, tmp_path, template):
    """`write_prompt` compares the tokens of both, and ends where a chat template cannot say what LLaMA-Factory does."""
    monkeypatch.setattr(vllm, "ROOT", tmp_path)
    recipe = {"model_name_or_path": base, "default_system": "写文案。", "enable_thinking": False, "template": template}
    vllm.write_prompt(recipe)
    written = (tmp_path / vllm.prompt_folder(recipe) / "chat_template.jinja").read_text()
    assert ("<think>" in written) == (template == "qwen3")
    with pytest.raises(SystemExit, match="cannot make the prompt"):
        vllm.write_prompt(recipe | {"default_system": "a \\n b"})
