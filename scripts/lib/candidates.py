"""Judges the ads that were written for one product: what each of them names, misses and invents, and which is best."""

from collections import Counter, defaultdict
from typing import NamedTuple

from lib import metrics
from lib.attributes import parse_attributes
from lib.features import Lexicon, unsupported
from lib.files import ROOT, read_json_lines
from lib.form import FLAWS, LOOP, flaws, repetition
from lib.intervals import draw_rows, entry, ratio
from lib.law import Hit, find_hits

# The usual length of an ad in characters. All ads of the sample have it, and all but a few of AdGen.
SHORTEST, LONGEST = 30, 200
# How much one unsupported feature weighs beside the share of values missed: as much as one of ten values.
UNSUPPORTED = 0.1


class Rank(NamedTuple):
    """What ranks a candidate, the weightiest first; less is better."""

    # Whether it is no ad, see `lib.form`.
    flawed: bool
    # Whether it has words that the law forbids, see `lib.law`.
    forbidden: bool
    missing: int
    # The share of the known values in the ad that the product does not have.
    invented: float
    # The number of words that the law wants proved.
    unproved: int
    unusual_length: bool


class Candidate(NamedTuple):
    """An ad, the attribute values that it misses and invents, its risky words, and its rank; the lowest is the best."""

    ad: str
    missing: list[str]
    invented: list[str]
    hits: list[Hit]
    rank: Rank
    # A name of `form.FLAWS`; empty if it is an ad.
    flaw: str = ""


def judge(product: str, ad: str, values: metrics.Values) -> Candidate:
    """Compares an ad with its product's attribute string; `values` is a `metrics.vocabulary`."""
    missing = list(dict.fromkeys(value for (_, value), hit in metrics.covered(product, ad).items() if not hit))
    found, invented = metrics.invented(product, ad, values)
    flaw = next(iter(flaws(product, ad)), "")
    hits = find_hits(product, ad)
    levels = [hit.level for hit in hits]
    rank = Rank(
        flawed=bool(flaw),
        forbidden="ban" in levels,
        missing=len(missing),
        invented=len(invented) / max(1, len(found)),
        unproved=levels.count("caution"),
        unusual_length=not SHORTEST <= len(ad) <= LONGEST,
    )
    return Candidate(ad, missing, sorted(invented), hits, rank, flaw)


def rank_ads(product: str, texts: list[str], values: metrics.Values) -> tuple[list[Candidate], str]:
    """The ads among these texts, the best first; if there is none, the second part says why."""
    judged = [judge(product, text, values) for text in texts]
    ads = sorted((candidate for candidate in judged if not candidate.flaw), key=lambda candidate: candidate.rank)
    counts = Counter(FLAWS[candidate.flaw] for candidate in judged if candidate.flaw)
    kinds = ", ".join(f"{words} ({count})" for words, count in counts.most_common())
    return ads, "" if ads or not texts else f"no answer is an ad: {kinds}"


def known_products() -> list[str]:
    """The attribute strings that the model may have seen: those of the sample and, once prepared, of AdGen."""
    paths = [ROOT / "data" / name for name in ("sample/train.jsonl", "adgen_train.jsonl")]
    rows = [row for path in paths if path.exists() for row in read_json_lines(path)]
    return [row.get("instruction") or row.get("content") or "" for row in rows]


def compare(products: list[str], systems: dict[str, list[str]], values: metrics.Values) -> dict[str, dict]:
    """Compares systems (name → one ad for each product) in coverage and hallucination.

    Gives name → score → {"value": number, "ci95": [low, high]}; the name "difference" is the last system minus the
    first, on the same resamples.
    """
    draws, found = draw_rows(len(products)), {}
    for name, ads in systems.items():
        columns = metrics.attribute_ratios(products, ads, values)
        for score in ("coverage", "hallucination"):
            column = columns[score, ""]
            found[name, score] = ratio(column.sum(0)), ratio(draws @ column)
    first, *_, last = systems
    for score in ("coverage", "hallucination"):
        found["difference", score] = tuple(b - a for a, b in zip(found[first, score], found[last, score], strict=True))
    results = defaultdict(dict)
    for (name, score), (value, samples) in found.items():
        results[name][score] = entry(score, value, samples)
    return dict(results)


def mark_terminal(product: str, candidate: Candidate) -> str:
    """The ad, and below it the attribute values that it kept ✓, missed ✗ and invented ⚠, as plain text."""
    marks = {value: "✗" if value in candidate.missing else "✓" for _, value in parse_attributes(product)}
    marks |= dict.fromkeys(candidate.invented, "⚠")
    return "\n".join([candidate.ad, "  ".join(f"{mark} {value}" for value, mark in marks.items())])


def badness(product: str, ad: str, values: metrics.Values, half: bool = False, lexicon: Lexicon | None = None) -> float:
    """How bad an ad is: the share of its product's values missed, the share of values invented, and 1 for bad form.

    With a lexicon, a tenth is added for each feature that the product does not imply (see `features`). Bad form is no
    ad at all (see `form.flaws`), an unusual length, or half the repetition that makes a loop. `half`: only the values
    and features of one half count, which `metrics.in_first_half` chooses.
    """
    kept = [hit for (_, value), hit in metrics.covered(product, ad).items() if not half or metrics.in_first_half(value)]
    found, invented = metrics.invented(product, ad, values)
    if half:
        found, invented = ([value for value in part if metrics.in_first_half(value)] for part in (found, invented))
    bad_form = bool(flaws(product, ad)) or not 40 <= len(ad) <= LONGEST or repetition(ad) > LOOP / 2
    claims = unsupported(product, ad, lexicon) if lexicon else []
    features = UNSUPPORTED * sum(not half or metrics.in_first_half(word) for word in claims)
    return kept.count(False) / max(1, len(kept)) + len(invented) / max(1, len(found)) + bad_form + features


def likeness(ad: str, reference: str) -> float:
    """How alike two ads are, 0 to 1: F1 of their sets of character bigrams (Dice 1945)."""
    one, other = ({text[start : start + 2] for start in range(len(text) - 1)} for text in (ad, reference))
    return 2 * len(one & other) / max(1, len(one) + len(other))
