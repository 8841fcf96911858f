"""Runs of LLaMA-Factory that write a folder: a training or a prediction, and an export."""

import os
import shutil
from pathlib import Path

from lib.files import fail
from lib.recipes import read_recipe
from lib.run_folder import finish, locked, prepare, say, set_aside
from lib.supervision import supervise
from lib.weights import weights_fault


def run_training(recipe: Path, words: list[str], environment: dict[str, str]) -> None:
    """Trains, from the last whole checkpoint on if there is one; or predicts."""
    settings = read_recipe(recipe, words)
    folder = Path(settings["output_dir"])
    # Of several machines, the first looks after the folder.
    if not settings.get("do_train") or os.environ.get("NODE_RANK", "0") != "0":
        return supervise(["train", str(recipe), *words], settings, folder, **environment)
    with locked(folder) as lock:
        checkpoint = prepare(settings)
        # Without it, early stopping would begin to count anew.
        more = ["restore_callback_states_from_checkpoint=true"] * bool(checkpoint)
        supervise(["train", str(recipe), *words, *more], settings, folder, lock, **environment)
        finish(folder)


def run_export(recipe: Path, words: list[str], card: str = "") -> None:
    """Writes the merged model beside its folder, and moves it there when it is whole.

    `card`: the model card, the text of its README.md.
    """
    settings = read_recipe(recipe, words)
    folder = Path(settings["export_dir"])
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        fail(f"{folder} holds something else than a model; name another folder with ARGS=export_dir=<folder>")
    part = folder.with_name(f".{folder.name}.part")
    with locked(folder) as lock:
        shutil.rmtree(part, ignore_errors=True)
        try:
            supervise(["export", str(recipe), *words, f"export_dir={part}"], settings, part, lock)
            if fault := weights_fault(part):
                fail(f"the export is not whole ({fault}); run it again")
            # safetensors writes files that only their owner may read. A server may run as another user.
            for path in part.glob("*.safetensors"):
                path.chmod((part / "config.json").stat().st_mode)
            if card:
                (part / "README.md").write_text(card, encoding="utf-8")
            replace_folder(folder, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def replace_folder(folder: Path, part: Path) -> None:
    """Moves a finished export to its place. Files that somebody else put there, such as GGUF, are kept beside it."""
    old = set_aside(folder, ".") if folder.exists() else None
    part.rename(folder)
    if old and {path.name for path in old.iterdir()} <= {path.name for path in folder.iterdir()}:
        shutil.rmtree(old)
    elif old:
        say(f"{folder} held more files than this export: they are in {old}")
