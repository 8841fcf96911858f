"""Finds the words in an ad that China's Advertising Law or a shop's own list forbids or wants proved.

data/ad_law.json holds the rules. A hit is a reason to look at the ad. An ad without a hit may still break the law. This
is no legal advice.
"""

import json
import os
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lib.attributes import parse_attributes
from lib.files import ROOT, fail
from lib.sheets import decode

LEVELS = ("ban", "caution")
NO_ADVICE = "The marks of forbidden words are prompts to look at an ad. They are no legal advice."
NUMBER = r"(?:\d+(?:\.\d+)?|[一二三四五六七八九十百千万两半几]+)"
# Spaces, and characters that nobody sees: control, zero-width, variation selectors.
UNSEEN = {"Cc", "Cf", "Mn", "Zs", "Zl", "Zp"}


class Rule(NamedTuple):
    """A rule of data/ad_law.json with its regular expressions compiled; the file's `format` explains the fields."""

    name: str
    level: str
    kinds: frozenset[str]
    ban_for: frozenset[str]
    basis: str
    words: list[re.Pattern]
    excepted: re.Pattern
    lowered: re.Pattern
    ranks: bool
    own: bool


class Hit(NamedTuple):
    """Words of an ad that a rule marks: the rule's name, "ban" or "caution", its legal basis, and where they stand."""

    rule: str
    level: str
    basis: str
    words: str
    start: int
    end: int


@cache
def plain(character: str) -> str:
    """A character as the rules compare it: half-width, small; nothing if it is not seen."""
    folded = unicodedata.normalize("NFKC", character).lower()
    return "".join(char for char in folded if unicodedata.category(char) not in UNSEEN)


def compile_any(patterns: list[str]) -> re.Pattern:
    """One regular expression for several. It has a hit at every place, so that hits may overlap."""
    return re.compile(f"(?=({'|'.join(patterns)}))" if patterns else "(?!)")


def compile_rule(entry: dict) -> Rule:
    """A rule of data/ad_law.json, or of a shop's own list."""
    words = "|".join(map(re.escape, sorted(entry.get("words", []), key=len, reverse=True)))
    # Python searches for plain words, and for each pattern alone, three times as fast as for all of them at once.
    patterns = [words] * bool(words) + [part.replace("N", NUMBER) for part in entry.get("patterns", [])]
    return Rule(
        entry["id"],
        entry["level"],
        frozenset(entry.get("kinds", [])),
        frozenset(entry.get("ban_for", [])),
        entry["basis"],
        [re.compile(pattern) for pattern in patterns],
        compile_any([part.replace("N", NUMBER) for part in entry.get("except", [])]),
        compile_any(entry.get("caution", [])),
        entry.get("ranks", False),
        entry.get("own", False),
    )


@cache
def read_law() -> dict:
    """data/ad_law.json, with its regular expressions compiled."""
    law = json.loads((ROOT / "data/ad_law.json").read_text(encoding="utf-8"))
    return {
        "rules": [compile_rule(entry) for entry in law["rules"]],
        "kinds": {
            kind: re.compile(f"(?:{'|'.join(ends)}){law['packed']}$", re.IGNORECASE)
            for kind, ends in law["kinds"].items()
        },
        "kind_keys": re.compile(law["kind_keys"]),
        "proof": [re.compile(part) for part in law["proof"]],
    }


@cache
def read_words(name: str) -> list[Rule]:
    """The rules of a shop's own list, a text file with a word on each line; ends the program if it is none.

    `word` and `word,ban` forbid the word, `word,caution` marks it only. Lines that begin with # are notes.
    """
    path, words = Path(name), {level: [] for level in LEVELS}
    try:
        lines = decode(path).splitlines()
    except OSError as error:
        fail(f"WORDS: {path} cannot be read: {error.strerror}")
    for number, line in enumerate(lines, 1):
        word, _, level = "".join(map(plain, line)).partition(",")
        if line.strip() and not word.startswith("#"):
            if not word or (level or "ban") not in LEVELS:
                fail(f"WORDS: {path}, line {number}: a line is a word, or a word, a comma and ban or caution")
            words[level or "ban"].append(word)
    if not any(words.values()):
        fail(f"WORDS: {path} holds no word; put one on each line")
    return [
        compile_rule({"id": "SHOP", "level": level, "basis": path.name, "words": found})
        for level, found in words.items()
    ]


