"""The scores of whole systems, each with its 95% interval.

A score of a system is the ratio of two sums over its rows, so one bootstrap over the rows serves almost all scores.
"""

import multiprocessing
import os
import signal
from collections import Counter

import numpy as np
from lib import features, metrics
from lib.attributes import parse_attributes
from lib.form import repetition
from lib.intervals import draw_rows, entry, ratio
from lib.law import find_hits
from lib.metrics import Key
from lib.predictions import Predictions, Rows
from tqdm import tqdm

# Each process spends two seconds on importing nltk and on loading jieba's dictionary. On two idle cores, two processes
# are faster from about 1,000 pairs on; on busy cores, from more. The demo has 720 pairs, AdGen's dev rows have 9,400.
FEWEST_FOR_PROCESSES = 2000
MOST_PROCESSES = 8

Overlaps = dict[tuple[str, str], tuple[float, float, float, float]]


def score_systems(
    systems: dict[str, Predictions], data: Rows, train: Rows | None, marks: dict[str, np.ndarray] | None = None
) -> dict:
    """Scores systems, name → predictions for the first rows of the data or for all of them.

    marks: system → what `lib.judge` says of its ads, for some of the systems.
    Gives these parts of eval_results.json: systems, "tuned - base" and by_key. Each score is {"value": number, "ci95":
    [low, high]}.
    """
    pairs = {pair for texts, labels, _ in systems.values() for pair in zip(texts, labels, strict=True)}
    # Sorted, because the order of a set changes from run to run and long ads take longest.
    overlaps = score_overlaps(sorted(pairs))
    values = metrics.vocabulary(data.contents + (train.contents if train else []))
    lexicon = features.learn(*train) if train else None
    found, samples = {}, {}
    for name, (texts, labels, _) in systems.items():
        own = [overlaps[pair] for pair in zip(texts, labels, strict=True)]
        copies = metrics.find_copies(texts, train.references) if train else None
        contents = data.contents[: len(texts)]
        judged = (marks or {}).get(name)
        found[name], samples[name] = score_system(contents, texts, labels, own, values, copies, lexicon, judged)
    keys = Counter(key for content in data.contents for key in {key for key, _ in parse_attributes(content)})
    return {
        "systems": {name: entries(found[name], samples[name]) for name in systems},
        "tuned - base": difference(found, samples, systems),
        "by_key": {
            "rows": dict(keys.most_common()),
            "systems": {
                name: {key: entries(found[name], samples[name], key) for key, _ in keys.most_common()}
                for name in systems
            },
        },
    }


def score_overlaps(pairs: list[tuple[str, str]]) -> Overlaps:
    """(ad, reference) → BLEU-4 and ROUGE-1/2/L, with a progress bar; many pairs are shared out over processes."""
    bar = {"total": len(pairs), "desc": "Scoring", "unit": "ad", "mininterval": 0.5}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(pairs) < FEWEST_FOR_PROCESSES:
        return {pair: metrics.overlap_scores(pair) for pair in tqdm(pairs, **bar)}
    with multiprocessing.get_context("spawn").Pool(min(cores, MOST_PROCESSES), start_process) as pool:
        return dict(zip(pairs, tqdm(pool.imap(metrics.overlap_scores, pairs, chunksize=16), **bar), strict=True))


def start_process() -> None:
    """Leaves Ctrl-C to the parent, which ends the pool. Otherwise each process would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def score_system(contents, texts, references, *rest) -> tuple[dict[Key, float], dict[Key, np.ndarray]]:
    """Scores one system; gives key → value, and key → samples for `ci95`. The arguments are those of `row_ratios`."""
    columns = row_ratios(contents, texts, references, *rest)
    draws = draw_rows(len(texts))
    resampled = (draws @ np.concatenate(list(columns.values()), axis=1)).reshape(len(draws), -1, 2)
    samples = {key: ratio(resampled[:, place]) for place, key in enumerate(columns)}
    found = {key: float(ratio(column.sum(0))) for key, column in columns.items()}
    key = ("corpus-bleu", "")
    found[key], samples[key] = metrics.corpus_bleu(texts, references, draws)
    key = ("distinct-4", "")
    found[key], samples[key] = metrics.distinct(texts)
    return found, samples


def row_ratios(
    contents, texts, references, overlaps, values, copies=None, lexicon=None, marks=None
) -> dict[Key, np.ndarray]:
    """Key → array (rows, 2); the score is the sum of the first column over that of the second.

    All lists have one entry for each row. `overlaps` holds the four overlap scores against the row's reference,
    `copies` whether the text is a copy of a training ad; `values` is a `metrics.vocabulary`, `lexicon` what `features`
    learnt from the training rows. Length is the number of characters over that of the reference; unsupported is the
    number of features in a text that its product does not imply. An ad has forbidden words, or only words to be proved:
    see `lib.law`. `marks` are those of `lib.judge`.
    """
    ones = np.ones(len(texts))
    columns = zip(metrics.OVERLAP, np.transpose(overlaps), strict=True)
    ratios = {(name, ""): np.stack([column, ones], 1) for name, column in columns}
    ratios |= metrics.attribute_ratios(contents, texts, values)
    ratios["repetition-4", ""] = np.stack([[repetition(text) for text in texts], ones], 1)
    lengths = [(len(text), len(reference)) for text, reference in zip(texts, references, strict=True)]
    ratios["length", ""] = np.array(lengths, float)
    if copies is not None:
        ratios["copied", ""] = np.stack([copies, ones], 1)
    if lexicon:
        rows = zip(contents, texts, strict=True)
        ratios["unsupported", ""] = np.stack([[len(features.unsupported(*row, lexicon)) for row in rows], ones], 1)
    levels = [{hit.level for hit in find_hits(*pair)} for pair in zip(contents, texts, strict=True)]
    ratios["forbidden", ""] = np.stack([["ban" in found for found in levels], ones], 1)
    ratios["unproved", ""] = np.stack([[found == {"caution"} for found in levels], ones], 1)
    if marks is not None:
        ratios["judge", ""] = marks
    return ratios


def entries(values: dict[Key, float], samples: dict[Key, np.ndarray], part: str = "") -> dict[str, dict]:
    """Score → its value and interval as in eval_results.json, for one part of the keys."""
    return {
        score: entry(score, values[score, part], samples[score, part])
        for score in metrics.SCORES
        if (score, part) in values
    }


def difference(found: dict, samples: dict, systems: dict[str, Predictions]) -> dict[str, dict]:
    """Score → the gain of `tuned` over `base`; empty unless both are there with as many rows.

    The intervals are paired: each resample holds the same rows of both systems.
    """
    if not {"base", "tuned"} <= systems.keys() or len(systems["base"].texts) != len(systems["tuned"].texts):
        return {}
    gaps = {key: value - found["base"][key] for key, value in found["tuned"].items() if key in found["base"]}
    return entries(gaps, {key: samples["tuned"][key] - samples["base"][key] for key in gaps})
