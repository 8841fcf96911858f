"""The GPU: whether it can run a recipe, and how much memory recipes took where they were measured."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from lib.files import ROOT, fail

DEMO = "`make demo` runs everything on a CPU"


def ask_cards(query: str) -> str:
    """What nvidia-smi answers for the visible cards; empty if there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or not shutil.which("nvidia-smi"):
        return ""
    chosen = ["-i", visible] if re.fullmatch(r"\d+(,\d+)*", visible or "") else []
    answer = subprocess.run(["nvidia-smi", *query.split(), *chosen], capture_output=True, text=True)
    return "" if answer.returncode else answer.stdout.strip()


def measured_peak(recipe: Path) -> float | None:
    """GiB of GPU memory that a recipe took at most on any measured card; None if it was not measured.

    Figures measured on a nearly full card are preferred: with more room, loading sets aside memory that it can do
    without.
    """
    files = [*ROOT.glob("results/bench/*.json"), ROOT / "results/distributed.json"]
    runs = [entry for path in files if path.exists() for entry in json.loads(path.read_text()).get("runs", [])]
    name = str(recipe.resolve().relative_to(ROOT)) if recipe.resolve().is_relative_to(ROOT) else str(recipe)
    own = [one for one in runs if one.get("recipe") == name and not one.get("overrides")]
    tight = [one["peak_gib_per_process"] for one in own if one.get("left_gib") and one["cards"] == 1]
    return max(tight or [one["peak_gib"] for one in own if "peak_gib" in one], default=None)


def check_gpu(header: str, settings: dict, recipe: Path) -> str:
    """The card that the recipe's header asks for is there, it runs PyTorch and bf16, and enough memory is free."""
    need = re.search(r"^# Needs: one (\d+) GB GPU", header, re.MULTILINE)
    if not need:
        return "none needed"
    cards = ask_cards("--query-gpu=name,driver_version,memory.free,compute_cap --format=csv,noheader,nounits")
    if not cards:
        fail(f"this recipe needs a CUDA GPU with {need[1]} GB, and none was found (nvidia-smi lists none); {DEMO}")
    name, driver, _, capability = (field.strip() for field in cards.split("\n")[0].rsplit(",", 3))
    check_driver(driver)
    if settings.get("bf16") and float(capability) < 8:
        fail(f'{name} (compute capability {capability}) has no bf16: ARGS="bf16=false fp16=true"')
    # A card that shares the machine's memory reports none of its own.
    sizes = [float(size) / 1024 for size in re.findall(r", (\d+), [\d.]+ *$", cards, re.MULTILINE)]
    # A recipe that is shared out needs less on each card than was measured.
    shared = {"fsdp", "deepspeed"} & set(settings)
    free, peak = min(sizes, default=float("inf")), None if shared else measured_peak(recipe)
    said = f"{name}, driver {driver}, {free:.1f} GiB free; "
    if peak and free < peak:
        raise Warning(f"{said}this recipe took {peak:.1f}: end what else is on the card (nvidia-smi), or METHOD=qlora")
    return said + (f"this recipe took {peak:.1f}" if peak else "the memory of this recipe was not measured")


def check_driver(driver: str) -> None:
    """Ends the program if PyTorch is built for a newer CUDA than the driver runs, or for none."""
    torch = Path(importlib.util.find_spec("torch").origin).with_name("version.py").read_text()
    built, able = re.search(r"^cuda\b.*= '([\d.]+)'", torch, re.M), re.search(r"CUDA[\w ]*: *([\d.]+)", ask_cards(""))
    if not built:
        fail("PyTorch is built without CUDA here: pip install -r requirements.lock")
    if able and int(able[1].split(".")[0]) < int(built[1].split(".")[0]):
        fail(f"driver {driver} runs CUDA {able[1]} and PyTorch is built for {built[1]}: install a newer driver")
