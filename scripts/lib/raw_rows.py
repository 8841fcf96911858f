"""Reads raw AdGen rows from a folder, a file, an archive or a hub, in all the forms in which AdGen is passed on."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lib.archives import UNREADABLE, files_in_archive
from lib.files import ROOT, fail, printable, read_bounded
from lib.hubs import use_modelscope
from lib.layouts import LAYOUTS, NO_COLUMNS, Layout, read_texts
from lib.registry import read_registry

DEV_NAMES = ("dev", "val", "valid", "validation", "test")
SUFFIXES = (".json", ".jsonl")
# In characters. AdGen's longest row has about a thousand.
LONGEST_ROW = 2**20
BOM = b"\xef\xbb\xbf"
Layouts = tuple[Layout, ...]


class Row(NamedTuple):
    """One raw row. Either `content` and `summary` hold its attribute string and its ad, or `problem` says why not."""

    # Where it stood, and its text there.
    file: str
    line: int
    raw: str
    content: str = ""
    summary: str = ""
    problem: str = ""


# --- files ---


def split_of(name: str) -> str:
    """The split that a file holds by its name: `train`, `dev`, or nothing if the name says neither."""
    path = Path(name)
    if path.suffix not in SUFFIXES or path.name.startswith("."):
        return ""
    return "dev" if path.stem in DEV_NAMES else "train" if path.stem == "train" else ""


def read_sources(raw: Path) -> dict[str, tuple[str, bytes]]:
    """Split → name and bytes of its file, from a folder, a file or an archive.

    A file that is no archive is the train split, unless its name says otherwise; a dev file beside it is read, too.
    Ends the program if there is no train split, or two files of one split.
    """
    if not raw.exists():
        fail(f"{raw} does not exist; RAW is a folder, a file, a .tar.gz or a .zip with AdGen's train.json and dev.json")
    try:
        found = files_in_folder(raw) if raw.is_dir() else files_in_archive(raw, split_of)
        if found is None:
            found = file_and_neighbour(raw)
    except UNREADABLE as error:
        fail(f"{raw} cannot be read: {error}")
    sources: dict[str, tuple[str, bytes]] = {}
    for name, data in found:
        split, name = split_of(name) or "train", printable(name)
        if split in sources:
            fail(f"{raw} holds two {split} files, {sources[split][0]} and {name}; leave one")
        sources[split] = (name, data)
    if "train" not in sources:
        fail(f"{raw} holds no train.json; AdGen's files are train.json and dev.json, JSON lines or JSON arrays")
    return sources


def files_in_folder(folder: Path) -> list[tuple[str, bytes]]:
    """Name and bytes of the split files in a folder; if it has none, of those in its subfolders."""
    for pattern in ("*", "*/*"):
        paths = [path for path in sorted(folder.glob(pattern)) if path.is_file() and split_of(path.name)]
        if paths:
            return [(str(path.relative_to(folder)), read_file(path)) for path in paths]
    return []


def file_and_neighbour(file: Path) -> list[tuple[str, bytes]]:
    """Name and bytes of a file, and of the first dev file beside it if there is one."""
    dev_files = [path for path in sorted(file.parent.iterdir()) if split_of(path.name) == "dev" and path != file]
    return [(path.name, read_file(path)) for path in [file, *dev_files[:1]]]


def read_file(path: Path) -> bytes:
    """The bytes of a file; ends the program if it is larger than AdGen can be."""
    with path.open("rb") as file:
        return read_bounded(file, str(path))


# --- rows ---


def decode_lines(data: bytes) -> list[str]:
    """The lines of a file as text in UTF-8 or GB18030; bytes that are neither become lone surrogates."""
    # One rare character in a Python string makes every character take four bytes, so each line is a string of its own.
    lines = data.removeprefix(BOM).split(b"\n")
    for encoding in ("utf-8", "gb18030"):
        with suppress(UnicodeDecodeError):
            return [line.decode(encoding) for line in lines]
    return [line.decode("utf-8", "surrogateescape") for line in lines]


def read_rows(name: str, data: bytes, layouts: Layouts = LAYOUTS) -> Iterator[Row]:
    """The rows of a file of JSON lines or of a JSON array; blank lines are no rows.

    `name`: what the rows and the errors call the file. Ends the program if an array is cut off.
    """
    lines = decode_lines(data)
    if data.removeprefix(BOM).lstrip()[:1] == b"[":
        try:
            lines = list(map(as_line, json.loads("\n".join(lines))))
        except (ValueError, RecursionError) as error:
            fail(f"{name} starts as a JSON array but is none ({error}); is it cut off?")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield read_row(name, number, line.removesuffix("\r"), layouts)


def as_line(value: object) -> str:
    """A value of an array or of a hub as a line of JSON, as which it is read like all others."""
    return json.dumps(value, ensure_ascii=False)


def read_row(name: str, number: int, line: str, layouts: Layouts) -> Row:
    """The row in a line of JSON, with its texts or its problem."""
    row = Row(name, number, line)
    # A long line is not even parsed: its values could take a hundred times its memory.
    if len(line) > LONGEST_ROW:
        return row._replace(problem="longer than a mebibyte")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return row._replace(problem="not JSON")
    found = read_texts(value, layouts) if isinstance(value, dict) else "not an object"
    problem = found if isinstance(found, str) else problem_of(*found)
    return row._replace(problem=problem) if problem else row._replace(content=found[0], summary=found[1])


def problem_of(content: object, summary: object) -> str:
    """Why two values cannot be an attribute string and an ad; nothing if they can."""
    if not isinstance(content, str) or not isinstance(summary, str):
        return "a column is not text"
    try:
        (content + summary).encode("utf-8")
    except UnicodeEncodeError:
        return "not valid Unicode"
    return "" if content.strip() and summary.strip() else "a column is empty"


def explain(row: Row) -> str:
    """The problem of a row in words for an error: with its columns, if they are not known."""
    if row.problem != NO_COLUMNS:
        return row.problem
    return f"{row.problem} (it has {', '.join(list(json.loads(row.raw))[:20]) or 'none'})"


# --- hubs ---


def read_hub(layouts: Layouts = LAYOUTS) -> dict[str, list[Row]]:
    """Split → rows, from the Hugging Face hub, or from ModelScope if USE_MODELSCOPE_HUB=1.

    The registry names the data set on both hubs. Ends the program if the hub cannot be reached.
    """
    registry = read_registry(ROOT / "dataset_info")
    hub, key = ("ModelScope", "ms_hub_url") if use_modelscope() else ("the Hugging Face hub", "hf_hub_url")
    rows = {}
    for split in ("train", "dev"):
        entry = registry[f"adgen_hub_{split}"]
        name = f"{entry[key]}:{entry['split']}"
        print(f"Fetching {name} from {hub}")
        try:
            lines = list(map(as_line, load_rows(entry[key], entry["split"])))
        except Exception as error:
            # Both libraries raise whatever their network libraries raise.
            fail(
                f"{name} cannot be fetched from {hub} ({type(error).__name__}): check the network, "
                "give local files with `make data RAW=<folder>`, or see everything run on the sample with `make demo`"
            )
        rows[split] = [read_row(name, number, line, layouts) for number, line in enumerate(lines, 1)]
    return rows


def load_rows(name: str, split: str) -> Iterable[dict]:
    """The rows of a data set on the hub."""
    if use_modelscope():
        from modelscope import MsDataset

        return MsDataset.load(name, split=split)
    from datasets import load_dataset

    return load_dataset(name, split=split)
