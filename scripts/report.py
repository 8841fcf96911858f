"""Scores generated ads beside systems that need no model, and shows the result as a table, pictures and examples.

  python scripts/report.py base=A.jsonl tuned=B.jsonl --data data/adgen_dev.jsonl --out results/llama3_8b

Each FILE is a generated_predictions.jsonl of LLaMA-Factory, in the order of the data; NAME=FILE names the system.
"""

import argparse
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pictures
import tables
from adgen import fail, installed_versions, parse_attributes, printable, read_json_lines, whole_file
from prepare_data import read_file, read_rows

TEMPLATE = "这款{kind}，{values}的设计，让你穿着舒适，更显时尚。"
MODEL_FREE = ("reference", "nearest", "template", "random")
# The decoding that stands beside the scores; of these keys a recipe or an override may hold some.
DECODING = ("do_sample", "num_beams", "temperature", "top_p", "top_k", "repetition_penalty", "length_penalty")
DECODING += ("no_repeat_ngram_size", "max_length", "max_new_tokens")
# ROUGE-L keeps 150 bytes for each pair of words of two ads; every attribute key gets scores and resamples of its own.
MOST_PAIRS = 10**7
MOST_KEYS = 1000
LIBRARIES = ("jieba", "rouge-chinese", "nltk", "sacrebleu", "numpy", "llamafactory", "transformers", "torch")
# Outputs with a sign of ill health → the share of rows from which it counts, and what it says.
SIGNS = {
    "empty": (0.01, "are empty"),
    "unfinished": (0.05, "end without closing punctuation: they ran on past their end or hit the token limit"),
    "endless": (0.05, "are far longer than any reference: they run on past their end"),
    "special": (0.01, "carry special tokens or <UNK>"),
    "alike": (0.2, "are the same as the ad of another product"),
    "repeating": (0.1, "repeat themselves: more than 30% of their 4-grams had occurred before"),
}
CLOSED = tuple("。！？!?.…~～;；」』”\"’')）")
SPECIAL = re.compile(r"<\|[^|>]*\|>|</?s>|<(unk|pad|eos|bos)>|\[(UNK|PAD|CLS|SEP)\]", re.IGNORECASE)


class Rows(NamedTuple):
    """Parallel lists: attribute strings and reference ads."""

    contents: list[str]
    references: list[str]


def read_data(path: Path) -> Rows:
    """The attribute strings and ads of an AdGen-format file, in any encoding and with any column names of AdGen."""
    try:
        rows = list(read_rows(str(path), read_file(path)))
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror or error}; `make data` writes data/adgen_dev.jsonl")
    if not rows:
        fail(f"{path} is empty; `make data` writes it anew")
    for row in rows:
        if row.problem:
            fail(f"{path}, line {row.line}: {row.problem}; an AdGen-format file has instruction and output as text")
        if len(row.summary) ** 2 > MOST_PAIRS:
            fail(f"{path}, line {row.line}: its ad has {len(row.summary):,} characters: too many to be scored")
    keys = {key for row in rows for key, _ in parse_attributes(row.content)}
    if not keys:
        fail(f"{path} holds no attributes such as 类型#裙*颜色#白色: not an AdGen-format file")
    if len(keys) > MOST_KEYS:
        fail(f"{path} has {len(keys):,} attribute keys, such as {min(keys)}; {MOST_KEYS:,} at most are scored")
    return Rows([row.content for row in rows], [row.summary for row in rows])


