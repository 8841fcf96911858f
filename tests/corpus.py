"""What all fuzz tests share: the inputs that hypothesis generates, and ways to call a program and judge its answer.

By default each property is tried with a few inputs, the same ones in every run. FUZZ=<count> tries that many new ones,
and adds the cases that take much memory or time:

  FUZZ=1000 .venv/bin/python -m pytest tests/test_fuzz_*.py --hypothesis-seed=1
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from lib.files import ROOT

THOROUGH = "FUZZ" in os.environ
EXAMPLES = int(os.environ.get("FUZZ", 20))
settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not THOROUGH,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("fuzz")
# For properties of which one example takes half a second or more.
FEW = settings(max_examples=max(4, EXAMPLES // 20))

MIB = 2**20
# How much memory a program may take at its peak: for small files, and for files that unpack to half a gibibyte.
SMALL, LARGE = 200 * MIB, 2500 * MIB

# Attribute strings and ads of 30 good rows.
GOOD = [(f"类型#裙*颜色#白色*编号#{number}", f"白色的裙，第{number}款。") for number in range(30)]
# One product with a million attributes.
MANY = "*".join(f"键{number}#值{number}" for number in range(10**6))


def lines_of(rows: list[tuple[str, str]]) -> bytes:
    """Attribute strings and ads as a raw AdGen file of JSON lines."""
    return b"".join(json.dumps({"content": c, "summary": s}, ensure_ascii=False).encode() + b"\n" for c, s in rows)


# --- generated inputs ---

# These hold lone surrogates, too, as JSON and file names may.
texts = st.text(st.characters(exclude_categories=[]), max_size=30)
words = st.sampled_from([*"＃＊#*裙 \u3000\\：“）为𠮷。！\n", "类型", "颜色", "白色", "雪纺", "<UNK>", "请写"])
# What people write around an attribute string, before it and behind it; marks of Markdown and of chat templates, too.
WRAPPERS = [
    ("请根据以下关键词写广告：", ""),
    ("", "\n请写一段广告文案"),
    ("", "，请写一段广告文案。"),
    ("请为", "写一段广告"),
    ("写出", "的广告文案"),
    ("任务：写广告\n属性：", "\n广告："),
    ("请写一段广告，产品属性是", "。字数不超过100字"),
    ("商品：", "；要求：活泼"),
    ("“", "”"),
    ("（", "）"),
    ("【", "】"),
    ('{"attributes": "', '"}'),
    ("**", "**"),
    ("```\n", "\n```"),
    ("## ", "\n\n"),
    ("- ", ""),
    ("[INST] ", " [/INST]"),
    ("<|user|>\n", "<|end|>"),
    ("Write an ad: ", ". Please keep it short."),
    ("Human: ", "\n\nAssistant:"),
    ("\ufeff\u200b", "\u3000"),
]
# How the signs within an attribute string may be written.
SPELLINGS = [
    ("*", "#"),
    ("\\*", "#"),
    ("\\*", "\\#"),
    ("＊", "＃"),
    (" * ", " # "),
    ("*\n", "#"),
    ("\n", "#"),
    ("\n- ", "＃"),
]
attributes = st.lists(words | st.text(max_size=3), max_size=12).map("".join)
pairs = st.tuples(st.sampled_from(["类型", "颜色", "材质"]), st.sampled_from(["裙", "白色", "雪纺", "碎花"]))
plain_rows = st.tuples(
    st.lists(pairs.map("#".join), min_size=1).map("*".join),
    st.lists(st.sampled_from(["白色的裙", "很好看", "<UNK>", "。", "！"]), min_size=1, max_size=6).map("".join),
)
wrapped = st.tuples(st.sampled_from(WRAPPERS), attributes | plain_rows.map(lambda row: row[0])).map(
    lambda parts: parts[0][0] + parts[1] + parts[0][1]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | attributes,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(texts, values, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw, data: bytes) -> bytes:
    """The bytes with some of them changed, left out, repeated or cut off."""
    for _ in range(draw(st.integers(0, 4))):
        place, size = draw(st.integers(0, len(data))), draw(st.integers(0, 16))
        put = draw(
            st.binary(max_size=8) | st.sampled_from([b"\0" * 8, b"\xff" * 8, b"77777777777", data[place : place + 64]])
        )
        data = data[:place] + put + data[place + size :]
    return data[: draw(st.none() | st.integers(0, len(data)))]


@st.composite
def decorated(draw, keys: list[str]) -> tuple[str, str]:
    """A heading as forms write it, with marks, units, spaces and line breaks around a key; and the key."""
    key, spaces = draw(st.sampled_from(keys)), st.sampled_from(["", " ", "\u3000", "\n", "\u200b"])
    before = draw(st.sampled_from(["", "*", "＊", "#", "★", "1.", "【必填】", "商品", "产品", "必填:", "\ufeff"]))
    after = draw(st.sampled_from(["", "*", "（必填）", "(cm)", "[可多选]", "※", "：", "1", "(required)", "【选填】"]))
    return draw(spaces) + before + draw(spaces).join(key) + draw(spaces) + after + draw(spaces), key


# --- archives ---

BLOCK = 16 * MIB


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of these files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return file.getvalue()


def zip_bomb(pattern: bytes, size: int, name: str = "train.json", others: dict[str, bytes] | None = None) -> bytes:
    """A zip archive of other files and one file that repeats the pattern until it has `size` bytes or a little more."""
    file, block = io.BytesIO(), pattern * (BLOCK // len(pattern))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for other, data in (others or {}).items():
            zipped.writestr(other, data)
        with zipped.open(name, "w") as member:
            for _ in range(size // len(block) + 1):
                member.write(block)
    return file.getvalue()


# --- calls ---


def is_one_line(message: object) -> bool:
    """Whether this is an error as users shall see it: one line of bounded length, without terminal control codes."""
    if not isinstance(message, str) or not message.startswith("error: ") or len(message) > 1600:
        return False
    return len(message.splitlines()) == 1 and "\x1b" not in message


def attempt(function: Callable, *arguments):
    """The result of a function, or None if it ended the program with an error of one line."""
    try:
        return function(*arguments)
    except SystemExit as end:
        assert is_one_line(end.code), end.code
        return None


def run_main(module: ModuleType, *words) -> str:
    """Runs a program's `main` in this process with these command line words; returns what it printed to stdout."""
    with redirect_stdout(io.StringIO()) as printed, patch.object(sys, "argv", [module.__file__, *map(str, words)]):
        module.main()
    return printed.getvalue()


