"""Measures recipes as they stand, through llamafactory-cli: speed, memory, and the share of the matrix rate they use.

  python scripts/bench.py --model configs/llama3_8b
  python scripts/bench.py plain "long:sft_qlora cutoff_len=4096" lora_rank=16 --repeat 2

RUN is a recipe of the model, `plain` (the settings that everyone copies) or `predict_plain` (one row at a time);
"NAME:RECIPE key=value …" is a variant; key=value alone holds for all runs. Without a RUN all of them are measured.
Each is a process of its own, and its entry stands in results/bench/<gpu>.json as soon as it has ended.

Training: the speed of whole steps after the warm-up, timed by the lines of trainer_log.jsonl, one for as many steps as
the warm-up has. A row is one of the data set, packed or not, a token one of a row: padding does not count. Both are
counted in the data as the run tokenised it. A packed step takes the same time whatever is in it, so its speed is that
of a whole epoch.
matmul_share is the arithmetic on these tokens over what the card does in plain bf16 matrix products in the same time.
For each token and frozen weight 2 operations forward, 2 backward (the weight has no gradient) and 2 for recomputation
under gradient checkpointing, which leaves out the output layer; embeddings are no product. Attention counts within rows
and before each token (causal); the adapter counts with its gradients.

Prediction: rows and tokens over LLaMA-Factory's predict_runtime, of which its own scoring is a part. A tuned model ends
its ads after some 110 tokens, one of random weights never: max_new_tokens is 128 here.
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import tables
from adgen import ROOT, fail, installed_versions, read_json_lines, write_json
from cost import PROGRAM, SCRATCH, ask_card, card_file, check, last_error, shown, watch
from doctor import check_gpu, read_recipe

# The settings that everyone copies: short rows, each padded, two at a time; one row at a time in prediction.
PLAIN = {
    "quantization_bit": "4",
    "enable_liger_kernel": "false",
    "cutoff_len": "512",
    "neat_packing": "false",
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "4",
}
PLAIN_PREDICT = {"per_device_eval_batch_size": "1", "max_samples": "8"}
# What a run of a few steps cannot or need not do. Unquoted, `no` would be read as false.
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
# What the Makefile sets for all that writes ads.
WRITING = {"TORCH_CUDNN_SDPA_DEPRIORITIZED": os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")}
LIBRARIES = ("llamafactory", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "liger-kernel")
# Dense bf16 products with fp32 accumulation: NVIDIA Ampere GA102 GPU Architecture whitepaper, table of the RTX 3090.
OTHER_CARD = {"gpu": "NVIDIA GeForce RTX 3090", "tflops": 71.0}


class Run(NamedTuple):
    """One thing to measure: a recipe and the overrides that make it a variant."""

    name: str
    recipe: Path
    overrides: dict[str, str]


def standard_runs(model: Path) -> dict[str, Run]:
    """Name → run: the train, predict and export recipes of a model's folder, and before them the copied settings."""
    train, predict = sorted(model.glob("sft_*.yaml")), sorted(model.glob("predict*.yaml"))
    runs = [Run("plain", model / "sft_qlora.yaml", PLAIN)]
    runs += [Run(recipe.stem, recipe, {}) for recipe in train]
    runs += [Run("predict_plain", model / "predict.yaml", PLAIN_PREDICT)]
    runs += [Run(recipe.stem, recipe, {}) for recipe in [*predict, model / "export.yaml"]]
    return {run.name: run for run in runs}


def plan(model: Path, words: list[str]) -> list[Run]:
    """The runs that the command line asks for, in its order."""
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


