"""Measures how fast ads for a catalogue are written: by `make generate`, and by `make api` one product after another.

  make bench BENCH=bulk ARGS="per_device_eval_batch_size=107"
  make bench BENCH=bulk GPUS=4 ARGS="--products 4280"
  make bench BENCH=bulk BACKEND=vllm           (EXPORTED=1: as with the merged model)

The time of `make generate` is from the start of the program to the file of ads; that of a server begins when it
answers. With BACKEND=vllm only vLLM is measured, with as many requests at a time as it takes. key=value are overrides
of the recipe. If the batch size is not among them, it grows with the free memory.

The products are AdGen's dev rows if `make data` has prepared them, else the sample's, and begin again where there are
too few. A model that is fetched from a hub is measured on random weights of its shape. They never end an ad before it
has the most tokens.

The results go to results/bench/bulk-<gpu>.json and .md, named after the GPU of this machine. What other ways took there
on the same model stays in them.
"""

import argparse
import asyncio
import os
import shlex
import sys
import time
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import measuring
from lib import batches, vllm
from lib.batches import cards_of
from lib.chat_client import find_model, in_flight, request_of, write_ads
from lib.choices import read_choices
from lib.files import ROOT, fail, read_json_lines, write_json_lines
from lib.journal import numbered, open_journal, write_missing
from lib.recipes import read_recipe
from lib.supervision import DEFAULTS, WRITING
from lib.tables import align, markdown
from measuring import SCRATCH, cell, shown
from own_server import engine, prepare, started


def in_batches(table: Path, words: list[str], options: argparse.Namespace, gpus: int) -> dict:
    """What it takes to write the ads of a table as `make generate` does: ads, seconds, peak memory of the first card.

    They are not judged: nothing that random weights write is an ad.
    """
    output, log = SCRATCH / "bulk_ads.jsonl", SCRATCH / "bulk.log"
    output.unlink(missing_ok=True)
    command = [sys.executable, "benchmarks/bulk.py", "--table", str(table), "--n", str(options.n), *words]
    watched = measuring.watch(command, log, CUDA_VISIBLE_DEVICES=",".join(cards_of(gpus)))
    if watched["status"]:
        fail(measuring.last_error(log, watched["status"]))
    ads = sum(len(row["ads"]) for row in read_json_lines(output) if "ads" in row)
    return {"way": "make generate", "cards": gpus, "ads": ads, **{key: watched[key] for key in ("seconds", "peak_gib")}}


def write_table(table: Path, words: list[str], count: int) -> None:
    """Writes `count` ads for each product of a table into the journal that `in_batches` reads."""
    words = batches.sampling_words(read_choices(), words)
    journal, ads = open_journal(SCRATCH / "bulk_ads.jsonl", {"words": words})
    keys = numbered([row["attributes"] for row in read_json_lines(table)])
    write_missing(partial(batches.write_ads, words, batches.work_folder("bulk")), journal, ads, keys, count)


def by_server(products: list[str], words: list[str], count: int, recipe: dict, many: int | None) -> dict:
    """What a server of `make api` takes for `count` ads of a product. many: requests at a time; None: all it takes."""
    ads, todo, choices = [], dict.fromkeys(numbered(products), count), read_choices()
    with measuring.peak_memory() as readings, started(words) as (url, up):
        body, many, start = request_of(recipe, find_model(url)), many or in_flight(url), time.perf_counter()
        refused = asyncio.run(write_ads(url, body, many, todo, lambda _, new: ads.extend(new), lambda _: None))
        seconds = time.perf_counter() - start
    if refused:
        fail(f"the server refused: {next(iter(refused.values()))}")
    found = {"way": engine(choices), "cards": choices.gpus if vllm.is_wanted() else 1, "ads": len(ads)}
    return found | {"seconds": seconds, "peak_gib": max(readings, default=None), "up_s": up}


def result_lines(results: dict) -> list[list[str]]:
    """The results as the cells of a table, the head first."""
    lines = [["way", "cards", "ads", "seconds", "ads per second", "peak GiB", "seconds to start"]]
    for run in results["written"]:
        figures = [cell(run.get(key)) for key in ("seconds", "ads_per_s", "peak_gib", "up_s")]
        lines.append([run["way"], str(run["cards"]), f"{run['ads']:,}", *figures])
    return lines


def format_results(results: dict) -> str:
    """The results as Markdown, with the notes that somebody has put beside a figure."""
    notes = "".join(f"\n{run['way']}: {run['note']}.\n" for run in results["written"] if "note" in run)
    return (
        f"# Ads for a catalogue: {results['gpu']}\n\nModel {results['model']}. Most tokens of an ad: "
        f"{results['max_tokens']}. {measuring.versions_text(results)}.\n\n{markdown(result_lines(results))}{notes}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides of the recipe")
    parser.add_argument("--products", type=int, default=1070, help="products for `make generate` (default: 1070)")
    parser.add_argument("--asked", type=int, default=6, help="products to ask `make api` for (default: 6; 0: none)")
    parser.add_argument("--n", type=int, default=4, help="ads for each product (default: 4)")
    parser.add_argument("--tokens", type=int, default=128, help="the most tokens of an ad (default: 128)")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench", help="folder for the results")
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    options, choices = parser.parse_intermixed_args(), read_choices()
    if options.table:
        return write_table(options.table, options.words, options.n)
    (base, words), dev = prepare(choices), ROOT / "data/adgen_dev.jsonl"
    rows = read_json_lines(dev if dev.exists() else ROOT / "data/sample/dev.jsonl")
    products = list(islice(cycle(row.get("instruction") or row["content"] for row in rows), options.products))
    words += [f"max_new_tokens={options.tokens}", *options.words]
    recipe = read_recipe(ROOT / choices.recipe("chat"), words)
    if vllm.is_wanted():
        runs = [by_server(products, words, options.n, recipe, None)]
    else:
        runs = [by_server(products[: options.asked], words, options.n, recipe, 1)] if options.asked else []
        table = SCRATCH / "bulk.jsonl"
        write_json_lines(table, ({"attributes": product} for product in products))
        runs.append(in_batches(table, words, options, choices.gpus))
    runs = [measuring.tidy(run | {"ads_per_s": run["ads"] / run["seconds"]}) for run in runs]
    card, command = (measuring.ask_card("name") or ["CPU"])[0], shlex.join(["python", *sys.argv])
    runs = [run | {"command": command} for run in runs]
    path = measuring.card_file(options.out, card, "bulk-")
    results = {"gpu": card, "model": shown(base), "max_tokens": options.tokens, "written": runs}
    results = measuring.add_results(path, results, "written", ("way", "cards"))
    results |= {"versions": measuring.library_versions()}
    measuring.write_results(path, results, format_results(results))
    print(align(result_lines(results)))


if __name__ == "__main__":
    os.environ.update(DEFAULTS | WRITING | os.environ)
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
