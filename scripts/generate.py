"""Writes ads for a catalogue: several candidates for each product, of which it puts the best one first.

  MODEL=tiny DATA=sample python scripts/generate.py examples/products.csv ads.csv

INPUT and OUTPUT are .csv, .xlsx or .jsonl files; docs/catalogue.md explains their columns and how ads are ranked. A
column of INPUT is an attribute if the training data has a key of that name, or if --columns names it. The model never
sees the others; they are copied to OUTPUT. OUTPUT has a row for each row of INPUT, in the same order.

MODEL, METHOD, DATA and EXPORTED in the environment choose the model, as for `make`, and GPUS the cards that write.
With --server or SERVER, that server is asked instead; API_KEY in the environment is sent to it. LABEL=1 marks each ad
as written by AI. WORDS names a file of words that no ad should hold.

What is written is kept in OUTPUT.journal. If the run ends early (a kill, Ctrl-C, a server that goes away), the same
command continues it; with other settings it refuses to. The journal is removed when OUTPUT is written, unless a product
was refused: the same command then tries that product again. The exit status is 0 if any row has an ad.
"""

import argparse
import json
import os
from datetime import datetime
from functools import partial
from pathlib import Path

from lib import batches, chat_client, vllm
from lib.attributes import parse_attributes
from lib.candidates import Candidate, compare, known_products, rank_ads
from lib.catalogue import Catalogue, read_catalogue
from lib.choices import read_choices, served_overrides
from lib.files import ROOT, fail
from lib.journal import Writer, numbered, open_journal, write_missing
from lib.law import NO_ADVICE, describe, read_rules
from lib.metrics import vocabulary
from lib.output import MARK, check_output, check_size, labelled, metadata, write_table
from lib.recipes import check_overrides, read_recipe

# What a workbook of ads tells of the run, by its names in a recipe or in a request to a server.
TOLD = ("n", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "max_tokens")


def positive(word: str) -> int:
    """The word as a whole number above 0."""
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word} is not a whole number above 0")
    return int(word)


def read_options() -> argparse.Namespace:
    """The command line; ends the program if OUTPUT cannot be a table of ads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe")
    parser.add_argument("--n", type=positive, default=4, help="candidates per product (default: 4)")
    server = os.environ.get("SERVER")
    parser.add_argument("--server", metavar="URL", default=server, help="ask this OpenAI-compatible server")
    parser.add_argument("--model", help="the server's name for the model (default: its only model)")
    parser.add_argument("--columns", metavar="A,B", default="", help="the columns that are attributes")
    parser.add_argument("--in-flight", type=positive, help="requests to it at a time (vLLM: 256; else 8)")
    options = parser.parse_intermixed_args()
    check_overrides(options.overrides, "api" if options.server or vllm.is_wanted() else "train")
    check_output(options.output)
    # A bad file of words ends the run here, not after the ads were written.
    read_rules()
    if options.output.is_dir() or options.output.resolve() == options.input.resolve():
        fail(f"{options.output} is {'a folder' if options.output.is_dir() else 'INPUT'}; name another file")
    return options


def read_products(options: argparse.Namespace, known: list[str]) -> Catalogue:
    """The rows of INPUT; says which columns are attributes. known: attribute strings of the training data."""
    keys = {key for product in known for key, _ in parse_attributes(product)}
    columns = [name.strip() for name in options.columns.replace("，", ",").split(",") if name.strip()]
    table = read_catalogue(options.input, keys, columns)
    if taken := set(table.header) & set(added_columns(options)):
        fail(f"{options.input} has a column {', '.join(sorted(taken))}, which OUTPUT adds: rename or remove it")
    check_size(options.output, table.header + added_columns(options), table.rows)
    print(table.note, flush=True)
    return table


def read_settings(options: argparse.Namespace) -> tuple[dict, Writer]:
    """What decides which ads are written, and what writes them. A run goes on only with the settings it began with."""
    choices = read_choices()
    settings = {"n": options.n, "server": options.server}
    recipe = read_recipe(ROOT / choices.recipe("chat"), [*served_overrides(choices), *options.overrides])
    if options.server:
        model = options.model or chat_client.find_model(options.server)
        body = chat_client.request_of(recipe, model)
        settings |= {"model": model, "request": body}
        many = options.in_flight or chat_client.in_flight(options.server)
        return settings, partial(chat_client.write_ads, options.server, body, many)
    settings |= {"model": f"{choices.model} {choices.method}", "weights": last_change(recipe)}
    if vllm.is_wanted():
        return settings | {"server": "vllm", "request": recipe}, partial(vllm.write_ads, options.overrides)
    words = batches.sampling_words(choices, options.overrides)
    recipe = read_recipe(ROOT / choices.recipe("predict"), words)
    settings["request"] = recipe | {batches.BATCH: None}
    folder = batches.work_folder(str(options.output.resolve()), settings)
    batches.make_base(choices)
    return settings, partial(batches.write_ads, words, folder)


def last_change(recipe: dict) -> float | None:
    """When the adapter of a recipe, or its model if it has none, was last written; None if it is not in a folder."""
    folder = ROOT / str(recipe.get("adapter_name_or_path") or recipe["model_name_or_path"])
    return max((path.stat().st_mtime for path in folder.glob("*.safetensors")), default=None)


def added_columns(options: argparse.Namespace) -> list[str]:
    """The columns that OUTPUT adds to those of INPUT."""
    runners_up = [f"runner_up_{place}" for place in range(1, options.n)]
    label = ["ai_label", *["AIGC"] * (options.output.suffix.lower() == ".jsonl")]
    return ["ad", "missing", "invented", "risk", "basis", *runners_up, "reason", *label]


def added_cells(ranked: list[Candidate], columns: list[str], reason: str, label: str) -> list:
    """The cells of a row under those columns. ranked: the product's candidates, the best first; there may be none."""
    cells = dict.fromkeys(columns, "") | {"reason": reason}
    if ranked:
        best, *others = ranked
        risk, basis = describe(best.hits)
        cells |= {"ad": labelled(best.ad), "missing": "、".join(best.missing), "invented": "、".join(best.invented)}
        cells |= {"risk": risk, "basis": basis, "ai_label": label, "AIGC": metadata(best.ad)}
        cells |= {f"runner_up_{place}": labelled(candidate.ad) for place, candidate in enumerate(others, 1)}
    return [cells[name] for name in columns]


