"""Runs llamafactory-cli so that a kill, a full disk or a second run loses nothing.

  python scripts/run.py train configs/tiny/sft_qlora.yaml [key=value …]

Before a training it sets cut-off checkpoints aside, so that LLaMA-Factory goes on from the last whole one, and notes
recipe and data in run.json. It refuses a finished run, one in progress, and one whose recipe or data have changed:
RESUME=1 in the environment goes on all the same, FRESH=1 sets the folder aside and trains anew. An export is written
beside its folder and moved there when it is whole. A failed run says why in one line, and all in FOLDER.error.log.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from adgen import fail, installed_versions, read_recipe, whole_file

# Keys that do not change what a run learns: they may differ when it goes on.
HARMLESS = {"output_dir", "logging_steps", "save_steps", "save_total_limit", "plot_loss", "report_to"}
HARMLESS |= {"per_device_eval_batch_size", "preprocessing_num_workers", "dataloader_num_workers", "overwrite_cache"}
LIBRARIES = ("llamafactory", "torch", "transformers", "peft", "bitsandbytes")
# What a checkpoint must hold to go on from, or what stands for it in one of FSDP (*_fsdp*, optimizer*) or DeepSpeed.
NEEDED = {
    "trainer_state.json": (),
    "*.safetensors": ("pytorch_model_fsdp*", "global_step*"),
    "optimizer.pt": ("optimizer*", "global_step*"),
    "scheduler.pt": ("global_step*",),
    "rng_state*.pth": (),
}
GPU_FULL = re.compile(r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")
DISK_FULL = re.compile(r"No space left on device|os error 28\b|Disk quota exceeded|PytorchStreamWriter failed")
ERROR = re.compile(r"^(?:\[rank\d+\]: *)?((?:[\w.]+(?:Error|Exception)\b|error: ).*)", re.MULTILINE)
# The keys of the rows in a step, and of steps put together, with LLaMA-Factory's own values.
STEPS = ("gradient_accumulation_steps", 1)
BATCHES = {"train": (("per_device_train_batch_size", 8), STEPS), "eval": (("per_device_eval_batch_size", 8), STEPS)}
TRACEBACK = b"Traceback (most recent call last)"


def is_whole(path: Path) -> bool:
    """Whether a .safetensors, .json or torch file has its end. Only heads are read, and no torch is needed."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                tensors = json.loads(file.read(min(length, 10**8)))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
            return path.stat().st_size == 8 + length + max(ends)
        if path.suffix == ".json":
            return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        # torch.save writes a zip archive; its list of contents comes last.
        zipfile.ZipFile(path).close()
        return True
    except (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile):
        return False


def weights_fault(folder: Path) -> str:
    """What is wrong with a folder's safetensors: one is cut off, or an index names one that is not there."""
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]):
        if not is_whole(path):
            return f"{path.name} is cut off"
    for index in folder.glob("*.safetensors.index.json"):
        for name in sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())):
            if not (folder / name).is_file():
                return f"{name} is missing"
    return ""


def checkpoint_fault(folder: Path) -> str:
    """Why no training can go on from a checkpoint; empty when one can."""
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


def data_files(settings: dict) -> dict[str, Path | None]:
    """Data set → its file, None for one of a hub, of those that the recipe names; KeyError when one is unregistered."""
    folder = Path(settings.get("dataset_dir", "data"))
    registry = json.loads((folder / "dataset_info.json").read_text(encoding="ascii"))
    names = [name for key in ("dataset", "eval_dataset") for name in str(settings.get(key) or "").split(",") if name]
    files = {name: registry[name].get("file_name") for name in names if name != "null"}
    return {name: Path(os.path.normpath(folder / file)) if file else None for name, file in files.items()}


