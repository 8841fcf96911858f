"""The journal of a run that writes ads: a JSON lines file that keeps all of them as soon as they are there.

Its first line holds the settings of the run, every other line ads of one product. A later run with the same settings
reads the ads from it and has the rest written.
"""

import asyncio
import fcntl
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from lib.files import fail
from lib.sheets import text

# An attribute string, and how many rows above hold the same one: equal products get ads of their own.
Key = tuple[str, int]
Done = Callable[[Key, list[str]], None]
# What writes ads. It gets how many to write of each product, what to call with finished ads of a product, what to call
# with how many ads more are written, or have to be written again, and how many were there before. It returns the reason
# for each product without an ad.
Writer = Callable[[dict[Key, int], Done, Callable[[int], object], int], Awaitable[dict[Key, str]]]


class Stopped(Exception):
    """The server is gone, or LLaMA-Factory failed: the run cannot go on."""


def numbered(products: list[str]) -> list[Key]:
    """Each product with how many equal ones stand before it."""
    counts, keys = Counter(), []
    for product in products:
        keys.append((product, counts[product]))
        counts[product] += 1
    return keys


def write_missing(
    write: Writer, journal: IO[str], ads: dict[Key, list[str]], keys: list[Key], count: int
) -> dict[Key, str]:
    """Has the ads written that are missing of `count` for each product, and adds them to the journal and to `ads`.

    Returns the reason for each product that got none. Ends the program if `write` is stopped.
    """
    from tqdm import tqdm

    todo = {key: count - len(ads[key]) for key in keys if len(ads[key]) < count}
    if not todo:
        return {}
    wanted, missing = count * len(keys), sum(todo.values())
    if missing < wanted:
        print(f"{wanted - missing} of {wanted} ads are in {journal.name} from an earlier run")

    def done(key: Key, new: list[str]) -> None:
        append(journal, {"product": key[0], "copy": key[1], "ads": new})
        ads[key] += new

    def saved() -> str:
        return f"{sum(map(len, ads.values()))} of {wanted} ads are in {journal.name}: the same command continues"

    try:
        with tqdm(total=wanted, initial=wanted - missing, desc="Writing", unit="ad") as bar:
            return asyncio.run(write(todo, done, bar.update, wanted - missing))
    except (Stopped, OSError) as error:
        fail(f"{error}; {saved()}")
    except KeyboardInterrupt:
        print(f"\nStopped; {saved()}")
        raise SystemExit(130) from None


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
