"""Recipes, and the `key=value` overrides laid over them, read as LLaMA-Factory reads them: with OmegaConf."""

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from lib.files import ROOT, fail


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict:
    """The keys of a recipe with `key=value` overrides laid over them; ends the program if one cannot be read."""
    from omegaconf import OmegaConf

    if not path.is_file():
        known = sorted(str(recipe.relative_to(ROOT)) for recipe in ROOT.glob("configs/*/*.yaml"))
        fail(f"there is no recipe {path}; there are: {', '.join(known)}")
    try:
        settings = OmegaConf.load(path)
        if not OmegaConf.is_dict(settings):
            raise ValueError("it holds no keys")
        return OmegaConf.to_container(OmegaConf.merge(settings, OmegaConf.from_cli(list(overrides))))
    except Exception as error:
        # OmegaConf hands on what its YAML and its grammar raise.
        fail(f"{path} {' '.join(overrides)} cannot be read as a recipe: {' '.join(str(error).split())}")


def check_overrides(words: Sequence[str], verb: str) -> list[str]:
    """The `key=value` words; ends the program at one that LLaMA-Factory would not understand."""
    keys = known_keys(verb) if words else set()
    for word in words:
        key, mark, _ = word.partition("=")
        if not mark:
            fail(f'the override "{word}" is not of the form key=value, as in ARGS="num_train_epochs=1"')
        if key not in keys:
            fail(f'LLaMA-Factory knows no key "{key}" for {verb}; its keys: docs of LLaMA-Factory 0.9.5 or the recipes')
    return list(words)


def known_keys(verb: str) -> set[str]:
    """The keys that LLaMA-Factory accepts in a recipe for `verb`."""
    hparams = folder("llamafactory") / "hparams"
    sources = [hparams / f"{name}_args.py" for name in ("model", "data", "finetuning", "generating")]
    if verb == "train":
        sources += [hparams / "training_args.py", folder("transformers") / "training_args.py"]
        sources.append(folder("transformers") / "training_args_seq2seq.py")
    return {
        name for source in sources for name, line in fields(source).items() if "init=False" not in ast.unparse(line)
    }


def sampling_defaults() -> dict:
    """The keys of LLaMA-Factory that say how an ad is decoded → their defaults."""
    found = fields(folder("llamafactory") / "hparams/generating_args.py")
    words = {name: word for name, line in found.items() for word in line.value.keywords if word.arg == "default"}
    return {name: ast.literal_eval(word.value) for name, word in words.items()}


def folder(package: str) -> Path:
    """Where a package is installed. It is not imported: that takes eight seconds."""
    return Path(importlib.util.find_spec(package).origin).parent


def fields(source: Path) -> dict[str, ast.AnnAssign]:
    """The dataclass fields in a Python file: name → its line, parsed."""
    classes = (node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    lines = (line for node in classes for line in node.body if isinstance(line, ast.AnnAssign))
    return {line.target.id: line for line in lines}
