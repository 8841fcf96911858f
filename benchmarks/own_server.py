"""A server of `make api` that a benchmark starts, on random weights of the shape of a model that a hub has."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import training
from lib import vllm
from lib.choices import Choices
from lib.files import ROOT
from lib.recipes import known_keys
from lib.servers import OwnServer, wait_until_up
from measuring import SCRATCH, shown


def prepare(choices: Choices) -> tuple[Path, list[str]]:
    """The base model that is measured, and the overrides that put it and an adapter into a recipe.

    With EXPORTED=1 there is no adapter: a merged model has the shape of its base model.
    """
    model, named = ROOT / "configs" / choices.model, ROOT / choices.settings("chat")["model_name_or_path"]
    base = named if named.is_dir() else SCRATCH / training.stand_in(model)[0]
    adapter, dev = SCRATCH / f"{model.name}_{base.name}_adapter", ROOT / "data/adgen_dev.jsonl"
    training.prepare(model, base, adapter, "adgen" if dev.exists() else "sample")
    return base, [
        f"model_name_or_path={shown(base)}",
        f"adapter_name_or_path={'null' if choices.exported else shown(adapter)}",
    ]


def engine(choices: Choices) -> str:
    """What writes, as a table names it: the variables that choose it."""
    return " ".join(["make api", *["BACKEND=vllm"] * vllm.is_wanted(), *["EXPORTED=1"] * choices.exported])


@contextmanager
def started(words: list[str]) -> Iterator[tuple[str, float]]:
    """The URL of a server by BACKEND's engine, and the seconds until it answered. Words for batches are left out."""
    keys, start = known_keys("api"), time.perf_counter()
    with tempfile.TemporaryFile() as log:
        server = OwnServer([word for word in words if word.split("=")[0] in keys], log)
        try:
            wait_until_up(server.process, server.url, log)
            yield server.url, time.perf_counter() - start
        finally:
            server.stop()
