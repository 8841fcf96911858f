"""What the user chooses through variables (MODEL, METHOD, DATA, GPUS, …), and the overrides that follow from it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lib.files import ROOT, fail
from lib.recipes import read_recipe
from lib.registry import data_files
from lib.run_folder import read_notes

# Strategy → what it adds to a training on several cards.
STRATEGIES = {
    "": [],
    "ddp": [],
    "zero2": ["deepspeed=configs/distributed/zero2.json"],
    "zero3": ["deepspeed=configs/distributed/zero3.json"],
    "fsdp": ["fsdp=[full_shard,auto_wrap]", "fsdp_config=configs/distributed/fsdp.json"],
}
YES = ("1", "true")
# Methods that go on from a fine-tuned model: dpo learns from pairs of ads, kto from ads with a yes or a no.
PREFERENCE = ("dpo", "kto")


class Choices(NamedTuple):
    """The user's choices; `gpus` are the cards of this machine, `nodes` the machines.

    `method`: several with + between them are trained one after the other, as in dpo+kto.
    `base`: the base model that the user named for a method that goes on from a fine-tuned model; else empty.
    """

    model: str
    method: str
    data: str
    exported: bool
    gpus: int
    nodes: int
    strategy: str
    ray: bool
    base: str = ""

    @property
    def training(self) -> str:
        """The name of the recipe of the last training."""
        last = self.method.split("+")[-1]
        return last if last in PREFERENCE else f"sft_{last}"

    @property
    def goes_on(self) -> bool:
        """Whether the last training goes on from a model that was trained before."""
        return self.training in PREFERENCE

    def recipe(self, name: str) -> Path:
        """The path of one of the model's recipes, from the project's root on."""
        return Path("configs", self.model, f"{name}.yaml")

    def settings(self, name: str) -> dict:
        """The keys of one of the model's recipes."""
        return read_recipe(ROOT / self.recipe(name))


def read_choices(environment: Mapping[str, str] = os.environ) -> Choices:
    """The choices that the environment holds; ends the program at one that does not exist."""

    def value(name: str, default: str = "") -> str:
        return environment.get(name) or default

    model, method, strategy = value("MODEL", "llama3_8b"), value("METHOD", "qlora"), value("STRATEGY")
    if not (ROOT / "configs" / model / "chat.yaml").is_file():
        models = sorted(path.parent.name for path in ROOT.glob("configs/*/chat.yaml"))
        fail(f'there is no model "{model}"; MODEL is one of: {" ".join(models)}')
    recipes = [path.stem for path in sorted(ROOT.glob(f"configs/{model}/*.yaml"))]
    methods = [name.removeprefix("sft_") for name in recipes if name.startswith("sft_") or name in PREFERENCE]
    first, *later = method.split("+")
    if first not in methods or not set(later) <= set(methods) & set(PREFERENCE):
        fail(f'there is no method "{method}" for {model}; METHOD is one of: {" ".join(methods)}')
    if strategy not in STRATEGIES:
        fail(f'there is no strategy "{strategy}"; STRATEGY is one of: {" ".join(filter(None, STRATEGIES))}')
    numbers = {name: value(name, "1") for name in ("GPUS", "NNODES")}
    for name, number in numbers.items():
        if not re.fullmatch("[1-9][0-9]*", number):
            fail(f'{name}="{number}" is not a whole number of at least 1')
    return Choices(
        model,
        method,
        value("DATA", "adgen"),
        value("EXPORTED") in YES,
        int(numbers["GPUS"]),
        int(numbers["NNODES"]),
        strategy,
        value("USE_RAY") in YES,
    )


def run_name(choices: Choices) -> str:
    """The name of a run: that of its recipe. Runs on the embedded sample have names of their own."""
    return f"{'sample' if choices.data == 'sample' else 'sft'}_{choices.method}"


def saves(choices: Choices) -> Path:
    """The folder under saves/ that holds everything of a model."""
    return Path(choices.settings("predict_base")["output_dir"]).parents[1]