# Runs a program within 8 GiB of address space and notes its peak memory. The program reads it from /proc itself, since
# what wait4 tells of a forked process can be the peak of its parent.
LAUNCHER = """
import atexit, pathlib, re, resource, runpy, sys

def note(path=sys.argv[1]):
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
    pathlib.Path(path).write_text(peak)

atexit.register(note)
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
sys.path[0] = sys.argv[2]
del sys.argv[:3]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_program(folder: Path, *words, peak: int = SMALL, **variables: str) -> tuple[int, str, str]:
    """Runs a program of scripts/ in a folder: exit status (0 or 1), stdout and stderr.

    `words`: the program's file name and its command line; a path instead of the name runs that Python file. Asserts
    that an error is one line and no traceback, and that the program took less than `peak` bytes of memory.
    """
    scripts = ROOT / "scripts"
    with tempfile.NamedTemporaryFile("r") as noted:
        result = subprocess.run(
            [sys.executable, "-c", LAUNCHER, noted.name, scripts, scripts / words[0], *words[1:]],
            cwd=folder,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
        )
        used = int(noted.read()) * 1024
    printed, errors = result.stdout.decode(), result.stderr.decode()
    assert "Traceback" not in errors and result.returncode in (0, 1), errors[-3000:]
    assert not result.returncode or is_one_line(errors.removesuffix("\n").split("\n")[-1]), errors[-3000:]
    assert used < peak, f"{used / MIB:.0f} MiB"
    return result.returncode, printed, errors