def sha256(path: Path) -> str:
    """The file's checksum in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(settings: dict) -> dict:
    """What a run learns from: the recipe's keys, checksums of the data, of a local base model its files' ends."""
    base = {}
    for path in sorted(Path(str(settings.get("model_name_or_path"))).glob("*.safetensors")):
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, 2**20), os.SEEK_END)
            base[path.name] = f"{path.stat().st_size} bytes, ends in {hashlib.sha256(file.read()).hexdigest()}"
    return {
        "recipe": {key: value for key, value in settings.items() if key not in HARMLESS},
        "data": {str(path): sha256(path) for path in data_files(settings).values() if path},
        "base": base,
        "versions": installed_versions(LIBRARIES),
    }


def find_changes(before: dict, now: dict) -> list[str]:
    """What differs between two descriptions of a run, in words; versions may differ."""
    changes = []
    for part in ("recipe", "data", "base"):
        old, new = before.get(part, {}), now[part]
        for key in [key for key in old | new if old.get(key) != new.get(key)]:
            changes.append(f"{key} {old.get(key)} → {new.get(key)}" if part == "recipe" else key)
    return changes


class State(NamedTuple):
    """How an output folder stands, and with which checkpoints (each broken one with its fault)."""

    kind: str  # "new", "resumable", "finished", "changed" or "broken" (as a whole)
    text: str
    checkpoint: Path | None = None
    broken: tuple[tuple[Path, str], ...] = ()


def look(settings: dict) -> State:
    """The state of a training's output folder."""
    folder = Path(settings["output_dir"])
    faults = {path: checkpoint_fault(path) for path in find_checkpoints(folder)}
    broken = tuple((path, fault) for path, fault in faults.items() if fault)
    whole = next((path for path, fault in faults.items() if not fault), None)
    noted = json.loads((folder / "run.json").read_text(encoding="utf-8")) if is_whole(folder / "run.json") else {}
    fresh, resume = (os.environ.get(name) == "1" for name in ("FRESH", "RESUME"))
    # LLaMA-Factory writes train_results.json before the last evaluation; a run of ours is noted as finished at its end.
    if (folder / "train_results.json").exists() and (noted.get("finished", True) or not whole) and not fresh:
        return State("finished", f"{folder} holds a finished run: `make eval` scores it, FRESH=1 trains anew beside it")
    if fresh:
        return State("new", f"{folder} is set aside first")
    changes = find_changes(noted, describe(settings)) if noted and whole and not resume else []
    if changes:
        text = f"{folder}/{whole.name} was trained with another recipe, data or base model ({'; '.join(changes)})"
        return State("changed", f"{text}: RESUME=1 goes on all the same, FRESH=1 keeps it and trains anew beside it")
    cut = "; ".join(f"{path.name} is set aside ({fault})" for path, fault in broken)
    if whole:
        text = f"goes on from {folder}/{whole.name}" + f"; {cut}" * bool(cut)
        return State("resumable", text, whole, broken)
    if any(folder.glob("adapter_model.*")) or any(folder.glob("*.safetensors")):
        return State("broken", f"{folder} holds neither a whole checkpoint nor a finished run: it is set aside")
    return State("new", f"{folder} is new" + f"; {cut}" * bool(cut), None, broken)


