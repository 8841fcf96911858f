"""Every recipe under configs/ is one that LLaMA-Factory accepts, and no two of them contradict each other."""

import dataclasses
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from lib.files import ROOT
from lib.gpu import measured_peak

RECIPES = sorted((ROOT / "configs").glob("*/*.yaml"))
MODELS = sorted({recipe.parent for recipe in RECIPES})
NAMES = {recipe: f"{recipe.parent.name}/{recipe.name}" for recipe in RECIPES}

# Groups in this order, keys in this order within a group; a key that no recipe has used yet gets its place here.
ORDER = {
    "model": [
        "model_name_or_path",
        "adapter_name_or_path",
        "quantization_bit",
        "double_quantization",
        "quantization_device_map",
        "enable_liger_kernel",
        "disable_gradient_checkpointing",
    ],
    "method": [
        "stage",
        "do_train",
        "do_predict",
        "finetuning_type",
        "use_muon",
        "lora_rank",
        "lora_alpha",
        "lora_target",
        "pref_ftx",
    ],
    "data": [
        "dataset",
        "eval_dataset",
        "template",
        "default_system",
        "enable_thinking",
        "cutoff_len",
        "packing",
        "neat_packing",
    ],
    "training": [
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_ratio",
        "weight_decay",
        "num_train_epochs",
        "neftune_noise_alpha",
        "bf16",
    ],
    "output": [
        "output_dir",
        "export_dir",
        "report_to",
        "logging_steps",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "save_only_model",
        "plot_loss",
    ],
    "evaluation": [
        "do_eval",
        "eval_strategy",
        "eval_steps",
        "predict_with_generate",
        "per_device_eval_batch_size",
        "load_best_model_at_end",
        "early_stopping_steps",
        "do_sample",
        "max_new_tokens",
        "repetition_penalty",
    ],
    "generation": ["temperature", "top_p", "max_new_tokens", "repetition_penalty"],
}
# Defaults that are written out all the same, because they say what a recipe is.
SPELLED_OUT = {"stage", "lora_rank", "lora_target", "learning_rate", "cutoff_len", "per_device_train_batch_size"}


def verb(recipe):
    return recipe.stem if recipe.stem in ("export", "chat") else "train"


def read(recipe):
    return yaml.safe_load(recipe.read_text(encoding="utf-8"))


def groups(recipe):
    """Group name → its keys, in the order of the file."""
    found = {}
    for line in recipe.read_text(encoding="utf-8").split("\n"):
        if line.startswith("### "):
            found[line[4:]] = []
        elif key := re.match(r"(\w+):", line):
            list(found.values())[-1].append(key[1])
    return found


@pytest.fixture(params=RECIPES, ids=NAMES.get)
def recipe(request):
    return request.param


@pytest.fixture(params=MODELS, ids=lambda folder: folder.name)
def model(request):
    """The recipes of one model: file stem → settings."""
    return {recipe.stem: read(recipe) for recipe in RECIPES if recipe.parent == request.param}


def llamafactory():
    """LLaMA-Factory's own parser. Its import takes seconds, which at the top each worker would spend."""
    os.environ["LLAMAFACTORY_VERBOSITY"] = "WARN"
    from llamafactory.hparams import parser

    return parser