def trained(choices: Choices) -> Path:
    """The output folder of the training: an adapter, or a whole model if all weights are trained."""
    kind = choices.settings(choices.training).get("finetuning_type", "lora")
    return saves(choices) / kind / run_name(choices)


def fine_tuned(choices: Choices) -> Choices:
    """The choices of the tuned model that a preference method goes on from.

    METHOD says which, as in dpo+kto, or else the name of the recipe's base model.
    """
    before = choices.method.rpartition("+")[0]
    start = Path(choices.settings(choices.training)["model_name_or_path"]).name
    return choices._replace(method=before or start.removeprefix("sft_"))


def stages(choices: Choices) -> list[Choices]:
    """The choices of each training that led to a model, the fine-tuning first."""
    return [*stages(fine_tuned(choices)), choices] if choices.goes_on else [choices]


def merged(choices: Choices) -> Path:
    """The folder of the tuned model, merged, that a preference method goes on from.

    LLaMA-Factory compares a new adapter with the model that it is put on. On an adapter, that would be the base model.
    """
    return saves(choices) / "merged" / run_name(fine_tuned(choices))


def predictions(choices: Choices) -> tuple[Path, Path]:
    """The folders with the ads of the base model and of the tuned model for the dev rows."""
    base = "sample_base" if choices.data == "sample" else "base"
    return saves(choices) / "predict" / base, saves(choices) / "predict" / run_name(choices)


def rows_of(choices: Choices, split: str) -> Path:
    """The file with the rows of a split (train, val or dev), as the registry names it."""
    name = f"{choices.data}_{split}"
    path = data_files({"dataset": name})[name]
    return path or fail(f'DATA={choices.data}: the rows of "{name}" stand in no file of this machine')


def hub_overrides(choices: Choices) -> list[str]:
    """The base model that the user named, or its id at ModelScope, which has Meta's models under another owner."""
    if choices.base:
        return [f"model_name_or_path={choices.base}"]
    base = choices.settings("chat")["model_name_or_path"]
    if os.environ.get("USE_MODELSCOPE_HUB") in YES and base.startswith("meta-llama/"):
        return [f"model_name_or_path=LLM-Research/{base.removeprefix('meta-llama/')}"]
    return []


def train_overrides(choices: Choices) -> list[str]:
    """What a training recipe gets: rows, folder and base model."""
    if choices.goes_on:
        start = [f"model_name_or_path={merged(choices)}", *prompt_overrides(fine_tuned(choices))]
        return [*start, f"output_dir={trained(choices)}"]
    rows = [f"dataset={choices.data}_train", f"eval_dataset={choices.data}_val"]
    return [*rows, f"output_dir={trained(choices)}", *hub_overrides(choices)]


def prompt_overrides(choices: Choices) -> list[str]:
    """The template that the training noted, if an override named it and the recipes do not."""
    noted = read_notes(trained(choices)).get("recipe", {}).get("template")
    return [f"template={noted}"] if noted and noted != choices.settings("predict").get("template") else []


def tuned_overrides(choices: Choices) -> list[str]:
    """What a recipe gets that loads the tuned model: its adapter, or all its weights, and its template."""
    adapter, prompt = f"adapter_name_or_path={trained(choices)}", prompt_overrides(choices)
    if choices.goes_on:
        return [f"model_name_or_path={merged(choices)}", adapter, *prompt]
    if choices.settings(choices.training).get("finetuning_type", "lora") == "lora":
        return [adapter, *hub_overrides(choices), *prompt]
    return [f"model_name_or_path={trained(choices)}", "adapter_name_or_path=null", *prompt]


def served_overrides(choices: Choices) -> list[str]:
    """What the chat recipe gets to write ads: the tuned model, or with EXPORTED=1 what `make export` wrote."""
    if choices.exported:
        exported = choices.settings("export")["export_dir"]
        return [f"model_name_or_path={exported}", "adapter_name_or_path=null", *prompt_overrides(choices)]
    return tuned_overrides(choices)
