"""Every program explains itself and refuses unknown options at once, without libraries that take seconds to import."""

import os
import subprocess
import sys

import pytest
from lib.files import ROOT

HEAVY = {"torch", "transformers", "llamafactory", "matplotlib", "jieba", "datasets", "peft", "gradio", "sacrebleu"}
PROGRAMS = [
    path
    for folder in ("scripts", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_programs_answer_without_heavy_imports(program):
    # A program that reads no command line would begin its work here.
    assert "ArgumentParser(" in program.read_text(encoding="utf-8")
    code = (
        "import runpy, sys\n"
        "for word in ('--help', '--no-such-option'):\n"
        "    sys.argv = [sys.argv[0], word]\n"
        "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as end: print('exit', end.code)\n"
        "print('imported', *{name.split('.')[0] for name in sys.modules})"
    )
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(["scripts", "benchmarks"])}
    command = [sys.executable, "-c", "import sys; sys.argv = sys.argv[1:]\n" + code, program]
    result = subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout and "\nexit 0\n" in result.stdout and "exit 2\n" in result.stdout, result.stderr
    assert not HEAVY & set(result.stdout.split("\n")[-2].split())


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_a_reader_that_stops_reading(program, unbuffered):
    """`… | head` ends well: no traceback and no BrokenPipeError, wherever a program writes its lines."""
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(["scripts", "benchmarks"]), "PYTHONUNBUFFERED": unbuffered}
    assert read_nothing([program, "--help"], paths) == (0, b"")


def test_work_goes_on_when_nobody_reads(tmp_path):
    """`make data | head -5` writes every row."""
    (tmp_path / "train.json").write_bytes((ROOT / "data/sample/train.jsonl").read_bytes())
    words = [ROOT / "scripts/prepare_data.py", tmp_path, "--out", tmp_path / "out"]
    assert read_nothing(words, os.environ | {"PYTHONUNBUFFERED": "1"}) == (0, b"")
    assert (tmp_path / "out/adgen_card.json").exists()


def read_nothing(words: list, environment: dict) -> tuple[int, bytes]:
    """Exit status and standard error of a program whose output goes into a closed pipe."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, **pipes)
    child.stdout.close()
    error = child.stderr.read()
    return child.wait(60), error
