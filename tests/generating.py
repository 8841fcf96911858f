"""What the tests of `make generate` share: the program in this process and as one of its own, and tables."""

import csv
import gc
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import generate
from common import KEY
from lib.files import ROOT

DEV = ROOT / "data/sample/dev.jsonl"
PRODUCTS = ROOT / "examples/products.csv"
# One product of each kind in the example catalogue.
ATTRIBUTES = {
    "C-001": "类型#裙*材质#雪纺*颜色#白色*风格#甜美*图案#碎花",
    "L-002": "类型#口红*质地#水光*颜色#蜜桃粉*功效#保湿*功效#淡唇纹*场景#上班",
    "E-002": "类型#耳机*佩戴#头戴式*连接#有线*功能#低延迟*场景#打游戏",
}
CHOICES = {"MODEL": "tiny", "DATA": "sample"}


def command(*words, program: Path = ROOT / "scripts/generate.py") -> list[str]:
    """The command line of generate.py."""
    return [sys.executable, *map(str, (program, *words))]


def run(*words, key: str = KEY) -> CompletedProcess:
    """Runs generate.py in this process, as `make generate MODEL=tiny DATA=sample` does in one of its own."""
    status = 0
    with (
        redirect_stdout(io.StringIO()) as printed,
        redirect_stderr(io.StringIO()) as errors,
        patch.dict("os.environ", CHOICES | {"API_KEY": key}),
        patch.object(sys, "argv", command(*words)[1:]),
    ):
        try:
            generate.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
    # The lock on the journal ends with the process, here with the file object.
    gc.collect()
    result = CompletedProcess(words, status, printed.getvalue(), errors.getvalue())
    assert key not in result.stdout + result.stderr
    return result


def one_error(*words, **options) -> str:
    """The line with which generate.py ends when something is wrong."""
    result = run(*words, **options)
    lines = [line for line in result.stderr.split("\n") if line.startswith("error: ")]
    assert result.returncode == 1 and len(lines) == 1 and result.stderr.endswith(f"{lines[0]}\n"), result.stderr
    return lines[0]


def read_ads(path: Path) -> list[dict]:
    """The rows of a CSV file as Excel reads it: UTF-8 with a byte order mark."""
    data = path.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def write_rows(path: Path, rows: list[list[str]], encoding="utf-8", separator=",") -> Path:
    """Writes a CSV file, and returns its path."""
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def example_rows() -> list[list[str]]:
    """The header of the example catalogue and its rows of ATTRIBUTES."""
    lines = list(csv.reader(PRODUCTS.open(encoding="utf-8")))
    return [lines[0], *(line for line in lines if line[0] in ATTRIBUTES)]


def journal_of(output: Path) -> list[str]:
    """The products in the whole lines of a journal."""
    path = output.with_name(output.name + ".journal")
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [json.loads(line)["product"] for line in lines if line.startswith(b'{"product"') and line.endswith(b"]}")]
