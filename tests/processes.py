"""Runs of `make` that tests kill, and what a training has left so far."""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
from common import BIN


def last_step(folder):
    """The last step that a training has logged."""
    log = folder / "trainer_log.jsonl"
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["current_steps"] if lines else 0


def losses(folder):
    """(step, which, loss) of all training and validation losses, in order."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [(row["step"], name, row[name]) for row in history for name in ("loss", "eval_loss") if name in row]


def start(project, *targets, **variables):
    """A `make` that runs on, as from a terminal, in a process group of its own."""
    return subprocess.Popen(
        ["make", f"BIN={BIN}", *targets],
        cwd=project,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def end(process, kill, timeout=60):
    """Ends a `make` by `kill(its processes)`, the outermost first; gives what it said. No process of it is left."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    kill(tree)
    output = process.communicate(timeout=timeout)[0]
    assert not psutil.wait_procs(tree, timeout=timeout)[1]
    assert process.returncode != 0 and "Traceback" not in output
    return output


def wait_for(found, process=None, seconds=120):
    """Waits until `found()`, which must come before the process ends, if one is named."""
    limit = time.monotonic() + seconds
    while not found():
        assert process is None or process.poll() is None, process.communicate()[0][-2000:]
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)


def without_memory(folder, most=0):
    """A Python, and beside it a llamafactory-cli that fails as PyTorch does on batches of more than `most` rows.

    No test has a card that could be full.
    """
    (folder / "bin").mkdir(parents=True)
    shutil.copy(BIN.parent / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(BIN.parent / "lib")
    (folder / "bin/python").symlink_to((BIN / "python").resolve())
    trainer = folder / "bin/llamafactory-cli"
    trainer.write_text(
        f"#!{sys.executable}\nimport os, re, sys\n"
        "class OutOfMemoryError(RuntimeError): __module__ = 'torch'\n"
        f"if int(re.search('per_device_[a-z]+_batch_size=([0-9]+)', ' '.join(sys.argv))[1]) > {most}:\n"
        "    print('50%', end='', file=sys.stderr)\n"
        "    raise OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')\n"
        f"os.execv({str(BIN / 'llamafactory-cli')!r}, sys.argv)\n"
    )
    trainer.chmod(0o755)
    return folder / "bin/python"


def errors(output):
    return [line for line in output.split("\n") if line.startswith("error: ")]