def read_rules() -> list[Rule]:
    """The rules of the law, and those of the file that WORDS in the environment names."""
    own = os.environ.get("WORDS")
    return read_law()["rules"] + (read_words(own) if own else [])


@cache
def kinds_of(product: str) -> frozenset[str]:
    """The kinds of a product, given as its attribute string; all but medical goods are `nonmedical`, too."""
    law = read_law()
    types = [value for key, value in parse_attributes(product) if law["kind_keys"].search(key)]
    kinds = {kind for kind, ends in law["kinds"].items() if any(map(ends.search, types))}
    return frozenset(kinds if "medical" in kinds else kinds | {"nonmedical"})


def find_hits(product: str, ad: str) -> list[Hit]:
    """The words of an ad that a rule forbids or wants proved, in their order; `product`: an attribute string."""
    pieces = [plain(character) for character in ad]
    text = "".join(pieces)
    # The place in the ad of each character of the text.
    places = [place for place, piece in enumerate(pieces) for _ in piece]
    kinds, hits = kinds_of(product), []
    for rule in read_rules():
        if rule.kinds and not rule.kinds & kinds:
            continue
        spans, end = {match.span() for pattern in rule.words for match in pattern.finditer(text)}, 0
        for span in sorted(spans, key=lambda span: (span[0], -span[1])):
            if span[0] >= end and not is_excepted(rule, product, text, span):
                end = span[1]
                level, start, stop = level_of(rule, kinds, text, span), places[span[0]], places[end - 1] + 1
                hits.append(Hit(rule.name, level, rule.basis, ad[start:stop], start, stop))
    return sorted(hits, key=lambda hit: (hit.start, hit.level, -hit.end))


def covers(pattern: re.Pattern, text: str, span: tuple[int, int]) -> bool:
    """Whether the pattern has a hit that holds the whole span."""
    return any(match.start(1) <= span[0] and span[1] <= match.end(1) for match in pattern.finditer(text))


def is_excepted(rule: Rule, product: str, text: str, span: tuple[int, int]) -> bool:
    """Whether the words at `span` are harmless: within an exception, or one of the product's own values."""
    own = rule.own and text[span[0] : span[1]] in "".join(map(plain, product))
    return own or covers(rule.excepted, text, span)


def level_of(rule: Rule, kinds: frozenset[str], text: str, span: tuple[int, int]) -> str:
    """The level of a rule for the words at `span`: what is proved or marked so becomes a caution."""
    if rule.ban_for & kinds:
        return "ban"
    start = max(text.rfind(mark, 0, span[0]) for mark in "。!?;") + 1
    sentence = re.split("[。!?;]", text[start:], maxsplit=1)[0]
    proved = rule.ranks and all(part.search(sentence) for part in read_law()["proof"])
    return "caution" if proved or covers(rule.lowered, text, span) else rule.level


def has_ban(product: str, ad: str) -> bool:
    """Whether an ad holds forbidden words."""
    return any(hit.level == "ban" for hit in find_hits(product, ad))


def describe(hits: list[Hit]) -> tuple[str, str]:
    """Hits in words: `ban: 顶级; caution: 限时、原价`, and the legal basis of each."""
    return group("level", hits), group("basis", hits)


def group(part: str, hits: list[Hit]) -> str:
    """The words of hits after what they share, such as their level."""
    found = {}
    for hit in hits:
        found.setdefault(getattr(hit, part), {})[hit.words] = None
    return "; ".join(f"{name}: {'、'.join(words)}" for name, words in sorted(found.items()))
