"""What goes wrong before a run is said in one line, with a non-zero exit, and leaves nothing behind."""

import pytest
from common import one_error


def files(folder):
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture
def with_rows(clone):
    """The copy with prepared rows in it, as if `make data` had run."""
    names = ("adgen_train.jsonl", "adgen_val.jsonl", "adgen_dev.jsonl", "adgen_card.json")
    for name in names:
        (clone / "data" / name).write_text('{"instruction": "类型#裙", "output": "裙子。"}\n', encoding="utf-8")
    (clone / "data/adgen_card.json").write_text("{}")
    yield clone
    for name in names:
        (clone / "data" / name).unlink()


def test_no_gpu(make, with_rows):
    before = files(with_rows)
    line = one_error(make(with_rows, "train", CUDA_VISIBLE_DEVICES=""))
    assert "GPU" in line and "make demo" in line
    assert files(with_rows) == before


@pytest.mark.parametrize("verb", ["eval", "export", "chat"])
def test_before_training(make, with_rows, verb, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "train_results.json"):
        (base / name).write_text("{}")
    header = b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    line = one_error(make(with_rows, verb, "MODEL=tiny", f"ARGS=model_name_or_path={base}"))
    assert "saves/Custom/lora/sft_qlora" in line and "make train MODEL=tiny" in line


def test_base_model_that_cannot_be_reached(make, clone):
    words = ("export", "ARGS=adapter_name_or_path=null")
    line = one_error(make(clone, *words, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(clone / "none")))
    assert "meta-llama/Meta-Llama-3-8B-Instruct" in line and "model_name_or_path=" in line
    line = one_error(make(clone, *words, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_CACHE=str(clone / "none")))
    assert "http://127.0.0.1:9" in line and "network" in line


def test_base_model_folder_that_is_not_whole(make, clone, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    line = one_error(make(clone, "export", f"ARGS=model_name_or_path={tmp_path} adapter_name_or_path=null"))
    assert str(tmp_path) in line and "safetensors" in line
    line = one_error(make(clone, "export", "ARGS=model_name_or_path=./nowhere adapter_name_or_path=null"))
    assert "./nowhere" in line


def test_unknown_model_method_target(make, clone):
    assert "llama3_8b" in one_error(make(clone, "train", "MODEL=llama9"))
    assert "qlora" in one_error(make(clone, "train", "METHOD=magic"))


@pytest.mark.parametrize("words", ["lora_rankk=8", "lora_rank", "--lora_rank=8"])
def test_override_that_llamafactory_does_not_know(make, with_rows, words):
    line = one_error(make(with_rows, "train", f"ARGS={words}"))
    assert words.split("=")[0] in line


def test_finished_run_is_not_trained_again(make, with_rows):
    folder = with_rows / "saves/Llama-3-8B-Instruct/lora/sft_qlora"
    folder.mkdir(parents=True)
    (folder / "train_results.json").write_text("{}")
    line = one_error(
        make(with_rows, "train", "METHOD=qlora", "MODEL=llama3_8b", PATH=f"{fake_gpu(with_rows)}:/usr/bin:/bin")
    )
    assert "FRESH=1" in line
    assert (folder / "train_results.json").read_text() == "{}"


def fake_gpu(folder):
    """A folder with an nvidia-smi that lists a card: what lies behind the check for a GPU can be seen without one."""
    program = folder / "fake" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\necho NVIDIA L4, 580.1, 24000, 8.9\n")
    program.chmod(0o755)
    return program.parent


def test_data_set_that_is_missing_or_unregistered(make, clone):
    path = f"{fake_gpu(clone)}:/usr/bin:/bin"
    # Rows that are missing are prepared, from RAW if it is given.
    assert "nowhere does not exist" in one_error(make(clone, "train", "RAW=./nowhere", PATH=path))
    line = one_error(make(clone, "train", "ARGS=dataset=nothing", PATH=path))
    assert "nothing" in line and "sample_train" in line
    assert "other_dev" in one_error(make(clone, "eval", "MODEL=tiny", "DATA=other", PATH=path))


def test_environments_that_setup_leaves_as_they_are(make, clone, tmp_path):
    """A folder without LLaMA-Factory, and what .venv is a link to."""
    assert str(tmp_path) in one_error(make(clone, "setup", f"BIN={tmp_path}"))
    (tmp_path / "of_others").touch()
    (clone / ".venv").symlink_to(tmp_path)
    try:
        assert ".venv is a link" in one_error(make(clone, "setup", "BIN=.venv/bin"))
    finally:
        (clone / ".venv").unlink()
    assert (tmp_path / "of_others").exists()