def set_aside(path: Path, mark: str = "") -> Path:
    """Gives a file or folder another name, at which LLaMA-Factory does not look: nothing is deleted."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{mark}{path.name}.{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{mark}{path.name}.{stamp}-{number}")
    path.rename(aside)
    return aside


def say(text: str) -> None:
    """A line for the one who waits before the terminal."""
    print(text, file=sys.stderr, flush=True)


def prepare(settings: dict) -> Path | None:
    """Makes the output folder one that LLaMA-Factory can train in; gives the checkpoint that it will go on from."""
    folder, state = Path(settings["output_dir"]), look(settings)
    if state.kind in ("finished", "changed"):
        fail(state.text)
    if folder.exists() and (state.kind == "broken" or os.environ.get("FRESH") == "1"):
        say(f"{folder} is set aside as {set_aside(folder)}")
    for path, fault in state.broken:
        say(f"{path} is no whole checkpoint ({fault}): set aside as {set_aside(path, 'broken-').name}")
    with whole_file(folder / "run.json") as file:
        json.dump(describe(settings) | {"finished": False}, file, ensure_ascii=False, indent=1, default=str)
    step = int(state.checkpoint.name[11:]) if state.checkpoint else 0
    trim_log(folder / "trainer_log.jsonl", step)
    if step:
        say(f"Going on from {state.checkpoint}")
    return state.checkpoint


def trim_log(log: Path, step: int) -> None:
    """Takes out what comes after the step that a run goes on from, and a torn line: it is written again."""
    if log.exists():
        with whole_file(log) as file:
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, AttributeError):
                    if json.loads(line).get("current_steps", 0) <= step:
                        file.write(line + "\n")


def finish(folder: Path, resumed: bool) -> None:
    """Notes that a run is finished."""
    if resumed:
        # LLaMA-Factory has divided the loss of the last part by all steps.
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        logged = [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]
        steps = [step for step, _ in logged]
        total = sum(loss * (step - last) for (step, loss), last in zip(logged, [0, *steps], strict=False))
        for path in (folder / "train_results.json", folder / "all_results.json"):
            results = json.loads(path.read_text(encoding="utf-8"))
            with whole_file(path) as file:
                json.dump(results | {"train_loss": total / max([1, *steps])}, file, indent=4)
    noted = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    with whole_file(folder / "run.json") as file:
        json.dump(noted | {"finished": True}, file, ensure_ascii=False, indent=1)


def lock_path(folder: Path) -> Path:
    """Beside the folder, which may be set aside."""
    return folder.with_name(f".{folder.name}.lock")


def lock_holder(lock: Path) -> str:
    """The process that holds the lock; empty when none does."""
    with suppress(FileNotFoundError), lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "unknown"
    return ""


@contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Holds the folder's lock, or ends the program. The trainer inherits it, for it may outlive this process."""
    path = lock_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"another run (process {lock_holder(path)}) is writing {folder}: wait for its end, or end it")
        yield lock


def supervise(words: list[str], settings: dict, folder: Path, lock: IO[str] | None) -> None:
    """Runs llamafactory-cli in a process group of its own; ends the program with one line when it fails or is ended.

    What it writes to stderr is handed on as it comes, but for a traceback at the end.
    """
    stopped, child = [], None

    def stop(number: int, _) -> None:
        stopped.append(number)
        with suppress(ProcessLookupError, AttributeError):
            os.killpg(child.pid, signal.SIGKILL if number == signal.SIGALRM else signal.SIGTERM)
        signal.alarm(20)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, stop)
    error_log(folder).unlink(missing_ok=True)
    size = shutil.get_terminal_size()
    seen = {"COLUMNS": str(size.columns), "LINES": str(size.lines)} if sys.stderr.isatty() else {}
    # That of this Python's environment, or what is called so on the way to others.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("llamafactory-cli", path=places) or fail("there is no llamafactory-cli; run `make setup`")
    child = subprocess.Popen(
        [program, *words],
        env=seen | os.environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=[lock.fileno()] if lock else [],
    )
    if lock:
        lock.truncate(0)
        lock.write(str(child.pid))
        lock.flush()
    if stopped:
        stop(stopped[0], None)
    held, since, end = b"", 0.0, b"\n"
    while chunk := child.stderr.read1():
        before, mark, rest = chunk.partition(TRACEBACK) if not held else (b"", b"", chunk)
        since = since if held else time.monotonic()
        held += mark + rest
        # A run that goes on after a traceback is to be seen.
        if held and time.monotonic() - since > 20:
            before, held = before + held, b""
        end = before or end
        sys.stderr.buffer.write(before)
        sys.stderr.buffer.flush()
    status = child.wait()
    signal.alarm(0)
    again = f"the same command {going_on(folder) if settings.get('do_train') else 'tries again'}"
    # The progress bar's line is not at its end.
    if (stopped or status) and not end.endswith(b"\n"):
        say("")
    if stopped:
        say(f"Stopped; {again}")
        raise SystemExit(128 + stopped[0])
    if status:
        fail(f"{explain(held.decode(errors='replace'), status, settings, folder)}; {again}")
    sys.stderr.buffer.write(held)


