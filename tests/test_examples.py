"""What stands in examples/ does what it says."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest
from common import BIN, KEY, copy_demo
from lib.attributes import parse_attributes
from lib.catalogue import read_catalogue
from lib.files import ROOT, read_json_lines
from lib.recipes import read_recipe

PROGRAMS = [[sys.executable, "examples/client.py"], ["examples/curl.sh"]]

SHELL = re.compile(r"```bash\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=["client", "curl"])
def test_clients(api, program):
    environment = os.environ | {"BASE_URL": api, "API_KEY": KEY}
    result = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and not result.stderr, result.stderr
    lines = result.stdout.strip().split("\n")
    if "curl" in program[0]:
        assert '"object":"list"' in lines[0] and "口红" in lines[1] and lines[-1] == "data: [DONE]"
    else:
        # Two candidates and a stream.
        assert len(lines) == 3 and all("口红" in line for line in lines)


@pytest.mark.parametrize("program", PROGRAMS, ids=["client", "curl"])
def test_clients_without_the_key(api, program):
    environment = os.environ | {"BASE_URL": api, "API_KEY": "another"}
    result = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode and "401" in result.stdout + result.stderr


def test_products_are_of_three_kinds_that_the_sample_knows():
    rows = [
        row["content"]
        for name in ("train", "val", "dev")
        for row in read_json_lines(ROOT / f"data/sample/{name}.jsonl")
    ]
    known = {pair for content in rows for pair in parse_attributes(content)}
    table = read_catalogue(ROOT / "examples/products.csv", {key for key, _ in known}, [])
    pairs = [parse_attributes(product) for product in table.products]
    assert {pair for row in pairs for pair in row} <= known
    assert {"口红", "耳机", "裙", "上衣", "裤"} == {dict(row)["类型"] for row in pairs}
    # Products of our own: none is in the data.
    assert not set(table.products) & set(rows)
    assert [name for name in table.header if name not in table.columns] == ["SKU", "名称", "价格"]


def test_the_notebook_runs(demo, tmp_path):
    """Its cells in order, with the variables of the tiny model instead of Gemma's, in a project with other rows."""
    folder = copy_demo(demo[0], tmp_path, "checkpoint-*", "exports")
    for name, most in (("data/sample/dev.jsonl", 16), ("examples/products.csv", 4)):
        lines = (folder / name).read_bytes().splitlines(keepends=True)
        (folder / name).write_bytes(b"".join(lines[:most]))
    notebook = json.loads((folder / "examples/gemma3_270m.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    variables = dict(re.findall(r"^%env (\w+)=(.*)$", cells[0], re.MULTILINE))
    for split in ("train", "dev"):
        (tmp_path / f"{split}.json").write_bytes((ROOT / f"data/sample/{split}.jsonl").read_bytes())
    tiny = {"MODEL": "tiny", "METHOD": "qlora", "DATA": "sample", "PRECISION": "", "ROWS": "64", "FRESH": "1"}
    assert set(tiny) - {"FRESH"} == set(variables)
    environment = os.environ | variables | tiny | {"RAW": str(tmp_path), "BIN": str(BIN)}
    for cell in cells[1:]:
        magic, _, commands = cell.partition("\n")
        assert magic == "%%bash"
        result = subprocess.run(["bash", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert (folder / "results/notebook/eval.png").exists()
    # What the base model wrote for the demo's rows is not taken for what it writes for these.
    assert len(read_json_lines(folder / "saves/Custom/predict/sample_base/generated_predictions.jsonl")) == 16
    with (folder / "ads.csv").open(encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


@pytest.mark.parametrize("name", ["ollama.md", "vllm.md"])
def test_walk_throughs_name_what_there_is(name):
    """Not run here, as they say; their commands for make, their files and their prompt are those of the project."""
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    assert "Not run in the tests" in text
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = " ".join(SHELL.findall(text))
    assert "make generate SERVER=http://127.0.0.1:" in commands
    assert set(re.findall(r"\bmake ([a-z]+)", commands)) <= set(targets)
    export, chat = (read_recipe(ROOT / f"configs/llama3_8b/{recipe}.yaml") for recipe in ("export", "chat"))
    assert set(re.findall(r"exports/\w+", text)) == {export["export_dir"]}
    for prompt in re.findall(r'"role": "system", "content": "(.*?)"', text):
        assert prompt == chat["default_system"]
    for key, value in re.findall(r'"(temperature|top_p|max_tokens)": ([\d.]+)', text):
        assert float(value) == chat["max_new_tokens" if key == "max_tokens" else key]
