"""Writes ads for a catalogue: asks a chat server for several candidates per product and keeps the best one.

  MODEL=tiny DATA=sample python scripts/generate.py examples/products.csv ads.csv

INPUT is a .csv (UTF-8 or GB18030), .xlsx (its first sheet is read) or .jsonl file. Its first line names the columns.
- A column is an attribute if the training data has a key of that name (类型, 颜色 …), or if the name does not say that
  it is something else: a code (id, SKU, 编号, 货号 …), the product's name (商品, 名称, 标题 …), a price, stock, link,
  picture, date, note or text. --columns names the attribute columns instead. Other columns are copied to OUTPUT.
- A cell may hold several values, separated by 、 , ; / | or their full-width forms. -, 无 and N/A count as empty.
- If one column holds attribute strings (类型#裙*颜色#白色), only that column is read.

OUTPUT is a .csv file, which Excel opens, or a .jsonl file. It has one row for each row of INPUT, in the same order: the
columns of INPUT, then `ad`, `missing` (attribute values that the ad does not name), `invented` (known values that it
names and the product does not have), `runner_up_1` … and `reason` (why there is no ad). Blank rows at the end of INPUT
are left out.

The candidates of a product are ranked by attributes named, then by values invented, then by length: 30 to 200
characters come first. An echo of the product, reasoning, special tokens, markup, a loop or a text without an end is no
ad; if a product has nothing else, `reason` says so.

MODEL, METHOD, DATA and EXPORTED in the environment choose the model, as for `make`. Without --server or SERVER, a
server with that model is started for this run. API_KEY in the environment is sent to the server.

Every answer is saved at once in OUTPUT.journal. If the run ends early (a kill, Ctrl-C, a server that goes away), the
same command continues it; with other settings it refuses to. When OUTPUT is written, the journal is removed, unless the
server refused a product: the same command then asks for that product again. The exit status is 0 if any row has an ad.
"""

import argparse
import asyncio
import csv
import json
import os
import shlex
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from lib.attributes import parse_attributes
from lib.candidates import Candidate, compare, known_products, rank_ads
from lib.catalogue import Catalogue, read_catalogue
from lib.chat_client import Key, Stopped, find_model, request_of, write_ads
from lib.choices import read_choices, served_overrides
from lib.files import ROOT, fail, printable, whole_file, write_json
from lib.journal import append, open_journal
from lib.metrics import vocabulary
from lib.recipes import check_overrides, read_recipe
from lib.servers import own_server
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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the chat recipe")
    parser.add_argument("--n", type=positive, default=4, help="candidates per product (default: 4)")
    server = os.environ.get("SERVER")
    parser.add_argument("--server", metavar="URL", default=server, help="ask this OpenAI-compatible server; start none")
    parser.add_argument("--model", help="the server's name for the model (default: its only model)")
    parser.add_argument("--columns", metavar="A,B", default="", help="the columns that are attributes")
    parser.add_argument("--in-flight", type=positive, default=8, help="requests at a time (default: 8)")
    parser.add_argument("--report", type=Path, help="a JSON file for the scores of one sample and of the best of N")
    options = parser.parse_intermixed_args()
    check_overrides(options.overrides, "api")
    if options.output.suffix.lower() not in (".csv", ".jsonl"):
        fail(f"{options.output}: OUTPUT must be a .csv or .jsonl file")
    if options.output.is_dir() or options.output.resolve() == options.input.resolve():
        fail(f"{options.output} is {'a folder' if options.output.is_dir() else 'INPUT'}; name another file")
    return options


def read_products(options: argparse.Namespace, known: list[str]) -> Catalogue:
    """The rows of INPUT; says which columns are attributes. known: attribute strings of the training data."""
    keys = {key for product in known for key, _ in parse_attributes(product)}
    columns = [name.strip() for name in options.columns.split(",") if name.strip()]
    table = read_catalogue(options.input, keys, columns)
    if taken := set(table.header) & set(added_columns(options.n)):
        fail(f"{options.input} has a column {', '.join(sorted(taken))}, which OUTPUT adds: rename or remove it")
    others = [name for name in table.header if name not in table.columns]
    print(f"Attributes: {', '.join(table.columns)}; copied: {', '.join(others) or 'no other column'}")
    return table


def read_settings(options: argparse.Namespace) -> dict:
    """What decides which ads are written. A run is continued only with the settings that it began with."""
    choices = read_choices()
    overrides = [*served_overrides(choices), *options.overrides]
    recipe = read_recipe(ROOT / choices.recipe("chat"), overrides)
    own = {"recipe": str(choices.recipe("chat")), "overrides": overrides}
    model = options.model or (find_model(options.server) if options.server else recipe["model_name_or_path"])
    return {
        "n": options.n,
        "server": options.server or own,
        "request": request_of(recipe, model),
        "weights": None if options.server else last_change(recipe),
    }


def last_change(recipe: dict) -> float | None:
    """When the adapter of a recipe, or its model if it has none, was last written; None if it is not in a folder."""
    folder = ROOT / str(recipe.get("adapter_name_or_path") or recipe["model_name_or_path"])
    return max((path.stat().st_mtime for path in folder.glob("*.safetensors")), default=None)


def numbered(products: list[str]) -> list[Key]:
    """Each product with how many equal ones stand before it."""
    counts, keys = Counter(), []
    for product in products:
        keys.append((product, counts[product]))
        counts[product] += 1
    return keys


def fetch(options: argparse.Namespace, body: dict, journal: IO[str], ads: dict, keys: list[Key]) -> dict[Key, str]:
    """Has the server write the ads that are still missing, and adds them to the journal and to `ads`.

    Returns the reason for each product that the server refused.
    """
    from tqdm import tqdm

    todo = {key: options.n - len(ads[key]) for key in keys if len(ads[key]) < options.n}
    if not todo:
        return {}
    wanted, missing = options.n * len(keys), sum(todo.values())
    if missing < wanted:
        print(f"{wanted - missing} of {wanted} ads are in {journal.name} from an earlier run")

    def done(key: Key, new: list[str]) -> None:
        append(journal, {"product": key[0], "copy": key[1], "ads": new})
        ads[key] += new
        bar.update(len(new))

    def saved() -> str:
        return f"{sum(map(len, ads.values()))} of {wanted} ads are in {journal.name}: the same command continues"

    server = nullcontext(options.server) if options.server else own_server(options.overrides)
    try:
        with server as url, tqdm(total=wanted, initial=wanted - missing, desc="Writing", unit="ad") as bar:
            return asyncio.run(write_ads(url, body, todo, options.in_flight, done))
    except (Stopped, OSError) as error:
        fail(f"{error}; {saved()}")
    except KeyboardInterrupt:
        print(f"\nStopped; {saved()}")
        raise SystemExit(130) from None


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
    settings = read_settings(options)
    journal, ads = open_journal(options.output.with_name(f"{options.output.name}.journal"), settings)
    keys = numbered(table.products)
    try:
        refused = fetch(options, settings["request"], journal, ads, [key for key in keys if key[0]])
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
    save(options, table, ranked, reasons, journal.name)
    if refused:
        print(f"The server refused {len(refused)} products, see `reason`; the same command asks for them again")
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
