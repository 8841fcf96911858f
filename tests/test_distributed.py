"""More than one card: as many processes train what one trains, survive a kill, and a wrong wish ends in one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import psutil
import pytest
import yaml
from common import BIN, one_error
from lib.choices import STRATEGIES
from lib.files import ROOT, read_json_lines

STEPS = 16
# Of fp32 losses around 1, which are logged with four digits: the order of additions differs, and steps build on it.
TOLERANCE = 2e-4
# SGD without clipping shows gradients of a wrong scale, which AdamW hides. And where several processes share a CPU,
# transformers reads no AdamW state back: accelerate calls the device "cpu:0", a name that torch.load does not know.
SGD = "optim=sgd learning_rate=0.2 max_grad_norm=100"


def words(output, *more):
    """Words for `make` that train the tiny LoRA recipe for some steps of two rows, with a checkpoint every eight."""
    short = f"max_steps={STEPS} eval_steps=8 save_steps=8 logging_steps=1 max_samples=400 plot_loss=false"
    arguments = " ".join([f"output_dir={output}", short, SGD, *(more or ["per_device_train_batch_size=2"])])
    return "train", "MODEL=tiny", "METHOD=lora", "DATA=sample", f"ARGS={arguments}"


def read_losses(folder):
    """Step → the losses that were logged for it."""
    found = {}
    for row in read_json_lines(folder / "trainer_log.jsonl"):
        if "loss" in row:
            found.setdefault(row["current_steps"], []).append(row["loss"])
    return found


def kill_worker(launcher, folder):
    """Kills the second worker when steps after the first checkpoint are done; gives the step, or None."""
    for _ in range(2400):
        time.sleep(0.05)
        if (folder / "checkpoint-8/trainer_state.json").exists() and (step := max(read_losses(folder), default=0)) > 9:
            for process in psutil.Process(launcher.pid).children(recursive=True):
                if process.environ().get("LOCAL_RANK") == "1":
                    os.kill(process.pid, signal.SIGKILL)
                    return step
    return None


@pytest.fixture(scope="module")
def alone(make, demo, tmp_path_factory):
    """The losses of one process."""
    output = tmp_path_factory.mktemp("alone") / "one"
    result = make(demo[0], *words(output))
    assert result.returncode == 0, result.stderr[-2000:]
    return read_losses(output)


def test_two_processes_train_like_one_and_survive_the_kill_of_a_worker(demo, alone, tmp_path):
    # One row each instead of two: the same rows in every step.
    together = words(tmp_path / "two", "per_device_train_batch_size=1")
    command = ["make", f"BIN={BIN}", "GPUS=2", "RDZV_ID=test", "MAX_RESTARTS=1", *together]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(command, cwd=demo[0], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        killed = kill_worker(launcher, tmp_path / "two")
        code = launcher.wait(timeout=300)
    text = (tmp_path / "log").read_text()
    assert killed and code == 0, text[-3000:]
    state = json.loads((tmp_path / "two/trainer_state.json").read_text())
    assert state["global_step"] == STEPS
    two = read_losses(tmp_path / "two")
    assert list(alone) == list(two) == list(range(1, STEPS + 1))
    # Steps after the checkpoint were done twice, and no step before it.
    assert [len(two[step]) for step in (8, 9, killed, STEPS)] == [1, 2, 2, 1]
    for step in alone:
        assert two[step] == pytest.approx(alone[step] * len(two[step]), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("STRATEGY=zero4", "ddp zero2 zero3 fsdp"),
        ("GPUS=0", 'GPUS="0"'),
        ("GPUS=abc", 'GPUS="abc"'),
        ("NNODES=-1", 'NNODES="-1"'),
        ("NNODES=2", "needs NODE_RANK"),
        ("GPUS=3", "GPUS=3, and this machine shows 2"),
    ],
)
def test_a_wrong_wish_ends_in_one_line(make, clone, word, said):
    assert said in one_error(make(clone, "train", "MODEL=tiny", word, CUDA_VISIBLE_DEVICES="0,1"))


@pytest.mark.long
@pytest.mark.parametrize("strategy", list(filter(None, STRATEGIES)))
def test_a_step_takes_the_same_rows_on_any_number_of_cards(make, clone, strategy):
    for cards, nodes, each in ((1, 1, 4), (2, 1, 2), (2, 2, 1), (3, 1, 2), (8, 1, 1)):
        where = f"GPUS={cards} NNODES={nodes} NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500".split()
        command = make(clone, "train", *where, f"STRATEGY={strategy}", "ARGS=--dry-run", OMP_NUM_THREADS="").stdout
        assert f"OMP_NUM_THREADS={-(-len(os.sched_getaffinity(0)) // cards)} " in command
        assert f"FORCE_TORCHRUN=1 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 NNODES={nodes} " in command
        assert f"NPROC_PER_NODE={cards} " in command
        assert re.search(r"gradient_accumulation_steps=(\d+)", command)[1] == str(each)
        assert set(STRATEGIES[strategy]) == set(re.findall(r"(?:deepspeed|fsdp|fsdp_config)=[^\s']+", command))
    plain = make(clone, "train", "ARGS=--dry-run").stdout
    assert "torchrun" not in plain.lower() and "CUDA_VISIBLE_DEVICES=0 " in plain


def test_two_processes_write_the_ads_of_one(make, demo, tmp_path):
    name = "generated_predictions.jsonl"
    words = ["eval_dataset=sample_dev", f"output_dir={tmp_path}/ads", "max_samples=32"]
    two = os.environ | {"MODEL": "tiny", "DATA": "sample", "GPUS": "2"}
    command = [BIN / "python", "scripts/launch.py", "predict", *words]
    result = subprocess.run(command, cwd=demo[0], env=two, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    alone = (demo[0] / "saves/Custom/predict/sample_qlora" / name).read_bytes()
    assert (tmp_path / "ads" / name).read_bytes().splitlines() == alone.splitlines()[:32]
    # `make eval` writes both models' ads so.
    plan = make(demo[0], "eval", "MODEL=tiny", "DATA=sample", "GPUS=2", "ARGS=--dry-run").stdout
    assert [line.count("NPROC_PER_NODE=2 ") for line in plan.splitlines()] == [1, 1]


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_deepspeed_keeps_the_schedule_of_every_recipe(name):
    """DeepSpeed makes the scheduler itself, for the one that transformers makes ends LoRA runs at their first step."""
    settings = json.loads((ROOT / f"configs/distributed/{name}.json").read_text())
    assert settings["scheduler"]["type"] == "WarmupCosineLR"
    schedules = {yaml.safe_load(path.read_text())["lr_scheduler_type"] for path in ROOT.glob("configs/*/sft_*.yaml")}
    assert schedules == {"cosine"}
    assert settings["zero_optimization"]["stage"] == int(name[-1])


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_ray_without_a_gpu_is_refused(make, clone):
    words = "train", "MODEL=tiny", "USE_RAY=1"
    assert "USE_RAY=1 needs a GPU" in one_error(make(clone, *words, "MASTER_ADDR=10.0.0.1"))


def test_ray_is_told_the_node_that_it_would_ask_a_dashboard_for(make, clone):
    words = "train", "GPUS=2", "USE_RAY=1", "ARGS=--dry-run"
    assert "MASTER_ADDR" in make(clone, *words).stderr
    plan = make(clone, *words, "MASTER_ADDR=10.0.0.1").stdout
    assert "ray_num_workers=2 master_addr=10.0.0.1" in plan and "torchrun" not in plan.lower()


def test_two_machines_train_like_one(demo, alone, tmp_path):
    """Two network namespaces: the launch, the addresses and the ranks are those of two machines."""
    own = words(tmp_path / "two", "per_device_train_batch_size=1")[-1]
    command = [ROOT / "tests/two_nodes.sh", demo[0], f"BIN={BIN}", own]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    if result.returncode == 77:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stderr[-3000:]
    losses = read_losses(tmp_path / "two")
    assert list(losses) == list(alone)
    for step in alone:
        assert losses[step] == pytest.approx(alone[step], abs=TOLERANCE)
