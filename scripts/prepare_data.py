"""Turns AdGen's raw rows into the files that the recipes train and score on, and reports what became of every row.

Without RAW the rows come from the Hugging Face hub, or from ModelScope if USE_MODELSCOPE_HUB=1.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lib.attributes import parse_attributes, product
from lib.files import ROOT, fail, printable, sha256, whole_file
from lib.law import NO_ADVICE, find_hits, read_rules
from lib.layouts import LAYOUTS, NO_COLUMNS, read_mapping
from lib.raw_rows import Row, explain, read_hub, read_rows, read_sources
from lib.splits import STATUSES, Result, carve_val, judge_dev, judge_train

QUANTILES = (0, 25, 50, 75, 95, 99, 100)

# --- the card ---


def quantiles(lengths: list[int]) -> dict[str, int]:
    """Percentile → length, in characters."""
    ordered = sorted(lengths)
    if not ordered:
        return {}
    return {str(part): ordered[min(len(ordered) - 1, len(ordered) * part // 100)] for part in QUANTILES}


def describe(results: list[Result]) -> dict:
    """What the card says of a written split: rows, rows by product type and by attribute key, lengths, risky ads."""
    types: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for result in results:
        pairs = parse_attributes(result.instruction)
        # A row counts once for each of its keys. A list in their order, and no set, makes ties come out the same.
        types.update(list(dict.fromkeys(value for key, value in pairs if key == "类型")))
        keys.update(list(dict.fromkeys(key for key, _ in pairs)))
    levels = [{hit.level for hit in find_hits(result.instruction, result.output)} for result in results]
    return {
        "rows": len(results),
        "rows_by_type": dict(types.most_common()),
        "rows_by_key": dict(keys.most_common()),
        "instruction_characters": quantiles([len(result.instruction) for result in results]),
        "output_characters": quantiles([len(result.output) for result in results]),
        "ads_with_forbidden_words": sum("ban" in found for found in levels),
        "ads_with_words_to_be_proved": levels.count({"caution"}),
    }


def account(results: list[Result]) -> dict:
    """What the card says of a raw split: rows read, rows of each status, and rows for each reason."""
    counts = {"read": len(results)}
    for status in STATUSES:
        reasons = [result.reason for result in results if result.status == status]
        counts[status] = len(reasons)
        if status != "kept":
            counts[f"{status}_because"] = dict(Counter(reasons).most_common())
    return counts


def show(card: dict) -> None:
    """Prints what became of the rows, and how many rows each file holds."""
    for split, counts in card["input"].items():
        print(f"{split}: {counts['read']:,} rows read from {counts['file']}")
        for status in STATUSES:
            reasons = counts.get(f"{status}_because", {})
            detail = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
            print(f"  {status:<9}{counts[status]:>9,}  {detail}")
    for name, entry in card["output"].items():
        risky = entry.get("ads_with_forbidden_words", 0)
        print(f"{name}: {entry['rows']:,} rows" + f", {risky:,} with forbidden words" * bool(risky))
    print(NO_ADVICE)


# --- files ---


def write_lines(path: Path, values: Iterable[dict]) -> str:
    """Writes JSON lines; returns the sha256 of the file."""
    with whole_file(path, "wb") as file:
        for value in values:
            # What is no Unicode is written as JSON's own escapes, \\udc80 for one. Only rejected rows hold any.
            file.write((json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
    return sha256(path)


def left_out(result: Result) -> dict:
    """A line of adgen_rejected.jsonl: where the row stood, why it is left out, and its text."""
    row = result.row
    return {"file": row.file, "line": row.line, "status": result.status, "reason": result.reason, "text": row.raw}


def write_files(folder: Path, splits: dict[str, list[Result]], lost: list[Result], card: dict) -> None:
    """Writes the rows of each split and the rows that are left out, completes the card, and writes it."""
    # The card is removed first and written last: a folder with a card holds the files of one preparation.
    (folder / "adgen_card.json").unlink(missing_ok=True)
    for split, results in splits.items():
        path = folder / f"adgen_{split}.jsonl"
        if not results:
            # An earlier preparation may have left this file.
            path.unlink(missing_ok=True)
            continue
        values = ({"instruction": result.instruction, "output": result.output} for result in results)
        card["output"][path.name] = {"sha256": write_lines(path, values)} | describe(results)
    name = "adgen_rejected.jsonl"
    card["output"][name] = {"sha256": write_lines(folder / name, map(left_out, lost)), "rows": len(lost)}
    with whole_file(folder / "adgen_card.json") as file:
        json.dump(card, file, ensure_ascii=False, indent=2)
        file.write("\n")


# --- the program ---


def read_policy() -> argparse.Namespace:
    """The command line: where the rows come from and go to, and what becomes of doubtful training rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", nargs="?", type=Path, help="folder, file, .tar.gz or .zip with train.json and dev.json")
    parser.add_argument("--out", type=Path, default=ROOT / "data", help="folder to write to (default: data)")
    help_text = "training ads with <UNK>: drop the row (default), cut the clause, or keep"
    parser.add_argument("--unk", choices=("drop", "cut", "keep"), default="drop", help=help_text)
    help_text = "training ads with words that the law or WORDS forbids: keep (default), drop the row, or cut the clause"
    parser.add_argument("--risky", choices=("keep", "drop", "cut"), default="keep", help=help_text)
    parser.add_argument(
        "--columns", metavar="prompt=…,response=…", help="where attribute string and ad stand, if under other names; "
        "also query=… for a column that continues the prompt, or messages=… for a column of turns"
    )  # fmt: skip
    return parser.parse_args()


