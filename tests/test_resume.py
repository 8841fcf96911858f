"""What a kill, a full disk, a cut-off file or a second run do to a training, an export and other writers: nothing.

The trainings are of the tiny LoRA recipe for some steps; one left alone is what all others must end as.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from adgen import ROOT, read_json_lines
from conftest import BIN
from run import lock_holder, lock_path, sha256
from soak import last_step, losses

STEPS = {"max_steps": 24, "save_steps": 4, "eval_steps": 4, "logging_steps": 1, "save_total_limit": 9}
# The count of evaluations without progress goes on, too; so many there are not.
STEPS |= {"early_stopping_steps": 7}


def words(folder, *more):
    """The words of a `make train` into a folder."""
    keys = " ".join(f"{key}={value}" for key, value in (STEPS | {"output_dir": folder}).items())
    return ["train", "MODEL=tiny", "METHOD=lora", "DATA=sample", f"ARGS={' '.join([keys, *more])}"]


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


def wait_for(found, process, seconds=120):
    """Waits until `found()`, which must come before the process ends."""
    limit = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()[0][-2000:]
        assert time.monotonic() < limit
        time.sleep(0.005)


def errors(output):
    return [line for line in output.split("\n") if line.startswith("error: ")]


def same(first, second):
    """Whether two trainings have the same losses at every step and the same adapter, to the byte."""
    adapters = [(folder / "adapter_model.safetensors").read_bytes() for folder in (first, second)]
    return losses(first) == losses(second) and adapters[0] == adapters[1]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in another order round otherwise."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


@pytest.fixture(scope="module")
def whole(make, demo, tmp_path_factory):
    """The project and the folder of a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = make(demo[0], *words(folder))
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(list(folder.glob("checkpoint-*"))) == 6 and last_step(folder) == 24
    return demo[0], folder


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
def test_checkpoint_that_is_not_whole_is_seen(make, killed, name, how):
    project, folder = killed
    how(folder / "checkpoint-24" / name)
    status, text, code = doctor(make, project, folder)
    assert status == "warning" and code == 0
    assert f"{folder}/checkpoint-20" in text and "checkpoint-24 is set aside" in text
    assert ("*.safetensors" if name.startswith("adapter") and how is Path.unlink else name.split(".")[0]) in text


def test_killed_stopped_and_run_twice(make, whole, tmp_path):
    """kill -9 of the trainer, SIGTERM to make, Ctrl-C; between them, a second run; a cut checkpoint; then the end."""
    project, reference = whole
    folder = tmp_path / "run"

    def run_on():
        process = start(project, *words(folder))
        wait_for(lambda: lock_holder(lock_path(folder)), process)
        step = max(last_step(folder), 5)
        wait_for(lambda: last_step(folder) > step, process)
        return process

    process = run_on()
    line = make(project, *words(folder)).stderr
    assert len(errors(line)) == 1 and str(folder) in line and "process" in line
    assert "being written by process" in doctor(make, project, folder)[1]
    output = end(process, lambda tree: tree[-1].kill())
    assert "SIGKILL" in errors(output)[0] and f"goes on from {folder}/checkpoint-" in errors(output)[0]
    process = run_on()
    output = end(process, lambda tree: tree[0].send_signal(signal.SIGTERM))
    assert f"Stopped; the same command goes on from {folder}/checkpoint-" in output and not errors(output)
    process = run_on()
    output = end(process, lambda tree: os.killpg(tree[0].pid, signal.SIGINT))
    assert f"Stopped; the same command goes on from {folder}/checkpoint-" in output and not errors(output)
    last, before = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[:-3:-1]
    cut(last / "adapter_model.safetensors")
    with (folder / "trainer_log.jsonl").open("a") as log:
        log.write('{"current_steps": 25, "loss"')
    result = make(project, *words(folder))
    assert result.returncode == 0 and f"Going on from {before}\n" in result.stderr, result.stderr[-2000:]
    assert same(folder, reference) and list(folder.glob(f"broken-{last.name}.*"))
    logged = [row["current_steps"] for row in read_json_lines(folder / "trainer_log.jsonl") if "loss" in row]
    assert logged == [*range(1, 25)]
    mean = [json.loads((path / "train_results.json").read_text())["train_loss"] for path in (folder, reference)]
    assert mean[0] == pytest.approx(mean[1], abs=1e-3)
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
    assert "goes on from" in doctor(make, project, folder, "learning_rate=1e-3", RESUME="1")[1]
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
    command = [BIN / "python", "scripts/run.py", "train", "configs/tiny/sft_lora.yaml"]
    command += ["dataset=sample_train", "eval_dataset=sample_val", *words(folder)[-1].removeprefix("ARGS=").split()]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True)
    [line] = errors(result.stderr)
    assert result.returncode != 0 and "disk" in line and "full" in line and "goes on from" in line, line
    assert "Traceback" not in result.stderr
    # Half of a checkpoint is there, and will be set aside.
    subprocess.run(["mount", "-o", "remount,size=2g", small_disk], check=True)
    status, text, _ = doctor(make, project, folder)
    assert status == "warning" and line.split()[-1] in text and "is set aside" in text


