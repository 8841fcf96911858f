"""What the programs in this folder share: recipes, attribute strings, JSON lines, files written whole, errors."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent.parent
# AdGen unpacked takes 53 MB and has 400,000 of the marks that part values; what is far larger is something else.
LARGEST_FILE = 512 * 2**20
MOST_VALUES = 10**7

# A terminal that lacks a character, or a file name that is no Unicode, ends no program.
if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="backslashreplace")


def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr, of bounded length, and exit status 1."""
    message = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", message)
    raise SystemExit(f"error: {message if len(message) < 1500 else f'{message[:1000]} … {message[-400:]}'}")


def printable(text: str) -> str:
    """A text that UTF-8 can hold: a lone surrogate, as of JSON or of a file name, is no character."""
    return text.encode("utf-8", "replace").decode()


def read_bounded(file: IO[bytes], name: str, marks: bytes = b"[{,\n") -> bytes:
    """All of an open file; ends the program when it holds, or unpacks to, more than this project's inputs can.

    `marks`: the bytes that part values in this format: a parsed value takes a hundred times the memory of its byte.
    """
    data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        fail(f"{name} holds more than {LARGEST_FILE // 2**20} MiB: is it the right file? Larger ones have to be split")
    values = sum(map(data.count, marks))
    if values > MOST_VALUES:
        fail(f"{name} holds {values:,} values, more than {MOST_VALUES:,}: is it the right file?")
    return data


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


def write_json(path: Path, value) -> None:
    """Writes a value as a JSON file for people, whole or not at all."""
    with whole_file(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.write("\n")


def read_json_lines(path: Path) -> list[dict]:
    """The JSON objects of a UTF-8 JSON lines file, blank lines left out; ends the program when the file is not one."""
    try:
        with path.open("rb") as file:
            lines = read_bounded(file, str(path)).decode("utf-8").split("\n")
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
        except (ValueError, RecursionError) as error:
            fail(f"{path}, line {number}: not JSON ({error}); is the file cut off?")
        if not isinstance(row, dict):
            fail(f"{path}, line {number}: a JSON object was expected, not {type(row).__name__}")
        rows.append(row)
    return rows