def matrix_rate() -> dict:
    """The rate of products of random matrices, bf16 on a GPU: the median of 50 timings of ten, after as many."""
    import torch

    gpu = torch.cuda.is_available()
    size, dtype = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    left, right, product = (torch.randn(size, size, device="cuda" if gpu else "cpu").to(dtype) for _ in range(3))

    def once() -> float:
        start = time.perf_counter()
        for _ in range(10):
            torch.mm(left, right, out=product)
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds = statistics.median([once() for _ in range(100)][50:])
    tflops = 10 * 2 * size**3 / seconds / 1e12
    return {"tflops": tflops, "size": size, "dtype": str(dtype).removeprefix("torch."), "cuda": torch.version.cuda}


def read_samples(folder: Path) -> list[list[int]]:
    """The samples of a tokenised data set, each as the lengths in tokens of the rows in it, padding left out."""
    import numpy as np
    import pyarrow as pa

    samples = []
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_stream(source).read_all()
            packed = "position_ids" in table.column_names
            for cell in table.column("position_ids" if packed else "input_ids"):
                # In a packed sample every row counts its positions from 0, and padding stands at 0.
                starts = np.flatnonzero(cell.values.to_numpy() == 0) if packed else [0]
                lengths = np.diff([*starts, len(cell)])
                samples.append(lengths[lengths > 1].tolist())
    return samples


def projections(config: dict) -> dict[str, tuple[int, int]]:
    """Name → (width, height) of the linear layers in one decoder layer of a Llama model; `config`: its config.json."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, values = (config[f"num_{name}_heads"] * size for name in ("attention", "key_value"))
    shapes = {"q_proj": (hidden, queries), "k_proj": (hidden, values), "v_proj": (hidden, values)}
    shapes |= {"o_proj": (queries, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner)}
    return shapes | {"down_proj": (inner, hidden)}


def count_frozen(config: dict) -> int:
    """Weights of the linear layers in all decoder layers."""
    return config["num_hidden_layers"] * sum(width * height for width, height in projections(config).values())


def count_adapter(config: dict, settings: dict) -> int:
    """Weights of a LoRA adapter on the layers that a recipe's `lora_target` names."""
    target = settings.get("lora_target", "all")
    names = target.replace(" ", "").split(",")
    sides = [sum(shape) for name, shape in projections(config).items() if target == "all" or name in names]
    return config["num_hidden_layers"] * settings.get("lora_rank", 8) * sum(sides)


def count_operations(config: dict, settings: dict, lengths: list[int]) -> float | None:
    """Useful operations of training a LoRA adapter on rows of these lengths, counted as this file's head says.

    `config`: a Llama model's config.json; `settings`: the recipe's keys. None for what is no LoRA.
    """
    if settings.get("finetuning_type", "lora") != "lora":
        return None
    again = 0 if settings.get("disable_gradient_checkpointing") else 1
    output = 2 * 2 * config["hidden_size"] * config["vocab_size"]
    token = 2 * (2 + again) * count_frozen(config) + 2 * (3 + again) * count_adapter(config, settings) + output
    # Two products forward, queries with keys and weights with values, and four backward; half of each square.
    pair = 2 * (3 + again) * config["num_hidden_layers"] * projections(config)["q_proj"][1]
    return float(sum(token * length + pair * length * (length + 1) for length in lengths))


def samples_by_step(samples: int, batch: int, steps: int) -> list[int]:
    """How many samples each of the first steps takes; the last step of an epoch takes what is left."""
    epoch = [min(batch, samples - start) for start in range(0, samples, batch)]
    return [epoch[step % len(epoch)] for step in range(steps)]


def spread(values: list[float]) -> float:
    """How far values lie apart, over their median."""
    return (max(values) - min(values)) / statistics.median(values)


