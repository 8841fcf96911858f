"""Writes ads for a catalogue: several candidates for each product, of which it puts the best one first.

  MODEL=tiny DATA=sample python scripts/generate.py examples/products.csv ads.csv

INPUT is a .csv, .xlsx or .jsonl file with headings.
- A column is an attribute if the training data has a key of that name (类型, 颜色 …; color is 颜色, too), or if
  --columns names it. Other columns are copied to OUTPUT; the model never sees them.
- A cell may hold several values, separated by 、 , ; / | or their full-width forms. -, 无 and N/A count as empty.
- A cell may hold several attributes: 颜色:白色;材质:雪纺. Names that are no attributes are left out.
- If one column holds attribute strings (类型#裙*颜色#白色), only that column is read.

OUTPUT is a .csv file, which Excel opens, or a .jsonl file. It has one row for each row of INPUT, in the same order: the
columns of INPUT, then `ad`, `missing` (attribute values that the ad does not name), `invented` (known values that it
names and the product does not have), `runner_up_1` … and `reason` (why there is no ad). Blank rows at the end of INPUT
are left out.

The candidates of a product are ranked by attributes named, then by values invented, then by length: 30 to 200
characters come first.

MODEL, METHOD, DATA and EXPORTED in the environment choose the model, as for `make`, and GPUS the cards that write. They
write in batches. The recipe's batches are for the card that it names; they grow with free memory, and are halved when
memory runs out. With --server or SERVER, that server is asked instead; API_KEY in the environment is sent to it.

What is written is saved in OUTPUT.journal: every answer of a server at once, and batches in parts of some minutes. If
the run ends early (a kill, Ctrl-C, a server that goes away), the same command continues it; with other settings it
refuses to. When OUTPUT is written, the journal is removed, unless a product was refused: the same command then tries
that product again. The exit status is 0 if any row has an ad.
"""

import argparse
import csv
import json
import os
import shlex
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from lib import batches, chat_client
from lib.attributes import parse_attributes
from lib.candidates import Candidate, compare, judge, known_products
from lib.catalogue import Catalogue, read_catalogue
from lib.choices import read_choices, served_overrides
from lib.files import ROOT, fail, printable, whole_file, write_json
from lib.journal import Writer, numbered, open_journal, write_missing
from lib.metrics import vocabulary
from lib.recipes import check_overrides, read_recipe
from lib.sheets import text


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
    parser.add_argument("--in-flight", type=positive, default=8, help="requests to it at a time (default: 8)")
    parser.add_argument("--report", type=Path, help="a JSON file for the scores of one sample and of the best of N")
    options = parser.parse_intermixed_args()
    check_overrides(options.overrides, "api" if options.server else "train")
    if options.output.suffix.lower() not in (".csv", ".jsonl"):
        fail(f"{options.output}: OUTPUT must be a .csv or .jsonl file")
    if options.output.is_dir() or options.output.resolve() == options.input.resolve():
        fail(f"{options.output} is {'a folder' if options.output.is_dir() else 'INPUT'}; name another file")
    return options


def read_products(options: argparse.Namespace, known: list[str]) -> Catalogue:
    """The rows of INPUT; says which columns are attributes. known: attribute strings of the training data."""
    keys = {key for product in known for key, _ in parse_attributes(product)}
    columns = [name.strip() for name in options.columns.replace("，", ",").split(",") if name.strip()]
    table = read_catalogue(options.input, keys, columns)
    if taken := set(table.header) & set(added_columns(options.n)):
        fail(f"{options.input} has a column {', '.join(sorted(taken))}, which OUTPUT adds: rename or remove it")
    print(table.note, flush=True)
    return table


def read_settings(options: argparse.Namespace) -> tuple[dict, Writer]:
    """What decides which ads are written, and what writes them. A run goes on only with the settings it began with."""
    choices = read_choices()
    settings = {"n": options.n, "server": options.server}
    if options.server:
        recipe = read_recipe(ROOT / choices.recipe("chat"), [*served_overrides(choices), *options.overrides])
        body = chat_client.request_of(recipe, options.model or chat_client.find_model(options.server))
        return settings | {"request": body}, partial(chat_client.write_ads, options.server, body, options.in_flight)
    words = batches.sampling_words(choices, options.overrides)
    recipe = read_recipe(ROOT / choices.recipe("predict"), words)
    settings |= {"request": recipe | {batches.BATCH: None}, "weights": last_change(recipe)}
    folder = batches.work_folder(str(options.output.resolve()), settings)
    return settings, partial(batches.write_ads, words, folder)