def save(options: argparse.Namespace, table: Catalogue, ranked: list, reasons: list[str], about: dict) -> None:
    """Writes OUTPUT. ranked: the candidates of each row, the best first. reasons: why a row has no ad, or empty.

    about: what the workbook says of the run; its `model` stands in the label of each ad.
    """
    now, columns = datetime.now().astimezone().isoformat(" ", "minutes"), added_columns(options)
    label = f"{MARK}（{about['model']}，{now}）"
    rows = [
        [*row, *added_cells(candidates, columns, reason, label)]
        for row, candidates, reason in zip(table.rows, ranked, reasons, strict=True)
    ]
    levels = [{hit.level for hit in candidates[0].hits} for candidates in ranked if candidates]
    counts = {
        "rows": len(rows),
        "rows with an ad": len(levels),
        "ads with forbidden words": sum("ban" in found for found in levels),
        "ads with words to be proved": sum("caution" in found and "ban" not in found for found in levels),
    }
    about = {"label": MARK, "written": now, **about, **counts, "note": NO_ADVICE}
    try:
        write_table(options.output, [*table.header, *columns], rows, about)
    except OSError as error:
        fail(f"{options.output} cannot be written ({error.strerror}); the ads are in {options.output}.journal")
    print(f"{options.output}: {len(levels)} of {len(rows)} rows have an ad")
    print(", ".join(f"{name}: {counts[name]}" for name in list(counts)[2:]) + f". {NO_ADVICE}")


def main() -> None:
    options = read_options()
    known = known_products()
    table = read_products(options, known)
    settings, write = read_settings(options)
    journal, ads = open_journal(options.output.with_name(f"{options.output.name}.journal"), settings)
    keys = numbered(table.products)
    try:
        refused = write_missing(write, journal, ads, [key for key in keys if key[0]], options.n)
    finally:
        if not any(ads.values()):
            Path(journal.name).unlink()
    values = vocabulary(known + table.products)
    samples = [ads[key][: options.n] if key[0] else [] for key in keys]
    judged = [rank_ads(*row, values) for row in zip(table.products, samples, strict=True)]
    ranked = [ads for ads, _ in judged]
    reasons = [
        problem or refused.get(key) or why for key, problem, (_, why) in zip(keys, table.problems, judged, strict=True)
    ]
    request = {"n": options.n, **settings["request"]}
    about = {"model": settings["model"]}
    about["settings"] = json.dumps({name: request[name] for name in TOLD if name in request}, ensure_ascii=False)
    save(options, table, ranked, reasons, about)
    if refused:
        print(f"{len(refused)} products were refused, see `reason`; the same command tries them again")
    else:
        Path(journal.name).unlink(missing_ok=True)
    written = [place for place, candidates in enumerate(ranked) if candidates]
    if not written:
        fail(f"no row has an ad; the reason for the first row: {reasons[0]}")
    systems = {
        "one sample": [samples[place][0] for place in written],
        f"best of {options.n}": [ranked[place][0].ad for place in written],
    }
    scores = compare([table.products[place] for place in written], systems, values)
    for name in systems if options.n > 1 else list(systems)[1:]:
        print(f"{name}: " + ", ".join(f"{score} {entry['value']:.3f}" for score, entry in scores[name].items()))


if __name__ == "__main__":
    main()