def read_input(raw: Path | None, columns: str | None) -> tuple[dict[str, list[Row]], dict[str, tuple[str, str]]]:
    """Split → its rows, and split → name and sha256 of its file; rows of a hub have a name and no sha256.

    Ends the program if a split holds no readable row.
    """
    layouts = (read_mapping(columns),) if columns else LAYOUTS
    if raw:
        sources = read_sources(raw)
        rows = {split: list(read_rows(name, data, layouts)) for split, (name, data) in sources.items()}
        files = {split: (name, hashlib.sha256(data).hexdigest()) for split, (name, data) in sources.items()}
    else:
        rows = read_hub(layouts)
        files = {split: (rows[split][0].file if rows[split] else split, "") for split in rows}
    for split, (name, _) in files.items():
        if all(row.problem for row in rows[split]):
            fail(f"{name} holds no AdGen row: {why_none(rows[split])}")
    return rows, files


def why_none(rows: list[Row]) -> str:
    """Why none of the rows of a file can be used, and what to do."""
    if not rows:
        return "it is empty"
    [(problem, _)] = Counter(row.problem for row in rows).most_common(1)
    why = explain(next(row for row in rows if row.problem == problem))
    how = "a row looks like {'content': '类型#裙*…', 'summary': '…'}"
    if problem == NO_COLUMNS:
        how = 'ARGS="--columns prompt=<column>,response=<column>" names those of the attributes and of the ad'
    return f"its {len(rows)} rows are rejected, most as: {why}; {how}"


def main() -> None:
    policy = read_policy()
    # A bad file of words ends the run before anything is written.
    read_rules()
    rows, files = read_input(policy.raw, policy.columns)
    dev = judge_dev(rows.get("dev", []))
    used_dev = [result for result in dev if result.used]
    judged = judge_train(rows["train"], {product(result.instruction) for result in used_dev}, policy)
    train, val = carve_val(judged)
    if not train:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in account(judged)["dropped_because"].items())
        fail(f"no training row of {files['train'][0]} is left ({reasons})")

    card: dict = {
        "source": printable(policy.raw.name) if policy.raw else files["train"][0],
        "policy": {"unk": policy.unk, "risky": policy.risky},
        "input": {},
        "output": {},
    }
    for split, results in (("train", judged), ("dev", dev)):
        if split in files:
            card["input"][split] = {"file": files[split][0], "sha256": files[split][1], **account(results)}
    lost = [result for result in judged + dev if not result.used]
    try:
        write_files(policy.out, {"train": train, "val": val, "dev": used_dev}, lost, card)
    except OSError as error:
        fail(f"{policy.out} cannot be written to: {error.strerror or error}")
    show(card)
    if "dev" not in files:
        print("There are no dev rows: `make train` works, `make eval` needs a dev.json beside the training file.")


if __name__ == "__main__":
    main()
