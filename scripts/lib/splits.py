"""Judges raw rows: which are used, tidied or left out, and which of them make up train, val and dev."""

import argparse
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from lib.attributes import parse_attributes, product, tidy
from lib.law import find_hits, has_ban
from lib.raw_rows import Row

STATUSES = ("kept", "repaired", "dropped", "rejected")

# Reasons, as they stand in the card and in adgen_rejected.jsonl.
CHANGED = "attribute string tidied"
CUT = "clause with <UNK> cut"
UNK = "<UNK> in the ad"
CUT_FORBIDDEN = "clause with forbidden words cut"
FORBIDDEN = "forbidden words in the ad"
DUPLICATE = "duplicate pair"
LEAK = "product is in dev"
PLAIN = "no attributes"


class Result(NamedTuple):
    """What became of a raw row: one of STATUSES, the reason for it, and the texts to write if the row is used."""

    row: Row
    status: str
    reason: str = ""
    instruction: str = ""
    output: str = ""

    @property
    def used(self) -> bool:
        """Whether the row is written to train, val or dev."""
        return self.status in ("kept", "repaired")


def cut_clauses(ad: str, spans: list[tuple[int, int]]) -> str:
    """The ad without the clauses that the spans touch; where a sentence loses its end, punctuation closes it."""
    kept = ""
    for match in re.finditer(r"([^，,；;。！？!?]*)([，,；;。！？!?]*)", ad):
        mark = match[2]
        if not any(start < match.end(1) and match.start() < end for start, end in spans):
            kept += match[0]
        elif kept and kept[-1] in "，,；;" and not (mark and mark[-1] in "，,；;"):
            kept = kept[:-1] + (mark or "。")
    return kept


def repair(instruction: str, ad: str, policy: argparse.Namespace) -> tuple[str, list[str]]:
    """The ad without the clauses that the policy cuts, and what they held."""
    repairs = []
    if policy.unk == "cut" and "<UNK>" in ad:
        ad = cut_clauses(ad, [match.span() for match in re.finditer("<UNK>", ad)])
        repairs.append(CUT)
    if policy.risky == "cut" and has_ban(instruction, ad):
        ad = cut_clauses(ad, [(hit.start, hit.end) for hit in find_hits(instruction, ad) if hit.level == "ban"])
        repairs.append(CUT_FORBIDDEN)
    return ad, repairs


def judge_dev(rows: Iterable[Row]) -> list[Result]:
    """The results of the dev rows: every readable row is used, and its ad stays as it is.

    Published scores are on all of these rows, placeholders included.
    """
    results = []
    for row in rows:
        instruction = tidy(row.content)
        if row.problem:
            results.append(Result(row, "rejected", row.problem))
        elif instruction == row.content:
            results.append(Result(row, "kept", "", instruction, row.summary))
        else:
            results.append(Result(row, "repaired", CHANGED, instruction, row.summary))
    return results


def judge_train(rows: Iterable[Row], dev_products: set[str], policy: argparse.Namespace) -> list[Result]:
    """The results of the training rows under the policy; a row of a dev product is dropped under every policy."""
    results: list[Result] = []
    seen: set[tuple[str, str]] = set()
    for row in rows:
        instruction = tidy(row.content)
        output, repairs = repair(instruction, row.summary.strip(), policy)
        if instruction != row.content:
            repairs.insert(0, CHANGED)
        pair = (product(instruction), output)
        if row.problem:
            results.append(Result(row, "rejected", row.problem))
        elif reason := DUPLICATE if pair in seen else reason_to_drop(instruction, output, dev_products, policy):
            results.append(Result(row, "dropped", reason))
        else:
            seen.add(pair)
            results.append(Result(row, "repaired" if repairs else "kept", "; ".join(repairs), instruction, output))
    return results


def reason_to_drop(instruction: str, output: str, dev_products: set[str], policy: argparse.Namespace) -> str:
    """Why a training row must not be used, whatever other rows there are; nothing if it may."""
    if not parse_attributes(instruction):
        return PLAIN
    if product(instruction) in dev_products:
        return LEAK
    # Nothing is left of an ad if all of its clauses were cut.
    if not output:
        return UNK if policy.unk == "cut" else FORBIDDEN
    if policy.unk == "drop" and "<UNK>" in output:
        return UNK
    if policy.risky != "keep" and has_ban(instruction, output):
        return FORBIDDEN
    return ""


def carve_val(results: list[Result]) -> tuple[list[Result], list[Result]]:
    """Splits the usable training rows into train and val.

    Val takes whole products, in the order of their hashes, until it has 1,000 rows or a twentieth of all, whichever is
    less. Hashes decide, so that most products stay on their side when rows are added or removed.
    """
    usable = [result for result in results if result.used]
    counts: Counter[str] = Counter(product(result.instruction) for result in usable)
    wanted = min(1000, len(usable) // 20)
    chosen: set[str] = set()
    rows = 0
    for name in sorted(counts, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if rows >= wanted:
            break
        chosen.add(name)
        rows += counts[name]
    sides = defaultdict(list)
    for result in usable:
        sides[product(result.instruction) in chosen].append(result)
    return sides[False], sides[True]
