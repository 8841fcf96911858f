"""Scores generated ads beside systems that need no model, and shows the scores as tables, a picture and examples.

  python scripts/score.py base=A.jsonl tuned=B.jsonl --data data/adgen_dev.jsonl --out results/llama3_8b

Each FILE is a generated_predictions.jsonl of LLaMA-Factory, with its rows in the order of the data. NAME is what the
tables call the system. If there is a base and a tuned, their difference is scored, too.

JUDGE in the environment is the base URL of an OpenAI-compatible server: its model gives each ad a mark from 1 to 5.
JUDGE_MODEL names the model if the server has several, and API_KEY is sent to it.

The report names no best model if outputs are empty, endless, repetitive or incomplete; it then says why.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from lib import tables
from lib.baselines import BASELINES, write_baselines
from lib.files import ROOT, fail, installed_versions, printable, sha256, whole_file, write_json
from lib.health import check_health, find_best
from lib.judge import ask_judge
from lib.law import read_rules
from lib.metrics import vocabulary
from lib.pictures import plot_scores
from lib.predictions import Predictions, Rows, read_data, read_predictions
from lib.recipes import read_recipe
from lib.system_scores import score_systems

# The keys of a predict recipe that change what a model writes.
DECODING = ("do_sample", "num_beams", "temperature", "top_p", "top_k", "repetition_penalty", "length_penalty")
DECODING += ("no_repeat_ngram_size", "max_length", "max_new_tokens", "infer_backend")
LIBRARIES = ("jieba", "rouge-chinese", "nltk", "sacrebleu", "numpy", "llamafactory", "transformers", "torch", "vllm")


def parse_systems(words: Iterable[str]) -> dict[str, Path]:
    """`NAME=FILE` or `FILE` words as name → path. A file without a name is called after its folder."""
    systems = {}
    for word in words:
        name, mark, path = word.partition("=")
        if not mark or "/" in name:
            name, path = Path(word).resolve().parent.name, word
        # A name stands in tables and pictures.
        name = "".join(filter(str.isprintable, printable(name)))
        if name in BASELINES or not name:
            fail(f'"{name}" cannot be the name of a system; choose another name, as in tuned={path}')
        if name in systems:
            fail(f"two systems are called {name}; name each, as in tuned={path}")
        systems[name] = Path(path)
    return systems


def read_decoding(words: list[str]) -> dict:
    """The decoding keys of a predict recipe, whose path comes first, with the `key=value` overrides laid over them."""
    settings = read_recipe(Path(words[0]), words[1:])
    return {key: settings[key] for key in DECODING if key in settings}


def describe(path: Path, rows: Rows) -> dict:
    """A data file as eval_results.json describes it."""
    return {"file": printable(path.name), "rows": len(rows.contents), "sha256": sha256(path)}


def command_line() -> str:
    """The command that started this program; paths in the project are relative."""
    command = shlex.join(["python", "scripts/score.py", *sys.argv[1:]]).replace(f"{ROOT}/", "")
    return "".join(filter(str.isprintable, printable(command)))


def score(options: argparse.Namespace, predicted: dict[str, Predictions], data: Rows, train: Rows | None) -> dict:
    """Everything that eval_results.json holds; `predicted`: system → its predictions."""
    free = {name: Predictions(texts, data.references) for name, texts in write_baselines(data, train).items()}
    results = {
        "command": command_line(),
        "split": describe(options.data, data),
        "adgen_dev": tables.is_adgen_dev(*data),
        "train": describe(options.train, train) if train else None,
        "decoding": read_decoding(options.decoding) if options.decoding else None,
        "rows": {name: len(system.texts) for name, system in predicted.items()},
    }
    systems, marks = predicted | free, None
    if server := os.environ.get("JUDGE"):
        # The other systems that need no model would only cost.
        texts = {name: systems[name].texts for name in (*predicted, "reference")}
        pairs = {name: list(zip(data.contents, ads, strict=False)) for name, ads in texts.items()}
        journal = options.out / "judge.journal"
        marks, results["judge"] = ask_judge(server, os.environ.get("JUDGE_MODEL"), pairs, journal)
    results |= score_systems(systems, data, train, marks)
    rows = results["systems"]
    results["health"] = {
        name: check_health(system, data, train, rows[name], rows["reference"]) for name, system in predicted.items()
    }
    results["best"] = find_best(results)
    results["versions"] = installed_versions(LIBRARIES)
    return results


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    with whole_file(path) as file:
        file.write(text)


def write_results(folder: Path, results: dict, texts: dict[str, list[str]], data: Rows, train: Rows | None) -> None:
    """Writes eval.png, examples.md, table.md and eval_results.json; `texts`: system → its ads."""
    values = vocabulary(data.contents + (train.contents if train else []))
    lengths = {name: [len(text) for text in ads] for name, ads in {**texts, "reference": data.references}.items()}
    try:
        plot_scores(results, lengths, folder / "eval.png")
        write_text(folder / "examples.md", tables.examples_markdown(texts, *data, values))
        write_text(folder / "table.md", tables.results_markdown(results))
        write_json(folder / "eval_results.json", results)
    except OSError as error:
        fail(f"{folder} cannot be written to: {error.strerror or error}")
    print(f"{folder}: eval.png, examples.md, table.md, eval_results.json\n")


def read_options() -> argparse.Namespace:
    """The command line; ends the program if a needed word is missing or --out is a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="[NAME=]FILE", help="generated_predictions.jsonl of LLaMA-Factory")
    parser.add_argument("--data", type=Path, help="the rows that were predicted, in AdGen format")
    parser.add_argument(
        "--train", type=Path, help="the training rows; they add the baselines nearest and random, and show copies"
    )
    parser.add_argument(
        "--decoding", nargs="+", metavar="WORD", help="the predict recipe and its overrides (key=value), to be noted"
    )
    parser.add_argument("--out", type=Path, help="the folder for table.md, eval.png, examples.md, eval_results.json")
    parser.add_argument("--published", action="store_true", help="only write results/published.md")
    options = parser.parse_args()
    if not options.published and not (options.files and options.data):
        parser.error("FILE and --data are needed")
    if os.environ.get("JUDGE") and not options.out:
        parser.error("with JUDGE, --out is needed: what the judge answers is kept there")
    if options.out and options.out.exists() and not options.out.is_dir():
        fail(f"{options.out} is a file; --out names a folder")
    return options


def main() -> None:
    options = read_options()
    if options.published:
        return write_text(tables.PUBLISHED.with_suffix(".md"), tables.published_markdown())
    read_rules()
    paths = parse_systems(options.files)
    data = read_data(options.data)
    train = read_data(options.train) if options.train else None
    predicted = {name: read_predictions(path, data, options.data) for name, path in paths.items()}
    results = score(options, predicted, data, train)
    if options.out:
        texts = {name: system.texts for name, system in predicted.items()}
        write_results(options.out, results, texts, data, train)
    print(tables.results_text(results))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