def plain(text: str) -> str:
    """A text as tokenizers may give it back: no white space, one width and case."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def is_label_of(label: str, reference: str) -> bool:
    """Whether a decoded label may be this reference: cut at cutoff_len, or with a few characters unknown."""
    from difflib import SequenceMatcher

    label, reference = plain(label), plain(reference)
    if not label or reference.startswith(label):
        return bool(label) or not reference
    matcher = SequenceMatcher(None, label, reference, autojunk=False)
    # The quick ones are upper bounds; the last takes the product of both lengths.
    return all(ratio() > 0.8 for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))


class Predictions(NamedTuple):
    """Parallel lists of a system: its ads and the references they were compared with, cut where the run cut them."""

    texts: list[str]
    labels: list[str]
    # Rows that hold neither label nor prompt, so that nothing shows whose predictions they are.
    unchecked: int = 0


def read_predictions(path: Path, data: Rows, data_path: Path) -> Predictions:
    """Predictions and labels, held row for row against the data; fewer rows are let through, others are not."""
    rows = read_json_lines(path)
    if not rows:
        fail(f"{path} is empty: was the prediction run cut off?")
    longest = MOST_PAIRS // max(map(len, data.references))
    texts, labels, unchecked = [], [], 0
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("predict"), str):
            fail(f'{path}, row {number}: there is no text "predict": not a generated_predictions.jsonl')
        if number > len(data.contents):
            fail(f"{path} has {len(rows)} rows, {data_path} {len(data.contents)}: other data, or run on several GPUs")
        content, reference = data.contents[number - 1], data.references[number - 1]
        label = row["label"] if isinstance(row.get("label"), str) else reference
        prompt = plain(row["prompt"]) if isinstance(row.get("prompt"), str) else plain(content)
        unchecked += not isinstance(row.get("label"), str) and not isinstance(row.get("prompt"), str)
        asked = all(plain(value) in prompt for _, value in parse_attributes(content))
        if not asked or not is_label_of(label, reference):
            part = "label" if asked else "prompt"
            fail(
                f"{path}, row {number}: its {part} is not that of row {number} of {data_path}; predict these rows anew"
            )
        if len(row["predict"]) > longest:
            fail(f"{path}, row {number}: its ad has {len(row['predict']):,} characters; at most {longest:,} are scored")
        texts.append(printable(row["predict"]))
        labels.append(printable(label))
    return Predictions(texts, labels, unchecked)


def nearest_summaries(contents: list[str], train: Rows) -> list[str]:
    """For each product the ad of the first training row with the largest Jaccard overlap of attribute pairs."""
    import numpy as np

    products = [set(parse_attributes(content)) for content in train.contents]
    holders = defaultdict(list)
    for number, pairs in enumerate(products):
        for pair in pairs:
            holders[pair].append(number)
    holders = {pair: np.array(numbers) for pair, numbers in holders.items()}
    sizes = np.array([len(pairs) for pairs in products])
    found = []
    for content in contents:
        pairs = set(parse_attributes(content))
        shared = np.zeros(len(products))
        for pair in pairs & holders.keys():
            shared[holders[pair]] += 1
        best = int(np.argmax(shared / np.maximum(1, len(pairs) + sizes - shared)))
        found.append(train.references[best])
    return found


def fill_template(content: str) -> str:
    """A fixed sentence with the attribute values in it."""
    pairs = parse_attributes(content)
    kind = next((value for key, value in pairs if key == "类型"), "商品")
    return TEMPLATE.format(kind=kind, values="，".join(value for key, value in pairs if key != "类型"))


def model_free_systems(data: Rows, train: Rows | None) -> dict[str, list[str]]:
    """Systems that need no model: what any score has to be read against."""
    import random

    systems = {"reference": data.references, "template": [fill_template(content) for content in data.contents]}
    if train:
        dice = random.Random(0)
        systems["nearest"] = nearest_summaries(data.contents, train)
        systems["random"] = [dice.choice(train.references) for _ in data.contents]
    return {name: systems[name] for name in MODEL_FREE if name in systems}


def start_worker() -> None:
    """Loads jieba's dictionary before the first ad, quietly, and leaves Ctrl-C to the parent."""
    import signal

    import jieba

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jieba.setLogLevel("WARNING")
    jieba.initialize()


def score_overlaps(pairs: set[tuple[str, str]]) -> dict[tuple[str, str], tuple]:
    """(prediction, reference) → BLEU-4 and ROUGE-1/2/L, on all cores, with a progress bar."""
    import multiprocessing

    import scores
    from tqdm import tqdm

    # Sorted, so that a bar's pace does not depend on the order of a set: long ads cost most.
    pairs = sorted(pairs)
    bar = {"total": len(pairs), "desc": "Scoring", "unit": "ad", "mininterval": 0.5}
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
    # Below this a second process costs more than it gives.
    if workers == 1 or len(pairs) < 200:
        return {pair: scores.overlap_scores(pair) for pair in tqdm(pairs, **bar)}
    with multiprocessing.get_context("spawn").Pool(workers, start_worker) as pool:
        return dict(zip(pairs, tqdm(pool.imap(scores.overlap_scores, pairs, chunksize=16), **bar), strict=True))


def other_references(data: Rows) -> list[list[str]]:
    """For each row the references of other rows with the same product."""
    holders = defaultdict(set)
    products = [frozenset(parse_attributes(content)) for content in data.contents]
    for product, reference in zip(products, data.references, strict=True):
        holders[product].add(reference)
    return [sorted(holders[product] - {own}) for product, own in zip(products, data.references, strict=True)]


