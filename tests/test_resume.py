"""A kill, a full disk, a cut-off checkpoint or a second run do no harm to a training.

The trainings are of the tiny LoRA recipe for some steps; one left alone is what all others must end as.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from common import BIN, copy_demo
from lib.files import read_json_lines
from lib.run_folder import lock_holder, lock_path, read_state
from processes import end, errors, last_step, losses, start, wait_for, without_memory

STEPS = {"max_steps": 24, "save_steps": 4, "eval_steps": 4, "logging_steps": 1, "save_total_limit": 9}
# The count of evaluations without progress goes on, too; so many there are not.
STEPS |= {"early_stopping_steps": 7}


def words(folder, *more):
    """The words of a `make train` into a folder."""
    keys = " ".join(f"{key}={value}" for key, value in (STEPS | {"output_dir": folder}).items())
    return ["train", "MODEL=tiny", "METHOD=lora", "DATA=sample", f"ARGS={' '.join([keys, *more])}"]


def same(first, second):
    """Whether two trainings have the same losses at every step and the same adapter, to the byte."""
    adapters = [(folder / "adapter_model.safetensors").read_bytes() for folder in (first, second)]
    return losses(first) == losses(second) and adapters[0] == adapters[1]


@pytest.fixture(scope="module")
def whole(make, demo, tmp_path_factory):
    """The project and the folder of a training that nobody disturbed."""
    project = copy_demo(demo[0], tmp_path_factory.mktemp("project"), "checkpoint-*")
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = make(project, *words(folder))
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(list(folder.glob("checkpoint-*"))) == 6 and last_step(folder) == 24
    return project, folder


@pytest.fixture
def killed(whole, tmp_path):
    """A copy of that training as it was before its end: checkpoints, and nothing finished."""
    folder = tmp_path / "killed"
    shutil.copytree(whole[1], folder)
    for name in ("adapter_model.safetensors", "train_results.json", "all_results.json", "eval_results.json"):
        (folder / name).unlink()
    noted = json.loads((folder / "run.json").read_text())
    assert noted["finished"] is True
    (folder / "run.json").write_text(json.dumps(noted | {"finished": False}))
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        path.write_text(path.read_text().replace(str(whole[1]), str(folder)))
    return whole[0], folder


def cut(path, size=-20):
    path.write_bytes(path.read_bytes()[:size])


def doctor(make, project, folder, *more, **variables):
    """What `make doctor` says of the output folder: status and text."""
    result = make(project, "doctor", *words(folder, *more, "--json")[1:], **variables)
    [line] = [line for line in json.loads(result.stdout) if line["check"] == "output"]
    return line["status"], line["text"], result.returncode


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
@pytest.mark.parametrize(
    "how", [lambda path: cut(path), lambda path: cut(path, 0), Path.unlink], ids=["end", "all", "file"]
)
def test_checkpoint_that_is_not_whole_is_seen(killed, name, how, monkeypatch):
    project, folder = killed
    monkeypatch.chdir(project)
    how(folder / "checkpoint-24" / name)
    recipe = json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"]
    state = read_state(recipe | {"output_dir": str(folder)})
    assert state.checkpoint == folder / "checkpoint-20"
    assert f"{folder}/checkpoint-20" in state.text and "checkpoint-24 is set aside" in state.text
    assert ("*.safetensors" if name.startswith("adapter") and how is Path.unlink else name.split(".")[0]) in state.text


def test_killed_stopped_and_run_twice(make, whole, tmp_path):
    """kill -9 of the trainer, SIGTERM to make, Ctrl-C; between them, a second run; a cut checkpoint; then the end."""
    project, reference = whole
    folder = tmp_path / "run"
    lock = lock_path(folder)

    def run_on():
        process = start(project, *words(folder))
        outer = psutil.Process(process.pid)
        # The trainer is there when its number stands in the lock.
        wait_for(lambda: lock_holder(lock) in {str(one.pid) for one in outer.children(recursive=True)}, process)
        return process

    process = run_on()
    # Two checkpoints are there, and a step beyond them.
    wait_for(lambda: last_step(folder) > 8, process)
    line = make(project, *words(folder)).stderr
    assert len(errors(line)) == 1 and str(folder) in line and "process" in line
    assert "being written by process" in doctor(make, project, folder)[1]
    output = end(process, lambda tree: tree[-1].kill())
    assert "SIGKILL" in errors(output)[0] and f"resumes from {folder}/checkpoint-" in errors(output)[0]
    process = run_on()
    output = end(process, lambda tree: tree[0].send_signal(signal.SIGTERM))
    assert f"Stopped; the same command resumes from {folder}/checkpoint-" in output and not errors(output)
    process = run_on()
    output = end(process, lambda tree: os.killpg(tree[0].pid, signal.SIGINT))
    assert f"Stopped; the same command resumes from {folder}/checkpoint-" in output and not errors(output)
    last, before = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[:-3:-1]
    cut(last / "adapter_model.safetensors")
    with (folder / "trainer_log.jsonl").open("a") as log:
        log.write('{"current_steps": 25, "loss"')
    result = make(project, *words(folder))
    assert result.returncode == 0 and f"Resuming from {before}\n" in result.stderr, result.stderr[-2000:]
    assert same(folder, reference) and list(folder.glob(f"broken-{last.name}.*"))
    logged = [row["current_steps"] for row in read_json_lines(folder / "trainer_log.jsonl") if "loss" in row]
    assert logged == [*range(1, 25)]
    again = make(project, *words(folder))
    assert "FRESH=1" in errors(again.stderr)[0] and same(folder, reference)


def test_changed_recipe_or_data_is_refused_unless_asked(make, killed):
    project, folder = killed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = make(project, *words(folder, "learning_rate=1e-3", "lora_rank=4"))
    [line] = errors(result.stderr)
    assert result.returncode != 0 and "learning_rate 0.01 → 0.001" in line and "lora_rank 8 → 4" in line
    assert "RESUME=1" in line and "FRESH=1" in line and "checkpoint-24" in line
    rows = project / "data/sample/val.jsonl"
    kept = rows.read_bytes()
    try:
        rows.write_bytes(kept + kept.split(b"\n")[0] + b"\n")
        assert "data/sample/val.jsonl" in errors(make(project, *words(folder)).stderr)[0]
    finally:
        rows.write_bytes(kept)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    # The same value written otherwise, and what does not change the result.
    assert doctor(make, project, folder, "learning_rate=0.01", "save_steps=8", "logging_steps=2")[0] == "ok"
    assert "resumes from" in doctor(make, project, folder, "learning_rate=1e-3", RESUME="1")[1]
    assert "set aside" in doctor(make, project, folder, "learning_rate=1e-3", FRESH="1")[1]


def test_fresh_keeps_the_old_run(killed, whole):
    project, folder = killed
    shutil.copy(whole[1] / "train_results.json", folder)
    process = start(project, *words(folder, "learning_rate=1e-3"), FRESH="1")
    wait_for(lambda: (folder / "run.json").exists() and list(folder.parent.glob("killed.2*")), process)
    end(process, lambda tree: [one.kill() for one in tree])
    [old] = folder.parent.glob("killed.2*")
    assert len(list(old.glob("checkpoint-*"))) == 6 and (old / "train_results.json").exists()
    assert {path.name for path in folder.iterdir()} == {"run.json"}


def test_folder_without_checkpoint_or_result(make, killed):
    project, folder = killed
    shutil.copy(folder / "checkpoint-24/adapter_model.safetensors", folder)
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    status, text, _ = doctor(make, project, folder)
    assert status == "warning" and "set aside" in text
    process = start(project, *words(folder))
    wait_for(lambda: list(folder.parent.glob("killed.2*")), process)
    end(process, lambda tree: [one.kill() for one in tree])
    [old] = folder.parent.glob("killed.2*")
    assert (old / "adapter_model.safetensors").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100k", "none", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(make, whole, small_disk):
    project, folder = whole[0], small_disk / "run"
    # Looked at before the run, the disk is too small; the way around is what a disk that fills up meanwhile would be.
    assert "GB free" in errors(make(project, *words(folder)).stderr)[0]
    program = "import sys, pathlib, lib.runs as runs; runs.run_training(pathlib.Path(sys.argv[1]), sys.argv[2:], {})"
    command = ["env", "PYTHONPATH=scripts", BIN / "python", "-c", program, "configs/tiny/sft_lora.yaml"]
    command += ["dataset=sample_train", "eval_dataset=sample_val", *words(folder)[-1].removeprefix("ARGS=").split()]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True)
    [line] = errors(result.stderr)
    assert result.returncode != 0 and "disk" in line and "full" in line and "resumes from" in line, line
    assert "Traceback" not in result.stderr
    # Half of a checkpoint is there, and will be set aside.
    subprocess.run(["mount", "-o", "remount,size=2g", small_disk], check=True)
    status, text, _ = doctor(make, project, folder)
    assert status == "warning" and line.split()[-1] in text and "is set aside" in text


def test_out_of_gpu_memory_says_what_to_override(whole, tmp_path):
    command = [without_memory(tmp_path), "scripts/launch.py", "train", f"output_dir={tmp_path}/run"]
    command.append("per_device_train_batch_size=2")
    tiny = os.environ | {"MODEL": "tiny", "METHOD": "lora", "DATA": "sample"}
    result = subprocess.run(command, cwd=whole[0], env=tiny, capture_output=True, text=True)
    assert result.returncode == 75 and "Traceback" not in result.stderr
    assert 'ARGS="per_device_train_batch_size=1 gradient_accumulation_steps=2"' in errors(result.stderr)[0]
    assert "torch.OutOfMemoryError" in (tmp_path / "run.error.log").read_text()


def test_finished_run_goes_on_with_more_steps(make, whole, tmp_path):
    """The old run stays as it was. The new one goes on from its end, after a kill, too."""
    project, folder = whole[0], tmp_path / "longer"
    shutil.copytree(whole[1], folder)
    for variables, more in (({}, "max_steps=28"), ({"RESUME": "1"}, "max_steps=24"), ({"RESUME": "1"}, "max_steps=9")):
        line = errors(make(project, *words(folder, more), **variables).stderr)[0]
        assert "RESUME=1" in line and "num_train_epochs" in line and "FRESH=1" in line
    assert "is kept aside" in doctor(make, project, folder, "max_steps=28", RESUME="1")[1]
    process = start(project, *words(folder, "max_steps=28"), RESUME="1")
    wait_for(lambda: list(folder.parent.glob("longer.2*")) and lock_holder(lock_path(folder)), process)
    end(process, lambda tree: [one.kill() for one in tree])
    result = make(project, *words(folder, "max_steps=28"))
    assert result.returncode == 0 and f"Resuming from {folder}/checkpoint-" in result.stderr, result.stderr[-2000:]
    [old] = folder.parent.glob("longer.2*")
    assert same(old, whole[1]) and len(list(old.glob("checkpoint-*"))) == 6
    state = old / "checkpoint-24/trainer_state.json"
    assert state.read_bytes() == (whole[1] / "checkpoint-24/trainer_state.json").read_bytes()
    assert last_step(folder) == 28 and losses(folder)[: len(losses(old))] == losses(old) and not same(folder, old)
