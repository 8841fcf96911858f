"""The registry, dataset_info.json: which file a data set stands in, and whether its rows are what LLaMA-Factory reads.

LLaMA-Factory ends in a traceback where the registry or a row does not fit. Here that is one line, before the run.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib.files import ROOT, fail, read_bounded
from lib.layouts import LAYOUTS, Layout, name_columns

REGISTRY = "dataset_info.json"
# What LLaMA-Factory takes for the parts that an entry does not name. An entry with "columns" names all of its columns.
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
COLUMNS |= dict.fromkeys(("history", "system", "tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag"))
TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
TAGS |= {"observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}
FORMATS = ("alpaca", "sharegpt", "openai")
ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
FILES = ("json", "jsonl", "csv", "parquet", "arrow", "txt")
TEXTS = ("prompt", "query", "response", "system", "chosen", "rejected")


def read_registry(folder: Path) -> dict[str, dict]:
    """Data set → its entry in the folder's registry; ends the program if LLaMA-Factory could not read it."""
    path = folder / REGISTRY
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
        registry = json.loads(text)
    except FileNotFoundError:
        fail(f"{path} does not exist; dataset_dir names a folder with a {REGISTRY}, such as data")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fail(f"{path}, line {line}: not UTF-8; save it as UTF-8")
    except RecursionError:
        fail(f"{path} is nested too deeply")
    except json.JSONDecodeError as error:
        why = error.msg
        if data.startswith(b"\xef\xbb\xbf"):
            why = "it starts with a byte order mark, which LLaMA-Factory does not read; save it as UTF-8 without one"
        elif text[: error.pos].rstrip().endswith(","):
            why = f"a comma stands where nothing follows ({why})"
        fail(f"{path}, line {error.lineno}, column {error.colno}: {why}")
    if not isinstance(registry, dict) or not all(isinstance(entry, dict) for entry in registry.values()):
        fail(f'{path} does not hold {{"<data set>": {{"file_name": …}}, …}}')
    return registry


def named_sets(settings: dict) -> list[str]:
    """The data sets that a recipe names, as LLaMA-Factory takes them: a list, or words with commas between them."""
    given = [settings.get(key) or [] for key in ("dataset", "eval_dataset")]
    names = [name for words in given for name in (words if isinstance(words, list) else str(words).split(","))]
    return list(dict.fromkeys(name for name in map(str.strip, map(str, names)) if name))


def find_entries(settings: dict) -> dict[str, dict]:
    """Data set → its entry, for the sets that a recipe names; ends the program if one is not registered.

    With dataset_dir=ONLINE or REMOTE:<hub's name> there is no registry here, and every entry is empty.
    """
    names, folder = named_sets(settings), str(settings.get("dataset_dir") or "data")
    if folder == "ONLINE" or folder.startswith("REMOTE:"):
        return {name: {} for name in names}
    registry = read_registry(Path(folder)) if names else {}
    for name in names:
        if name not in registry:
            fail(f'"{name}" is not registered in {Path(folder) / REGISTRY}: {", ".join(registry)}')
    return {name: registry[name] for name in names}


def data_files(settings: dict) -> dict[str, Path | None]:
    """Data set → its file or folder, or None if it is on a hub; ends the program if it is not registered."""
    return {name: file_of(name, entry, settings) for name, entry in find_entries(settings).items()}


def file_of(name: str, entry: dict, settings: dict) -> Path | None:
    """The file or folder of a data set, or None if it is on a hub or comes from a script."""
    folder = Path(settings.get("dataset_dir") or "data")
    if not entry or any(key in entry for key in ELSEWHERE):
        return None
    if not isinstance(entry.get("file_name"), str):
        fail(f'the set "{name}" in {folder / REGISTRY} names no file: give it "file_name", a path from {folder}/ on')
    return Path(os.path.normpath(folder / entry["file_name"]))


