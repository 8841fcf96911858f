"""Computes rows and tokens per second from what a run left behind, and shows the results of all runs as a table."""

import json
import statistics
from pathlib import Path

from arithmetic import OTHER_CARD, count_operations
from lib.files import read_json_lines
from lib.tables import markdown
from measuring import cell, percent, tidy, versions_text


def read_samples(folder: Path) -> list[list[int]]:
    """The samples of a tokenised data set in Arrow files: for each the lengths in tokens of the rows packed into it.

    A sample that is not packed holds one row. Padding is left out.
    """
    import numpy as np
    import pyarrow as pa

    samples = []
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_stream(source).read_all()
            packed = "position_ids" in table.column_names
            for column in table.column("position_ids" if packed else "input_ids"):
                # In a packed sample the positions of each row start at 0, and each token of the padding is at 0.
                starts = np.flatnonzero(column.values.to_numpy() == 0) if packed else [0]
                lengths = np.diff([*starts, len(column)])
                samples.append(lengths[lengths > 1].tolist())
    return samples


def samples_by_step(samples: int, batch: int, steps: int) -> list[int]:
    """The number of samples in each of the first `steps` steps. The last step of an epoch takes what is left of it."""
    epoch = [min(batch, samples - start) for start in range(0, samples, batch)]
    return [epoch[step % len(epoch)] for step in range(steps)]


def spread(values: list[float]) -> float:
    """The distance between the highest and the lowest value, as a share of the median."""
    return (max(values) - min(values)) / statistics.median(values)


def training_speed(
    times: list[float], settings: dict, folder: Path, base: Path, warmup: int, tflops: float, cards: int = 1
) -> dict:
    """The speed of a training on some `cards` after its first `warmup` steps.

    `times`: the seconds at which the lines of trainer_log.jsonl were there. `settings`: the keys of the recipe.
    `folder`: what the run wrote, with its tokenised rows. `base`: the folder of the base model. `tflops`: the matrix
    rate of a card. The result holds

    - rows_per_s, tokens_per_s: rows of the data set and their tokens, without padding;
    - spread: of the time of a sample between the lines of the log;
    - tokens_per_row, operations_per_row: means over the data set; operations as arithmetic.py counts them;
    - matmul_share: operations per second, as a share of what the cards do.
    """
    ends = [row["current_steps"] for row in read_json_lines(folder / "trainer_log.jsonl") if "loss" in row]
    times, first = times[: len(ends)], ends.index(warmup)
    samples = read_samples(folder / "tokenized/train")
    lengths = [length for rows in samples for length in rows]
    batch = settings.get("per_device_train_batch_size", 8) * settings.get("gradient_accumulation_steps", 1) * cards
    by_step = samples_by_step(len(samples), batch, ends[-1])
    taken = [sum(by_step[before:after]) for before, after in zip(ends[first:], ends[first + 1 :], strict=False)]
    durations = [after - before for before, after in zip(times[first:], times[first + 1 :], strict=False)]
    # A packed step takes the same time whatever rows are in it: with the mean of rows in a sample, the speed is that of
    # a whole epoch.
    rows_per_s = sum(taken) / sum(durations) * len(lengths) / len(samples)
    found = {
        "rows_per_s": rows_per_s,
        "tokens_per_s": rows_per_s * sum(lengths) / len(lengths),
        "spread": spread([seconds / count for seconds, count in zip(durations, taken, strict=True)]),
        "tokens_per_row": sum(lengths) / len(lengths),
    }
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if operations := count_operations(config, settings, lengths):
        found["operations_per_row"] = operations / len(lengths)
        found["matmul_share"] = rows_per_s * found["operations_per_row"] / tflops / cards / 1e12
    return found


def prediction_speed(settings: dict, folder: Path, base: Path) -> dict:
    """The speed of a prediction run: rows and generated tokens per second of LLaMA-Factory's `predict_runtime`.

    That time includes LLaMA-Factory's own scoring. Tokens are counted with the tokenizer in `base`, the end token of
    each ad included.
    """
    from tokenizers import Tokenizer

    seconds = json.loads((folder / "predict_results.json").read_text())["predict_runtime"]
    ads = [row["predict"].split("<|eot_id|>")[0] for row in read_json_lines(folder / "generated_predictions.jsonl")]
    encoded = Tokenizer.from_file(str(base / "tokenizer.json")).encode_batch(ads, add_special_tokens=False)
    # An ad without an end token has as many tokens as allowed, even if its text would be encoded in more.
    tokens = sum(min(len(ad) + 1, settings["max_new_tokens"]) for ad in encoded)
    return {"rows_per_s": len(ads) / seconds, "tokens_per_s": tokens / seconds, "tokens_per_row": tokens / len(ads)}


