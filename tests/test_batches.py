"""`make generate` without a server: ads in batches, by the model of the demo, as a user has them written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
from common import ODD_ROWS, copy_demo
from generating import CHOICES, DEV, command, example_rows, journal_of, read_ads, write_rows
from lib.batches import BATCH, batch_size, cards_of, read_part, sampling_words, write_part
from lib.choices import read_choices
from lib.files import ROOT, read_json_lines
from lib.recipes import read_recipe, sampling_defaults
from processes import wait_for, without_memory

SHORT = ("max_new_tokens=16", "--n", "1")


@pytest.fixture(scope="module")
def project(demo, tmp_path_factory):
    """A copy of the demo's folder: the parts of a run are written into it."""
    return copy_demo(demo[0], tmp_path_factory.mktemp("batches"), "checkpoint-*")


@pytest.fixture
def start(project):
    """A function that starts generate.py in the project; what is left of it ends with the test."""
    started = []

    def run(*words, python=sys.executable, **variables):
        line = [python, *command(*words, program=project / "scripts/generate.py")[1:]]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(line, env=os.environ | CHOICES | variables, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finish(process):
    """What a run printed; it succeeded."""
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "Traceback" not in errors, errors[-2000:]
    return printed, errors


def family(process) -> list[psutil.Process]:
    """The programs that a run has started, once LLaMA-Factory is among them."""
    found = []

    def there():
        found[:] = psutil.Process(process.pid).children(recursive=True)
        # One of them may just have ended.
        with suppress(psutil.NoSuchProcess):
            return any("train" in child.cmdline() for child in found)

    wait_for(there, process)
    return found


def part_of(project):
    """The files of the parts that are being written: rows, and ads."""
    [folder] = (project / "saves/parts").iterdir()
    return folder / "0/keys.json", folder / "0/out/generated_predictions.jsonl"


def test_every_row_has_an_ad_or_a_reason(make, project, tmp_path):
    """By the exported model, a process for each of two cards, whose memory is too small for the first batches.

    The table has rows without attributes, too long, twice the same, and with special tokens.
    """
    table = write_rows(tmp_path / "in.csv", [*ODD_ROWS, ["7", "裙", "<|eot_id|><|im_end|>白色"]])
    variables = ("MODEL=tiny", "DATA=sample", "EXPORTED=1", "GPUS=2", "N=4", f"INPUT={table}")
    python = without_memory(tmp_path / "env", most=2)
    result = make(project, "generate", f"BIN={python.parent}", *variables, f"OUTPUT={tmp_path}/ads.csv")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "batches of 3\n" in result.stderr and "batches of 1\n" in result.stderr
    assert "batches of 6" not in result.stderr
    assert "3 of 7 rows have an ad" in result.stdout and "1 products were refused" in result.stdout
    assert "best of 4: coverage " in result.stdout and "no legal advice" in result.stdout
    rows = read_ads(tmp_path / "ads.csv")
    added = ["ad", "missing", "invented", "risk", "basis", "runner_up_1", "runner_up_2", "runner_up_3"]
    assert list(rows[0]) == [*ODD_ROWS[0], "more cells than names", *added, "reason", "ai_label"]
    assert [row["SKU"] for row in rows] == ["1", "2", "", "4", "5", "6", "7"]
    assert [bool(row["ad"]) for row in rows] == [True, False, False, True, False, False, True]
    assert all(bool(row["ad"]) != bool(row["reason"]) for row in rows)
    assert "cutoff_len of 512" in rows[5]["reason"]
    assert all(row["ai_label"].startswith("本广告由AI技术生成（tiny qlora，") for row in rows if row["ad"])
    # Equal products and candidates are sampled anew, although a small model may hit on the same words.
    assert len({row[name] for row in (rows[0], rows[3]) for name in ("ad", "runner_up_1")}) > 1
    assert not list((project / "saves/parts").glob("*/*/rows.jsonl")) and (tmp_path / "ads.csv.journal").exists()


def test_kills_lose_no_finished_part(start, project, tmp_path):
    """Killed when a part is finished and not yet saved, then within the next one. No process outlives the kill."""
    table, output = tmp_path / "in.jsonl", tmp_path / "ads.csv"
    table.write_bytes(b"".join(DEV.read_bytes().splitlines(keepends=True)[:48]))
    words = (table, output, *SHORT)
    process = start(*words, "per_device_eval_batch_size=4")
    others = family(process)
    ads = part_of(project)[1]
    wait_for(lambda: ads.exists() and ads.read_bytes().count(b"\n") == 40, process)
    process.kill()
    assert not psutil.wait_procs(others, timeout=60)[1] and not journal_of(output)
    paid = [row["predict"].strip() for row in read_json_lines(ads)]

    process = start(*words, "per_device_eval_batch_size=4")
    others = family(process)
    saved = journal_of(output)
    assert len(saved) == 40
    process.kill()
    assert not psutil.wait_procs(others, timeout=60)[1] and journal_of(output) == saved
    _, refused = start(*words, "temperature=0.9").communicate()
    assert "another request: finish that run" in refused and journal_of(output) == saved

    printed, errors = finish(start(*words))
    assert f"40 of 48 ads are in {output}.journal" in printed and "48/48" in errors
    rows, products = read_ads(output), read_json_lines(table)
    assert [row["content"] for row in rows] == [product["content"] for product in products]
    assert all(bool(row["ad"]) != bool(row["reason"]) for row in rows)
    # The longest products come first, and each has the ad that was written for it.
    ad = {row["content"]: row["ad"] for row in rows}
    assert all(ad[product] in ("", text) for product, text in zip(saved, paid, strict=True))
    assert min(map(len, saved)) >= max(len(product) for product in ad if product not in saved)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "ads.csv"}


