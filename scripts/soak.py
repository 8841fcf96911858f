"""Kills a tiny training with SIGKILL again and again, lets it end, and holds it against the same training left alone.

  python scripts/soak.py --kills 24 --out results/soak.json

Each life is a `make train` of its own, and each kill hits at random: while the program starts, between steps, or while
a checkpoint is being written; the trainer alone, all processes, or all but the trainer. At the end every step's loss,
the validation losses and the adapter must be the same, byte for byte. Needs a CPU and some minutes.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
from adgen import ROOT, fail, installed_versions, write_json
from run import LIBRARIES, lock_holder, lock_path

SCRATCH = ROOT / "saves/soak"
RECIPE = {"eval_steps": 4, "save_steps": 4, "logging_steps": 1, "early_stopping_steps": 1000, "plot_loss": "false"}
MOMENTS, VICTIMS = ("start", "steps", "checkpoint"), ("trainer", "all", "all but the trainer")


def start(folder: Path, steps: int) -> subprocess.Popen:
    """`make train` of the tiny LoRA recipe, in a group of its own, its output in FOLDER.log."""
    words = " ".join(f"{key}={value}" for key, value in (RECIPE | {"max_steps": steps, "output_dir": folder}).items())
    command = ["make", f"BIN={Path(sys.executable).parent}", "train", "MODEL=tiny", "METHOD=lora", "DATA=sample"]
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen([*command, f"ARGS={words}"], cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def last_step(folder: Path) -> int:
    """The last step that the training has logged."""
    log = folder / "trainer_log.jsonl"
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["current_steps"] if lines else 0


def wait_for(moment: str, folder: Path, process: subprocess.Popen, draw: random.Random) -> None:
    """Returns at a random point of the moment, or when the process has ended."""
    if moment == "start":
        return time.sleep(draw.uniform(0, 8))
    known, step = set(folder.glob("checkpoint-*")), None
    while process.poll() is None:
        time.sleep(0.002)
        if moment == "checkpoint" and set(folder.glob("checkpoint-*")) - known:
            return time.sleep(draw.uniform(0, 0.03))
        # run.py has cut the log to its checkpoint when the lock names the trainer.
        if moment == "steps" and lock_holder(lock_path(folder)):
            step = last_step(folder) if step is None else step
            if last_step(folder) > step:
                return time.sleep(draw.uniform(0, 2))
    return None


def kill(victim: str, process: subprocess.Popen) -> None:
    """Kills some of the processes of a `make train`, and waits until all have gone."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    trainer = [one for one in tree if any("llamafactory-cli" in word for word in one.cmdline())]
    chosen = {"all": tree, "trainer": trainer, "all but the trainer": [one for one in tree if one not in trainer]}[
        victim
    ]
    for one in chosen or tree:
        one.kill()
    process.wait()
    psutil.wait_procs(tree, timeout=120)


def losses(folder: Path) -> list[tuple[int, str, float]]:
    """(step, which, loss) of all training and validation losses, in order, from trainer_state.json."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [(row["step"], name, row[name]) for row in history for name in ("loss", "eval_loss") if name in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24, help="how often (default: 24)")
    parser.add_argument("--steps", type=int, default=280, help="of the training (default: 280)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    whole, killed = SCRATCH / "whole", SCRATCH / "killed"
    if start(whole, options.steps).wait():
        fail(f"the unbroken training failed; all that it said: {whole}.log")
    draw, kills = random.Random(options.seed), []
    while len(kills) < options.kills:
        moment, victim = draw.choice(MOMENTS), draw.choice(VICTIMS)
        process, began = start(killed, options.steps), time.monotonic()
        wait_for(moment, killed, process, draw)
        if process.poll() is not None:
            fail(f"the training ended after {len(kills)} kills (more --steps?); all that it said: {killed}.log")
        entry = {"moment": moment, "victim": victim, "seconds": round(time.monotonic() - began, 2)}
        kill(victim, process)
        kills.append(entry | {"step": last_step(killed)})
        print(
            f"{len(kills):>3}  {moment:<11} {victim:<20} after {entry['seconds']:>6} s, step {kills[-1]['step']}",
            flush=True,
        )
    if start(killed, options.steps).wait():
        fail(f"the training did not end; all that it said: {killed}.log")
    said = killed.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    adapters = [(folder / "adapter_model.safetensors").read_bytes() for folder in (whole, killed)]
    results = {
        "seed": options.seed,
        "kills": kills,
        "checkpoints set aside": len(list(killed.glob("broken-*"))),
        "tracebacks": said.count("Traceback"),
        "steps": [last_step(folder) for folder in (whole, killed)],
        "final loss": [[row for row in losses(folder) if row[1] == "loss"][-1][2] for folder in (whole, killed)],
        "same losses at every step": losses(whole) == losses(killed),
        "same adapter": adapters[0] == adapters[1],
        "machine": platform.processor() or platform.machine(),
        "versions": installed_versions(LIBRARIES),
    }
    for name in (
        "checkpoints set aside",
        "tracebacks",
        "steps",
        "final loss",
        "same losses at every step",
        "same adapter",
    ):
        print(f"{name}: {results[name]}")
    if options.out:
        write_json(options.out, results)
    if not (results["same losses at every step"] and results["same adapter"]) or results["tracebacks"]:
        fail(f"the killed training is not as the unbroken one; see {SCRATCH}")


if __name__ == "__main__":
    main()
