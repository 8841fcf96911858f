"""LLaMA-Factory reads the registry in data/, where it looks by default, and in dataset_info/, where the file is."""

import json

import pytest
from lib.files import ROOT
from llamafactory.data.converter import align_dataset
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams import DataArguments

REGISTRY = json.loads((ROOT / "dataset_info/dataset_info.json").read_text(encoding="ascii"))


def test_both_folders_hold_the_same_registry():
    assert (ROOT / "data/dataset_info.json").read_bytes() == (ROOT / "dataset_info/dataset_info.json").read_bytes()
    assert {f"{data}_{split}" for data in ("adgen", "sample") for split in ("train", "val", "dev")} < set(REGISTRY)


@pytest.mark.parametrize("folder", ["data", "dataset_info"])
@pytest.mark.parametrize("name", REGISTRY)
def test_llamafactory_reads_the_entry(name, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    (found,) = get_dataset_list([name], folder)
    if found.load_from == "file":
        path = (ROOT / folder / found.dataset_name).resolve()
        assert path.parent in (ROOT / "data", ROOT / "data/sample")
        assert path.name.startswith("adgen_") or path.name.endswith("_pairs.jsonl") or path.is_file()
    else:
        assert found.dataset_name == "HasturOfficial/adgen"
        monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
        assert get_dataset_list([name], folder)[0].load_from == "ms_hub"


@pytest.mark.parametrize("name", ["sample_train", "sample_val", "sample_dev"])
def test_rows_become_prompt_and_response(name, monkeypatch):
    from datasets import load_dataset

    monkeypatch.chdir(ROOT)
    (found,) = get_dataset_list([name], "data")
    rows = load_dataset("json", data_files=str(ROOT / "data" / found.dataset_name), split="train").select(range(3))

    class Training:
        local_process_index = 0

    aligned = align_dataset(rows, found, DataArguments(dataset=name, overwrite_cache=True), Training())
    for row, raw in zip(aligned, rows, strict=True):
        assert row["_prompt"] == [{"role": "user", "content": raw["content"]}]
        assert row["_response"] == [{"role": "assistant", "content": raw["summary"]}]
