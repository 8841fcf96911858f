"""The output folder of a training: its state, its checkpoints, its lock, and the notes on what it was trained with."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, NamedTuple

from lib.files import fail, installed_versions, sha256, whole_file, write_json
from lib.registry import data_files, files_in
from lib.weights import fingerprint, is_whole, read_json, weights_fault

# Keys that do not change what a run learns. They may differ when it is resumed.
HARMLESS = {"output_dir", "logging_steps", "save_steps", "save_total_limit", "plot_loss", "report_to"}
HARMLESS |= {"per_device_eval_batch_size", "preprocessing_num_workers", "dataloader_num_workers", "overwrite_cache"}
LIBRARIES = ("llamafactory", "torch", "transformers", "peft", "bitsandbytes")
# File that a checkpoint needs → what stands in its place in a checkpoint of FSDP or DeepSpeed.
NEEDED = {
    "trainer_state.json": (),
    "*.safetensors": ("pytorch_model_fsdp*", "global_step*"),
    "optimizer.pt": ("optimizer*", "global_step*"),
    "scheduler.pt": ("global_step*",),
    "rng_state*.pth": (),
}


class State(NamedTuple):
    """The state of an output folder, with the checkpoint to resume from and the broken ones with their faults."""

    kind: str  # "new", "resumable", "finished", "longer" (finished, to go on), "changed" or "broken" (as a whole)
    text: str
    checkpoint: Path | None = None
    broken: tuple[tuple[Path, str], ...] = ()


def say(text: str) -> None:
    """Prints a line for the user, at once and on stderr."""
    print(text, file=sys.stderr, flush=True)


def checkpoint_fault(folder: Path) -> str:
    """Why no training can resume from a checkpoint; empty if one can."""
    for name, others in NEEDED.items():
        if not any(any(folder.glob(pattern)) for pattern in (name, *others)):
            return f"{name} is missing"
    for path in sorted(path for pattern in ("trainer_state.json", "*.pt", "*.pth") for path in folder.rglob(pattern)):
        if not is_whole(path):
            return f"{path.name} is cut off"
    return weights_fault(folder)


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that LLaMA-Factory sees in an output folder, the latest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[11:]), reverse=True)


def describe(settings: dict) -> dict:
    """What a run learns from: the keys of the recipe, and checksums of the data and of a local base model."""
    files = [file for path in data_files(settings).values() if path for file in files_in(path)]
    return {
        "recipe": {key: value for key, value in settings.items() if key not in HARMLESS},
        "data": {str(path): sha256(path) for path in files},
        "base": fingerprint(Path(settings["model_name_or_path"])),
        "versions": installed_versions(LIBRARIES),
    }


def read_notes(folder: Path) -> dict:
    """What a run noted of itself: its description, and whether it is finished; empty if `make` did not train it."""
    return read_json(folder / "run.json")


def find_changes(before: dict, now: dict) -> list[str]:
    """What differs between two descriptions of a run, in words. Versions may differ."""
    changes = []
    for part in ("recipe", "data", "base"):
        old, new = before.get(part, {}), now[part]
        for key in [key for key in old | new if old.get(key) != new.get(key)]:
            changes.append(f"{key} {old.get(key)} → {new.get(key)}" if part == "recipe" else key)
    return changes


def read_state(settings: dict) -> State:
    """The state of a training's output folder. FRESH=1 and RESUME=1 in the environment are taken into account."""
    folder = Path(settings["output_dir"])
    faults = {path: checkpoint_fault(path) for path in find_checkpoints(folder)}
    broken = tuple((path, fault) for path, fault in faults.items() if fault)
    whole = next((path for path, fault in faults.items() if not fault), None)
    noted = read_notes(folder)
    fresh, resume = (os.environ.get(name) == "1" for name in ("FRESH", "RESUME"))
    if fresh:
        return State("new", f"{folder} is set aside first")
    # LLaMA-Factory writes train_results.json before the last evaluation, so run.json notes the end of our runs.
    if (folder / "train_results.json").exists() and (noted.get("finished", True) or not whole):
        return state_of_finished(folder, whole, settings if resume else {})
    changes = find_changes(noted, describe(settings)) if noted and whole and not resume else []
    if changes:
        text = f"{folder}/{whole.name} was trained with another recipe, data or base model ({'; '.join(changes)})"
        return State("changed", f"{text}: RESUME=1 resumes it all the same, FRESH=1 keeps it and trains anew beside it")
    return state_of_checkpoints(folder, whole, broken)


