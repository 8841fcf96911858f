"""What the benchmarks share: run a command and watch it, ask the GPU for its name, write results and their table."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.cards import one_card
from lib.files import ROOT, fail, installed_versions, whole_file, write_json
from lib.gpu import ask_cards

# llamafactory-cli as a module of this Python. -P: a Python file in the working folder cannot take a library's place.
PROGRAM = [sys.executable, "-P", "-m", "llamafactory.cli"]
SCRATCH = ROOT / "saves/bench"
LIBRARIES = ("llamafactory", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "liger-kernel", "vllm")


def shown(path: Path) -> str:
    """A path as text, relative to the project's root if it lies in it: so a command can be copied from the results."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def ask_card(fields: str) -> list[str]:
    """The answers of nvidia-smi to comma-separated query fields, for the GPU to measure; empty without a GPU."""
    answer = ask_cards(f"--query-gpu={fields} --format=csv,noheader,nounits")
    return [field.strip() for field in answer.split("\n")[0].split(",")] if answer else []


def card_file(folder: Path, card: str, kind: str = "") -> Path:
    """The results file for a card of this name: `folder`/`kind`nvidia-h200.json for NVIDIA H200."""
    return folder / f"{kind}{re.sub('[^a-z0-9]+', '-', card.lower())}.json"


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide the speed."""
    return {"python": platform.python_version()} | installed_versions(LIBRARIES)


def versions_text(results: dict) -> str:
    """The versions of a results file, as the text beside its table names them."""
    return ", ".join(f"{name} {number}" for name, number in results["versions"].items())


def poll_memory(readings: list[float], stop: threading.Event) -> None:
    """Appends the GPU memory in use by all processes, in GiB, every 0.2 s until `stop` is set."""
    while not stop.wait(0.2) and (answer := ask_card("memory.used")):
        readings.append(float(answer[0]) / 1024)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The GPU memory in use in GiB, read again and again until the end of the block; empty without a GPU."""
    readings, stop = [], threading.Event()
    poll = threading.Thread(target=poll_memory, args=(readings, stop))
    poll.start()
    try:
        yield readings
    finally:
        stop.set()
        poll.join()


def watch(command: list[str], log: Path, trainer_log: Path | None = None, **variables: str) -> dict:
    """Runs a command in the project's root, with its output in `log`, and measures it. It sees the first GPU only.

    `trainer_log`: a file that the command writes line by line. `variables`: added to its environment; they may show it
    more. Returns

    - status: the exit status, below 0 for a signal;
    - seconds: from start to end;
    - peak_gib: peak memory in use on the GPU, other processes included; None without a GPU;
    - lines: for each line of `trainer_log` the seconds after which it was there, to 0.01 s.

    On Ctrl-C the command is killed.
    """
    lines = []
    environment = os.environ | one_card() | variables | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("wb") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
    with peak_memory() as readings:
        try:
            ended = False
            while not ended:
                # The last lines are read after the end: poll first, then read.
                ended = child.poll() is not None
                seconds = time.monotonic() - start
                if trainer_log and trainer_log.exists():
                    lines += [seconds] * (trainer_log.read_bytes().count(b"\n") - len(lines))
                time.sleep(0.01)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return {"status": child.returncode, "seconds": seconds, "lines": lines, "peak_gib": max(readings, default=None)}


def last_error(log: Path, status: int) -> str:
    """The line in the output of a failed command that names the error, at most 300 characters; else its last line."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}" + ": out of memory?" * (status == -signal.SIGKILL)
    lines = log.read_text(encoding="utf-8", errors="replace").replace(f"{ROOT}/", "").splitlines()
    # Of several processes, torchrun says once more that one of them failed.
    lines = [re.sub(r"^\[rank\d+\]: *", "", line) for line in lines if not re.search(r"C(alled|hild)\w+Error:", line)]
    found = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|error: ", line)]
    return (found or [line for line in lines if line.strip()] or ["it ended without output"])[-1].strip()[:300]


def check(command: list[str], log: Path) -> None:
    """Runs a command that has to succeed; ends the program with its error if it fails."""
    watched = watch(command, log)
    if watched["status"]:
        fail(f"{last_error(log, watched['status'])} (its whole output is in {shown(log)})")


def tidy(value: object) -> object:
    """A copy of a JSON value in which floats have four significant digits."""
    if isinstance(value, dict):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [tidy(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def cell(value: float | None) -> str:
    """A figure as a table shows it: two decimals below 1, one below 100, none above; – for None."""
    return "–" if value is None else f"{value:,.{2 if value < 1 else 1 if value < 100 else 0}f}"


def percent(value: float | None) -> str:
    """A share as a table shows it, in per cent; – for None."""
    return "–" if value is None else f"{value:.0%}"


def add_results(path: Path, results: dict, name: str, keys: tuple[str, ...]) -> dict:
    """The results with those entries of their list `name` that an earlier run on the same model has left in a file.

    An entry that has the same `keys` as a new one is left out: it was measured again.
    """
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = all(old.get(key) == results[key] for key in ("gpu", "model", "max_tokens"))
    new = [[entry.get(key) for key in keys] for entry in results[name]]
    kept = [entry for entry in old.get(name, []) if same and [entry.get(key) for key in keys] not in new]
    return results | {name: kept + results[name]}


def write_results(path: Path, results: dict, text: str) -> None:
    """Writes results as JSON to `path`, and as Markdown beside it, under the same name with .md."""
    write_json(path, results)
    with whole_file(path.with_suffix(".md")) as file:
        file.write(text)
