"""`make doctor` lists what it looked at; before a run the same checks are silent, warn, or end it in one line."""

import json
import shutil

import numpy as np
import pytest
from lib.files import ROOT, read_json_lines, sha256
from safetensors.numpy import save_file

PEAKS = [
    run["peak_gib"]
    for path in (ROOT / "results/bench").glob("*.json")
    for run in json.loads(path.read_text()).get("runs", [])
    if run["recipe"] == "configs/llama3_8b/sft_lora.yaml" and not run["overrides"]
]


@pytest.fixture(scope="module")
def project(copy_project):
    """A copy of the project, with a base model, prepared rows and an adapter that are whole, and weigh nothing."""
    folder = copy_project()
    (folder / "saves").mkdir()
    base, adapter = folder / "saves/base", folder / "saves/Llama-3-8B-Instruct/lora/sft_qlora"
    for model, name in ((base, "model"), (adapter, "adapter_model")):
        model.mkdir(parents=True)
        save_file({"a": np.zeros(64, np.uint8)}, model / f"{name}.safetensors")
        for file in ("config.json", "adapter_config.json", "tokenizer.json"):
            (model / file).write_text("{}")
    (base / "chat_template.jinja").write_text("{% for one in messages %}<{{ one.role }}>{{ one.content }}{% endfor %}")
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base"}
    (adapter / "adapter_config.json").write_text(json.dumps(lora))
    card = {}
    for split in ("train", "val", "dev"):
        path = folder / f"data/adgen_{split}.jsonl"
        shutil.copy(ROOT / f"data/sample/{split}.jsonl", path)
        card[path.name] = {"sha256": sha256(path), "rows": len(read_json_lines(path))}
    (folder / "data/adgen_card.json").write_text(json.dumps({"output": card}))
    return folder


@pytest.fixture
def look(make, project, tmp_path):
    """A function that runs `make doctor` with a card as described: check → (status, text), of the first of a name."""

    def run(*words, free=81000, capability="9.0", cuda="13.0", cards=1, **variables):
        (tmp_path / "nvidia-smi").write_text(
            f'#!/bin/sh\ncase "$*" in *query*) for i in $(seq {cards}); do echo "NVIDIA H300, 580.1, {free}, '
            f"{capability}\"; done;; *) echo 'Driver Version: 580.1  CUDA Version: {cuda} |';; esac\n"
        )
        (tmp_path / "nvidia-smi").chmod(0o755)
        path = f"{tmp_path}:/usr/bin:/bin"
        words = (*words, f"ARGS=--json model_name_or_path={project}/saves/base " + variables.pop("args", ""))
        result = make(project, "doctor", *words, PATH=path, **variables)
        assert "Traceback" not in result.stderr, result.stderr
        lines = json.loads(result.stdout)
        assert (result.returncode != 0) == any(line["status"] == "wrong" for line in lines)
        return {line["check"]: (line["status"], line["text"]) for line in reversed(lines)}

    return run


def test_all_is_well(look, make, project):
    lines = look("METHOD=lora")
    assert {status for status, _ in lines.values()} == {"ok"}, lines
    assert set(lines) == {"packages", "gpu", "data", "output", "base", "template", "disk"}
    assert "NVIDIA H300" in lines["gpu"][1] and f"took {max(PEAKS):.1f}" in lines["gpu"][1]
    result = make(project, "doctor", "MODEL=tiny", "DATA=sample")
    assert result.returncode == 0 and result.stdout.count("\n") == 8
    assert "make base MODEL=tiny" in result.stdout and "\nwarning  base" in result.stdout


@pytest.mark.parametrize(
    ("card", "status", "said"),
    [
        ({"free": 12000, "cards": 2}, "warning", "11.7 GiB free"),
        ({"free": 12000, "args": "fsdp=full_shard"}, "ok", "was not measured"),
        ({"free": "[N/A]"}, "ok", "took"),
        ({"capability": "7.5"}, "wrong", "bf16=false fp16=true"),
        ({"capability": "7.5", "args": "bf16=false", "cuda": "12.0"}, "ok", "NVIDIA H300"),
        ({"cuda": "11.4"}, "wrong", "driver 580.1 runs CUDA 11.4"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "wrong", "nvidia-smi lists none"),
    ],
)
def test_card(look, card, status, said):
    line = look("METHOD=lora", **card)["gpu"]
    assert line[0] == status and said in line[1], line


