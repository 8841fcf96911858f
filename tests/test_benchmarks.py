"""The training benchmark measures what it says: rows and tokens are what others count, too."""

import json
import os
import re
import subprocess
import sys

import measuring
import pytest
import speed
import training
from lib.batches import cards_of
from lib.choices import read_choices
from lib.files import ROOT, read_json_lines
from lib.recipes import read_recipe
from tiny_models import add_adapter, build_base

pytestmark = pytest.mark.long
ROWS, STEPS = 24, 5
RUN = "counted:sft_lora per_device_train_batch_size=2 include_num_input_tokens_seen=true"


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured(copy_project):
    """A copy of the project in which a training was measured: its folder, its base, its entry, what was printed."""
    folder = copy_project()
    (folder / "saves/Custom/full").mkdir(parents=True)
    base = build_base(folder / "saves/Custom/full/pretrain")
    # With an adapter there, the program need not train one for predictions.
    add_adapter(base, ["q_proj"]).save_pretrained(folder / "saves/bench/tiny_pretrain_adapter")
    words = ["--steps", str(STEPS), f"{RUN} max_samples={ROWS}"]
    variables = os.environ | {"MODEL": "tiny", "DATA": "sample", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "scripts"}
    command = [sys.executable, "benchmarks/training.py", *words]
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    [entry] = read_json(folder / "results/bench/cpu.json")["runs"]
    return folder, base, entry, result.stdout


def test_tokens_and_steps_are_those_that_others_count(measured):
    from transformers import AutoTokenizer

    folder, base, entry, printed = measured
    results = read_json(folder / "results/bench/cpu.json")
    assert results["gpu"] == "CPU" and results["matmul"]["tflops"] > 0 and "llamafactory" in results["versions"]
    assert entry["command"].startswith("llamafactory-cli train configs/tiny/sft_lora.yaml ")
    assert entry["rows_per_s"] > 0 and entry["matmul_share"] > 0 and re.search(r"^tiny counted +[\d.]+ ", printed, re.M)
    assert (folder / "results/bench/cpu.md").read_text(encoding="utf-8") == speed.format_results(results)
    # The tokens of each row, counted with the chat template.
    tokenizer = AutoTokenizer.from_pretrained(base)
    system = read_recipe(ROOT / "configs/tiny/chat.yaml")["default_system"]
    turns = (("system", system), ("user", "content"), ("assistant", "summary"))
    rows = read_json_lines(ROOT / "data/sample/train.jsonl")[:ROWS]
    chats = ([{"role": role, "content": row.get(key, key)} for role, key in turns] for row in rows)
    lengths = [len(tokenizer.apply_chat_template(chat)) for chat in chats]
    assert entry["tokens_per_row"] == pytest.approx(sum(lengths) / ROWS, rel=1e-3)
    assert entry["tokens_per_s"] / entry["rows_per_s"] == pytest.approx(sum(lengths) / ROWS, rel=2e-3)
    samples = speed.read_samples(folder / "saves/bench/run/tokenized/train")
    assert sorted(length for packed in samples for length in packed) == sorted(lengths)
    # In this run LLaMA-Factory counted the tokens that went through the model, padding included: 512 for each sample.
    log = read_json_lines(folder / "saves/bench/run/trainer_log.jsonl")
    seen = [row["total_tokens"] // 512 for row in log if "loss" in row]
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert speed.samples_by_step(len(samples), 2, STEPS) == steps
    assert speed.samples_by_step(61, 8, 10) == [8, 8, 8, 8, 8, 8, 8, 5, 8, 8]


def test_speed_times_duration_is_rows(measured):
    folder, base, entry, _ = measured
    settings = read_recipe(ROOT / entry["recipe"], [f"{key}={value}" for key, value in entry["overrides"].items()])
    # A slow start, then a step each two seconds.
    times = [30.0 + 2 * step for step in range(STEPS)] + [99.0]
    found = speed.training_speed(times, settings, folder / "saves/bench/run", base, 1, tflops=2.0)
    samples = len(speed.read_samples(folder / "saves/bench/run/tokenized/train"))
    taken = sum(speed.samples_by_step(samples, 2, STEPS)[1:])
    assert found["rows_per_s"] * 2 * (STEPS - 1) == pytest.approx(taken * ROWS / samples)
    assert found["matmul_share"] == pytest.approx(found["operations_per_row"] * found["rows_per_s"] / 2e12)
    # On two cards, a step of half the batch takes as many rows.
    halved = settings | {"per_device_train_batch_size": settings["per_device_train_batch_size"] // 2}
    both = speed.training_speed(times, halved, folder / "saves/bench/run", base, 1, tflops=1.0, cards=2)
    assert both == found


def test_rows_that_are_not_packed(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5]]}).save_to_disk(tmp_path)
    assert speed.read_samples(tmp_path) == [[3], [2]]


