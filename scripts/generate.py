"""Writes ads for a whole catalogue: asks a chat server for several candidates a product and keeps the best one.

  python scripts/generate.py examples/products.csv ads.csv --server http://127.0.0.1:8000

INPUT is .csv (UTF-8 or GB18030), .xlsx (its first sheet) or .jsonl; its first line names the columns.
- A column whose name is a key of the training data (类型, 颜色 …) is an attribute. So is any other, unless its name
  says that it is none: the product's code (id, SKU, 编号, 货号 …), its name (商品, 名称, 标题 …), price, stock,
  link, picture, date, note or text. Those are handed on untouched. --columns names the attributes instead.
- Several values in a cell stand apart by 、 , ; / | or their full-width forms; -, 无 and N/A count as empty.
- If a column holds attribute strings (类型#裙*颜色#白色), it alone is read, and all others are handed on.

OUTPUT (.csv, which Excel opens, or .jsonl) has a row for every row of INPUT, in its order: its columns, then `ad`,
`missing` (attribute values that the ad does not name), `invented` (known values that the product does not have),
`runner_up_1` … and `reason` (why there is no ad). Blank rows at the end of INPUT are no rows.

The best candidate names the most attributes; of these, invents the least; of these, has 30 to 200 characters.

Every answer is kept at once in OUTPUT.journal. After a kill, Ctrl-C or the server's end the same command goes on from
there; it does not with other settings. The journal goes when OUTPUT is written, unless the server refused a product:
the same command then tries those again. The exit status is 0 if any row has an ad. API_KEY in the environment is sent
to the server.
"""

import argparse
import asyncio
import csv
import fcntl
import json
import shlex
import sys
from collections import Counter, defaultdict
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, NamedTuple

from adgen import ROOT, fail, parse_attributes, printable, read_json_lines, whole_file, write_json
from catalogue import read_catalogue, text
from chat_server import Key, Stopped, find_model, own_server, write_ads
from doctor import read_overrides, read_recipe

# Characters of an ad: AdGen's and the sample's are all within.
SHORTEST, LONGEST = 30, 200


class Candidate(NamedTuple):
    """An ad, the attribute values that it misses and invents, and its rank: the least is the best."""

    ad: str
    missing: list[str]
    invented: list[str]
    rank: tuple[int, float, bool]


def judge(product: str, ad: str, values: dict) -> Candidate:
    """Holds an ad against its product; `values`: a `scores.vocabulary`."""
    import scores

    missing = list(dict.fromkeys(value for (_, value), hit in scores.covered(product, ad).items() if not hit))
    found, invented = scores.invented(product, ad, values)
    rank = (len(missing), len(invented) / max(1, len(found)), not SHORTEST <= len(ad) <= LONGEST)
    return Candidate(ad, missing, sorted(invented), rank)


def known_products() -> list[str]:
    """The attribute strings that the model may have seen: the sample's and, where prepared, AdGen's."""
    paths = [ROOT / "data" / name for name in ("sample/train.jsonl", "adgen_train.jsonl")]
    rows = [row for path in paths if path.exists() for row in read_json_lines(path)]
    return [row.get("instruction") or row.get("content") or "" for row in rows]


