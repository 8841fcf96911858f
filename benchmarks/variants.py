"""Which runs the training benchmark measures: the recipes of a model, and variants that the command line asks for."""

import re
from pathlib import Path
from typing import NamedTuple

from lib.files import fail

# Settings that many tutorials copy: short rows, padded, two at a time.
PLAIN = {
    "quantization_bit": "4",
    "enable_liger_kernel": "false",
    "cutoff_len": "512",
    "neat_packing": "false",
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "4",
}
PLAIN_PREDICT = {"per_device_eval_batch_size": "1", "max_samples": "8"}


class Run(NamedTuple):
    """A recipe to measure, with the overrides that make it a variant."""

    name: str
    recipe: Path
    overrides: dict[str, str]


def standard_runs(model: Path) -> dict[str, Run]:
    """Name → run: each recipe in a model's folder that trains, predicts or exports, and the two plain ones."""
    train, predict = sorted(model.glob("sft_*.yaml")), sorted(model.glob("predict*.yaml"))
    runs = [Run("plain", model / "sft_qlora.yaml", PLAIN)]
    runs += [Run(recipe.stem, recipe, {}) for recipe in train]
    runs += [Run("predict_plain", model / "predict.yaml", PLAIN_PREDICT)]
    runs += [Run(recipe.stem, recipe, {}) for recipe in [*predict, model / "export.yaml"]]
    return {run.name: run for run in runs}


def plan(model: Path, words: list[str]) -> list[Run]:
    """The runs that the command line asks for, in its order; ends the program at a word that names no run."""
    standard = standard_runs(model)
    runs, common = [], {}
    for word in words:
        head, *pairs = word.split() or [""]
        name, colon, stem = head.partition(":")
        recipe = model / f"{stem}.yaml"
        if head in standard and not pairs:
            runs.append(standard[head])
        elif re.fullmatch(r"[\w.-]+:", name + colon) and recipe.is_file() and all("=" in pair for pair in pairs):
            runs.append(Run(name, recipe, dict(pair.split("=", 1) for pair in pairs)))
        elif "=" in head and not pairs:
            common |= dict([head.split("=", 1)])
        else:
            fail(f'"{word}" is no run of {model.name}: {", ".join(standard)}, "NAME:RECIPE key=value …" or key=value')
    return [run._replace(overrides=run.overrides | common) for run in runs or standard.values()]