def summarise(measured: list[dict]) -> dict:
    """One result for all repeats of a run: medians of those that worked, of peaks the maxima, and the last error.

    The spread is over the repeats; of a single one, over the lines of its log.
    """
    good = [found for found in measured if "error" not in found]
    summary = {"repeats": len(measured)}
    for key, value in (good or measured)[0].items():
        if isinstance(value, float):
            summary[key] = (max if key == "peak_gib" else statistics.median)(found[key] for found in good or measured)
    if len(good) > 1:
        summary["spread"] = spread([found.get("rows_per_s", found["seconds"]) for found in good])
    if len(good) < len(measured):
        summary["error"] = [found["error"] for found in measured if "error" in found][-1]
    return summary


def compute_elsewhere(runs: list[dict]) -> None:
    """Adds `computed_rows_per_s` to training runs: [low, high] for the other card, computed and not measured.

    One end assumes that the run uses the same share of the other card's matrix rate as of this one's. The other end
    assumes the share of the best run here, but no more rows per second than here: what slows a run down here may be
    kernel launches and padding, which cost less time on a slower card.
    """
    trained = [run for run in runs if "matmul_share" in run and run.get("cards", 1) == 1]
    best = max((run["matmul_share"] for run in trained), default=0)
    for run in trained:
        peak = OTHER_CARD["tflops"] * 1e12 / run["operations_per_row"]
        ends = run["matmul_share"] * peak, min(run["rows_per_s"], best * peak)
        run["computed_rows_per_s"] = tidy(sorted(ends))


def label(run: dict) -> str:
    """The name of a run, after that of its model."""
    return f"{Path(run['recipe']).parent.name} {run['name']}"


def result_lines(results: dict) -> list[list[str]]:
    """The runs of a results file as the cells of a table, the head first."""
    lines = [["run", "rows per second", "tokens per second", "peak GPU memory (GiB)"]]
    lines[0] += ["share of the matrix rate", "spread", f"computed for {OTHER_CARD['gpu']}: rows per second"]
    for run in results["runs"]:
        line = [label(run), *(cell(run.get(key)) for key in ("rows_per_s", "tokens_per_s", "peak_gib"))]
        line += [percent(run.get("matmul_share")), percent(run.get("spread"))]
        ends = dict.fromkeys(f"{value:.2g}" for value in run.get("computed_rows_per_s", ()))
        lines.append([*line, "–".join(ends) or "–"])
    return lines


def describe(run: dict) -> str:
    """What a run was, as Markdown: its environment variables, its recipe and overrides, and the error if it failed."""
    variables = run["command"].split("llamafactory-cli")[0].split()
    pairs = [f"{key}={value}" for key, value in run["overrides"].items()]
    text = " ".join(f"`{word}`" for word in [*variables, run["recipe"], *pairs])
    return text + (f"; failed: `{run['error'].replace('`', chr(39))}`" if "error" in run else "")


def format_results(results: dict) -> str:
    """A results file as Markdown: the machine, a table of the runs, and what each of them was."""
    card, matmul = results["gpu"], results["matmul"]
    if card != "CPU":
        card += f", {results['memory_gib']:.0f} GiB, driver {results['driver']}"
    return (
        f"# Speed and memory of the recipes: {results['gpu']}\n\n"
        f"{card}. Matrix rate: {matmul['tflops']:.3g} TFLOP/s, measured with {matmul['dtype']} products of "
        f"{matmul['size']:,} × {matmul['size']:,}. {versions_text(results)}.\n\n"
        f"{markdown(result_lines(results))}\n"
        "Rows and tokens are those of the data set, without padding. Share of the matrix rate: the arithmetic of the "
        "training over what the machine does in plain matrix products in the same time. Spread: the distance between "
        "the fastest and the slowest repeat, or part of a single run, over the median.\n\n"
        "## What was run\n\n" + "".join(f"- {label(run)}: {describe(run)}\n" for run in results["runs"])
    )
