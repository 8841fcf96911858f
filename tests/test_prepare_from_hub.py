"""Data preparation from the Hugging Face hub and from ModelScope, neither of which the tests reach."""

import json
import subprocess
import sys

import prepare_data
import pytest
from corpus import run_main
from lib.files import ROOT, read_json_lines
from test_prepare_data import DEV, TRAIN


@pytest.mark.parametrize("hub", ["hf", "ms"])
def test_rows_of_a_hub(tmp_path, monkeypatch, hub):
    """The registry's entries are asked for, and their rows are prepared as those of files are."""
    asked = []

    def load(name, split):
        asked.append((name, split))
        return [{"content": content, "summary": ad} for content, ad in (TRAIN if split == "train" else DEV)]

    monkeypatch.setattr("lib.raw_rows.load_rows", load)
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1" if hub == "ms" else "0")
    run_main(prepare_data, "--out", tmp_path / "out")
    name = {"hf": "HasturOfficial/adgen", "ms": "AI-ModelScope/adgen"}[hub]
    assert asked == [(name, "train"), (name, "validation")]
    card = json.loads((tmp_path / "out/adgen_card.json").read_text(encoding="utf-8"))
    assert card["source"] == f"{name}:train" and card["input"]["train"]["kept"] == len(TRAIN)
    assert [(row["instruction"], row["output"]) for row in read_json_lines(tmp_path / "out/adgen_dev.jsonl")] == DEV


# The hubs' libraries wait between their tries.
WITHOUT_WAITING = "import runpy, sys, time; time.sleep = lambda seconds: None; sys.argv.pop(0); "
WITHOUT_WAITING += "sys.path[0] = 'scripts'; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.long
@pytest.mark.parametrize("hub", ["HF_ENDPOINT", "MODELSCOPE_DOMAIN"])
def test_hub_that_cannot_be_reached(tmp_path, hub):
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), hub: "http://127.0.0.1:9"}
    if hub == "MODELSCOPE_DOMAIN":
        variables |= {hub: "127.0.0.1:9", "USE_MODELSCOPE_HUB": "1"}
    command = [sys.executable, "-c", WITHOUT_WAITING, "scripts/prepare_data.py", "--out", tmp_path / "out"]
    result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    last = result.stderr.strip().split("\n")[-1]
    assert last.startswith("error: ") and "make data RAW=" in last and "make demo" in last
