"""Lists of written ads that editors work through: what they decided, which ads they approved, and what a model learns.

A list is a table that generate.py wrote, copied into data/reviews. The file beside it holds a JSON line for each
decision; the last line of a row counts. A decision names the version of the row that the editor saw, so that nobody
overwrites what another editor did meanwhile. One lock holds off all other desks while a decision is written.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from lib.candidates import judge
from lib.catalogue import read_catalogue
from lib.files import ROOT, printable, whole_file
from lib.law import NO_ADVICE, describe
from lib.metrics import Values
from lib.output import MARK, check_size, labelled, model_of, unguarded, unlabelled, write_table
from lib.sheets import text

# The folder of the lists. The feedback stands beside it.
FOLDER = ROOT / "data/reviews"
FORMS = (".csv", ".xlsx", ".jsonl")
DECISIONS = ("open", "approve", "reject")
# Characters of an ad that an editor may write.
LONGEST_AD = 5000
# The time in a line of feedback.
TIME = re.compile(r'"time"\s*:\s*"([^"]*)"')


class Item(NamedTuple):
    """A row that has an ad: its product's attribute string, its candidates, the best one first, and its label."""

    product: str
    ads: list[str]
    label: str
    # Whether the table shows the mark that AI wrote the ad. Nobody may remove it.
    marked: bool


class Review(NamedTuple):
    """A list. `rows` has the table's own columns; `items` has the rows with an ad, by their place from 0."""

    path: Path
    header: list[str]
    rows: list[list]
    items: dict[int, Item]


class State(NamedTuple):
    """The latest state of a row. chosen: the candidate that `ad` was made from. An open row may have been edited."""

    ad: str
    decision: str = "open"
    chosen: int = 0
    reason: str = ""
    editor: str = ""
    time: str = ""
    # How many decisions the row has had.
    version: int = 0


Decisions = list[tuple[int, State]]


class Stale(Exception):
    """Another editor has decided the row since it was shown."""


# --- lists ---


def read_review(path: Path, keys: set[str]) -> Review:
    """A table of ads as a list; it has no items if the table has no ads.

    keys: the attribute keys of the training data. Ends the program if the table cannot be read or has no attributes.
    """
    table = read_catalogue(path, keys, [])
    plain = unguarded if path.suffix.lower() == ".csv" else text
    # A catalogue that has a column of this name gets no ads, so the last one is the first that generate.py added.
    own = max((place for place, name in enumerate(table.header) if name == "ad"), default=len(table.header))
    added = {name: place for place, name in enumerate(table.header) if place >= own}
    names = [name for name in added if name == "ad" or name.startswith("runner_up_")]
    items = {}
    for place, (row, product) in enumerate(zip(table.rows, table.products, strict=True)):
        cells = [plain(text(row[added[name]])).strip() for name in names]
        if product and cells and cells[0]:
            ads = list(dict.fromkeys(filter(None, map(unlabelled, cells))))
            label = text(row[added["ai_label"]]) if "ai_label" in added else ""
            parts = (part.partition("#") for part in product.split("*"))
            product = "*".join(key + sign + plain(value) for key, sign, value in parts)
            items[place] = Item(product, ads, label or MARK, cells[0] != unlabelled(cells[0]))
    rows = [[plain(cell) if isinstance(cell, str) else cell for cell in row[:own]] for row in table.rows]
    return Review(path, table.header[:own], rows, items)


def keep(path: Path) -> str:
    """Copies a table into the folder of the lists; returns its name there. The same table is the same list."""
    data = path.read_bytes()
    number, form = hashlib.sha256(data).hexdigest()[:12], path.suffix.lower()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if found := next(FOLDER.glob(f"*-{number}{form}"), None):
        return found.name
    stem = re.sub(r"[^\w-]+", "_", printable(path.stem))[:60]
    with whole_file(FOLDER / f"{stem}-{number}{form}", "wb") as file:
        file.write(data)
    return f"{stem}-{number}{form}"


def list_names() -> list[str]:
    """The names of all lists; the one that was worked on last comes first."""

    def last_change(path: Path) -> float:
        return max(other.stat().st_mtime for other in (path, decisions_of(path)) if other.exists())

    paths = [path for path in FOLDER.glob("*-*") if path.suffix in FORMS]
    return [path.name for path in sorted(paths, key=last_change, reverse=True)]


# --- decisions ---


def decisions_of(path: Path) -> Path:
    """The file of the decisions on a list."""
    return path.with_name(f"{path.name}.decisions")