def test_out_of_gpu_memory_says_what_to_override(whole, tmp_path):
    """The trainer is one that ends as PyTorch ends where a card is full: no test has a card."""
    shutil.copy(BIN.parent / "pyvenv.cfg", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").symlink_to(BIN.parent / "lib")
    (tmp_path / "bin/python").symlink_to((BIN / "python").resolve())
    trainer = tmp_path / "bin/llamafactory-cli"
    trainer.write_text(
        f"#!{sys.executable}\nimport sys, torch\nprint('50%', end='', file=sys.stderr)\n"
        "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')\n"
    )
    trainer.chmod(0o755)
    command = [tmp_path / "bin/python", "scripts/run.py", "train", "configs/tiny/sft_lora.yaml"]
    command += ["dataset=sample_train", "eval_dataset=sample_val", f"output_dir={tmp_path}/run"]
    result = subprocess.run(command, cwd=whole[0], capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert 'ARGS="per_device_train_batch_size=1 gradient_accumulation_steps=2"' in errors(result.stderr)[0]
    assert "torch.OutOfMemoryError" in (tmp_path / "run.error.log").read_text()


def test_killed_export(make, demo, tmp_path):
    """Killed while it writes, an export is not there; the one before stays until the next is whole."""
    project, folder = demo[0], tmp_path / "merged"
    target = ["export", "MODEL=tiny", "DATA=sample", f"ARGS=export_dir={folder}"]
    shutil.copytree(project / "exports/tiny", folder)
    (folder / "of_mine.gguf").write_text("kept")
    weights = (folder / "model.safetensors").read_bytes()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    process = start(project, *target)
    wait_for(lambda: (tmp_path / ".merged.part/config.json").exists(), process)
    end(process, lambda tree: [one.kill() for one in tree])
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    result = make(project, *target)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not [path for path in folder.rglob("*.json") if ".merged" in path.read_text(encoding="utf-8")]
    [old] = [path for path in tmp_path.iterdir() if path.is_dir() and path != folder]
    assert (old / "of_mine.gguf").read_text() == "kept"


def kill_at_random(command, seconds, project, times=8):
    """Runs a command and kills it after a random time, each time a longer one: most is written near the end."""
    draw = random.Random(1)
    for number in range(times):
        share = 0.5 + 0.5 * number / times
        process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output = process.communicate(timeout=seconds * (share + draw.uniform(0, 0.5 / times)))[0]
            assert process.returncode == 0, output
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            yield


def test_killed_data_preparation(make, clone, tmp_path):
    """What there is, is whole; and a card that is there is that of its files."""
    sample = read_json_lines(ROOT / "data/sample/train.jsonl")
    rows = [row | {"summary": f"{row['summary']}{number}"} for number in range(25) for row in sample]
    (tmp_path / "train.json").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "dev.json").write_text((ROOT / "data/sample/dev.jsonl").read_text(encoding="utf-8"))
    out = tmp_path / "out"
    command = [BIN / "python", "scripts/prepare_data.py", tmp_path, "--out", out, "--unk"]
    began = time.monotonic()
    subprocess.run([*command, "keep"], cwd=clone, check=True, capture_output=True)
    seconds, kills, cards = time.monotonic() - began, 0, 0
    for kills, _ in enumerate(kill_at_random([*command, "cut"], seconds, clone), 1):  # noqa: B007
        for path in out.glob("adgen_*.jsonl"):
            assert path.read_bytes().endswith(b"\n") or path.name == "adgen_rejected.jsonl"
        card = out / "adgen_card.json"
        if card.exists():
            cards += 1
            for name, entry in json.loads(card.read_text(encoding="utf-8"))["output"].items():
                assert sha256(out / name) == entry["sha256"]
    assert kills >= 3 and cards


def test_killed_report(demo, tmp_path):
    project = demo[0]
    command = [BIN / "python", "scripts/report.py", "--data", "data/sample/dev.jsonl", "--out", tmp_path]
    command += [f"{name}=saves/Custom/predict/sample_{run}/generated_predictions.jsonl" for name, run in RUNS.items()]
    command += ["--trainer-log", "saves/Custom/lora/sample_qlora/trainer_log.jsonl"]
    began, kills = time.monotonic(), 0
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    seconds = time.monotonic() - began
    for kills, _ in enumerate(kill_at_random(command, seconds, project, times=2), 1):  # noqa: B007
        assert json.loads((tmp_path / "eval_results.json").read_text())
        assert (tmp_path / "examples.md").read_bytes().endswith(b"\n")
        for name in ("eval.png", "train_loss.png"):
            assert (tmp_path / name).read_bytes()[-8:-4] == b"IEND"
    assert kills


RUNS = {"base": "base", "tuned": "qlora"}
