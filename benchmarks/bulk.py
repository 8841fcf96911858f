"""Measures how fast ads for a catalogue are written: by `make generate`, and by `make api` one product after another.

  make bench BENCH=bulk ARGS="per_device_eval_batch_size=107"
  make bench BENCH=bulk GPUS=4 ARGS="--products 4280"

The time of `make generate` is from the start of the program to the file of ads; that of `make api` begins when it
answers. key=value are overrides of the recipe. If the batch size is not among them, it grows with the free memory.

The products are AdGen's dev rows if `make data` has prepared them, else the sample's, and begin again where there are
too few. A model that is fetched from a hub is measured on random weights of its shape. They never end an ad before it
has the most tokens.

The results go to results/bench/bulk-<gpu>.json and .md, named after the GPU of this machine.
"""

import argparse
import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import measuring
import training
from lib import batches
from lib.batches import cards_of
from lib.chat_client import find_model, request_of, write_ads
from lib.choices import read_choices
from lib.files import ROOT, fail, read_json_lines
from lib.journal import numbered, open_journal, write_missing
from lib.recipes import read_recipe
from lib.servers import OwnServer, wait_until_up
from lib.supervision import DEFAULTS, WRITING
from lib.tables import align, markdown
from measuring import SCRATCH, cell, shown


def in_batches(table: Path, words: list[str], options: argparse.Namespace, gpus: int) -> dict:
    """What it takes to write the ads of a table as `make generate` does: ads, seconds, peak memory of the first card.

    They are not judged: nothing that random weights write is an ad.
    """
    output, log = SCRATCH / "bulk_ads.jsonl", SCRATCH / "bulk.log"
    output.unlink(missing_ok=True)
    # `measuring.watch` shows a command one card only.
    cards = [f"CUDA_VISIBLE_DEVICES={','.join(cards_of(gpus))}"] if gpus > 1 else []
    own = [sys.executable, "benchmarks/bulk.py", "--table", str(table), "--n", str(options.n), *words]
    watched = measuring.watch(["env", f"PYTHONPATH={ROOT / 'scripts'}", *cards, *own], log)
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


def by_server(products: list[str], words: list[str], count: int, recipe: dict) -> dict:
    """What the server of `make api` takes for `count` ads of each product, asked for one after another."""
    ads, todo = [], dict.fromkeys(numbered(products), count)
    with tempfile.TemporaryFile() as log:
        server = OwnServer(words, log)
        try:
            wait_until_up(server.process, server.url, log)
            body, start = request_of(recipe, find_model(server.url)), time.perf_counter()
            refused = asyncio.run(write_ads(server.url, body, 1, todo, lambda _, new: ads.extend(new), lambda _: None))
            seconds = time.perf_counter() - start
        finally:
            server.stop()
    if refused:
        fail(f"the server refused: {next(iter(refused.values()))}")
    return {"way": "make api", "cards": 1, "ads": len(ads), "seconds": seconds, "peak_gib": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides of the recipe")
    parser.add_argument("--products", type=int, default=1070, help="products for `make generate` (default: 1070)")
    parser.add_argument("--asked", type=int, default=6, help="products to ask `make api` for (default: 6)")
    parser.add_argument("--n", type=int, default=4, help="ads for each product (default: 4)")
    parser.add_argument("--tokens", type=int, default=128, help="the most tokens of an ad (default: 128)")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench", help="folder for the results")
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    options, choices = parser.parse_intermixed_args(), read_choices()
    if options.table:
        return write_table(options.table, options.words, options.n)
    model, named = ROOT / "configs" / choices.model, ROOT / choices.settings("chat")["model_name_or_path"]
    base = named if named.is_dir() else SCRATCH / training.stand_in(model)[0]
    adapter, dev = SCRATCH / f"{model.name}_{base.name}_adapter", ROOT / "data/adgen_dev.jsonl"
    training.prepare(model, base, adapter, "adgen" if dev.exists() else "sample")
    rows = read_json_lines(dev if dev.exists() else ROOT / "data/sample/dev.jsonl")
    products = list(islice(cycle(row.get("instruction") or row["content"] for row in rows), options.products))
    words = [f"model_name_or_path={shown(base)}", f"adapter_name_or_path={shown(adapter)}"]
    words.append(f"max_new_tokens={options.tokens}")
    recipe = read_recipe(model / "chat.yaml", words)
    runs = [by_server(products[: options.asked], words, options.n, recipe)]
    table = SCRATCH / "bulk.jsonl"
    table.write_text("".join(json.dumps({"attributes": product}) + "\n" for product in products))
    runs.append(in_batches(table, [*words, *options.words], options, choices.gpus))
    runs = [measuring.tidy(run | {"ads_per_s": run["ads"] / run["seconds"]}) for run in runs]
    card, command = (measuring.ask_card("name") or ["CPU"])[0], shlex.join(["python", *sys.argv])
    results = {"gpu": card, "command": command, "model": shown(base), "max_tokens": options.tokens, "runs": runs}
    lines = [["way", "cards", "ads", "seconds", "ads per second", "peak GiB"]]
    for run in runs:
        figures = [cell(run[key]) for key in ("seconds", "ads_per_s", "peak_gib")]
        lines.append([run["way"], str(run["cards"]), f"{run['ads']:,}", *figures])
    text = f"# Ads for a catalogue: {card}\n\nModel {shown(base)}. Most tokens of an ad: {options.tokens}.\n\n"
    path = measuring.card_file(options.out, card, "bulk-")
    measuring.write_results(path, results | {"versions": measuring.library_versions()}, text + markdown(lines))
    print(align(lines))


if __name__ == "__main__":
    os.environ.update(DEFAULTS | WRITING | os.environ)
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