def state_of_finished(folder: Path, last: Path | None, wanted: dict) -> State:
    """The state of a finished run: it can go on from its last checkpoint if more epochs or steps are wanted."""
    done = read_json(last / "trainer_state.json") if last else {}
    steps = int(wanted.get("max_steps") or 0)
    epochs = 0 if steps > 0 else float(wanted.get("num_train_epochs") or 3)
    if wanted and done and (steps > done["global_step"] or epochs > done["num_train_epochs"]):
        return State("longer", f"{folder} is kept aside, and a copy goes on from its {last.name}", last)
    text = f"{folder} holds a finished run: `make eval` scores it, FRESH=1 trains anew beside it"
    more = f'RESUME=1 ARGS="num_train_epochs=<more than {done.get("num_train_epochs")}>" goes on from its end'
    return State("finished", f"{text}, {more}" if last else text)


def state_of_checkpoints(folder: Path, whole: Path | None, broken: tuple[tuple[Path, str], ...]) -> State:
    """The state of an unfinished run."""
    cut = "; ".join(f"{path.name} is set aside ({fault})" for path, fault in broken)
    if whole:
        return State("resumable", f"resumes from {folder}/{whole.name}" + f"; {cut}" * bool(cut), whole, broken)
    if any(folder.glob("adapter_model.*")) or any(folder.glob("*.safetensors")):
        return State("broken", f"{folder} holds neither a whole checkpoint nor a finished run: it is set aside")
    return State("new", f"{folder} is new" + f"; {cut}" * bool(cut), None, broken)


def set_aside(path: Path, mark: str = "") -> Path:
    """Renames a file or folder so that LLaMA-Factory does not look at it. Nothing is deleted."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S.%f")[:-3]
    return path.rename(path.with_name(f"{mark}{path.name}.{stamp}"))


def continue_copy(folder: Path, last: Path) -> None:
    """Sets a finished run aside, and puts its checkpoints, as hard links, and its log in its place."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for path in find_checkpoints(folder):
        shutil.copytree(path, part / path.name, copy_function=link)
    if (folder / "trainer_log.jsonl").exists():
        shutil.copy2(folder / "trainer_log.jsonl", part)
    # The evaluations without progress, after which a training stops early, are counted anew.
    state = part / last.name / "trainer_state.json"
    noted = read_json(state)
    noted.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {})["attributes"] = {}
    write_json(state, noted)
    say(f"{folder} was finished, and is kept as {set_aside(folder)}")
    part.rename(folder)


def prepare(settings: dict) -> Path | None:
    """Makes the output folder ready for LLaMA-Factory; returns the checkpoint that the run resumes from."""
    folder, state = Path(settings["output_dir"]), read_state(settings)
    if state.kind in ("finished", "changed"):
        fail(state.text)
    if folder.exists() and (state.kind == "broken" or os.environ.get("FRESH") == "1"):
        say(f"{folder} is set aside as {set_aside(folder)}")
    elif state.kind == "longer":
        continue_copy(folder, state.checkpoint)
    for path, fault in state.broken:
        say(f"{path} is not a whole checkpoint ({fault}): set aside as {set_aside(path, 'broken-').name}")
    write_json(folder / "run.json", describe(settings) | {"finished": False})
    step = int(state.checkpoint.name[11:]) if state.checkpoint else 0
    trim_log(folder / "trainer_log.jsonl", step)
    if step:
        say(f"Resuming from {state.checkpoint}")
    return state.checkpoint


def trim_log(log: Path, step: int) -> None:
    """Removes the lines after the step that a run resumes from, and a torn line. They are written again."""
    if log.exists():
        with whole_file(log) as file:
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, AttributeError):
                    if json.loads(line).get("current_steps", 0) <= step:
                        file.write(line + "\n")


def finish(folder: Path) -> None:
    """Notes that a run is finished."""
    write_json(folder / "run.json", read_notes(folder) | {"finished": True})


def lock_path(folder: Path) -> Path:
    """The lock file. It stands beside the folder, because the folder may be set aside."""
    return folder.with_name(f".{folder.name}.lock")


def lock_holder(lock: Path) -> str:
    """The id of the process that holds the lock; empty if none does."""
    with suppress(FileNotFoundError), lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "unknown"
    return ""


@contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Holds the folder's lock, or ends the program. The trainer inherits the lock, because it may outlive us."""
    path = lock_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"another run (process {lock_holder(path)}) is writing {folder}: wait for its end, or end it")
        yield lock


def going_on(folder: Path) -> str:
    """Where the same command resumes an ended training."""
    whole = [path for path in find_checkpoints(folder) if not checkpoint_fault(path)]
    return f"resumes from {whole[0]}" if whole else "begins again, for there is no checkpoint yet"