@contextmanager
def locked() -> Iterator[None]:
    """Holds off other threads and other desks."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_decisions(review: Review) -> Decisions:
    """All decisions in their order, each with its row. What is no decision is left out: a kill may tear a line."""
    found, versions = [], dict.fromkeys(review.items, 0)
    with suppress(FileNotFoundError):
        for line in decisions_of(review.path).read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, TypeError, LookupError, RecursionError):
                entry = json.loads(line)
                row = entry.pop("row")
                state = State(**entry, version=versions[row] + 1)
                review.items[row].ads[state.chosen]
                versions[row] += 1
                found.append((row, state))
    return found


def latest(review: Review, decisions: Decisions) -> dict[int, State]:
    """The latest state of each row with an ad."""
    return {row: State(item.ads[0]) for row, item in review.items.items()} | dict(decisions)


def read_states(review: Review) -> dict[int, State]:
    """The latest state of each row with an ad, as it is on the disk now."""
    return latest(review, read_decisions(review))


def decide(review: Review, row: int, saw: int, new: State) -> dict[int, State]:
    """Writes a decision on a row; returns the states of all rows. saw: the version that the editor had before them.

    The decision is on the disk when this returns. Raises Stale if another editor was faster. An edit that comes after
    the same editor's decision is left out: a browser may send both at once. Raises ValueError for what is no decision.
    """
    new = new._replace(ad=new.ad.strip(), time=datetime.now(UTC).isoformat(timespec="microseconds"))
    if new.decision not in DECISIONS or not 0 < len(new.ad) <= LONGEST_AD:
        raise ValueError("no decision, or no ad")
    with locked():
        decisions = read_decisions(review)
        states = latest(review, decisions)
        now = states[row]
        late = now.version > saw
        if now[:4] == new[:4] or (late and now.editor == new.editor and now.decision != new.decision == "open"):
            return states
        if late and now.editor != new.editor:
            raise Stale
        new = new._replace(version=now.version + 1)
        entry = {name: value for name, value in new._asdict().items() if name != "version"}
        append(decisions_of(review.path), {"row": row} | entry)
        if {now.decision, new.decision} != {"open"}:
            write_feedback(review, [*(entry for entry in decisions if entry[0] == row), (row, new)])
        return states | {row: new}


def append(path: Path, entry: dict) -> None:
    """Adds a line to a file; it is on the disk when this returns. A line that a kill has torn stays by itself."""
    with path.open("a+b") as file:
        torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n"
        file.write(b"\n" * bool(torn) + printable(json.dumps(entry, ensure_ascii=False)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


# --- what comes out ---


def write_feedback(review: Review, decisions: Decisions) -> None:
    """Writes the rows of these decisions into data/feedback.jsonl, in place of what it held of them. Other lines stay.

    decisions: all of a row, or all of a list. A line that has the product and the time of one of them is in its place.
    """
    path = FOLDER.with_name("feedback.jsonl")
    before = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    own = {(review.items[row].product, state.time) for row, state in decisions}
    times = {time for _, time in own}
    # To parse each line of a long file would take seconds.
    replaced = {line for line in before if times & set(TIME.findall(line)) and mark_of(line) in own}
    decided = [(row, state) for row, state in latest(review, decisions).items() if state.decision != "open"]
    # The last decision stands last: of two on equal ads, `make pairs` takes that one.
    decided.sort(key=lambda entry: entry[1].time)
    lines = [json.dumps(lesson(review.items[row], state), ensure_ascii=False) for row, state in decided]
    lines = list(map(printable, lines))
    if replaced != set(lines):
        with whole_file(path) as file:
            kept = [line for line in before if line.strip() and line not in replaced]
            file.write("".join(f"{line}\n" for line in kept + lines))


def mark_of(line: str) -> tuple[str, str] | None:
    """The product and the time in a line of feedback; none if it is no such line."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        entry = json.loads(line)
        return entry["product"], entry["time"]
    return None


def lesson(item: Item, state: State) -> dict:
    """What a model may learn from a decided row. No column of the shop but its attributes is in it."""
    written = item.ads[state.chosen]
    return {
        "product": item.product,
        "decision": state.decision,
        "ad": state.ad,
        "written": written,
        "others": [ad for ad in item.ads if ad != written],
        "reason": state.reason,
        "model": model_of(item.label),
        "time": state.time,
    }


def count(states: dict[int, State]) -> dict[str, int]:
    """Decision → the number of rows."""
    found = [state.decision for state in states.values()]
    return {decision: found.count(decision) for decision in DECISIONS}


def write_approved(review: Review, path: Path, values: Values) -> None:
    """Writes the approved ads, in the order and with the columns of the shop's own table, to a .csv or .xlsx file.

    values: see `lib.metrics.vocabulary`. Ends the program if a workbook cannot hold the table.
    """
    states, rows, levels = read_states(review), [], []
    for row, item in review.items.items():
        if states[row].decision == "approve":
            found = judge(item.product, states[row].ad, values)
            ad = f"{found.ad}（{MARK}）" if item.marked else labelled(found.ad)
            cells = [ad, "、".join(found.missing), "、".join(found.invented), *describe(found.hits), item.label]
            rows.append([*review.rows[row], *cells])
            levels.append({hit.level for hit in found.hits})
    header = [*review.header, "ad", "missing", "invented", "risk", "basis", "ai_label"]
    counts = count(states)
    about = {
        "label": MARK,
        "exported": datetime.now().astimezone().isoformat(" ", "minutes"),
        "list": review.path.name,
        "ads approved": len(rows),
        "ads rejected": counts["reject"],
        "ads without a decision": counts["open"],
        "approved ads with forbidden words": sum("ban" in found for found in levels),
        "approved ads with words to be proved": sum("caution" in found and "ban" not in found for found in levels),
        "note": NO_ADVICE,
    }
    check_size(path, header, rows)
    write_table(path, header, rows, about)
