"""What the programs in this folder share: recipes, attribute strings, JSON lines, files written whole, errors."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent.parent


def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit status 1."""
    raise SystemExit(f"error: {message}")


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_recipe(path: Path, overrides: dict[str, str] | None = None) -> dict:
    """The keys of a recipe, with `key=value` overrides laid over them as LLaMA-Factory reads their values."""
    import yaml

    if not path.is_file():
        known = sorted(str(recipe.relative_to(ROOT)) for recipe in ROOT.glob("configs/*/*.yaml"))
        fail(f"there is no recipe {path}; there are: {', '.join(known)}")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in (overrides or {}).items():
        settings[key] = value
        with suppress(yaml.YAMLError):
            settings[key] = yaml.safe_load(value)
        # 1e-2 without a point is text in YAML 1.1.
        if isinstance(settings[key], str):
            with suppress(ValueError):
                settings[key] = float(value)
    return settings


def parse_attributes(text: str) -> list[tuple[str, str]]:
    """Splits `类型#上衣*颜色#白色` into [("类型", "上衣"), ("颜色", "白色")], in order, repeated keys kept.

    Parts that are no `key#value` pair (no `#`, or an empty side) are left out; a value may hold further `#`.
    """
    pairs = (part.partition("#") for part in text.split("*"))
    return [(key.strip(), value.strip()) for key, mark, value in pairs if mark and key.strip() and value.strip()]


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO]:
    """Opens a neighbour of `path` for writing and moves it there at the end: `path` is whole or as it was before.

    Text is UTF-8 with `\\n` line ends. On any error, Ctrl-C included, the neighbour is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with neighbour.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    finally:
        neighbour.unlink(missing_ok=True)


def read_json_lines(path: Path) -> list[dict]:
    """The JSON objects of a UTF-8 JSON lines file, blank lines left out; ends the program when the file is not one."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        fail(f"{path} does not exist")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path} cannot be read as UTF-8 text: {error}")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            fail(f"{path}, line {number}: not JSON ({error}); is the file cut off?")
        if not isinstance(row, dict):
            fail(f"{path}, line {number}: a JSON object was expected, not {type(row).__name__}")
        rows.append(row)
    return rows
