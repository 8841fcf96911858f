"""The training benchmark measures what it says: rows and tokens are what others count, too."""

import json
import os
import re
import subprocess
import sys

import arithmetic
import measuring
import pytest
import speed
import training
import variants
from lib.files import ROOT, read_json_lines
from lib.recipes import read_recipe
from lib.supervision import DEFAULTS
from tiny_models import add_adapter, build_base

pytestmark = pytest.mark.trained
ROWS, STEPS, WARMUP = 24, 5, 2
RUNS = [
    "plain",
    "predict:predict max_new_tokens=16",
    "counted:sft_lora per_device_train_batch_size=2 include_num_input_tokens_seen=true",
]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def measured(base, copy_project):
    """A copy of the project in which two trainings and a prediction were measured, and what the program printed."""
    folder = copy_project()
    # With an adapter there, the program need not train one for the prediction.
    add_adapter(base, ["q_proj", "v_proj"]).save_pretrained(folder / "saves/bench/tiny_tiny_adapter")
    words = ["--base", base, "--steps", str(STEPS), "--warmup", str(WARMUP), "--out", "out"]
    command = [sys.executable, "benchmarks/training.py", *words, f"max_samples={ROWS}", *RUNS]
    variables = os.environ | {"MODEL": "tiny", "DATA": "sample", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "scripts"}
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return folder, result.stdout


@pytest.fixture(scope="module")
def results(measured):
    return read_json(measured[0] / "out/cpu.json")


@pytest.fixture(scope="module")
def entries(results):
    return {run["name"]: run for run in results["runs"]}