def measure_training(lines: list[float], settings: dict, folder: Path, options: argparse.Namespace) -> dict:
    """Speed after the warm-up, from the times at which the lines of the trainer log came and what the run left."""
    ends = [row["current_steps"] for row in read_json_lines(folder / "trainer_log.jsonl") if "loss" in row]
    times, first = lines[: len(ends)], ends.index(options.warmup)
    samples = read_samples(folder / "tokenized/train")
    lengths = [length for rows in samples for length in rows]
    batch = settings.get("per_device_train_batch_size", 8) * settings.get("gradient_accumulation_steps", 1)
    by_step = samples_by_step(len(samples), batch, ends[-1])
    taken = [sum(by_step[before:after]) for before, after in zip(ends[first:], ends[first + 1 :], strict=False)]
    durations = [after - before for before, after in zip(times[first:], times[first + 1 :], strict=False)]
    rows_per_s = sum(taken) / sum(durations) * len(lengths) / len(samples)
    found = {
        "rows_per_s": rows_per_s,
        "tokens_per_s": rows_per_s * sum(lengths) / len(lengths),
        "time_to_first_step_s": times[0],
        "spread": spread([seconds / count for seconds, count in zip(durations, taken, strict=True)]),
        "tokens_per_row": sum(lengths) / len(lengths),
    }
    config = json.loads((options.base / "config.json").read_text(encoding="utf-8"))
    if operations := count_operations(config, settings, lengths):
        found["operations_per_row"] = operations / len(lengths)
        found["matmul_share"] = rows_per_s * found["operations_per_row"] / options.rate / 1e12
    return found


def measure_prediction(settings: dict, folder: Path, base: Path) -> dict:
    """Speed, from what a prediction run left; tokens are the tokenizer's for the ads, with the one that ends each."""
    from tokenizers import Tokenizer

    seconds = json.loads((folder / "predict_results.json").read_text())["predict_runtime"]
    ads = [row["predict"].split("<|eot_id|>")[0] for row in read_json_lines(folder / "generated_predictions.jsonl")]
    encoded = Tokenizer.from_file(str(base / "tokenizer.json")).encode_batch(ads, add_special_tokens=False)
    # Without an end there were as many as allowed, whatever their text is read as.
    tokens = sum(min(len(ad) + 1, settings["max_new_tokens"]) for ad in encoded)
    return {"rows_per_s": len(ads) / seconds, "tokens_per_s": tokens / seconds, "tokens_per_row": tokens / len(ads)}


def measure(run: Run, options: argparse.Namespace, limit: float) -> dict:
    """Runs a recipe once: its command and what was measured, or its error. TimeoutError after `limit` seconds."""
    import yaml

    folder, log = SCRATCH / "run", SCRATCH / f"{run.name}.log"
    shutil.rmtree(folder, ignore_errors=True)
    settings = read_recipe(run.recipe)
    verb = "train" if "stage" in settings else "export"
    own = {"model_name_or_path": shown(options.base)}
    if settings.get("adapter_name_or_path"):
        own["adapter_name_or_path"] = shown(options.adapter)
    own["output_dir" if verb == "train" else "export_dir"] = shown(folder)
    if settings.get("do_train"):
        own |= {"dataset": f"{options.data}_train", "max_steps": str(options.steps)} | SHORT
        # A logged step makes the CPU wait for the GPU, so none but these is.
        own |= {"logging_first_step": "true", "logging_steps": str(options.warmup)}
        # Written by the run itself, for us to count in; no cache, so that each run starts as the first would.
        own |= {"tokenized_path": shown(folder / "tokenized"), "overwrite_cache": "true"}
    elif settings.get("do_predict"):
        own |= {"eval_dataset": f"{options.data}_dev", "skip_special_tokens": "false", "overwrite_cache": "true"}
        own |= {"max_new_tokens": run.overrides.get("max_new_tokens", "128")}
    overrides = run.overrides | own
    settings |= {key: yaml.safe_load(value) for key, value in overrides.items()}
    words = [verb, shown(run.recipe), *(f"{key}={value}" for key, value in overrides.items())]
    variables = WRITING if settings.get("do_predict") else {}
    watched = watch([*PROGRAM, *words], log, folder / "trainer_log.jsonl", limit, **variables)
    found = {"command": shlex.join([*map("=".join, variables.items()), "llamafactory-cli", *words])}
    found |= {key: watched[key] for key in ("seconds", "peak_gib", "peak_rss_gib")}
    if watched["status"]:
        return found | {"error": last_error(log, watched["status"])}
    if settings.get("do_train"):
        return found | measure_training(watched["lines"], settings, folder, options)
    if settings.get("do_predict"):
        return found | measure_prediction(settings, folder, options.base)
    # An exported 8B model takes 16 GB.
    shutil.rmtree(folder)
    return found


