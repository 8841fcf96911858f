"""Signs that a model's ads are ill, and which of the healthy models is best."""

from collections import Counter

from lib import metrics
from lib.attributes import product
from lib.form import flaws
from lib.predictions import Predictions, Rows, plain

# Sign of ill health → the share of the ads above which it counts, and what the report then says. The first eight are
# what makes a text no ad.
SIGNS = {
    "empty": (0.01, "are empty"),
    "reasoning": (0.01, "hold reasoning, or talk about the task instead of doing it"),
    "echo": (0.01, "repeat the attributes of their product"),
    "special": (0.01, "carry special tokens or <UNK>"),
    "markup": (0.01, "hold Markdown, JSON or HTML"),
    "broken": (0.05, "hold broken characters"),
    "loop": (0.1, "repeat themselves: over 30% of their 4-grams had occurred before, or a phrase four times in a row"),
    "unfinished": (0.05, "end without closing punctuation: they ran on past their end or hit the token limit"),
    "endless": (0.05, "are far longer than any reference: they run on past their end"),
    "alike": (0.2, "are the same as the ad of another product"),
}
# Above this share of copies of training ads, a system is ill; below this share of the references' distinct-4, too.
MOST_COPIED = 0.2
LEAST_DISTINCT = 0.25


def check_health(predicted: Predictions, data: Rows, train: Rows | None, row: dict, reference: dict) -> list[str]:
    """What is wrong with a system's ads, a sentence each; the report names no system best that has any.

    `row` and `reference` are the scores of the system and of the references, as in eval_results.json.
    """
    counts, rows = count_signs(predicted.texts, data), len(predicted.texts)
    found = [
        f"{counts[sign] / rows:.0%} of the outputs {words}"
        for sign, (limit, words) in SIGNS.items()
        if counts[sign] / rows > limit
    ]
    copied = row.get("copied", {"value": 0})["value"]
    if copied > MOST_COPIED:
        found.append(f"{copied:.0%} of the outputs are copied from training ads")
    own, usual = row["distinct-4"]["value"], reference["distinct-4"]["value"]
    if own < LEAST_DISTINCT * usual:
        shares = f"distinct-4 {own:.3f}, references {usual:.3f}"
        found.append(f"the outputs repeat each other's phrases as a template does ({shares})")
    return found + check_rows(predicted, data, train)


def count_signs(texts: list[str], data: Rows) -> Counter[str]:
    """Sign → how many of the ads show it."""
    longest = 1.5 * max(map(len, data.references))
    first = {}
    for content, text in zip(data.contents, texts, strict=False):
        first.setdefault(product(content), text)
    repeats = Counter(text for text in first.values() if text.strip())
    counts = Counter(flaw for pair in zip(data.contents, texts, strict=False) for flaw in flaws(*pair))
    counts["endless"] = sum(len(text) > longest for text in texts)
    # A share of the products: two rows of one product may rightly have the same ad.
    counts["alike"] = sum(count for count in repeats.values() if count > 1) * len(texts) / len(first)
    return counts


def check_rows(predicted: Predictions, data: Rows, train: Rows | None) -> list[str]:
    """What is wrong with the rows that were scored, a sentence each."""
    texts, labels, unchecked = predicted
    rows, found = len(texts), []
    if unchecked:
        found.append(f"{unchecked} rows hold neither label nor prompt: nothing shows that they are in the data's order")
    if rows < len(data.contents):
        found.append(f"only {rows} of {len(data.contents)} rows were scored")
    pairs = zip(labels, data.references, strict=False)
    cut = sum(is_cut(plain(label), plain(reference)) for label, reference in pairs)
    if cut:
        found.append(f"{cut} references were cut in the prediction run: raise cutoff_len")
    known = set(map(identity, *train)) if train else set()
    trained_on = sum(row in known for row in map(identity, data.contents[:rows], data.references))
    if trained_on:
        found.append(f"{trained_on} of the {rows} rows scored were trained on")
    return found


def is_cut(label: str, reference: str) -> bool:
    """Whether a plain label lacks the end of its reference. A tokenizer may have lost characters elsewhere."""
    return len(label) < (0.8 if label[-1:] == reference[-1:] else 0.95) * len(reference)


def identity(content: str, ad: str) -> tuple[str, str]:
    """What makes two rows the same: the product, and the ad."""
    return product(content), plain(ad)


def healthy_models(results: dict) -> list[str]:
    """The models in an eval_results.json whose ads show no sign of ill health; baselines are no models."""
    return [name for name, warnings in results["health"].items() if not warnings]


def is_better(score: str, one: dict, other: dict) -> bool:
    """Whether one system has the better score. If one of them lacks the score, it has not."""
    if score not in one or score not in other:
        return False
    gap = one[score]["value"] - other[score]["value"]
    return gap > 0 if metrics.SCORES[score].more_is_better else gap < 0


def find_best(results: dict) -> str | None:
    """The healthy model that beats the other healthy ones most often in the six main scores, if there is one.

    Of models that win equally often, it is the one with the larger coverage minus hallucination.
    """
    models, rows = healthy_models(results), results["systems"]

    def wins(name: str) -> tuple[int, float]:
        won = sum(is_better(score, rows[name], rows[other]) for score in metrics.MAIN for other in models)
        return won, rows[name]["coverage"]["value"] - rows[name]["hallucination"]["value"]

    return max(models, key=wins, default=None)