def score_systems(systems: dict[str, Predictions], data: Rows, train: Rows | None) -> dict:
    """Scores systems, name → predictions for the data's rows or the first of them.

    Gives the parts of eval_results.json: systems, "tuned - base", best_over_references and by_key; every score is
    {"value", "ci95": [low, high]}.
    """
    import numpy as np
    import scores

    others = other_references(data)
    pairs = {pair for texts, labels, _ in systems.values() for pair in zip(texts, labels, strict=True)}
    for texts, *_ in systems.values():
        pairs |= {(text, other) for text, row in zip(texts, others, strict=False) for other in row}
    overlaps = score_overlaps(pairs)
    values = scores.vocabulary(data.contents + (train.contents if train else []))
    found, samples = {}, {}
    for name, (texts, labels, _) in systems.items():
        own = [overlaps[pair] for pair in zip(texts, labels, strict=True)]
        best = [
            np.max([mine, *(overlaps[text, other] for other in row)], axis=0)
            for text, mine, row in zip(texts, own, others, strict=False)
        ]
        copies = scores.find_copies(texts, train.references) if train else None
        rest = (own, best, values, copies)
        found[name], samples[name] = scores.score_system(data.contents[: len(texts)], texts, labels, *rest)

    def entries(values: dict, draws: dict, part: str) -> dict[str, dict]:
        keys = [(score, part) for score in scores.SCORES if (score, part) in values]
        return {
            key[0]: {"value": round(values[key], 6), "ci95": scores.ci95(key[0], values[key], draws[key])}
            for key in keys
        }

    differences = {}
    if {"base", "tuned"} <= systems.keys() and len(systems["base"].texts) == len(systems["tuned"].texts):
        gaps = {key: value - found["base"][key] for key, value in found["tuned"].items() if key in found["base"]}
        draws = {key: samples["tuned"][key] - samples["base"][key] for key in gaps}
        differences = entries(gaps, draws, "")
    keys = Counter(key for content in data.contents for key in {key for key, _ in parse_attributes(content)})
    return {
        "systems": {name: entries(found[name], samples[name], "") for name in systems},
        "tuned - base": differences,
        "best_over_references": {
            "rows_with_several": sum(map(bool, others)),
            "systems": {name: entries(found[name], samples[name], scores.BEST) for name in systems},
        },
        "by_key": {
            "rows": dict(keys.most_common()),
            "systems": {
                name: {key: entries(found[name], samples[name], key) for key, _ in keys.most_common()}
                for name in systems
            },
        },
    }


def check_health(predicted: Predictions, data: Rows, train: Rows | None, row: dict, reference: dict) -> list[str]:
    """What is wrong with a system's outputs, in plain words; such a system is not crowned.

    `row` and `reference`: its scores and the reference's, as in eval_results.json.
    """
    import scores

    texts, labels, unchecked = predicted
    rows = len(texts)
    longest = 1.5 * max(map(len, data.references))
    first = {}
    for content, text in zip(data.contents, texts, strict=False):
        first.setdefault(frozenset(parse_attributes(content)), text)
    repeats = Counter(first.values())
    counts = {
        "empty": sum(not text.strip() for text in texts),
        "unfinished": sum(bool(text.strip()) and not text.rstrip().endswith(CLOSED) for text in texts),
        "endless": sum(len(text) > longest for text in texts),
        "special": sum(bool(SPECIAL.search(text)) for text in texts),
        # Counted over products: one product in two rows rightly gets one ad twice.
        "alike": sum(count for text, count in repeats.items() if text.strip() and count > 1) * rows / len(first),
        "repeating": sum(scores.repetition(text) > 0.3 for text in texts),
    }
    found = [
        f"{counts[sign] / rows:.0%} of the outputs {words}"
        for sign, (limit, words) in SIGNS.items()
        if counts[sign] / rows > limit
    ]
    if row.get("copied", {"value": 0})["value"] > 0.2:
        found.append(f"{row['copied']['value']:.0%} of the outputs are copied from training ads")
    if row["distinct-4"]["value"] < 0.25 * reference["distinct-4"]["value"]:
        shares = f"distinct-4 {row['distinct-4']['value']:.3f}, references {reference['distinct-4']['value']:.3f}"
        found.append(f"the outputs repeat each other's phrases as a template does ({shares})")
    if unchecked:
        found.append(f"{unchecked} rows hold neither label nor prompt: nothing shows that they are in the data's order")
    if rows < len(data.contents):
        found.append(f"only {rows} of {len(data.contents)} rows were scored")
    cut = sum(
        len(plain(label)) < 0.95 * len(plain(reference))
        for label, reference in zip(labels, data.references, strict=False)
    )
    if cut:
        found.append(f"{cut} references were cut in the prediction run: raise cutoff_len")
    trained_on = (
        {(frozenset(parse_attributes(content)), plain(ad)) for content, ad in zip(*train, strict=True)}
        if train
        else set()
    )
    own = zip(data.contents[:rows], data.references, strict=False)
    overlap = sum((frozenset(parse_attributes(content)), plain(ad)) in trained_on for content, ad in own)
    if overlap:
        found.append(f"{overlap} of the {rows} rows scored were trained on")
    return found


