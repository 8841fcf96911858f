"""A copy of the project to run in, so that tests neither see nor touch what the user's own runs wrote."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from adgen import ROOT

BIN = Path(sys.executable).parent
# What `make test ARGS=…` was called with is not for the programs under test.
for name in re.findall(r"^(?:export )?([A-Z_]+) +\?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE):
    os.environ.pop(name, None)
for name in [name for name in os.environ if name.startswith(("MAKE", "MFLAGS"))]:
    del os.environ[name]


@pytest.fixture(autouse=True)
def environment():
    """What a test changes in the environment ends with it: parsing a recipe notes the precision there, for one."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def copy_project(tmp_path_factory):
    """A function that copies the project's files (not what runs wrote, not .venv) to a new folder."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("project") / "clone"
        ignore = shutil.ignore_patterns(
            ".git", ".venv", ".whl", "saves", "exports", "adgen_*", "__pycache__", ".*_cache"
        )
        shutil.copytree(ROOT, folder, symlinks=True, ignore=ignore)
        return folder

    return copy


@pytest.fixture(scope="session")
def clone(copy_project):
    """One copy for all tests that leave it as it was."""
    return copy_project()


@pytest.fixture(scope="session")
def make():
    """A function that runs `make` in a folder: (folder, *words, **variables) → the finished process."""

    def run(folder, *words, timeout=600, **variables):
        return subprocess.run(
            ["make", f"BIN={BIN}", *words],
            cwd=folder,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture(scope="session")
def demo(make, copy_project):
    """The folder and the output of a finished demo."""
    folder = copy_project()
    result = make(folder, "demo", timeout=1800)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder, result.stdout
