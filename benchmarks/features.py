"""Compares the detector of unsupported features with what a reader marked in ads of Gemma 3 270M.

  make bench BENCH=features

results/gemma3_270m/marked_ads.jsonl holds the ads of the fine-tuned model and of the model after DPO for 100 products
of our own: 60 clothes, 20 cosmetics, 20 electronics. Marked is what an ad says of its product and what the attributes
neither state nor imply: another kind of thing, a material, craft, pattern, colour, part or function, or for whom it is.
Not marked are praise (舒适), effects on looks (修饰脸型), and where a stated feature sits or its near names (格纹 for
格子). One fact is one mark, however often the ad repeats it. The reader was a language model, not a person.

A word that the detector finds is right if it overlaps a mark. Its word lists and thresholds were chosen on the ads of
50 products by the fine-tuned model (tuning). The ads after DPO were marked when it was finished. For comparison, the
last line of the first table takes the words that the score hallucination sees.

Needs data/adgen_train.jsonl, from which the detector learns (`make data ARGS="--unk cut"`).
Writes results/gemma3_270m/features.json and .md.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from lib import candidates
from lib.attributes import parse_attributes
from lib.features import learn, unsupported
from lib.files import ROOT, read_json_lines, sha256
from lib.metrics import Values, invented, vocabulary
from lib.predictions import read_data
from lib.tables import markdown
from measuring import write_results

MARKED = ROOT / "results/gemma3_270m/marked_ads.jsonl"
TRAIN = ROOT / "data/adgen_train.jsonl"
CLOTHES = ("上衣", "裙", "裤")
# Product and ad → the words in the ad that the product does not support.
Finder = Callable[[str, str], Iterable[str]]


def spans(text: str, ad: str) -> list[tuple[int, int]]:
    """Where a text stands in an ad: (start, end) of each place."""
    return [match.span() for match in re.finditer(re.escape(text), ad)]


def compare(row: dict, find: Finder) -> tuple[Counter, list[dict]]:
    """Counts of one marked ad, and the marks that no word found overlaps."""
    marks = [spans(mark["text"], row["ad"]) for mark in row["marks"]]
    words = [spans(word, row["ad"]) for word in find(row["product"], row["ad"])]

    def touch(one: list, others: list[list]) -> bool:
        return any(start < last and first < end for start, end in one for other in others for first, last in other)

    missed = [mark for mark, place in zip(row["marks"], marks, strict=True) if not touch(place, words)]
    wrong = sum(not touch(word, marks) for word in words)
    return Counter(words=len(words), wrong=wrong, marks=len(marks), missed=len(missed)), missed


def agreement(rows: list[dict], find: Finder) -> dict:
    """Precision, recall and F1 of the detector on marked ads, with what they are computed from."""
    count = sum((compare(row, find)[0] for row in rows), Counter())
    precision = 1 - count["wrong"] / max(1, count["words"])
    recall = 1 - count["missed"] / max(1, count["marks"])
    scores = {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(1e-9, precision + recall)}
    return {"ads": len(rows), "marks": count["marks"], "words": count["words"]} | {
        name: round(value, 3) for name, value in scores.items()
    }


def by_kind(rows: list[dict], find: Finder) -> dict[str, dict]:
    """Kind of mark → how many there are, and which share of them the detector finds."""
    marks = Counter(mark["kind"] for row in rows for mark in row["marks"])
    missed = Counter(mark["kind"] for row in rows for mark in compare(row, find)[1])
    return {kind: {"marks": n, "recall": round(1 - missed[kind] / n, 3)} for kind, n in marks.most_common()}


def score_models(rows: list[dict], find: Finder, values: Values) -> dict[str, dict]:
    """Model → coverage, hallucination, and the features in an ad that the detector finds and that the reader marked."""
    of_model = {model: [row for row in rows if row["model"] == model] for model in ("fine-tuned", "dpo")}
    products = [row["product"] for row in of_model["dpo"]]
    found = candidates.compare(products, {model: [row["ad"] for row in of_model[model]] for model in of_model}, values)
    return {
        model: {score: entry["value"] for score, entry in found[model].items()}
        | {
            "unsupported": round(agreement(own, find)["words"] / len(own), 3),
            "marked": round(agreement(own, find)["marks"] / len(own), 3),
        }
        for model, own in of_model.items()
    }


def compute_results() -> dict:
    """Everything that features.json holds."""
    rows, train = read_json_lines(MARKED), read_data(TRAIN)
    find = partial(unsupported, lexicon=learn(*train))
    values = vocabulary([*train.contents, *(row["product"] for row in rows)])

    def by_values(product: str, ad: str) -> set[str]:
        return invented(product, ad, values)[1]

    clothes = [row for row in rows if dict(parse_attributes(row["product"]))["类型"] in CLOTHES]
    others = [row for row in rows if row not in clothes]
    parts = {
        "tuning": [row for row in rows if row["use"] == "tuning"],
        "held-out, fine-tuned": [row for row in rows if row["use"] != "tuning" and row["model"] != "dpo"],
        "held-out, after DPO": [row for row in rows if row["model"] == "dpo"],
    }
    parts["held-out, all"] = parts["held-out, fine-tuned"] + parts["held-out, after DPO"]
    parts["held-out, clothes"] = [row for row in parts["held-out, all"] if row in clothes]
    parts["held-out, other products"] = [row for row in parts["held-out, all"] if row in others]
    return {
        "marked": {"file": MARKED.name, "sha256": sha256(MARKED)},
        "train": {"file": TRAIN.name, "rows": len(train.contents), "sha256": sha256(TRAIN)},
        "agreement": {name: agreement(part, find) for name, part in parts.items()}
        | {"held-out, all, by attribute values": agreement(parts["held-out, all"], by_values)},
        "by_kind": by_kind(parts["held-out, all"], find),
        "models": {
            "clothes": score_models(clothes, find, values),
            "cosmetics and electronics": score_models(others, find, values),
        },
    }


def format_results(results: dict) -> str:
    """The content of features.json as Markdown."""
    lines = [["ads", "number", "marks", "words found", "precision", "recall", "F1"]]
    for name, row in results["agreement"].items():
        scores = [f"{row[score]:.3f}" for score in ("precision", "recall", "f1")]
        lines.append([name, *(str(row[count]) for count in ("ads", "marks", "words")), *scores])
    kinds = [["kind of mark, held-out ads", "marks", "found"]]
    kinds += [[kind, str(row["marks"]), f"{row['recall']:.3f}"] for kind, row in results["by_kind"].items()]
    models = [
        ["products", "model", "coverage", "hallucination", "unsupported, in an ad", "marked by the reader, in an ad"]
    ]
    for products, row in results["models"].items():
        models += [[products, model, *(f"{value:.3f}" for value in scores.values())] for model, scores in row.items()]
    return (
        "# Unsupported features: the detector and a reader\n\n"
        f"Marks: {results['marked']['file']}. The detector learnt from {results['train']['rows']:,} rows of "
        f"{results['train']['file']} (sha256 `{results['train']['sha256'][:12]}`). `make bench BENCH=features` writes "
        f"this page, and `benchmarks/features.py` says what was marked.\n\n{markdown(lines)}\n{markdown(kinds)}\n"
        "A model that was taught clothes alone, on clothes and on products that it never saw:\n\n"
        f"{markdown(models, (0, 1))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    results = compute_results()
    write_results(MARKED.with_name("features.json"), results, format_results(results))
    print(format_results(results))


if __name__ == "__main__":
    main()
