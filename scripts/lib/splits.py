"""Judges raw rows: which are used, tidied or left out, and which of them make up train, val and dev."""

import argparse
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from lib.attributes import parse_attributes, product, tidy
from lib.raw_rows import Row

STATUSES = ("kept", "repaired", "dropped", "rejected")

# Reasons, as they stand in the card and in adgen_rejected.jsonl.
CHANGED = "attribute string tidied"
CUT = "clause with <UNK> cut"
UNK = "<UNK> in the ad"
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


def cut_unk(ad: str) -> str:
    """The ad without the clauses that hold `<UNK>`; where the end of a sentence is cut off, punctuation closes it."""
    kept = ""
    for clause, mark in re.findall(r"([^，,；;。！？!?]*)([，,；;。！？!?]*)", ad):
        if "<UNK>" not in clause:
            kept += clause + mark
        elif kept and kept[-1] in "，,；;" and not (mark and mark[-1] in "，,；;"):
            kept = kept[:-1] + (mark or "。")
    return kept


def judge_dev(rows: Iterable[Row]) -> list[Result]:
    """The results of the dev rows: every readable row is used, and its ad stays as it is.

    Published scores are on all of these rows, placeholders included.
    """
    results = []
    for row in rows:
        if row.problem:
            results.append(Result(row, "rejected", row.problem))
            continue
        instruction = tidy(row.content)
        status, reason = ("kept", "") if instruction == row.content else ("repaired", CHANGED)
        results.append(Result(row, status, reason, instruction, row.summary))
    return results


def judge_train(rows: Iterable[Row], dev_products: set[str], policy: argparse.Namespace) -> list[Result]:
    """The results of the training rows under the policy; a row of a dev product is dropped under every policy."""
    results: list[Result] = []
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if row.problem:
            results.append(Result(row, "rejected", row.problem))
            continue
        instruction, output = tidy(row.content), row.summary.strip()
        repairs = [CHANGED] if instruction != row.content else []
        if "<UNK>" in output and policy.unk == "cut":
            output = cut_unk(output)
            repairs.append(CUT)
        reason = reason_to_drop(instruction, output, dev_products, policy)
        pair = (product(instruction), output)
        if not reason and policy.duplicates == "drop" and pair in seen:
            reason = DUPLICATE
        if reason:
            results.append(Result(row, "dropped", reason))
            continue
        seen.add(pair)
        results.append(Result(row, "repaired" if repairs else "kept", "; ".join(repairs), instruction, output))
    return results


def reason_to_drop(instruction: str, output: str, dev_products: set[str], policy: argparse.Namespace) -> str:
    """Why a training row must not be used, whatever other rows there are; nothing if it may."""
    if policy.plain == "drop" and not parse_attributes(instruction):
        return PLAIN
    if product(instruction) in dev_products:
        return LEAK
    # Nothing is left of an ad if all of its clauses were cut.
    if not output or (policy.unk == "drop" and "<UNK>" in output):
        return UNK
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
