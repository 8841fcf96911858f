"""What an editor decided about ads: reads the file that the desk writes, and makes training rows of it.

docs/editor.md says what a line of the file holds.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from lib.attributes import product
from lib.files import ROOT, fail, read_json_lines
from lib.law import has_ban

TEXTS = ("product", "decision", "ad", "written", "reason", "model", "time")
FIELDS = (*TEXTS, "others")
# Texts that may not be empty.
FILLED = ("product", "ad", "written")


def read_feedback(path: Path) -> list[dict]:
    """The lines of a feedback file, ads without white space around them; ends the program at the first that is none."""
    if not path.is_file():
        fail(f"FEEDBACK={path}: there is no such file; the desk writes data/feedback.jsonl")
    rows = read_json_lines(path)
    for number, row in enumerate(rows, 1):
        if fault := find_fault(row):
            fail(f"{path}, decision {number}: {fault}")
        row |= {name: row[name].strip() for name in FILLED} | {"others": [ad.strip() for ad in row["others"]]}
    return rows


def find_fault(row: dict) -> str:
    """Why a line is no decision of an editor; empty if it is one."""
    if set(row) != set(FIELDS):
        return f"its fields are {', '.join(sorted(row))}; they must be {', '.join(sorted(FIELDS))}"
    wrong = [name for name in TEXTS if not isinstance(row[name], str)]
    empty = [name for name in FILLED if name not in wrong and not row[name].strip()]
    if wrong or empty:
        return f'"{(wrong + empty)[0]}" must be {"text" if wrong else "no empty text"}'
    if not isinstance(row["others"], list) or not all(isinstance(ad, str) for ad in row["others"]):
        return '"others" must be a list of texts'
    return "" if row["decision"] in ("approve", "reject") else '"decision" must be approve or reject'


def select(rows: list[dict], model: str, dev: Iterable[str]) -> tuple[list[dict], dict[str, int]]:
    """The decisions to learn from, and how many are left out for which reason.

    Of several decisions about one ad, the last one counts. model: the folder of the model's recipes. dev: attribute
    strings that never enter.
    """
    latest = {(product(row["product"]), row["written"]): row for row in rows}
    known = {path.parent.name for path in ROOT.glob("configs/*/chat.yaml")} - {model}
    kept, left, dev = [], Counter({"decided again": len(rows) - len(latest)}), set(map(product, dev))
    for (name, _), row in latest.items():
        if name in dev:
            left["of a dev product"] += 1
        elif known & set(row["model"].split()):
            left["of another model"] += 1
        elif row["decision"] == "approve" and has_ban(row["product"], row["ad"]):
            left["approved with forbidden words"] += 1
        else:
            kept.append(row)
    return kept, {reason: count for reason, count in left.items() if count}


def make_rows(rows: Iterable[dict]) -> tuple[list[dict], list[dict]]:
    """The preference pairs, and the ads with a yes or a no, that follow from decisions.

    A pair sets an approved ad against one of the same product that was rejected, edited or passed over. An edited text
    is a no, too; what was only passed over is neither.
    """
    groups, pairs, verdicts = defaultdict(list), [], []
    for row in rows:
        groups[product(row["product"])].append(row)
    for group in groups.values():
        text, approved = group[0]["product"], [row for row in group if row["decision"] == "approve"]
        yes = dict.fromkeys(row["ad"] for row in approved)
        # For a rejected ad, `ad` is the text to avoid; for an edited one, `written` is.
        refused = [row["written" if row["decision"] == "approve" else "ad"] for row in group]
        no = dict.fromkeys(ad for ad in refused if ad not in yes)
        worse = no | dict.fromkeys(ad for row in approved for ad in row["others"] if ad and ad not in yes)
        pairs += [{"instruction": text, "chosen": ad, "rejected": other} for ad in yes for other in worse]
        verdicts += [{"instruction": text, "output": ad, "approved": ad in yes} for ad in yes | no]
    # KTO puts each product beside the ad of the row above, which has to be of another product.
    random.Random(0).shuffle(verdicts)
    return pairs, verdicts
