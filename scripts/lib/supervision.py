"""Runs llamafactory-cli under supervision: a kill or a full disk loses nothing, and a failure is said in one line."""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from lib.files import fail
from lib.run_folder import going_on, say

GPU_FULL = re.compile(r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")
MEMORY_FULL = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory|^MemoryError\b", re.MULTILINE)
# The exit status of a run whose memory ran out. With smaller batches it may succeed.
OUT_OF_MEMORY = 75
LIBC = ctypes.CDLL(None)
DISK_FULL = re.compile(r"No space left on device|os error 28\b|Disk quota exceeded|PytorchStreamWriter failed")
ERROR = re.compile(r"^(?:\[rank\d+\]: *)?((?:[\w.]+(?:Error|Exception)\b|error: ).*)", re.MULTILINE)
# The keys that set the batch size and the accumulation, with LLaMA-Factory's defaults.
STEPS = ("gradient_accumulation_steps", 1)
BATCHES = {"train": (("per_device_train_batch_size", 8), STEPS), "eval": (("per_device_eval_batch_size", 8), STEPS)}
TRACEBACK = b"Traceback (most recent call last)"
# A run that still lives so many seconds after a traceback goes on, and its output is shown again.
HELD_BACK = 20

# Variables that a run gets unless the user has set them: servers answer this machine only, LLaMA-Factory's log does not
# hide the progress bars, and less GPU memory is lost to gaps. The memory that recipes need was measured so.
DEFAULTS = {
    "GRADIO_SERVER_NAME": "127.0.0.1",
    "API_HOST": "127.0.0.1",
    "LLAMAFACTORY_VERBOSITY": "WARN",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
# On an H100 or H200, torch takes cuDNN's attention first. It plans anew for each length: fast to train, slow to write.
WRITING = {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}


def find_cli(name: str = "llamafactory-cli", setup: str = "make setup") -> str:
    """The path of a program: the one beside this Python, else the one on PATH. `setup`: what installs it."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=places) or fail(f"there is no {name}; run `{setup}`")


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """For a new process: has the system send it a signal when its parent ends, even by a kill. Works on Linux."""
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG
        LIBC.prctl(1, number)


def supervise(words: list[str], settings: dict, folder: Path, lock: IO[str] | None = None, **variables: str) -> None:
    """Runs `llamafactory-cli WORDS` in a process group of its own, with `variables` in its environment.

    Its stderr is shown as it comes, except for a traceback at the end. Ends the program with one line if the run fails
    or is stopped; the exit status is OUT_OF_MEMORY if memory ran out. Only a training outlives this program. `folder`:
    where the run writes; the error log stands beside it. `lock`: the folder's open lock file.
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
    # The child writes to a pipe, so it has to be told how wide the terminal is.
    size = shutil.get_terminal_size()
    seen = {"COLUMNS": str(size.columns), "LINES": str(size.lines)} if sys.stderr.isatty() else {}
    child = subprocess.Popen(
        [find_cli(), *words],
        env=seen | os.environ | variables,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=None if settings.get("do_train") else end_with_parent,
        pass_fds=[lock.fileno()] if lock else [],
    )
    if lock:
        lock.truncate(0)
        lock.write(str(child.pid))
        lock.flush()
    if stopped:
        stop(stopped[0], None)
    held, end = show(child.stderr)
    status = child.wait()
    signal.alarm(0)
    again = f"the same command {going_on(folder) if settings.get('do_train') else 'tries again'}"
    # The line of a progress bar has no end.
    if (stopped or status) and not end.endswith(b"\n"):
        say("")
    if stopped:
        say(f"Stopped; {again}")
        raise SystemExit(128 + stopped[0])
    if status:
        output = held.decode(errors="replace")
        problem = f"{explain(output, status, settings, folder)}; {again}"
        if status == -signal.SIGKILL or GPU_FULL.search(output) or MEMORY_FULL.search(output):
            say(f"error: {problem}")
            raise SystemExit(OUT_OF_MEMORY)
        fail(problem)
    sys.stderr.buffer.write(held)


def show(stream: IO[bytes]) -> tuple[bytes, bytes]:
    """Copies a stream to stderr, up to a traceback; returns what it held back from there, and the last bytes shown."""
    held, since, end = b"", 0.0, b"\n"
    while chunk := stream.read1():
        before, mark, rest = chunk.partition(TRACEBACK) if not held else (b"", b"", chunk)
        since = since if held else time.monotonic()
        held += mark + rest
        if held and time.monotonic() - since > HELD_BACK:
            before, held = before + held, b""
        end = before or end
        sys.stderr.buffer.write(before)
        sys.stderr.buffer.flush()
    return held, end


def error_log(folder: Path) -> Path:
    """The file with everything that a failed run said. It stands beside the folder, which may not exist."""
    return folder.with_name(f"{folder.name}.error.log")


def explain(output: str, status: int, settings: dict, folder: Path) -> str:
    """What ended llamafactory-cli, and what to do. `output`: its stderr from the traceback on."""
    log = error_log(folder)
    with suppress(OSError):
        log.write_text(output, encoding="utf-8")
    more = f" (its whole output: {log})" if log.exists() and log.stat().st_size else ""
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if GPU_FULL.search(output):
        return f"out of GPU memory: end what else is on the card (nvidia-smi), or {save_memory(settings)}{more}"
    if MEMORY_FULL.search(output):
        return f"out of memory: end other programs, or {save_memory(settings)}{more}"
    if DISK_FULL.search(output) or free < 2**20:
        return f"the disk of {folder} is full: make room, or name a folder on another disk"
    if status == -signal.SIGKILL:
        return "killed by another program (SIGKILL), or by the system because the machine's memory ran out"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}{more}"
    found = ERROR.findall(output)
    return (found[-1] if found else f"llamafactory-cli ended with status {status}") + more


def save_memory(settings: dict) -> str:
    """The override that makes a run need less GPU memory."""
    doing = "train" if settings.get("do_train") else "eval"
    batch, steps = (int(settings.get(key) or default) for key, default in BATCHES[doing])
    if batch <= 1:
        return "need less by METHOD=qlora or a smaller cutoff_len"
    less = f"per_device_{doing}_batch_size={batch // 2}"
    less += f" gradient_accumulation_steps={steps * 2}" * (doing == "train")
    return f'need less by ARGS="{less}"'