def going_on(folder: Path) -> str:
    """Where the same command takes up an ended training."""
    whole = [path for path in find_checkpoints(folder) if not checkpoint_fault(path)]
    return f"goes on from {whole[0]}" if whole else "begins again, for there is no checkpoint yet"


def error_log(folder: Path) -> Path:
    """Where all stands that a failed run had to say; beside the folder, which may not be there."""
    return folder.with_name(f"{folder.name}.error.log")


def explain(output: str, status: int, settings: dict, folder: Path) -> str:
    """What ended llamafactory-cli, and what to do; `output` is its stderr from the traceback on."""
    log = error_log(folder)
    with suppress(OSError):
        log.write_text(output, encoding="utf-8")
    more = f" (all that it said: {log})" if log.exists() and log.stat().st_size else ""
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if GPU_FULL.search(output):
        doing = "train" if settings.get("do_train") else "eval"
        batch, steps = (int(settings.get(key) or default) for key, default in BATCHES[doing])
        less = f"per_device_{doing}_batch_size={batch // 2}"
        less += f" gradient_accumulation_steps={steps * 2}" * (doing == "train")
        less = f'ARGS="{less}"' if batch > 1 else "METHOD=qlora or a smaller cutoff_len"
        return f"out of GPU memory: end what else is on the card (nvidia-smi), or need less by {less}{more}"
    if DISK_FULL.search(output) or free < 2**20:
        return f"the disk of {folder} is full: make room, or name a folder on another disk"
    if status == -signal.SIGKILL:
        return "killed by another program (SIGKILL), by the system itself if the machine's memory ran out"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}{more}"
    found = ERROR.findall(output)
    return (found[-1] if found else f"llamafactory-cli ended with status {status}") + more


def train(recipe: str, words: list[str], settings: dict) -> None:
    """Trains or predicts, the former from the last whole checkpoint on."""
    folder = Path(settings["output_dir"])
    # Of several nodes, the first looks after the folder.
    if not settings.get("do_train") or os.environ.get("NODE_RANK", "0") != "0":
        return supervise(["train", recipe, *words], settings, folder, None)
    with locked(folder) as lock:
        checkpoint = prepare(settings)
        # Else the count of evaluations without progress, after which training ends early, would begin anew.
        more = ["restore_callback_states_from_checkpoint=true"] * bool(checkpoint)
        supervise(["train", recipe, *words, *more], settings, folder, lock)
        finish(folder, bool(checkpoint))


def export(recipe: str, words: list[str], settings: dict) -> None:
    """Writes the merged model beside its folder, and moves it there when it is whole."""
    folder = Path(settings["export_dir"])
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        fail(f"{folder} holds something else than a model; name another folder with ARGS=export_dir=<folder>")
    part = folder.with_name(f".{folder.name}.part")
    with locked(folder) as lock:
        shutil.rmtree(part, ignore_errors=True)
        try:
            supervise(["export", recipe, *words, f"export_dir={part}"], settings, part, lock)
            if fault := weights_fault(part):
                fail(f"the export is not whole ({fault}); run it again")
            # safetensors gives them to their owner alone; a server may run as another user.
            for path in part.glob("*.safetensors"):
                path.chmod((part / "config.json").stat().st_mode)
            if folder.exists():
                old = set_aside(folder, ".")
                part.rename(folder)
                # What somebody else has put there, such as a GGUF file, is kept.
                if {path.name for path in old.iterdir()} <= {path.name for path in folder.iterdir()}:
                    shutil.rmtree(old)
                else:
                    say(f"{folder} held more files than this export: they are in {old}")
            else:
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("train", "export"))
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    settings = read_recipe(options.recipe, dict(word.split("=", 1) for word in options.overrides))
    run = train if options.verb == "train" else export
    run(str(options.recipe), options.overrides, settings)


if __name__ == "__main__":
    main()