def test_llamafactory_parses_it_and_runs_no_code_of_a_model(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = read(recipe)
    if verb(recipe) == "train":
        # Whether this machine has a GPU with bf16 is not the recipe's affair.
        parsed = llamafactory().get_train_args(settings | ({"use_cpu": True} if settings.get("bf16") else {}))
        assert parsed[2].save_safetensors is True
    else:
        parsed = llamafactory().get_infer_args(settings)
        assert parsed[0].export_legacy_format is False
    assert parsed[0].trust_remote_code is False and not {"hf_hub_token", "ms_hub_token"} & set(settings)
    assert parsed[0].model_name_or_path == settings["model_name_or_path"]
    assert parsed[1].default_system == settings.get("default_system")


def test_no_key_restates_a_default(recipe):
    parser = llamafactory()
    classes = parser._TRAIN_ARGS if verb(recipe) == "train" else parser._INFER_ARGS
    defaults = {field.name: field.default for cls in classes for field in dataclasses.fields(cls)}
    restated = {key for key, value in read(recipe).items() if str(defaults[key]) == str(value)}
    assert restated <= SPELLED_OUT


def test_header_says_what_it_needs_runs_and_leaves(recipe):
    lines = recipe.read_text(encoding="utf-8").split("\n")
    header = lines[: lines.index("")]
    assert len(header) <= 5 and all(line.startswith("# ") for line in header)
    labels = [line.split(":")[0] for line in header[1:]]
    assert labels == ["# Needs", "# Run", "# Leaves"]
    assert header[2] == f"# Run: llamafactory-cli {verb(recipe)} configs/{recipe.parent.name}/{recipe.name}"
    settings = read(recipe)
    output = settings.get("output_dir") or settings.get("export_dir")
    assert header[3].endswith(f"in {output}" if output else "nothing.")


def test_header_says_the_memory_that_was_measured(recipe):
    # An export takes no GPU; the card is not empty for that.
    peak = measured_peak(recipe) if verb(recipe) == "train" else None
    header = recipe.read_text(encoding="utf-8").split("\n\n")[0]
    assert re.findall(r"([\d.]+) GiB used", header) == ([f"{peak:.1f}"] if peak else [])


def test_groups_and_keys_in_one_order(recipe):
    found = groups(recipe)
    assert list(found) == [name for name in ORDER if name in found]
    for name, keys in found.items():
        assert keys == [key for key in ORDER[name] if key in keys]


def test_every_model_has_every_verb(model):
    assert {"sft_qlora", "sft_lora", "predict_base", "predict", "export", "chat", "dpo", "kto"} <= set(model)


def test_recipes_of_a_model_agree(model):
    downstream = {name: one for name, one in model.items() if name not in ("pretrain", "dpo", "kto")}
    assert len({settings["model_name_or_path"] for settings in downstream.values()}) == 1
    assert len({one["default_system"] for name, one in model.items() if name != "pretrain"}) == 1
    # Packed rows fill their blocks, which may be shorter than what prediction allows.
    cutoffs = {
        settings["cutoff_len"]: settings.get("neat_packing")
        for settings in downstream.values()
        if "cutoff_len" in settings
    }
    assert all(cutoff == max(cutoffs) or packed for cutoff, packed in cutoffs.items())
    assert len({one.get("template") for name, one in model.items() if name != "pretrain"}) == 1
    trained = model["sft_qlora"]["output_dir"]
    for name in ("predict", "export", "chat"):
        assert model[name]["adapter_name_or_path"] == trained
    if "pretrain" in model:
        assert model["pretrain"]["output_dir"] == model["chat"]["model_name_or_path"]


@pytest.mark.parametrize(("method", "rows"), [("dpo", "pairs"), ("kto", "verdicts")])
def test_a_preference_method_goes_on_from_a_merged_fine_tuning_and_its_own_rows(model, request, method, rows):
    start = Path(model[method]["model_name_or_path"])
    assert str(start.parents[1] / "lora" / start.name) == model[start.name]["output_dir"]
    assert start.parent.name == "merged"
    folder = request.node.callspec.params["model"]
    assert model[method]["stage"] == method and model[method]["dataset"] == f"{folder.name}_{rows}"


def test_base_and_tuned_are_predicted_alike(model):
    base, tuned = dict(model["predict_base"]), dict(model["predict"])
    assert base.pop("output_dir") != tuned.pop("output_dir")
    tuned.pop("adapter_name_or_path")
    assert base == tuned


def test_sft_lora_is_sft_qlora_without_quantisation(model):
    quantised, plain = dict(model["sft_qlora"]), dict(model["sft_lora"])
    assert quantised.pop("quantization_bit") == 4
    quantised.pop("output_dir"), plain.pop("output_dir")
    # On a CPU the quantised one is evaluated at its end alone; the recipe says why.
    for key in ORDER["evaluation"] if "do_eval" in quantised else ():
        quantised.pop(key, None), plain.pop(key, None)
    assert quantised == plain


def test_no_two_recipes_write_one_folder():
    outputs = [settings.get("output_dir") or settings.get("export_dir") for settings in map(read, RECIPES)]
    outputs = [output for output in outputs if output]
    assert len(outputs) == len(set(outputs))


def test_one_system_prompt_for_all_models():
    assert len({read(recipe)["default_system"] for recipe in RECIPES if recipe.stem != "pretrain"}) == 1


def test_another_base_model_by_the_five_lines_of_the_docs(make, copy_project, tmp_path, monkeypatch):
    """The new recipes keep the rules of the others."""
    block = re.search(r"```sh\n(new=(\w+)\n.*?)```", (ROOT / "docs/recipes.md").read_text(encoding="utf-8"), re.DOTALL)
    lines, new = block[1].splitlines(), block[2]
    assert len(lines) == 5 and lines[-1] == "make train MODEL=$new"
    project = copy_project()
    subprocess.run(["bash", "-euc", "\n".join(lines[:-1])], cwd=project, check=True)
    plan = make(project, "train", f"MODEL={new}", "ARGS=--dry-run").stdout
    assert f"llamafactory-cli train configs/{new}/sft_qlora.yaml" in plan and "saves/Llama-3.1-8B-Instruct/lora" in plan
    recipes = list((project / "configs" / new).iterdir())
    assert not any("Llama-3-8B" in path.read_text(encoding="utf-8") for path in recipes)
    for path in recipes:
        test_llamafactory_parses_it_and_runs_no_code_of_a_model(path, tmp_path, monkeypatch)
        test_no_key_restates_a_default(path)
        test_header_says_what_it_needs_runs_and_leaves(path)
        test_header_says_the_memory_that_was_measured(path)
        test_groups_and_keys_in_one_order(path)
    test_recipes_of_a_model_agree({path.stem: read(path) for path in recipes})


def test_the_numbers_this_project_stands_for():
    settings = read(ROOT / "configs/llama3_8b/sft_qlora.yaml")
    expected = {
        "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
        "quantization_bit": 4,
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_target": "q_proj,v_proj",
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
    }
    assert expected == {key: settings[key] for key in expected}


def test_liger_accepts_the_pinned_transformers():
    # It looks at import, which LLaMA-Factory does on a GPU alone.
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    assert callable(apply_liger_kernel_to_llama)