def open_journal(path: Path, settings: dict) -> tuple[IO[str], dict[Key, list[str]]]:
    """The journal, open to append to, and the ads in it; ends the program when it is not this run's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = path.open("a+", encoding="utf-8", errors="replace", newline="\n")
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another run is writing {path.with_suffix('')}")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    journal.seek(0)
    written, ads, before = journal.read(), defaultdict(list), None
    for line in written.split("\n"):
        # A kill may have torn a run's last line.
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if not isinstance(entry, dict):
                continue
            before = before or entry.get("settings")
            product, copy, new = (entry.get(name) for name in ("product", "copy", "ads"))
            if isinstance(product, str) and isinstance(copy, int) and isinstance(new, list):
                ads[product, copy] += map(text, new)
    if ads and before != settings:
        changed = ", ".join(name for name in settings if (before or {}).get(name) != settings[name])
        fail(f"{path} is of an unfinished run with another {changed}: run that to its end, or remove the file")
    if not ads:
        journal.truncate(0)
        append(journal, {"settings": settings})
    elif not written.endswith("\n"):
        journal.write("\n")
    return journal, ads


def append(journal: IO[str], entry: dict) -> None:
    """Writes a line that outlives this process."""
    journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
    journal.flush()


def fetch(options: argparse.Namespace, body: dict, journal: IO[str], ads: dict, keys: list[Key]) -> dict[Key, str]:
    """Has the ads written that are not in the journal yet, into it and `ads`; gives the reasons of those refused."""
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

    def again() -> str:
        return (
            f"{sum(map(len, ads.values()))} of {wanted} ads are in {journal.name}: the same command goes on from there"
        )

    server = nullcontext(options.server) if options.server else own_server(options.recipe, options.overrides)
    try:
        with server as url, tqdm(total=wanted, initial=wanted - missing, desc="Writing", unit="ad") as bar:
            return asyncio.run(write_ads(url, body, todo, options.in_flight, done))
    except (Stopped, OSError) as error:
        fail(f"{error}; {again()}")
    except KeyboardInterrupt:
        print(f"\nStopped; {again()}")
        raise SystemExit(130) from None


def compare(products: list[str], systems: dict[str, list[str]], values: dict) -> dict:
    """Coverage and hallucination, with 95% intervals, of systems (name → an ad a product), and last less first."""
    import scores

    draws, nothing, found = scores.weights(len(products)), [(0,) * 4] * len(products), {}
    for name, ads in systems.items():
        columns = scores.row_ratios(products, ads, ads, nothing, nothing, values)
        for score in ("coverage", "hallucination"):
            column = columns[score, ""]
            found[name, score] = scores.ratio(column.sum(0)), scores.ratio(draws @ column)
    first, *_, last = systems
    for score in ("coverage", "hallucination"):
        found["difference", score] = tuple(b - a for a, b in zip(found[first, score], found[last, score], strict=True))
    results = defaultdict(dict)
    for (name, score), (value, samples) in found.items():
        results[name][score] = {"value": round(float(value), 4), "ci95": scores.ci95(score, value, samples)}
    return results


def different(names: list[str]) -> list[str]:
    """The names, numbered where they recur: in an object a second column of a name would take the first one's place."""
    found, counts = {}, Counter()
    for name in names:
        label = name
        while label in found:
            counts[name] += 1
            label = f"{name} ({counts[name] + 1})"
        found[label] = None
    return list(found)


def write_table(path: Path, header: list[str], rows: list[list]) -> None:
    """Writes CSV with the mark by which Excel knows UTF-8, or JSON lines."""
    with whole_file(path) as file:
        if path.suffix.lower() == ".jsonl":
            names = different(header)
            for row in rows:
                line = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False)
                file.write(printable(line) + "\n")
        else:
            file.write("\ufeff")
            csv.writer(file).writerows([header, *(map(text, row) for row in rows)])


def positive(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word} is no whole number above 0")
    return int(word)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe")
    parser.add_argument("--n", type=positive, default=4, help="candidates for each product (default: 4)")
    parser.add_argument("--server", metavar="URL", help="an OpenAI-compatible server (default: one for this run)")
    parser.add_argument("--model", help="the server's name for the model (default: its only one)")
    parser.add_argument(
        "--recipe",
        type=Path,
        default=ROOT / "configs/llama3_8b/chat.yaml",
        help="chat recipe: the system prompt and the sampling of all requests, and what a server of this run serves",
    )
    parser.add_argument("--columns", metavar="A,B", default="", help="the columns that are attributes")
    parser.add_argument("--in-flight", type=positive, default=8, help="requests at a time (default: 8)")
    parser.add_argument("--report", type=Path, help="JSON file for the scores of one sample and of the best of N")
    options = parser.parse_intermixed_args()
    if options.output.suffix.lower() not in (".csv", ".jsonl"):
        fail(f"{options.output}: OUTPUT is a .csv or .jsonl file")
    if options.output.is_dir() or options.output.resolve() == options.input.resolve():
        fail(f"{options.output} is {'a folder' if options.output.is_dir() else 'INPUT'}; name another file")
    return options