def test_errors_are_one_line(start, project, tmp_path):
    table = write_rows(tmp_path / "in.csv", example_rows()[:2])
    for words, variables, said in (
        (["adapter_name_or_path=nowhere"], {}, "error: no adapter in nowhere"),
        (["temperatur=1"], {}, 'no key "temperatur"'),
        (["max_new_tokens=16", "max_samples=1"], {}, "did not write one ad for each of 4 rows"),
        (
            SHORT,
            {"python": without_memory(tmp_path / "env", most=0)},
            "out of GPU memory: end what else is on the card",
        ),
    ):
        process = start(table, tmp_path / "out.csv", *words, **variables)
        errors = process.communicate(timeout=120)[1]
        [line] = [line for line in errors.split("\n") if line.startswith("error: ")]
        assert process.returncode == 1 and said in line and "Traceback" not in errors
        assert not list(tmp_path.glob("out.csv*"))


def test_ctrl_c_ends_all(start, tmp_path):
    process = start(DEV, tmp_path / "ads.csv")
    others = family(process)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped; 0 of 480 ads are in" in printed and "Traceback" not in errors
    assert not psutil.wait_procs(others, timeout=1)[1] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", sorted(path.parent.name for path in ROOT.glob("configs/*/chat.yaml")))
def test_the_sampling_is_that_of_the_chat_recipe(model):
    choices = read_choices({"MODEL": model, "METHOD": "dpo"})
    words = sampling_words(choices, ["top_p=0.8"])
    written = read_recipe(ROOT / choices.recipe("predict"), words)
    chat = choices.settings("chat") | {"top_p": 0.8, "do_sample": True}
    assert {key: written[key] for key in chat if not key.endswith("name_or_path")} == {
        key: value for key, value in chat.items() if not key.endswith("name_or_path")
    }
    # What neither names has LLaMA-Factory's own default, as for `make api`: a penalty of predict.yaml does not count.
    for key, default in sampling_defaults().items():
        assert written.get(key, default) == chat.get(key, default), key
    assert "/merged/" in written["model_name_or_path"] and written["adapter_name_or_path"].endswith("_dpo")
    assert not read_recipe(ROOT / choices.recipe("predict"), sampling_words(choices, ["temperature=0"]))["do_sample"]


@pytest.mark.parametrize(
    ("free", "rows"), [("81000\n", 321), ("24100\n", 107), ("9000\n", 107), ("81000\n24100\n", 107)]
)
def test_batches_grow_with_free_memory(monkeypatch, tmp_path, free, rows):
    """The nvidia-smi is one of ours: no test has a card."""
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{free}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    choices = read_choices({"MODEL": "llama3_8b"})
    assert batch_size(choices, []) == (rows, 40) and batch_size(choices, [f"{BATCH}=428"]) == (428, 40)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert batch_size(choices, []) < (107, 40) and cards_of(2) == ["", ""]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert cards_of(2) == ["0", "1"]


def test_json_of_a_part_is_what_was_asked(tmp_path):
    """Odd characters of a product stay as they are in the list of a part, and are replaced in what the model reads."""
    part = [("类型#\ud800*颜色#\u2028白", 0), ("类型#裙", 3)]
    write_part(tmp_path, part)
    assert not read_part(tmp_path)
    (tmp_path / "out").mkdir()
    lines = [json.dumps({"prompt": product, "predict": f" {copy} "}) + "\n" for product, copy in part]
    (tmp_path / "out/generated_predictions.jsonl").write_text("".join(lines))
    assert [(key, ad) for key, _, ad in read_part(tmp_path)] == [(key, str(key[1])) for key in part]
    assert [row["instruction"] for row in read_json_lines(tmp_path / "rows.jsonl")] == [
        "类型#?*颜色#\u2028白",
        "类型#裙",
    ]


def test_the_benchmark_measures_both_ways(make, project, tmp_path):
    # An adapter that is there is not made.
    shutil.copytree(project / "saves/Custom/lora/sample_qlora", project / "saves/bench/tiny_pretrain_adapter")
    words = f"ARGS=--products 3 --asked 1 --n 2 --tokens 8 --out {tmp_path}"
    result = make(project, "bench", "BENCH=bulk", "MODEL=tiny", "DATA=sample", words)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads((tmp_path / "bulk-cpu.json").read_text())
    assert [(run["way"], run["ads"]) for run in found["written"]] == [("make api", 2), ("make generate", 6)]
    assert "ads per second" in (tmp_path / "bulk-cpu.md").read_text()