def last_change(recipe: dict) -> float | None:
    """When the adapter of a recipe, or its model if it has none, was last written; None if it is not in a folder."""
    folder = ROOT / str(recipe.get("adapter_name_or_path") or recipe["model_name_or_path"])
    return max((path.stat().st_mtime for path in folder.glob("*.safetensors")), default=None)


def added_columns(n: int) -> list[str]:
    """The columns that OUTPUT adds to those of INPUT."""
    return ["ad", "missing", "invented", *(f"runner_up_{place}" for place in range(1, n)), "reason"]


def added_cells(ranked: list[Candidate], n: int, reason: str) -> list[str]:
    """The cells of a row under those columns. ranked: the product's candidates, the best first; there may be none."""
    ads = [candidate.ad for candidate in ranked] + [""] * (n - len(ranked))
    missing, invented = (["、".join(ranked[0].missing), "、".join(ranked[0].invented)]) if ranked else ["", ""]
    return [ads[0], missing, invented, *ads[1:], reason]


def write_table(path: Path, header: list[str], rows: list[list]) -> None:
    """Writes JSON lines, or CSV with the byte order mark by which Excel recognises UTF-8."""
    with whole_file(path) as file:
        if path.suffix.lower() == ".jsonl":
            names = different(header)
            for row in rows:
                line = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False)
                file.write(printable(line) + "\n")
        else:
            file.write("\ufeff")
            csv.writer(file).writerows([header, *(map(text, row) for row in rows)])


def different(names: list[str]) -> list[str]:
    """The names, numbered where one occurs again, because a JSON object holds each key only once."""
    found, counts = {}, Counter()
    for name in names:
        label = name
        while label in found:
            counts[name] += 1
            label = f"{name} ({counts[name] + 1})"
        found[label] = None
    return list(found)


def report(options: argparse.Namespace, settings: dict, products: list[str], systems: dict, values: dict) -> None:
    """Prints the scores of one sample and of the best of N, and writes them to --report.

    systems: name → one ad for each of the products. values: see `lib.metrics.vocabulary`.
    """
    scores = compare(products, systems, values)
    for name in list(systems)[options.n == 1 :]:
        print(f"{name}: " + ", ".join(f"{score} {entry['value']:.3f}" for score, entry in scores[name].items()))
    if not options.report:
        return
    about = {name: value for name, value in settings.items() if name != "weights"}
    command = shlex.join(["python", *sys.argv])
    try:
        write_json(options.report, {"command": command, "rows": len(products), **about, "scores": scores})
    except OSError as error:
        fail(f"{options.report} cannot be written: {error.strerror}")


def save(options: argparse.Namespace, table: Catalogue, ranked: list, reasons: list[str], journal: str) -> None:
    """Writes OUTPUT. ranked: the candidates of each row, the best first. reasons: why a row has no ad, or empty."""
    rows = [
        [*row, *added_cells(candidates, options.n, reason)]
        for row, candidates, reason in zip(table.rows, ranked, reasons, strict=True)
    ]
    try:
        write_table(options.output, [*table.header, *added_columns(options.n)], rows)
    except OSError as error:
        fail(f"{options.output} cannot be written ({error.strerror}); the ads are in {journal}")
    print(f"{options.output}: {sum(map(bool, ranked))} of {len(rows)} rows have an ad")


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
    ranked = [
        sorted((judge(product, ad, values) for ad in texts), key=lambda candidate: candidate.rank)
        for product, texts in zip(table.products, samples, strict=True)
    ]
    reasons = [problem or refused.get(key, "") for key, problem in zip(keys, table.problems, strict=True)]
    save(options, table, ranked, reasons, journal.name)
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
    report(options, settings, [table.products[place] for place in written], systems, values)


if __name__ == "__main__":
    main()
