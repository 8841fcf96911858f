"""A copy of the project to run in, so that tests neither see nor touch what the user's own runs wrote."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest
from common import BIN, SECRETS, WRITTEN
from filelock import FileLock
from lib.files import ROOT

pytest_plugins = ["served"]
# What `make test ARGS=…` was called with is not for the programs under test.
for name in re.findall(r"^(?:export )?([A-Z_]+) +\?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE):
    os.environ.pop(name, None)
for name in [name for name in os.environ if name.startswith(("MAKE", "MFLAGS"))]:
    del os.environ[name]
# Programs start hundreds of times: without bytecode, as containers often ask for, each start would compile them anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Two workers share two cores, threads that wait for each other spin, and sums in another order round otherwise.
os.environ["OMP_NUM_THREADS"] = "1"


def needs_training(item) -> bool:
    """Whether a test needs a trained model: the demo's, or one whose training was measured."""
    return bool({"demo", "api", "desk", "measured"} & set(item.fixturenames))


def pytest_itemcollected(item):
    """Leaves the tests that need a trained model to `make test`."""
    if needs_training(item):
        item.add_marker("long")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Sorts the files: one worker makes the demo's models, the other goes on."""
    trained = {item.path for item in items if needs_training(item)}
    # The longest files come first among the rest, so that no worker ends alone with one of them.
    longest = ("test_resume", "test_distributed", "test_pairs", "test_batches")
    items.sort(
        key=lambda item: (item.path.stem != "test_pipeline", item.path in trained, item.path.stem not in longest)
    )


@pytest.fixture(autouse=True)
def environment():
    """What a test changes in the environment ends with it: parsing a recipe notes the precision there, for one."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def copy_project(tmp_path_factory):
    """A function that copies the project's files (not what runs wrote, not .venv) to a new folder."""

    def copy(folder: Path | None = None) -> Path:
        folder = folder or tmp_path_factory.mktemp("project") / "clone"
        shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*WRITTEN))
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
def demo(make, copy_project, tmp_path_factory):
    """The folder and the output of a finished `make demo`. All workers share it, so it is only read."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder, output = shared / "demo", shared / "demo.txt"
    with FileLock(shared / "demo.lock"):
        if not output.exists():
            # The secrets are for the test that looks for them in what is written.
            result = make(copy_project(folder), "demo", timeout=1800, **SECRETS)
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
            output.write_text(result.stdout + result.stderr)
    return folder, output.read_text()
