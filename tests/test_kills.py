"""Killed while they write, an export, the data preparation and the scoring leave only whole files."""

import json
import random
import shutil
import subprocess
import time

from common import BIN
from lib.files import ROOT, read_json_lines, sha256
from processes import end, start, wait_for


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


def kill_at_random(command, seconds, project, times=4):
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
    rows = [row | {"summary": f"{row['summary']}{number}"} for number in range(15) for row in sample]
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
    assert kills and cards


def test_killed_report(demo, tmp_path):
    project = demo[0]
    command = [BIN / "python", "scripts/score.py", "--data", "data/sample/dev.jsonl", "--out", tmp_path]
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
