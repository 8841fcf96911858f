"""What the benchmarks compute: operations are those that torch counts, sizes those of the recipes, and each table in
results/bench shows the JSON file beside it."""

import json
import runpy

import arithmetic
import pytest
import sizes
import speed
from lib.files import ROOT
from tiny_models import add_adapter, build_base

RESULTS = ROOT / "results/bench"
# By its path: tests may have a module of this name.
SERVING, BULK = (runpy.run_path(str(ROOT / f"benchmarks/{name}.py")) for name in ("serving", "bulk"))


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("target", ["q_proj,v_proj", "all"])
def test_operations_are_those_that_torch_counts(base, checkpointing, target):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = add_adapter(base, "all-linear" if target == "all" else target.split(","))
    model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    length = 40
    tokens = torch.arange(length)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    config = read_json(base / "config.json")
    settings = {"lora_rank": 8, "lora_target": target, "disable_gradient_checkpointing": not checkpointing}
    # torch multiplies whole squares of attention scores, half of them masked, and positions with rotary frequencies.
    heads = config["num_attention_heads"] * config["head_dim"]
    masked = 2 * (3 + checkpointing) * config["num_hidden_layers"] * heads * length * (length - 1)
    rotary = config["head_dim"] * length
    assert arithmetic.count_operations(config, settings, [length]) + masked + rotary == counter.get_total_flops()
    assert arithmetic.count_operations(config, settings | {"finetuning_type": "full"}, [length]) is None


def test_8b_operations_are_those_of_the_known_weights():
    settings = {"lora_target": "q_proj,v_proj", "lora_rank": 8}
    # 6.98 billion weights in the layers, 0.525 in the output layer; adapter and attention are little.
    expected = 6 * 6.979e9 + 4 * 0.5253e9
    operations = arithmetic.count_operations(sizes.SHAPES["llama3_8b"], settings, [200])
    assert operations / 200 == pytest.approx(expected, rel=0.01) and operations > 200 * expected


def test_rows_on_another_card_are_computed_from_operations():
    slow = {"name": "slow", "rows_per_s": 3.0, "matmul_share": 0.1, "operations_per_row": 1e12}
    fast = {"name": "fast", "rows_per_s": 90.0, "matmul_share": 0.5, "operations_per_row": 2e12}
    predict = {"name": "predict", "rows_per_s": 1.0}
    speed.compute_elsewhere([slow, fast, predict])
    # slow: 7.1 rows/s at its own share, 35.5 at the best one, but even the faster card managed only 3.
    assert slow["computed_rows_per_s"] == [3.0, 7.1] and fast["computed_rows_per_s"] == [17.75, 17.75]
    assert "computed_rows_per_s" not in predict


def test_computed_sizes_are_those_of_the_recipes():
    found = sizes.compute_results()
    assert read_json(RESULTS / "sizes.json") == found
    assert all(abs(row["error"]) < 0.05 for row in found["check"])


def test_each_table_in_results_shows_the_json_beside_it():
    writers = {"runs": speed.format_results, "entries": sizes.format_results}
    writers |= {"served": SERVING["format_results"], "written": BULK["format_results"]}
    tables = {path.name for path in RESULTS.glob("*.md")}
    for path in RESULTS.glob("*.json"):
        content = read_json(path)
        for key in writers.keys() & content.keys():
            assert path.with_suffix(".md").read_text(encoding="utf-8") == writers[key](content), path
            tables.remove(f"{path.stem}.md")
    assert not tables