def files_in(path: Path) -> list[Path]:
    """The files of a data set: all that lie in its folder, or the one file."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def layout_of(entry: dict) -> Layout:
    """Part of a row → its column, and kind of turn → its name, as LLaMA-Factory takes them from an entry."""
    columns = {part: entry["columns"].get(part) for part in COLUMNS} if "columns" in entry else COLUMNS
    tags = {tag: entry["tags"].get(tag) for tag in TAGS} if "tags" in entry else TAGS
    unused = ("prompt", "query", "response", "history") if is_chat(entry) else ("messages",)
    return {part: name for part, name in (columns | tags).items() if name and part not in unused}


def is_chat(entry: dict) -> bool:
    """Whether the rows of a data set are lists of turns."""
    return entry.get("formatting", "alpaca") != "alpaca"


def layouts_for(path: Path) -> tuple[Layout, ...]:
    """The layouts that a file's rows may have: first what the registry says of the file, then the usual ones."""
    settings, found = {"dataset_dir": str(ROOT / "dataset_info")}, []
    for name, entry in read_registry(ROOT / "dataset_info").items():
        file = file_of(name, entry, settings)
        if file and file.resolve() == path.resolve():
            layout = layout_of(entry)
            found += [layout] if {"response", "messages"} & layout.keys() else []
    return (*found, *LAYOUTS)


def check_sets(settings: dict, prepared: set[str]) -> None:
    """Ends the program if LLaMA-Factory could not train on the rows of a data set that a recipe names.

    Only its entry is looked at if it is on a hub, or one of those that `make data` has `prepared`.
    """
    for name, entry in find_entries(settings).items():
        place = f'the set "{name}" in {Path(settings.get("dataset_dir") or "data") / REGISTRY}'
        path = file_of(name, entry, settings)
        check_entry(place, entry, str(settings.get("stage", "sft")))
        if path and name not in prepared:
            check_files(place, files_in(path), layout_of(entry), needed_columns(entry, settings))


def check_entry(place: str, entry: dict, stage: str) -> None:
    """Ends the program if an entry is of a kind that LLaMA-Factory does not know, or not for this stage."""
    if entry.get("formatting", "alpaca") not in FORMATS:
        fail(f'{place}: its "formatting" is {entry["formatting"]}; LLaMA-Factory knows {", ".join(FORMATS)}')
    for key, known in (("columns", COLUMNS), ("tags", TAGS)):
        given = entry.get(key, {})
        unknown = [str(part) for part in given if part not in known] if isinstance(given, dict) else [str(given)]
        if unknown:
            fail(f'{place}: LLaMA-Factory knows no {", ".join(unknown)} under "{key}"; it knows {", ".join(known)}')
    if (stage in ("dpo", "rm")) != bool(entry.get("ranking")):
        pairs = 'pairs ("ranking": true, with chosen and rejected)'
        fail(f"{place}: stage {stage} {'needs' if stage in ('dpo', 'rm') else 'takes no'} {pairs}")
    if (stage == "kto") != bool(entry.get("columns", {}).get("kto_tag")):
        tag = 'column that says yes or no (true or false), named as "kto_tag" under "columns"'
        fail(f"{place}: stage {stage} {'needs a' if stage == 'kto' else 'takes no'} {tag}")


def needed_columns(entry: dict, settings: dict) -> dict[str, str]:
    """Part of a row → its column, or "" if the entry names none, for what LLaMA-Factory cannot do without."""
    layout, pairs = layout_of(entry), ("chosen", "rejected")
    learns = settings.get("do_train") and settings.get("stage", "sft") == "sft"
    answer = ("response",) if "response" in layout or (learns and not is_chat(entry)) else ()
    # In a chat, a system turn may take the place of the column.
    unused = {"response", *pairs, *(["system"] if is_chat(entry) else [])}
    parts = [part for part in layout if part in COLUMNS and part not in unused]
    return {part: layout.get(part, "") for part in (*parts, *(pairs if entry.get("ranking") else answer))}