def test_predicted_tokens_are_counted_to_the_end_of_each_ad(measured, tmp_path):
    from tokenizers import Tokenizer

    ads = ["这条裙子好看。", "这件上衣好看又好搭。"]
    texts = [f"{ads[0]}<|eot_id|><|end_of_text|>", ads[1] * 20]
    lines = [json.dumps({"predict": text, "label": "", "prompt": ""}) for text in texts]
    (tmp_path / "generated_predictions.jsonl").write_text("\n".join(lines))
    (tmp_path / "predict_results.json").write_text('{"predict_runtime": 4.0}')
    found = speed.prediction_speed({"max_new_tokens": 12}, tmp_path, measured[1])
    tokenizer = Tokenizer.from_file(str(measured[1] / "tokenizer.json"))
    first = len(tokenizer.encode(ads[0], add_special_tokens=False)) + 1
    assert first < 12 and found["tokens_per_s"] == (first + 12) / 4 and found["rows_per_s"] == 0.5


def test_a_run_measured_anew_replaces_its_entry_and_a_failed_one_is_a_row_with_its_error(monkeypatch, tmp_path):
    # A Python program stands for llamafactory-cli.
    log = f"[INFO] loading\nTraceback (most recent call last):\n  File\nValueError: Some keys in {ROOT}/configs/tiny/\n"
    monkeypatch.setattr(training, "PROGRAM", [sys.executable, "-c", f"import sys; sys.exit({log!r})"])
    monkeypatch.setattr(training, "SCRATCH", tmp_path)
    [run] = training.plan(ROOT / "configs/tiny", ["bad:sft_lora lora_rankk=8"])
    setup = training.Setup(tmp_path / "base", tmp_path / "adapter", "sample", 4, 1, 2.0, ["0"], read_choices())
    results = {"gpu": "CPU", "matmul": {"tflops": 1.0, "size": 512, "dtype": "float32"}, "versions": {}}
    results["runs"] = [{"name": name, "recipe": str(run.recipe.relative_to(ROOT))} for name in ("other", "bad")]
    results["runs"][0] |= {"command": "", "overrides": {}}
    for repeats in (2, 1):
        training.measure_all([run] * repeats, setup, results, tmp_path / "cpu.json")
        other, entry = read_json(tmp_path / "cpu.json")["runs"]
        assert entry["repeats"] == len(entry["measured"]) == repeats and other == results["runs"][0]
    assert entry["error"] == "ValueError: Some keys in configs/tiny/" and "rows_per_s" not in entry
    assert entry["overrides"] == {"lora_rankk": "8"} and "lora_rankk=8" in entry["command"]
    text = (tmp_path / "cpu.md").read_text(encoding="utf-8")
    assert "| tiny bad | – | – |" in text and f"failed: `{entry['error']}`" in text
    for status, said in ((1, "without output"), (-9, "SIGKILL: out of")):
        (tmp_path / "log").write_text("")
        assert said in measuring.last_error(tmp_path / "log", status)