def summarise(measured: list[dict]) -> dict:
    """Medians over the repeats that worked, of memory the maxima; the spread is over repeats, of one over its lines."""
    good = [found for found in measured if "error" not in found]
    summary: dict = {"repeats": len(measured)}
    for key in (good or measured)[0]:
        values = [found[key] for found in good or measured if isinstance(found[key], float)]
        if values:
            summary[key] = max(values) if key.startswith("peak") else statistics.median(values)
    if len(good) > 1:
        summary["spread"] = spread([found.get("rows_per_s", found["seconds"]) for found in good])
    if len(good) < len(measured):
        summary["error"] = [found["error"] for found in measured if "error" in found][-1]
    return summary


def compute_elsewhere(runs: list[dict]) -> None:
    """Adds to training runs the rows/s [low, high] on a card that is not here: computed, not measured.

    One end: the run uses the same share of that card's rate as of this one's. The other: it uses the share of the best
    run here, but takes no more rows than here; what holds a run back here may be launches and padding, not arithmetic.
    """
    trained = [run for run in runs if "matmul_share" in run]
    best = max((run["matmul_share"] for run in trained), default=0)
    for run in trained:
        peak = OTHER_CARD["tflops"] * 1e12 / run["operations_per_row"]
        ends = run["matmul_share"] * peak, min(run["rows_per_s"], best * peak)
        run["computed_rows_per_s"] = tidy(sorted(ends))


def tidy(value: object) -> object:
    """A JSON value, its floats with four digits."""
    if isinstance(value, dict):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [tidy(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def stand_in(model: Path) -> tuple[str, int]:
    """The size of scripts/build_stand_in.py that measures this folder of recipes, and its GB on the disk."""
    return ("70b", 40) if model.name.endswith("70b") else ("8b", 16)


def prepare(options: argparse.Namespace) -> None:
    """Makes the base of random weights where there is none, and the adapter that is predicted with and exported."""
    log, base, adapter = SCRATCH / "prepare.log", shown(options.base), shown(options.adapter)
    if not (options.base / "config.json").is_file():
        if (options.model / "pretrain.yaml").is_file():
            fail(f"{base} holds no model; `make base MODEL={options.model.name}` builds it")
        size, room = stand_in(options.model)
        print(f"Making {base}: the {size.upper()} shape, random weights, {room} GB", flush=True)
        corpus = f"data/{'adgen_' if options.data == 'adgen' else 'sample/'}train.jsonl"
        check([sys.executable, "scripts/build_stand_in.py", base, "--size", size, "--corpus", corpus], log)
    if not (options.adapter / "adapter_model.safetensors").is_file():
        print(f"Making {adapter}: an adapter after one step", flush=True)
        shutil.rmtree(options.adapter, ignore_errors=True)
        own = {"model_name_or_path": base, "dataset": f"{options.data}_train", "max_steps": "1", "output_dir": adapter}
        words = [f"{key}={value}" for key, value in (own | SHORT).items()]
        check([*PROGRAM, "train", shown(options.model / "sft_qlora.yaml"), *words], log)


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that are measured."""
    return {"python": platform.python_version()} | installed_versions(LIBRARIES)


def open_results(folder: Path) -> tuple[Path, dict]:
    """The file of this machine's card, and what stands in it or the head of a new one."""
    card = ask_card("name,driver_version,memory.total") or ["CPU", "", "0"]
    path = card_file(folder, card[0])
    results = {"gpu": card[0], "driver": card[1], "memory_gib": float(card[2]) / 1024}
    if path.is_file():
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            fail(f"{path} is not JSON; remove it, and measure anew")
    else:
        log = SCRATCH / "matmul.log"
        print("Measuring the rate of matrix products", flush=True)
        check([sys.executable, __file__, "--matrix-rate"], log)
        results |= {"matmul": json.loads(log.read_text().splitlines()[-1]), "runs": []}
    return path, results | {"versions": library_versions(), "allocator": os.environ.get("PYTORCH_ALLOC_CONF", "")}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RUN", help="what to measure, in this order")
    parser.add_argument("--model", type=Path, default=ROOT / "configs/llama3_8b", help="folder of recipes")
    parser.add_argument("--base", type=Path, help="folder of the base model (default: the 8B shape, made when missing)")
    parser.add_argument("--data", choices=("adgen", "sample"), help="rows (default: adgen where prepared, else sample)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a training run")
    parser.add_argument("--warmup", type=int, default=5, help="steps of these that do not count")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="measure the list N times, A B A B")
    parser.add_argument("--append", action="store_true", help="as further repeats of the runs that the file has")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="stop after these")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench", help="folder for <gpu>.json")
    parser.add_argument("--matrix-rate", action="store_true", help="print the rate of matrix products, and end")
    options = parser.parse_intermixed_args()
    if not 0 < options.warmup <= options.steps // 2 or options.repeat < 1:
        parser.error("--warmup is at least 1 and at most half of --steps, --repeat at least 1")
    if not (options.model / "sft_qlora.yaml").is_file():
        fail(f"{options.model} is no folder of recipes such as configs/llama3_8b")
    return options