def check_files(place: str, files: list[Path], layout: Layout, needed: dict[str, str]) -> None:
    """Ends the program if files are of no kind that LLaMA-Factory reads, lack a column, or hold a row that is none."""
    kinds = {file.suffix[1:] for file in files}
    if len({kind.replace("jsonl", "json") for kind in kinds}) != 1 or not kinds <= set(FILES):
        names = ", ".join(file.name for file in files[:5]) or "nothing"
        fail(f"{place}: LLaMA-Factory reads files of one kind out of {', '.join(FILES)}; there is {names}")
    found = dict.fromkeys(column for file in files for column in columns_of(place, file, layout))
    for part, column in needed.items():
        if found and column not in found:
            told = f'no column "{column}", its {part}' if column else f"no column named as its {part}"
            columns = name_columns(found)
            fail(f'{place}: {files[0]} has {told}; its columns are {columns}. "columns" in {REGISTRY} maps them')


def columns_of(place: str, file: Path, layout: Layout) -> Iterable[str]:
    """The columns of a file; none if they are not looked at. Ends the program if the file or a row is faulty."""
    kind = file.suffix[1:]
    if kind == "txt":
        return ["text"]
    try:
        if kind == "csv":
            with file.open(encoding="utf-8-sig", newline="") as lines:
                return next(csv.reader(lines), [])
        if kind == "parquet":
            from pyarrow import parquet

            return parquet.read_schema(file).names
    except (OSError, ValueError, csv.Error) as error:
        fail(f"{place}: {file} cannot be read as {kind} ({error})")
    return columns_of_rows(place, file, layout) if kind.startswith("json") else []


def columns_of_rows(place: str, file: Path, layout: Layout) -> dict[str, None]:
    """The columns of a JSON file; ends the program at a row that LLaMA-Factory could not read."""
    found: dict[str, None] = {}
    try:
        for line, row in read_objects(file):
            if fault := row_fault(row, layout):
                fail(f"{file}, line {line}: {fault} ({place})")
            found |= dict.fromkeys(row)
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror or error} ({place})")
    except UnicodeDecodeError:
        fail(f"{file} is not UTF-8, which LLaMA-Factory needs: save it as UTF-8 ({place})")
    except (ValueError, RecursionError) as error:
        fail(f"{file} is neither JSON lines nor a JSON array: {error} ({place})")
    return found or fail(f"{place}: {file} holds no row")


def row_fault(row: object, layout: Layout) -> str:
    """Why LLaMA-Factory could not read a row; nothing if it could. A column without a value is none of its faults."""
    if not isinstance(row, dict):
        return f"a JSON object was expected, not {type(row).__name__}"
    tag = layout.get("kto_tag")
    if tag and not isinstance(row.get(tag), bool):
        return f'the column "{tag}" is {type(row.get(tag)).__name__}, not true or false'
    if "messages" not in layout:
        texts = (layout[part] for part in TEXTS if part in layout)
        wrong = next((column for column in texts if not isinstance(row.get(column), str | None)), None)
        return f'the column "{wrong}" is {type(row[wrong]).__name__}, not text' if wrong else ""
    turns, keys = row.get(layout["messages"], []), {layout.get("role_tag"), layout.get("content_tag")}
    if isinstance(turns, list) and all(isinstance(turn, dict) and keys <= turn.keys() for turn in turns):
        return ""
    return f'the column "{layout["messages"]}" is no list of turns with {" and ".join(map(str, sorted(keys, key=str)))}'


def read_objects(file: Path) -> Iterator[tuple[int, object]]:
    """Line number and value of each row of a UTF-8 file of JSON objects or of one JSON array (then: its place in it).

    Raises ValueError, of which UnicodeDecodeError is one, or RecursionError if the file is none.
    """
    with file.open("rb") as opened:
        text = read_bounded(opened, str(file)).decode("utf-8")
    # LLaMA-Factory's reader takes a byte order mark before JSON lines, but not before an array.
    lines = text.removeprefix("\ufeff")
    if lines.lstrip()[:1] == "[":
        yield from enumerate(json.loads(text), 1)
        return
    decoder, blank, line, place = json.JSONDecoder(), re.compile(r"\s*"), 1, 0
    while (start := blank.match(lines, place).end()) < len(lines):
        line += lines.count("\n", place, start)
        value, place = decoder.raw_decode(lines, start)
        yield line, value
        line += lines.count("\n", start, place)