def test_a_card_of_48_gb_is_enough_for_what_took_more_of_a_larger_one(look):
    assert look("MODEL=llama3_70b", free=45000)["gpu"][0] == "ok"
    assert look("MODEL=llama3_70b", free=42000)["gpu"][0] == "warning"


def test_packages(look, project):
    asked = project / "requirements.txt"
    kept = asked.read_text()
    try:
        asked.write_text(kept.replace("\ntransformers==", "\ntransformers==9.") + "not-there==1\n")
        status, text = look()["packages"]
        assert status == "warning" and "transformers 4" in text and "not-there is missing" in text
    finally:
        asked.write_text(kept)


@pytest.mark.parametrize("spoil", ["edited", "empty", "gone", "card"])
def test_data(look, project, spoil):
    path = project / "data" / ("adgen_card.json" if spoil == "card" else "adgen_val.jsonl")
    kept = path.read_bytes()
    try:
        if spoil in ("edited", "empty"):
            path.write_bytes(kept[: -100 if spoil == "edited" else 0])
        else:
            path.unlink()
        status, text = look()["data"]
        assert status == ("warning" if spoil in ("gone", "empty") else "wrong")
        assert ("cut off" if spoil == "card" else "adgen_val.jsonl") in text
        assert "make data" in text
    finally:
        path.write_bytes(kept)


def test_no_room(look):
    # Nothing can be written there, and no byte is free.
    lines = look(args="output_dir=/proc/run")
    assert lines["disk"][0] == "wrong" and "output_dir=<folder>" in lines["disk"][1]


def test_models_that_are_not_whole(look, make, project):
    weights, index = (project / "saves/base" / name for name in ("model.safetensors", "model.safetensors.index.json"))
    adapter = project / "saves/Llama-3-8B-Instruct/lora/sft_qlora/adapter_model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1])
        assert "model.safetensors is cut off" in look()["base"][1]
        weights.write_bytes(kept)
        index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}')
        status, text = look()["base"]
        assert status == "wrong" and "model-00002-of-00002" in text
        index.unlink()
        adapter.write_bytes(kept[:20])
        result = make(project, "export", f"ARGS=model_name_or_path={project}/saves/base")
        assert "adapter_model.safetensors is cut off" in result.stderr and "make train" in result.stderr
    finally:
        for path in (weights, adapter):
            path.write_bytes(kept)


def test_export_into_a_folder_of_something_else(make, project, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    result = make(project, "export", f"ARGS=model_name_or_path={project}/saves/base export_dir={tmp_path}")
    assert result.returncode != 0 and "export_dir=<folder>" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"_attn_implementation_internal": "a/b"}'),
        ("config.json", '{"text_config": {"\\u005fattn_implementation_internal": "a/b"}}'),
        # transformers takes it instead of config.json, if that names it.
        ("config.4.0.0.json", '{"_attn_implementation_internal": "a/b"}'),
    ],
)
def test_base_model_whose_config_runs_code(look, make, project, name, text):
    path = project / "saves/base" / name
    try:
        path.write_text(text)
        status, said = look()["base"]
        assert status == "wrong" and "CVE-2026-4372" in said and name in said
        result = make(project, "export", f"ARGS=model_name_or_path={project}/saves/base")
        assert result.returncode != 0 and "CVE-2026-4372" in result.stderr
    finally:
        path.unlink()
        (project / "saves/base/config.json").write_text("{}")


def test_cached_base_model_whose_config_runs_code(make, project, tmp_path):
    model = tmp_path / "models--another--model"
    (model / "snapshots/0a").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0a")
    (model / "snapshots/0a/config.json").write_text('{"_attn_implementation_internal": "a/b"}')
    words = "ARGS=model_name_or_path=another/model adapter_name_or_path=null"
    result = make(project, "export", words, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert result.returncode != 0 and "CVE-2026-4372" in result.stderr and "snapshots/0a" in result.stderr


@pytest.mark.parametrize("verb", ["doctor", "export", "chat", "webui"])
def test_kernels_beside_this_transformers(make, project, tmp_path, verb):
    (tmp_path / "kernels-0.10.0.dist-info").mkdir()
    (tmp_path / "kernels-0.10.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: kernels\nVersion: 0.10.0\n"
    )
    result = make(project, verb, "MODEL=tiny", "DATA=sample", PYTHONPATH=str(tmp_path))
    assert result.returncode != 0 and "CVE-2026-4372" in result.stdout + result.stderr
    assert "pip uninstall kernels" in result.stdout + result.stderr
