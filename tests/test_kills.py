"""Killed while they write, an export, the data preparation and the scoring leave only whole files."""

import json
import shutil
import subprocess

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


# Runs a program and keeps a copy of its folder from before each write, rename and removal in it: what a kill at that
# moment would leave.
MOMENTS = """
import os, runpy, shutil, sys

folder, copies = sys.argv[1:3]
looking, count = True, 0

def look(event, words):
    global looking, count
    writes = event in ("os.rename", "os.remove") or event == "open" and (words[2] or 0) & os.O_ACCMODE != os.O_RDONLY
    # A file that is open already has a number instead of a path.
    path = os.fsdecode(words[0]) if writes and not isinstance(words[0], int) else ""
    if looking and os.path.dirname(path) == folder:
        looking, count = False, count + 1
        shutil.copytree(folder, f"{copies}/{count}")
        looking = True

sys.addaudithook(look)
sys.path[0] = "scripts"
del sys.argv[:3]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def moments(project, folder, copies, *words):
    """The copies that MOMENTS keeps of a folder while a program writes into it, the last one from after its end."""
    command = [BIN / "python", "-c", MOMENTS, folder, copies, *words]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    found = sorted(copies.iterdir(), key=lambda path: int(path.name))
    # Each file is opened under another name, and then renamed.
    assert len(found) >= 2 * len(list(folder.iterdir()))
    return [*found, folder]


def test_killed_data_preparation(clone, tmp_path):
    """What there is, is whole; and a card that is there is that of its files."""
    out = tmp_path / "out"
    rows = read_json_lines(ROOT / "data/sample/train.jsonl")
    rows[0]["summary"] += "<UNK>也好看。"
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "dev.json").write_text((ROOT / "data/sample/dev.jsonl").read_text(encoding="utf-8"))
    words = ("scripts/prepare_data.py", tmp_path, "--out", out, "--unk")
    subprocess.run([BIN / "python", *words, "keep"], cwd=clone, check=True, capture_output=True)
    whole = {path: path.read_bytes() for path in out.iterdir()}
    cards = []
    for left in moments(clone, out, tmp_path / "copies", *words, "cut"):
        for path in left.glob("adgen_*.jsonl"):
            assert path.read_bytes().endswith(b"\n") or path.name == "adgen_rejected.jsonl"
        card = left / "adgen_card.json"
        if card.exists():
            cards.append(json.loads(card.read_text(encoding="utf-8")))
            assert all(sha256(left / name) == entry["sha256"] for name, entry in cards[-1]["output"].items())
    assert cards[0] != cards[-1] and (out / "adgen_train.jsonl").read_bytes() != whole[out / "adgen_train.jsonl"]


def test_killed_report(demo, tmp_path):
    predictions = demo[0] / "saves/Custom/predict"
    words = ["scripts/score.py", "--data", "data/sample/dev.jsonl", "--out", tmp_path / "report"]
    words += [f"{name}={predictions}/sample_{name}/generated_predictions.jsonl" for name in ("base", "qlora")]
    shutil.copytree(demo[0] / "saves/Custom/report", tmp_path / "report")
    before = (tmp_path / "report/eval_results.json").read_bytes()
    for left in moments(demo[0], tmp_path / "report", tmp_path / "copies", *words):
        assert json.loads((left / "eval_results.json").read_text(encoding="utf-8"))
        assert (left / "examples.md").read_bytes().endswith(b"\n")
        assert (left / "eval.png").read_bytes()[-8:-4] == b"IEND"
    assert (tmp_path / "report/eval_results.json").read_bytes() != before
