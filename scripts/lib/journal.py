"""The journal of `make generate`: a JSON lines file that keeps every answer of the server as soon as it is there.

Its first line holds the settings of the run, every other line the ads of one answer. A later run with the same
settings reads the ads from it and asks for the rest.
"""

import fcntl
import json
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import IO

from lib.chat_client import Key
from lib.files import fail
from lib.sheets import text


def open_journal(path: Path, settings: dict) -> tuple[IO[str], dict[Key, list[str]]]:
    """The journal, locked and open to append to, and the ads in it.

    Ends the program if another run has the journal open, or if it belongs to a run with other settings.
    """
    journal = lock(path)
    written = journal.read()
    before, ads = parse(written)
    if ads and before != settings:
        changed = ", ".join(name for name in settings if (before or {}).get(name) != settings[name])
        fail(f"{path} belongs to an unfinished run with another {changed}: finish that run, or remove the file")
    if not ads:
        journal.truncate(0)
        append(journal, {"settings": settings})
    elif not written.endswith("\n"):
        journal.write("\n")
    return journal, ads


def lock(path: Path) -> IO[str]:
    """The file, opened at its start for reading and appending, and locked until this process ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = path.open("a+", encoding="utf-8", errors="replace", newline="\n")
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another run is writing {path.with_suffix('')}")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    journal.seek(0)
    return journal


def parse(written: str) -> tuple[dict | None, dict[Key, list[str]]]:
    """The settings and the ads in a journal's text. Lines that say neither are left out: a kill may have torn one."""
    settings, ads = None, defaultdict(list)
    for line in written.split("\n"):
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if not isinstance(entry, dict):
                continue
            if isinstance(entry.get("settings"), dict):
                settings = settings or entry["settings"]
            product, copy, new = (entry.get(name) for name in ("product", "copy", "ads"))
            if isinstance(product, str) and isinstance(copy, int) and isinstance(new, list):
                ads[product, copy] += map(text, new)
    return settings, ads


def append(journal: IO[str], entry: dict) -> None:
    """Writes a line that stays even if this process is killed at once."""
    journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
    journal.flush()