def main() -> None:
    options = parse_arguments()
    if options.matrix_rate:
        print(json.dumps(matrix_rate()))
        return
    end = time.monotonic() + options.limit
    runs = plan(options.model, options.words)
    check_gpu((options.model / "sft_qlora.yaml").read_text(encoding="utf-8"))
    named = ROOT / read_recipe(options.model / "chat.yaml")["model_name_or_path"]
    local = named.is_dir() or (options.model / "pretrain.yaml").is_file()
    options.base = options.base or (named if local else SCRATCH / stand_in(options.model)[0])
    options.adapter = SCRATCH / f"{options.model.name}_{options.base.name}_adapter"
    options.data = options.data or ("adgen" if (ROOT / "data/adgen_card.json").is_file() else "sample")
    prepare(options)
    path, results = open_results(options.out)
    options.rate = results["matmul"]["tflops"]
    entries = {(entry["name"], entry["recipe"]): entry for entry in results["runs"]}
    measured = {key: entry["measured"] for key, entry in entries.items() if options.append}
    left = runs * options.repeat
    while left:
        run = left[0]
        overrides = " ".join(f"{key}={value}" for key, value in run.overrides.items())
        print(f"{run.name} ({len(left)} to go): {shown(run.recipe)} {overrides}", flush=True)
        try:
            found = measure(run, options, end - time.monotonic())
        except TimeoutError:
            break
        command = found.pop("command")
        key = (run.name, shown(run.recipe))
        measured.setdefault(key, []).append(tidy(found))
        entry = {"name": run.name, "recipe": key[1], "overrides": run.overrides, "command": command}
        entries[key] = entry | tidy(summarise(measured[key])) | {"warmup": options.warmup, "measured": measured[key]}
        results["runs"] = list(entries.values())
        if results["gpu"] != "CPU":
            results["computed"] = OTHER_CARD
            compute_elsewhere(results["runs"])
        write_json(path, results)
        left.pop(0)
        print("  " + ", ".join(f"{key}: {tidy(value)}" for key, value in found.items() if value), flush=True)
    print(f"\n{shown(path)}\n{tables.align(tables.bench_lines(results))}")
    if left:
        print(f"Out of time, not measured: {', '.join(run.name for run in left)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