def test_several_cards_share_a_run_as_make_has_them(monkeypatch):
    for name, value in {"MODEL": "llama3_8b", "GPUS": "4", "CUDA_VISIBLE_DEVICES": "1,3,5,7"}.items():
        monkeypatch.setenv(name, value)
    choices, cards = read_choices(), cards_of(4)
    planned = training.plan(ROOT / "configs/llama3_8b", ["sft_qlora", "predict"])
    train, predict = (training.shared_out(run, choices) for run in planned)
    assert (train.name, predict.name) == ("sft_qlora_4_cards", "predict_4_cards")
    assert train.overrides == {"gradient_accumulation_steps": "1"} and predict.overrides == {}
    setup = training.Setup(ROOT, ROOT, "sample", 4, 1, 1.0, cards, choices)
    shown = training.environment(True, setup)
    assert (shown["NPROC_PER_NODE"], shown["CUDA_VISIBLE_DEVICES"]) == ("4", "1,3,5,7")
    assert "TORCH_CUDNN_SDPA_DEPRIORITIZED" not in shown
    assert training.environment(False, setup)["TORCH_CUDNN_SDPA_DEPRIORITIZED"] == "1"


def test_summary_of_repeats():
    found = [{"rows_per_s": rate, "seconds": 9.0, "peak_gib": rate, "spread": 0.5} for rate in (10.0, 14.0, 11.0)]
    summary = speed.summarise([*found, {"seconds": 1.0, "peak_gib": 99.0, "error": "OutOfMemoryError: no"}])
    assert (summary["rows_per_s"], summary["peak_gib"], summary["repeats"]) == (11, 14, 4)
    assert summary["spread"] == pytest.approx(4 / 11) and summary["error"] == "OutOfMemoryError: no"
    assert speed.summarise(found[:1])["spread"] == 0.5


def test_card_is_named_and_its_memory_is_polled(monkeypatch, tmp_path):
    # An nvidia-smi that shows a card with 8 GiB in use.
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$*" in *memory.used*) echo 8192;; *) echo NVIDIA H300, 1.2, 24576;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    monkeypatch.setattr(training, "SCRATCH", tmp_path)
    monkeypatch.setattr(training, "check", lambda command, log: log.write_text('warning\n{"tflops": 5.0}\n'))
    path, results = training.open_results()
    assert path == ROOT / "results/bench/nvidia-h300.json" and results["matmul"] == {"tflops": 5.0}
    assert (results["gpu"], results["driver"], results["memory_gib"]) == ("NVIDIA H300", "1.2", 24)
    log = tmp_path / "log"
    code = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OWN']); time.sleep(0.5)"
    watched = measuring.watch([sys.executable, "-c", code], log, OWN="mine")
    assert (watched["status"], watched["peak_gib"], log.read_text()) == (0, 8, "3 mine\n")


def test_what_predictions_need_is_made_if_it_is_missing(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(training, "check", lambda command, log: commands.append(" ".join(map(str, command))))
    training.prepare(ROOT / "configs/qwen3_8b", tmp_path / "8b", tmp_path / "adapter", "sample")
    build, train = commands
    assert build.endswith(f"scripts/stand_in.py {tmp_path}/8b --size 8b --corpus data/sample/train.jsonl")
    assert "configs/qwen3_8b/sft_qlora.yaml" in train and f"output_dir={tmp_path}/adapter" in train


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("tiny", ["sft_magic"], "sft_qlora"),
        ("tiny", ["x:sft_magic a=1"], "sft_magic"),
        ("none", [], "llama3_8b"),
        ("gemma3_270m", [], "no random weights"),
        ("llama3_8b", [], "needs a CUDA GPU"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(monkeypatch, model, words, said):
    for name, value in {"MODEL": model, "DATA": "sample", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["training.py", *words])
    with pytest.raises(SystemExit) as end:
        training.main()
    assert str(end.value).startswith("error: ") and said in str(end.value)
