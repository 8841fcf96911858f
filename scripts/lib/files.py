"""Reads and writes files: within bounds, whole or not at all, and with errors that fit on one line."""

import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[2]
# AdGen unpacked takes 53 MB and holds 400,000 separators. A file that is far larger is not AdGen.
LARGEST_FILE = 512 * 2**20
MOST_VALUES = 10**7


class Screen(io.FileIO):
    """Standard output or error of a program that goes on when nobody reads it any more, as in `make data | head -5`."""

    def write(self, data) -> int:
        """Writes as a file does; from a broken pipe on, to nowhere."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def open_screen(stream: IO[str]) -> IO[str]:
    """The same stream of a program; neither a closed pipe nor a character unknown to the terminal stops this one."""
    screen = Screen(stream.fileno(), "w", closefd=False)
    # With PYTHONUNBUFFERED, as in containers, what is printed must not wait in a buffer.
    screen = screen if stream.write_through else io.BufferedWriter(screen)
    behaviour = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return io.TextIOWrapper(screen, stream.encoding, "backslashreplace", **behaviour)


# Not where a test has put something else in their place, or where there is neither.
if sys.stdout and sys.stdout is sys.__stdout__:
    sys.stdout = open_screen(sys.stdout)
if sys.stderr and sys.stderr is sys.__stderr__:
    sys.stderr = open_screen(sys.stderr)


def fail(message: str) -> NoReturn:
    """Ends the program with exit status 1 and one line on stderr, at most 1,500 characters long."""
    message = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", message)
    raise SystemExit(f"error: {message if len(message) < 1500 else f'{message[:1000]} … {message[-400:]}'}")


def printable(text: str) -> str:
    """The text with lone surrogates replaced, so that it can be written as UTF-8. JSON and file names may hold some."""
    return text.encode("utf-8", "replace").decode()


def read_bounded(file: IO[bytes], name: str, marks: bytes = b"[{,\n") -> bytes:
    """Reads an open file whole; ends the program if it is larger than the inputs of this project can be.

    `marks`: the separator bytes of the format. Their count bounds the number of parsed values, each of which takes a
    hundred times the memory of its separator.
    """
    data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        fail(f"{name} holds more than {LARGEST_FILE // 2**20} MiB: is it the right file? Larger ones have to be split")
    values = sum(map(data.count, marks))
    if values > MOST_VALUES:
        fail(f"{name} holds {values:,} values, more than {MOST_VALUES:,}: is it the right file?")
    return data


def sha256(path: Path) -> str:
    """The file's checksum in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Package name → version, for those of the packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path`, and renames it to `path` at the end.

    Text is UTF-8 with `\\n` line ends. On any error, Ctrl-C included, the temporary file is removed and `path` stays as
    it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with temporary.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    """Writes a value as a JSON file for people, whole or not at all."""
    with whole_file(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.write("\n")


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    """Writes JSON objects as JSON lines, whole or not at all; lone surrogates are replaced."""
    with whole_file(path) as file:
        file.writelines(printable(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


def read_json_lines(path: Path) -> list[dict]:
    """The JSON objects of a UTF-8 JSON lines file without its blank lines; ends the program if the file is not one."""
    try:
        with path.open("rb") as file:
            lines = read_bounded(file, str(path)).decode("utf-8-sig").split("\n")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        fail(f"{path} is not UTF-8 text: {error}")
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
