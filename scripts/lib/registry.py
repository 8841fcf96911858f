"""The registry, dataset_info.json: which file a data set stands in, and whether LLaMA-Factory can train on its rows.

LLaMA-Factory ends in a traceback where the registry or a row does not fit. Here that is one line, before the run.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

from lib.files import ROOT, fail
from lib.layouts import LAYOUTS, Layout

REGISTRY = "dataset_info.json"
ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


def read_registry(folder: Path) -> dict[str, dict]:
    """Data set → its entry in the folder's registry; ends the program if LLaMA-Factory could not read it."""
    path = folder / REGISTRY
    try:
        registry = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fail(f"{path} does not exist; dataset_dir names a folder with a {REGISTRY}, such as data")
    except (OSError, ValueError, RecursionError) as error:
        # A byte order mark is refused, too: LLaMA-Factory does not read it.
        fail(f"{path} cannot be read as JSON in UTF-8 without a byte order mark: {error}")
    if not isinstance(registry, dict) or not all(isinstance(entry, dict) for entry in registry.values()):
        fail(f'{path} does not hold {{"<data set>": {{"file_name": …}}, …}}')
    return registry


def find_entries(settings: dict) -> dict[str, dict]:
    """Data set → its entry, for the sets that a recipe names; ends the program if one is not registered.

    As in LLaMA-Factory, the names are a list, or words with commas between them. With dataset_dir=ONLINE or
    REMOTE:<hub's name> there is no registry here, and every entry is empty.
    """
    given = [settings.get(key) or [] for key in ("dataset", "eval_dataset")]
    words = [word for part in given for word in (part if isinstance(part, list) else str(part).split(","))]
    names = dict.fromkeys(filter(None, (str(word).strip() for word in words)))
    folder = str(settings.get("dataset_dir") or "data")
    if folder == "ONLINE" or folder.startswith("REMOTE:"):
        return {name: {} for name in names}
    registry = read_registry(Path(folder)) if names else {}
    for name in names:
        if name not in registry:
            fail(f'"{name}" is not registered in {Path(folder) / REGISTRY}: {", ".join(registry)}')
    return {name: registry[name] for name in names}


def data_files(settings: dict) -> dict[str, Path | None]:
    """Data set → its file or folder, or None if it is on a hub; ends the program if it is not registered."""
    folder = Path(settings.get("dataset_dir") or "data")
    return {name: file_of(name, entry, folder) for name, entry in find_entries(settings).items()}


def file_of(name: str, entry: dict, folder: Path) -> Path | None:
    """The file or folder of a data set in a registry's folder, or None if it is on a hub or comes from a script."""
    if not entry or any(key in entry for key in ELSEWHERE):
        return None
    if not isinstance(entry.get("file_name"), str):
        fail(f'the set "{name}" in {folder / REGISTRY} names no file: give it "file_name", a path from {folder}/ on')
    return Path(os.path.normpath(folder / entry["file_name"]))


def files_in(path: Path) -> list[Path]:
    """The files of a data set: all that lie in its folder, or the one file."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def layouts_for(path: Path) -> tuple[Layout, ...]:
    """The layouts that a file's rows may have: first what the registry says of the file, then the usual ones."""
    folder, found = ROOT / "dataset_info", []
    for name, entry in read_registry(folder).items():
        file, columns = file_of(name, entry, folder), entry.get("columns")
        if file and file.resolve() == path.resolve() and isinstance(columns, dict):
            found += [columns | entry.get("tags", {})] if {"response", "messages"} & columns.keys() else []
    return (*found, *LAYOUTS)


def check_sets(settings: dict, foreign: set[str]) -> None:
    """Ends the program if LLaMA-Factory could not train on a data set that a recipe names.

    `foreign`: the sets whose rows are looked at. Those of the others come with the project, or its programs wrote them.
    """
    stage, folder = str(settings.get("stage", "sft")), Path(settings.get("dataset_dir") or "data")
    for name, entry in find_entries(settings).items():
        place = f'the set "{name}" in {folder / REGISTRY}'
        if (stage in ("dpo", "rm")) != bool(entry.get("ranking")):
            pairs = 'pairs ("ranking": true, with chosen and rejected)'
            fail(f"{place}: stage {stage} {'needs' if stage in ('dpo', 'rm') else 'takes no'} {pairs}")
        if (stage == "kto") != ("kto_tag" in (entry.get("columns") or ())):
            tag = 'column that says yes or no (true or false), named as "kto_tag" under "columns"'
            fail(f"{place}: stage {stage} {'needs a' if stage == 'kto' else 'takes no'} {tag}")
        path = file_of(name, entry, folder)
        if path and name in foreign:
            answers = bool(settings.get("do_train")) and stage != "pt"
            check_rows(place, name, path, folder, ("_prompt", "_response") if answers else ("_prompt",))


def check_rows(place: str, name: str, path: Path, folder: Path, needed: tuple[str, ...]) -> None:
    """Ends the program if LLaMA-Factory's own reader fails on a data set, or finds no row with all the parts needed."""
    # These imports take eight seconds.
    from datasets import disable_progress_bars, load_dataset
    from llamafactory.data.converter import align_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.extras.constants import FILEEXT2TYPE
    from llamafactory.hparams import DataArguments

    files = files_in(path)
    kinds = {FILEEXT2TYPE.get(file.suffix[1:], "") for file in files}
    if len(kinds) != 1 or "" in kinds:
        fail(f"{place}: LLaMA-Factory reads files of one kind out of {', '.join(FILEEXT2TYPE)}; {path} holds others")
    columns = "unknown"
    disable_progress_bars()
    try:
        [entry] = get_dataset_list([name], str(folder))
        rows = load_dataset(*kinds, data_files=list(map(str, files)), split="train")
        columns = ", ".join(rows.column_names)
        aligned = align_dataset(rows, entry, DataArguments(), SimpleNamespace(local_process_index=0))
    except Exception as error:
        # What its libraries raise; datasets wraps some of it.
        cause = error.__cause__ or error
        why = f"{type(cause).__name__}: {cause}"
    else:
        if any(all(any(turn["content"] for turn in row[part]) for part in needed) for row in aligned):
            return
        why = f"no row has a {' and a '.join(part[1:] for part in needed)}"
    fail(
        f'{place}: LLaMA-Factory cannot read {path} ({why}); its columns are {columns}. The entry\'s "columns" map them'
    )