def read_decoding(words: list[str]) -> dict:
    """The decoding keys of a predict recipe (its path first) and of the overrides `key=value` after it."""
    import yaml

    path = Path(words[0])
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings |= {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words[1:])}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, yaml.YAMLError) as error:
        fail(f"{path} cannot be read as a recipe: {' '.join(str(error).split())}")
    return {key: settings[key] for key in DECODING if key in settings}


def parse_systems(words: Iterable[str]) -> dict[str, Path]:
    """`NAME=FILE` or `FILE` words as name → path; a file without a name is called after its folder."""
    systems = {}
    for word in words:
        name, mark, path = word.partition("=")
        if not mark or "/" in name:
            name, path = Path(word).resolve().parent.name, word
        # It stands in tables and pictures.
        name = "".join(filter(str.isprintable, printable(name)))
        if name in MODEL_FREE or not name:
            fail(f'"{name}" cannot be the name of a system; name it otherwise, as in tuned={path}')
        if name in systems:
            fail(f"two systems are called {name}; name each, as in tuned={path}")
        systems[name] = Path(path)
    return systems


def describe(path: Path, rows: Rows) -> dict:
    """A file as it stands in eval_results.json."""
    return {
        "file": printable(path.name),
        "rows": len(rows.contents),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def write_results(
    folder: Path, results: dict, texts: dict[str, list[str]], data: Rows, train: Rows | None, losses
) -> None:
    """Writes eval_results.json, eval.png and examples.md, and train_loss.png where there are losses."""
    import scores

    values = scores.vocabulary(data.contents + (train.contents if train else []))
    lengths = {name: [len(text) for text in ads] for name, ads in {**texts, "reference": data.references}.items()}
    written = ["eval.png", "examples.md", "eval_results.json"]
    try:
        pictures.plot_scores(results, lengths, folder / "eval.png")
        if losses:
            pictures.plot_loss(losses, folder / "train_loss.png")
            written.insert(0, "train_loss.png")
        with whole_file(folder / "examples.md") as file:
            file.write(tables.format_examples(texts, data.contents, data.references, values))
        with whole_file(folder / "eval_results.json") as file:
            text = json.dumps(results, ensure_ascii=False, indent=1, default=str)
            # An interval on one line.
            file.write(re.sub(r"\[\s+([-\d.e]+),\s+([-\d.e]+)\s+\]", r"[\1, \2]", text) + "\n")
    except OSError as error:
        fail(f"{folder} cannot be written to: {error.strerror or error}")
    print(f"{folder}: {', '.join(written)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="[NAME=]FILE", help="generated_predictions.jsonl of LLaMA-Factory")
    parser.add_argument("--data", type=Path, required=True, help="the rows that were predicted, in AdGen format")
    parser.add_argument("--train", type=Path, help="training rows: for nearest, random, copied and trained-on rows")
    parser.add_argument(
        "--decoding", nargs="+", metavar="WORD", help="the predict recipe and its overrides (key=value), to be noted"
    )
    parser.add_argument("--trainer-log", type=Path, help="trainer_log.jsonl of the training run, for train_loss.png")
    parser.add_argument("--out", type=Path, help="folder for eval_results.json, eval.png, examples.md, train_loss.png")
    options = parser.parse_args()

    paths = parse_systems(options.files)
    if options.out and options.out.exists() and not options.out.is_dir():
        fail(f"{options.out} is a file; --out names a folder")
    data = read_data(options.data)
    train = read_data(options.train) if options.train else None
    decoding = read_decoding(options.decoding) if options.decoding else None
    losses = pictures.read_losses(options.trainer_log) if options.trainer_log else None
    predicted = {name: read_predictions(path, data, options.data) for name, path in paths.items()}
    free = {name: Predictions(texts, data.references) for name, texts in model_free_systems(data, train).items()}
    results = {
        "split": describe(options.data, data),
        "train": describe(options.train, train) if train else None,
        "decoding": decoding,
        "rows": {name: len(system.texts) for name, system in predicted.items()},
    }
    results |= score_systems(predicted | free, data, train)
    rows = results["systems"]
    results["health"] = {
        name: check_health(system, data, train, rows[name], rows["reference"]) for name, system in predicted.items()
    }
    results["crowned"] = tables.find_best(results)
    results["versions"] = installed_versions(LIBRARIES)
    if options.out:
        texts = {name: system.texts for name, system in predicted.items()}
        write_results(options.out, results, texts, data, train, losses)
    print(tables.format_results(results))
    if tables.is_adgen_dev(data.contents, data.references):
        print(tables.format_published())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