def read_settings(options: argparse.Namespace) -> dict:
    """What decides the ads: candidates, server, and the part of all requests with the recipe's prompt and sampling."""
    import yaml

    overrides = {key: yaml.safe_load(value) for key, value in read_overrides(options.overrides, "api").items()}
    recipe = read_recipe(options.recipe) | overrides
    system = recipe.get("default_system")
    adapter = ROOT / str(recipe.get("adapter_name_or_path")) / "adapter_model.safetensors"
    own = {"recipe": "/".join(options.recipe.resolve().parts[-2:]), **overrides}
    request = {
        "model": options.model or (find_model(options.server) if options.server else recipe["model_name_or_path"]),
        "messages": [{"role": "system", "content": system}] if system else [],
        "temperature": recipe.get("temperature", 1.0),
        "top_p": recipe.get("top_p", 1.0),
        "max_tokens": recipe.get("max_new_tokens", 256),
    }
    trained = adapter.stat().st_mtime if adapter.exists() and not options.server else None
    return {"n": options.n, "server": options.server or own, "request": request, "adapter": trained}


def result_names(n: int) -> list[str]:
    """The columns that OUTPUT adds."""
    return ["ad", "missing", "invented", *(f"runner_up_{place}" for place in range(1, n)), "reason"]


def result_cells(ranked: list[Candidate], n: int, reason: str) -> list[str]:
    """The cells under those columns, of a product's candidates, the best first; there may be none."""
    ads = [candidate.ad for candidate in ranked] + [""] * (n - len(ranked))
    missing, invented = (["、".join(ranked[0].missing), "、".join(ranked[0].invented)]) if ranked else ["", ""]
    return [ads[0], missing, invented, *ads[1:], reason]


def main() -> None:
    options = read_options()
    known = known_products()
    keys = {key for product in known for key, _ in parse_attributes(product)}
    columns = [name.strip() for name in options.columns.split(",") if name.strip()]
    table = read_catalogue(options.input, keys, columns)
    names = result_names(options.n)
    if taken := [name for name in table.header if name in names]:
        fail(f"{options.input} has a column {', '.join(taken)}, which OUTPUT adds: rename or remove it")
    others = [name for name in table.header if name not in table.columns]
    print(f"Attributes: {', '.join(table.columns)}; handed on: {', '.join(others) or 'no other column'}")

    counts = Counter()
    products: list[Key] = []
    for product in table.products:
        products.append((product, counts[product]))
        counts[product] += 1
    settings = read_settings(options)
    journal, ads = open_journal(options.output.with_name(f"{options.output.name}.journal"), settings)
    try:
        refused = fetch(options, settings["request"], journal, ads, [key for key in products if key[0]])
    finally:
        if not any(ads.values()):
            Path(journal.name).unlink()

    import scores

    values = scores.vocabulary(known + table.products)
    rows, systems = [], {"one sample": [], f"best of {options.n}": []}
    for row, key, problem in zip(table.rows, products, table.problems, strict=True):
        texts = ads[key][: options.n] if key[0] else []
        ranked = sorted((judge(key[0], ad, values) for ad in texts), key=lambda candidate: candidate.rank)
        rows.append([*row, *result_cells(ranked, options.n, problem or refused.get(key, ""))])
        if ranked:
            systems["one sample"].append(texts[0])
            systems[f"best of {options.n}"].append(ranked[0].ad)
    try:
        write_table(options.output, [*table.header, *names], rows)
    except OSError as error:
        fail(f"{options.output} cannot be written ({error.strerror}); the ads are in {journal.name}")
    written = [key[0] for key in products if key[0] and ads[key]]
    print(f"{options.output}: {len(written)} of {len(rows)} rows have an ad")
    if refused:
        print(f"The server refused {len(refused)} products, see `reason`; the same command tries those again")
    else:
        Path(journal.name).unlink(missing_ok=True)
    if not written:
        fail(f"no row has an ad; the first one's reason: {rows[0][-1]}")
    results = compare(written, systems, values)
    for name in list(systems)[options.n == 1 :]:
        print(f"{name}: " + ", ".join(f"{score} {entry['value']:.3f}" for score, entry in results[name].items()))
    if options.report:
        del settings["adapter"]
        about = {"command": shlex.join(["python", *sys.argv]), "rows": len(written), **settings, "scores": results}
        try:
            write_json(options.report, about)
        except OSError as error:
            fail(f"{options.report} cannot be written: {error.strerror}")


if __name__ == "__main__":
    main()
