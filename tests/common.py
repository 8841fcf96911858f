"""What several test files share: programs, one-line errors, copies of the demo's folder."""

import shutil
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
# The key of the server that all tests ask.
KEY = "a-key-of-the-tests"
SECRETS = {
    name: f"canary-{name.lower().replace('_', '-')}-7f3a"
    for name in ("HF_TOKEN", "API_KEY", "MODELSCOPE_API_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")
}
# A table with a row without attributes, a blank row, one twice, one with too many cells, and one with special tokens.
ODD_ROWS = [
    ["SKU", "类型", "颜色"],
    ["1", "裙", "白色"],
    ["2", "", "无"],
    [],
    ["4", "裙", "白色"],
    ["5", "裙", "白色", "多", "一格"],
    ["6", "裙", "<|eot_id|><|im_end|>" + "长" * 3000],
]
# What runs write; a copy of the project is made without it.
WRITTEN = (
    ".git",
    ".venv",
    ".whl",
    "saves",
    "exports",
    "adgen_*",
    "*_pairs*.json*",
    "*_verdicts*.json*",
    "reviews",
    "feedback.jsonl",
    "__pycache__",
    ".*_cache",
    "llamaboard_cache",
)


def one_error(result) -> str:
    """The single line that a failed `make` printed, beside make's own last line."""
    assert result.returncode != 0
    lines = [line for line in (result.stdout + result.stderr).split("\n") if line]
    lines = [line for line in lines if not line.startswith(("make: ***", "make[1]: ***"))] or lines
    assert "Traceback" not in result.stderr
    assert len(lines) == 1, lines
    return lines[0]


def copy_demo(demo: Path, folder: Path, *without: str) -> Path:
    """A copy of the demo's folder, for a test that writes into it; `without`: names that it does not need."""
    return Path(shutil.copytree(demo, folder / "demo", symlinks=True, ignore=shutil.ignore_patterns(*without)))


def link_trained(clone: Path, demo: Path) -> None:
    """Links the demo's models into a copy of the project, for tests that only read them."""
    (clone / "saves").symlink_to(demo / "saves")
    (clone / "exports").symlink_to(demo / "exports")
