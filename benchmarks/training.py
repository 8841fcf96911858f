"""Measures the recipes of a model through llamafactory-cli: speed, memory, and share of the matrix rate.

  make bench MODEL=llama3_8b
  make bench ARGS='plain "long:sft_qlora cutoff_len=4096" --repeat 2'
  make bench GPUS=4 ARGS="sft_qlora predict"       (STRATEGY: as for `make train`)

RUN is one of
- the name of a recipe of the model that trains or predicts;
- `plain`: QLoRA with the settings of many tutorials;
- "NAME:RECIPE key=value …": a recipe with overrides, under a name of its own.
Without a RUN all of the named ones are measured.

Each run is a process of its own. Its result is written to results/bench/<gpu>.json and .md as soon as it has ended. The
rows are AdGen's if `make data` has prepared them, else the sample's. A model that is fetched from a hub is measured on
random weights of its shape, which take the same arithmetic and memory. On several cards, memory is that of the first.

Training is timed after a warm-up, the first quarter of the steps, by the lines of trainer_log.jsonl. Rows and tokens
are those of the data set: padding does not count. The share of the matrix rate is the arithmetic of the training
(benchmarks/arithmetic.py says what counts) over what the card does in plain bf16 matrix products in the same time.

Prediction is timed by LLaMA-Factory's predict_runtime, which includes its own scoring. max_new_tokens is 128: a tuned
model ends its ads after some 110 tokens, one with random weights does not end them.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import measuring
import speed
from arithmetic import OTHER_CARD
from lib.batches import cards_of
from lib.cards import check_cards, one_card, predict_environment, share_overrides, train_environment
from lib.choices import Choices, read_choices
from lib.files import ROOT, fail
from lib.gpu import check_gpu
from lib.recipes import read_recipe
from lib.supervision import DEFAULTS, WRITING
from lib.tables import align
from measuring import PROGRAM, SCRATCH, check, shown

# Settings that many tutorials copy: short rows, padded, two at a time.
PLAIN = {
    "quantization_bit": "4",
    "enable_liger_kernel": "false",
    "cutoff_len": "512",
    "neat_packing": "false",
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "4",
}
# A run of a few steps has nothing to evaluate or save. "no" is quoted because YAML reads a bare `no` as false.
SHORT = {
    "eval_dataset": "null",
    "eval_strategy": '"no"',
    "do_eval": "false",
    "load_best_model_at_end": "false",
    "early_stopping_steps": "null",
    "save_strategy": '"no"',
    "plot_loss": "false",
    "report_to": "none",
}


class Run(NamedTuple):
    """A recipe to measure, with the overrides that make it a variant."""

    name: str
    recipe: Path
    overrides: dict[str, str]


class Setup(NamedTuple):
    """What all runs of one benchmark share.

    base, adapter: folders of the models. data: the rows, "adgen" or "sample". steps: of a training run; warmup: how
    many of them are not timed. tflops: the matrix rate of one card. cards: as CUDA_VISIBLE_DEVICES names them.
    choices: how several share a run.
    """

    base: Path
    adapter: Path
    data: str
    steps: int
    warmup: int
    tflops: float
    cards: list[str]
    choices: Choices


def plan(model: Path, words: list[str]) -> list[Run]:
    """The runs that the command line asks for, in its order; ends the program at a word that names no run.

    `model`: a folder of recipes. Without words it is each recipe that trains or predicts, and `plain`.
    """
    recipes = [*sorted(model.glob("sft_*.yaml")), *sorted(model.glob("predict*.yaml"))]
    standard = {"plain": Run("plain", model / "sft_qlora.yaml", PLAIN)}
    standard |= {recipe.stem: Run(recipe.stem, recipe, {}) for recipe in recipes}
    runs = []
    for word in words:
        head, *pairs = word.split() or [""]
        name, _, stem = head.partition(":")
        recipe = model / f"{stem}.yaml"
        if word in standard:
            runs.append(standard[word])
        elif re.fullmatch(r"[\w.-]+", name) and recipe.is_file() and all("=" in pair for pair in pairs):
            runs.append(Run(name, recipe, dict(pair.split("=", 1) for pair in pairs)))
        else:
            fail(f'"{word}" is no run of {model.name}: {", ".join(standard)}, or "NAME:RECIPE key=value …"')
    return runs or list(standard.values())


def shared_out(run: Run, choices: Choices) -> Run:
    """A run on the cards that GPUS asks for, under a name that says so."""
    if choices.gpus == 1:
        return run
    name = "_".join([run.name, str(choices.gpus), "cards", *filter(None, [choices.strategy])])
    settings = read_recipe(run.recipe, [f"{key}={value}" for key, value in run.overrides.items()])
    words = share_overrides(choices, settings) if settings.get("do_train") else []
    return Run(name, run.recipe, run.overrides | dict(word.split("=", 1) for word in words))


def environment(training: bool, setup: Setup) -> dict[str, str]:
    """The variables with which `make` would start a run, and those that show it its cards."""
    wanted = train_environment(setup.choices) if training else WRITING | predict_environment(setup.choices)
    chosen = {name: os.environ.get(name, value) for name, value in wanted.items() if name in WRITING}
    return wanted | chosen | {"CUDA_VISIBLE_DEVICES": ",".join(setup.cards)}


def short_run(run: Run, setup: Setup, folder: Path) -> dict[str, str]:
    """The overrides that make a run short, put it on the measured base and let it write to `folder`."""
    settings = read_recipe(run.recipe)
    own = {"model_name_or_path": shown(setup.base), "output_dir": shown(folder)}
    if settings.get("adapter_name_or_path"):
        own["adapter_name_or_path"] = shown(setup.adapter)
    if settings.get("do_train"):
        own |= {"dataset": f"{setup.data}_train", "max_steps": str(setup.steps)} | SHORT
        # To log a step, the CPU waits for the GPU. So only the steps that the timing needs are logged.
        own |= {"logging_first_step": "true", "logging_steps": str(setup.warmup)}
        # The run leaves its tokenised rows for us to count. It takes none from a cache, so all runs do the same work.
        own |= {"tokenized_path": shown(folder / "tokenized"), "overwrite_cache": "true"}
    else:
        own |= {"eval_dataset": f"{setup.data}_dev", "skip_special_tokens": "false", "overwrite_cache": "true"}
        own |= {"max_new_tokens": run.overrides.get("max_new_tokens", "128")}
    return own


def measure(run: Run, setup: Setup) -> dict:
    """Runs a recipe once and measures it.

    Returns the command, seconds, peak_gib (measuring.watch says what they are), and the speed (see
    speed.training_speed and speed.prediction_speed) or the `error` of a run that failed.
    """
    folder, log = SCRATCH / "run", SCRATCH / f"{run.name}.log"
    shutil.rmtree(folder, ignore_errors=True)
    pairs = [f"{key}={value}" for key, value in (run.overrides | short_run(run, setup, folder)).items()]
    settings = read_recipe(run.recipe, pairs)
    words = ["train", shown(run.recipe), *pairs]
    variables = environment(bool(settings.get("do_train")), setup)
    watched = measuring.watch([*PROGRAM, *words], log, folder / "trainer_log.jsonl", **variables)
    named = [f"{name}={value}" for name, value in variables.items() if name not in ("PATH", "CUDA_VISIBLE_DEVICES")]
    found = {"command": shlex.join([*named, "llamafactory-cli", *words])}
    found |= {key: watched[key] for key in ("seconds", "peak_gib")}
    if watched["status"]:
        return found | {"error": measuring.last_error(log, watched["status"])}
    if settings.get("do_train"):
        times, rates = watched["lines"], (setup.warmup, setup.tflops, len(setup.cards))
        return found | speed.training_speed(times, settings, folder, setup.base, *rates)
    return found | speed.prediction_speed(settings, folder, setup.base)


def measure_all(runs: list[Run], setup: Setup, results: dict, path: Path) -> None:
    """Measures runs one after another and writes `results` to `path` after each.

    A run that has an entry in `results` gets a new one. Other entries stay.
    """
    entries = {(entry["name"], entry["recipe"]): entry for entry in results["runs"]}
    measured = {}
    for number, run in enumerate(runs):
        print(f"{run.name} ({number + 1} of {len(runs)}): {shown(run.recipe)} {run.overrides or ''}", flush=True)
        found = measuring.tidy(measure(run, setup))
        command, key = found.pop("command"), (run.name, shown(run.recipe))
        repeats = measured.setdefault(key, [])
        repeats.append(found)
        named = {"name": run.name, "recipe": shown(run.recipe), "overrides": run.overrides, "command": command}
        named |= {"cards": len(setup.cards)} if len(setup.cards) > 1 else {}
        entries[key] = named | measuring.tidy(speed.summarise(repeats)) | {"measured": repeats}
        results["runs"] = list(entries.values())
        if results["gpu"] != "CPU":
            results["computed"] = OTHER_CARD
            speed.compute_elsewhere(results["runs"])
        measuring.write_results(path, results, speed.format_results(results))
        print("  " + ", ".join(f"{name}: {value}" for name, value in found.items() if value), flush=True)


def stand_in(model: Path) -> tuple[str, int]:
    """The size of stand-in (scripts/stand_in.py) that has the shape of a model, and the GB of disk that it takes."""
    if "8b" not in model.name:
        fail(f"no random weights have the shape of {model.name}: download its base model to a folder named like its id")
    return "8b", 16


def prepare(model: Path, base: Path, adapter: Path, data: str) -> None:
    """Makes a base of random weights if there is no base, and an adapter for prediction.

    `model`: the folder of recipes. Ends the program if that fails, or if the model has a recipe that trains its base.
    """
    log = SCRATCH / "prepare.log"
    if not (base / "config.json").is_file():
        if (model / "pretrain.yaml").is_file():
            fail(f"{shown(base)} holds no model; `make base MODEL={model.name}` builds it")
        size, room = stand_in(model)
        print(f"Making {shown(base)}: the {size.upper()} shape with random weights, {room} GB", flush=True)
        corpus = f"data/{'adgen_' if data == 'adgen' else 'sample/'}train.jsonl"
        check([sys.executable, "scripts/stand_in.py", shown(base), "--size", size, "--corpus", corpus], log)
    if not (adapter / "adapter_model.safetensors").is_file():
        print(f"Making {shown(adapter)}: an adapter after one step", flush=True)
        shutil.rmtree(adapter, ignore_errors=True)
        own = {"model_name_or_path": shown(base), "dataset": f"{data}_train", "max_steps": "1"}
        pairs = [f"{key}={value}" for key, value in (own | {"output_dir": shown(adapter)} | SHORT).items()]
        check([*PROGRAM, "train", shown(model / "sft_qlora.yaml"), *pairs], log)


def open_results() -> tuple[Path, dict]:
    """The results file for this machine's card, and its content; for a new file the card and its matrix rate."""
    card = measuring.ask_card("name,driver_version,memory.total") or ["CPU", "", "0"]
    path = measuring.card_file(ROOT / "results/bench", card[0])
    if path.is_file():
        results = json.loads(path.read_text(encoding="utf-8"))
    else:
        log = SCRATCH / "matrix_rate.log"
        print("Measuring the rate of matrix products", flush=True)
        check([sys.executable, "benchmarks/matrix_rate.py"], log)
        results = {"gpu": card[0], "driver": card[1], "memory_gib": float(card[2]) / 1024}
        results |= {"matmul": json.loads(log.read_text().splitlines()[-1]), "runs": []}
    return path, results | {"versions": measuring.library_versions()}