@pytest.fixture(scope="module")
def lengths(base):
    """The tokens of each training row, counted with the chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    system = read_recipe(ROOT / "configs/tiny/chat.yaml")["default_system"]
    turns = (("system", system), ("user", "content"), ("assistant", "summary"))
    rows = read_json_lines(ROOT / "data/sample/train.jsonl")[:ROWS]
    chats = ([{"role": role, "content": row.get(key, key)} for role, key in turns] for row in rows)
    return [len(tokenizer.apply_chat_template(chat)) for chat in chats]


@pytest.fixture
def setup(base, tmp_path):
    return training.Setup(base, tmp_path / "adapter", "sample", STEPS, WARMUP, tflops=2.0)


def test_every_run_has_its_recipe_command_and_figures(measured, results, entries):
    folder, output = measured
    assert list(entries) == ["plain", "predict", "counted"] and "computed" not in results
    assert results["gpu"] == "CPU" and results["matmul"]["tflops"] > 0
    assert results["versions"]["llamafactory"] == "0.9.5"
    assert results["allocator"] == DEFAULTS["PYTORCH_ALLOC_CONF"]
    for name, run in entries.items():
        variables = "TORCH_CUDNN_SDPA_DEPRIORITIZED=1 " * (name == "predict")
        assert run["command"].startswith(f"{variables}llamafactory-cli train configs/tiny/")
        assert run["repeats"] == 1 and run["rows_per_s"] > 0 and run["peak_rss_gib"] > 0.2
        assert re.search(rf"^{name} +[\d.]+ ", output, re.MULTILINE)
    assert "matmul_share" in entries["plain"] and "matmul_share" not in entries["predict"]
    assert entries["plain"]["overrides"] == variants.PLAIN | {"max_samples": str(ROWS)}
    assert (folder / "out/cpu.md").read_text(encoding="utf-8") == speed.format_results(results)


def test_tokens_are_those_of_the_rows_packed_or_not(entries, lengths):
    for name in ("plain", "counted"):
        assert entries[name]["tokens_per_row"] == pytest.approx(sum(lengths) / ROWS, rel=1e-3)
        rate = entries[name]["tokens_per_s"] / entries[name]["rows_per_s"]
        assert rate == pytest.approx(sum(lengths) / ROWS, rel=2e-3)


def test_packed_samples_hold_all_rows_and_steps_take_as_many_as_llamafactory_counts(measured, lengths):
    folder = measured[0] / "saves/bench/run"
    samples = speed.read_samples(folder / "tokenized/train")
    assert sorted(length for rows in samples for length in rows) == sorted(lengths)
    assert all(sum(rows) <= 511 for rows in samples) and len(samples) < ROWS / 3
    # In this run LLaMA-Factory counted the tokens that went through the model, padding included: 512 for each sample.
    seen = [row["total_tokens"] // 512 for row in read_json_lines(folder / "trainer_log.jsonl") if "loss" in row]
    logged = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    steps = speed.samples_by_step(len(samples), 2, STEPS)
    # One line for the first step, one for the second of the warm-up, and one for each two after it.
    assert [steps[0], steps[1], *(sum(steps[at : at + 2]) for at in range(2, STEPS - 1, 2))] == logged
    assert set(steps) == {2, 1} if len(samples) % 2 else {2}
    assert speed.samples_by_step(61, 8, 10) == [8, 8, 8, 8, 8, 8, 8, 5, 8, 8]


def test_speed_times_duration_is_rows(measured, entries, base):
    folder, run = measured[0] / "saves/bench/run", entries["counted"]
    settings = read_recipe(ROOT / run["recipe"], [f"{key}={value}" for key, value in run["overrides"].items()])
    # A slow start, then a step each two seconds; every second step has a line.
    times = [30.0, 40.0, *(40.0 + 2 * step for step in range(2, STEPS - 1, 2)), 99.0]
    found = speed.training_speed(times, settings, folder, base, WARMUP, tflops=2.0)
    samples = len(speed.read_samples(folder / "tokenized/train"))
    timed = STEPS - 3
    taken = sum(speed.samples_by_step(samples, 2, STEPS)[2 : 2 + timed])
    assert found["rows_per_s"] * 2 * timed == pytest.approx(taken * ROWS / samples)
    assert found["time_to_first_step_s"] == 30
    done = found["operations_per_row"] * found["rows_per_s"]
    assert found["matmul_share"] == pytest.approx(done / 2e12)


def test_predicted_tokens_are_counted_to_the_end_of_each_ad(base, entries, tmp_path):
    from tokenizers import Tokenizer

    ads = ["这条裙子好看。", "这件上衣好看又好搭。"]
    texts = [f"{ads[0]}<|eot_id|><|end_of_text|>", ads[1] * 20]
    lines = [json.dumps({"predict": text, "label": "", "prompt": ""}) for text in texts]
    (tmp_path / "generated_predictions.jsonl").write_text("\n".join(lines))
    (tmp_path / "predict_results.json").write_text('{"predict_runtime": 4.0}')
    found = speed.prediction_speed({"max_new_tokens": 12}, tmp_path, base)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    first = len(tokenizer.encode(ads[0], add_special_tokens=False)) + 1
    assert first < 12 and found["tokens_per_s"] == (first + 12) / 4 and found["rows_per_s"] == 0.5
    assert 5 < entries["predict"]["tokens_per_row"] <= 16


def replace_cli(monkeypatch, folder, code):
    """Lets a Python program stand for llamafactory-cli, and a folder for saves/bench."""
    monkeypatch.setattr(training, "PROGRAM", [sys.executable, "-c", code])
    monkeypatch.setattr(training, "SCRATCH", folder / "scratch")


def test_failed_run_is_a_row_with_its_error(monkeypatch, setup, tmp_path):
    log = (
        '[INFO] loading the model\nTraceback (most recent call last):\n  File "parser.py", line 69, in _parse_args\n'
        f"ValueError: Some keys are not used by the HfArgumentParser: ['lora_rankk'] in {ROOT}/configs/tiny/\n"
    )
    replace_cli(monkeypatch, tmp_path, f"import sys; sys.exit({log!r})")
    run = variants.Run("bad", ROOT / "configs/tiny/sft_lora.yaml", {"lora_rankk": "8"})
    results = {"gpu": "CPU", "matmul": {"tflops": 1.0, "size": 512, "dtype": "float32"}, "versions": {}, "runs": []}
    training.measure_all([run], setup, results, tmp_path / "cpu.json")
    [entry] = read_json(tmp_path / "cpu.json")["runs"]
    assert entry["error"].startswith("ValueError: Some keys") and str(ROOT) not in entry["error"]
    assert entry["overrides"] == {"lora_rankk": "8"} and "lora_rankk=8" in entry["command"]
    assert "rows_per_s" not in entry and speed.result_lines(results)[1][:3] == ["bad", "–", "–"]
    assert f"failed: `{entry['error'].replace('`', chr(39))}`" in (tmp_path / "cpu.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [(1, "error: no such file\nmore", "error: no such file"), (1, "", "without output"), (-9, "", "SIGKILL: out of")],
)
def test_last_error_is_one_line(tmp_path, status, text, said):
    (tmp_path / "log").write_text(text)
    assert said in measuring.last_error(tmp_path / "log", status)


def test_a_run_measured_anew_replaces_its_entry_and_others_stay(monkeypatch, results, setup, tmp_path):
    found = {"command": "llamafactory-cli train", "seconds": 1.0, "peak_gib": None, "peak_rss_gib": 1.0}
    monkeypatch.setattr(training, "measure", lambda run, setup: found | {"rows_per_s": 5.0})
    [run] = variants.plan(ROOT / "configs/tiny", ["x:sft_lora lora_rank=8"])
    path = tmp_path / "cpu.json"
    measuring.write_results(path, results, "")
    for repeats in (2, 1):
        training.measure_all([run] * repeats, setup, read_json(path), path)
        after = {entry["name"]: entry for entry in read_json(path)["runs"]}
        assert after["x"]["repeats"] == len(after["x"]["measured"]) == repeats
    assert [after[entry["name"]] for entry in results["runs"]] == results["runs"] and list(after)[-1] == "x"


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
    path, results = training.open_results(tmp_path)
    assert path == tmp_path / "nvidia-h300.json" and results["matmul"] == {"tflops": 5.0}
    assert (results["gpu"], results["driver"], results["memory_gib"]) == ("NVIDIA H300", "1.2", 24)
    log = tmp_path / "log"
    code = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OWN']); time.sleep(0.5)"
    watched = measuring.watch([sys.executable, "-c", code], log, OWN="mine")
    assert (watched["status"], watched["peak_gib"], log.read_text()) == (0, 8, "3 mine\n")


def test_what_predictions_need_is_made_if_it_is_missing(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(training, "check", lambda command, log: commands.append(list(map(str, command))))
    training.prepare(ROOT / "configs/llama3_70b", tmp_path / "70b", tmp_path / "adapter", "sample")
    build, train = commands
    assert build[1:] == f"scripts/stand_in.py {tmp_path}/70b --size 70b --corpus data/sample/train.jsonl".split()
    assert {
        "configs/llama3_70b/sft_qlora.yaml",
        "max_steps=1",
        f"output_dir={tmp_path}/adapter",
        "dataset=sample_train",
    } < set(train)


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("tiny", ["sft_magic"], "sft_qlora"),
        ("tiny", ["x:sft_magic a=1"], "sft_magic"),
        ("tiny", ["--base", "/none"], "make base MODEL=tiny"),
        ("none", [], "llama3_8b"),
        ("llama3_8b", [], "needs a CUDA GPU"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(monkeypatch, tmp_path, model, words, said):
    for name, value in {"MODEL": model, "DATA": "sample", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["training.py", *words, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        training.main()
    assert str(end.value).startswith("error: ") and said in str(end.value) and not (tmp_path / "out").exists()


def test_warmup_is_at_most_half_of_the_steps(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training.py", "--steps", "3"])
    with pytest.raises(SystemExit, match="2"):
        training.main()
    assert "--warmup" in capsys.readouterr().err


def test_a_table_holds_the_figures_of_its_runs(results):
    run = results["runs"][0] | {"rows_per_s": 123.4, "matmul_share": 0.456, "peak_gib": 8.25}
    run["computed_rows_per_s"] = [1.5, 2.5]
    gpu = {"gpu": "NVIDIA X", "driver": "1.2", "computed": arithmetic.OTHER_CARD}
    text = speed.format_results(results | gpu | {"runs": [run, *results["runs"][1:]]})
    line = next(line for line in text.split("\n") if line.startswith("| plain "))
    assert "| 123 |" in line and "| 46% |" in line and "| 8.2 |" in line and line.endswith("| 1.5–2.5 |")
    assert "NVIDIA X" in text and "`configs/tiny/sft_qlora.yaml`" in text and "`cutoff_len=512`" in text
