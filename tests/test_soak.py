"""Kills a tiny training again and again at random moments, and compares its end with a training left alone.

It takes a quarter of an hour: `make test ARGS="-m slow"`. KILLS and SEED in the environment choose how often and when.
"""

import os
import random
import time

import psutil
import pytest
from processes import last_step, losses, start

pytestmark = pytest.mark.slow
KILLS, SEED = int(os.environ.get("KILLS", 24)), int(os.environ.get("SEED", 1))
STEPS = {"max_steps": 280, "eval_steps": 4, "save_steps": 4, "logging_steps": 1, "early_stopping_steps": 1000}


def words(folder):
    """The words of a `make train` into a folder."""
    keys = " ".join(f"{key}={value}" for key, value in (STEPS | {"plot_loss": "false", "output_dir": folder}).items())
    return ["train", "MODEL=tiny", "METHOD=lora", "DATA=sample", f"ARGS={keys}"]


def wait_for(moment, folder, process, draw):
    """Returns at a random time while the program starts, between steps, or while a checkpoint is written."""
    if moment == "start":
        return time.sleep(draw.uniform(0, 8))
    known, step = set(folder.glob("checkpoint-*")), last_step(folder)
    while process.poll() is None:
        time.sleep(0.002)
        if moment == "checkpoint" and set(folder.glob("checkpoint-*")) - known:
            return time.sleep(draw.uniform(0, 0.03))
        if moment == "steps" and last_step(folder) > step:
            return time.sleep(draw.uniform(0, 2))
    return None


def kill(victim, process):
    """Kills the trainer, all processes, or all but the trainer; waits until all of them have ended."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    trainer = [one for one in tree if any("llamafactory-cli" in word for word in one.cmdline())]
    chosen = {"all": tree, "trainer": trainer, "others": [one for one in tree if one not in trainer]}[victim]
    for one in chosen or tree:
        one.kill()
    output = process.communicate()[0]
    psutil.wait_procs(tree, timeout=120)
    return output


def test_a_training_killed_at_random_ends_like_one_left_alone(make, demo, tmp_path, monkeypatch):
    # Sums in another order would be rounded otherwise.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert make(demo[0], *words(whole), timeout=3600).returncode == 0
    draw = random.Random(SEED)
    for number in range(KILLS):
        process = start(demo[0], *words(killed))
        wait_for(draw.choice(["start", "steps", "checkpoint"]), killed, process, draw)
        assert process.poll() is None, f"the training ended after {number} kills: {process.communicate()[0][-2000:]}"
        assert "Traceback" not in kill(draw.choice(["trainer", "all", "others"]), process)
    result = make(demo[0], *words(killed), timeout=3600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert losses(whole) == losses(killed)
    assert (whole / "adapter_model.safetensors").read_bytes() == (killed / "adapter_model.safetensors").read_bytes()