def check_card(recipe: Path) -> None:
    """Ends the program if no GPU here can run a recipe; warns if its memory may not suffice."""
    try:
        check_gpu(recipe.read_text(encoding="utf-8"), read_recipe(recipe), recipe)
    except Warning as warning:
        print(f"warning: {warning}", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RUN", help="what to measure, in this order")
    parser.add_argument("--steps", type=int, default=20, help="steps of a training run (default: 20)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="measure the list N times: A B A B")
    options = parser.parse_intermixed_args()
    if options.steps < 4 or options.repeat < 1:
        parser.error("--steps is at least 4, and --repeat at least 1")
    return options


def main() -> None:
    options, choices = parse_arguments(), read_choices()
    check_cards(choices)
    cards = cards_of(choices.gpus)
    # nvidia-smi is asked about the first card only.
    os.environ.update(DEFAULTS | os.environ | one_card())
    model = ROOT / "configs" / choices.model
    runs = [shared_out(run, choices) for run in plan(model, options.words)] * options.repeat
    named = ROOT / choices.settings("chat")["model_name_or_path"]
    local = named.is_dir() or (model / "pretrain.yaml").is_file()
    base = named if local else SCRATCH / stand_in(model)[0]
    check_card(model / "sft_qlora.yaml")
    prepared = choices.data != "adgen" or (ROOT / "data/adgen_card.json").is_file()
    data = choices.data if prepared else "sample"
    adapter = SCRATCH / f"{model.name}_{base.name}_adapter"
    prepare(model, base, adapter, data)
    path, results = open_results()
    setup = Setup(base, adapter, data, options.steps, options.steps // 4, results["matmul"]["tflops"], cards, choices)
    measure_all(runs, setup, results, path)
    print(f"\n{shown(path)}\n{align(speed.result_lines(results))}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
