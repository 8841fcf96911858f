"""Writes ads in batches: by LLaMA-Factory's prediction with sampling, on one card or on several.

LLaMA-Factory keeps the ads of a prediction in memory until it has all of them. So the ads are written in parts, each by
a process of its own. A part is large, because each process loads the model. `make generate` and `make pairs` write so.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

from lib.cards import check_cards
from lib.choices import Choices, read_choices, served_overrides
from lib.files import ROOT, printable, read_json_lines, write_json, write_json_lines
from lib.gpu import ask_cards
from lib.journal import Done, Key, Stopped
from lib.predictions import is_asked
from lib.recipes import read_recipe, sampling_defaults
from lib.supervision import OUT_OF_MEMORY, end_with_parent

# Batches of a part with a card, and without one. They take some minutes, and to load the model takes half of one.
PARTS = (40, 10)
# The most rows of a batch without a card. To choose the next tokens takes longest there, whatever the batch.
CPU_ROWS = 16
BATCH = "per_device_eval_batch_size"
# The trainer's progress bar over batches. Other bars begin with what they count.
BAR = re.compile(rb" *\d+%\|[^|]*\| (\d+)/\d+ \[")


def sampling_words(choices: Choices, overrides: list[str]) -> list[str]:
    """What the predict recipe gets to write as `make api` would: the model and the sampling of the chat recipe."""
    # What only the predict recipe names, such as its repetition penalty, is not what `make api` writes with.
    predict = read_recipe(ROOT / choices.recipe("predict"))
    unnamed = {key: value for key, value in sampling_defaults().items() if key in predict}
    chat = read_recipe(ROOT / choices.recipe("chat"), [*served_overrides(choices), *overrides])
    chat = unnamed | {"do_sample": True} | chat
    if not chat.get("temperature", 1):
        chat |= {"do_sample": False, "temperature": 1.0}
    # JSON is YAML. Within quotation marks, no character is taken for a mark of YAML's.
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in chat.items()]


def make_base(choices: Choices) -> None:
    """Makes what lies below the adapter, if it is missing, where its progress shows; ends the program if that fails."""
    command = [sys.executable, ROOT / "scripts/launch.py", "base"]
    if not choices.exported and (status := subprocess.run(command).returncode):
        raise SystemExit(status)


def work_folder(*run) -> Path:
    """The folder for the parts of a run, from the project's root on; `run` are JSON values that tell it from others.

    It does not lie beside the ads: the library that reads the rows takes brackets in a path for a pattern.
    """
    return Path("saves/parts", hashlib.sha256(json.dumps(run).encode()).hexdigest()[:16])


def batch_size(choices: Choices, words: list[str]) -> tuple[int, int]:
    """Rows of a batch, and batches of a part.

    The rows are as the user named them, else the recipe's, once for each time that its card fits into free memory.
    """
    recipe = ROOT / choices.recipe("predict")
    rows = int(read_recipe(recipe, words).get(BATCH) or 8)
    named = any(word.startswith(f"{BATCH}=") for word in words)
    free = ask_cards("--query-gpu=memory.free --format=csv,noheader,nounits").split()
    if not free:
        return rows if named else min(rows, CPU_ROWS), PARTS[1]
    card = re.search(r"^# Needs:.* (\d+) GB GPU", recipe.read_text(encoding="utf-8"), re.MULTILINE)
    times = min(map(int, free)) // (int(card[1]) * 1024) if card and not named else 1
    return rows * max(1, times), PARTS[0]


def cards_of(count: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES for each of `count` processes. Cards that the user has hidden stay hidden."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return [seen[place % len(seen)] for place in range(count)]


def write_part(place: Path, part: list[Key]) -> None:
    """Writes the rows of a part, and registers them, in an empty folder."""
    shutil.rmtree(place, ignore_errors=True)
    columns = {"prompt": "instruction", "response": "output"}
    write_json(place / "dataset_info.json", {"products": {"file_name": "rows.jsonl", "columns": columns}})
    # Escaped, lone surrogates can be written, too.
    (place / "keys.json").write_text(json.dumps(part))
    write_json_lines(place / "rows.jsonl", ({"instruction": product, "output": ""} for product, _ in part))


def read_part(place: Path) -> list[tuple[Key, str, str]]:
    """The product of each row of a part, the prompt that the model got and its ad; empty if the part is unfinished."""
    keys, ads = place / "keys.json", place / "out/generated_predictions.jsonl"
    if not (keys.exists() and ads.exists()):
        return []
    part, rows = json.loads(keys.read_text(encoding="utf-8")), ads.read_bytes().count(b"\n")
    if rows != len(part):
        return []
    found = zip(part, read_json_lines(ads), strict=True)
    return [(tuple(key), row["prompt"], printable(row["predict"]).strip()) for key, row in found]


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a program's output, and each state of its progress bars."""
    rest = b""
    while chunk := await stream.read(4096):
        *lines, rest = re.split(b"[\r\n]+", rest + chunk)
        for line in lines:
            yield line
        if BAR.match(rest):
            yield rest
    yield rest


async def run_part(
    words: list[str], place: Path, card: str, part: list[Key], size: int, progress: Callable[[int], object]
) -> bool:
    """Has LLaMA-Factory write an ad for each row of a part, in batches of `size`.

    The files stand in the folder `place`. progress: see `write_ads`. Returns whether the ads are there, or memory ran
    out. Raises Stopped at any other error.
    """
    write_part(place, part)
    folder = place.relative_to(ROOT)
    more = [f"dataset_dir={folder}", "eval_dataset=products", f"output_dir={folder}/out", f"{BATCH}={size}"]
    variables = {"GPUS": "1", "CUDA_VISIBLE_DEVICES": card, "HF_DATASETS_CACHE": str(place / "cache")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, ROOT / "scripts/launch.py", "predict", *words, *more),
        env=os.environ | variables,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        # Ctrl-C in the terminal reaches this program only, which then ends the other one.
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    said, shown = [], 0
    try:
        async for line in lines_of(process.stderr):
            if found := BAR.match(line):
                written = min(int(found[1]) * size, len(part))
                progress(written - shown)
                shown = written
            elif line.strip():
                said.append(line.decode("utf-8", "replace").strip())
        status = await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            await process.wait()
    progress(-shown if status else len(part) - shown)
    for line in said:
        if line.startswith("warning: "):
            print(line, file=sys.stderr)
    if status and (status != OUT_OF_MEMORY or size == 1):
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        raise Stopped((errors or said or ["LLaMA-Factory ended without a word"])[-1])
    if not status and not read_part(place):
        raise Stopped(f"LLaMA-Factory did not write one ad for each of {len(part)} rows; is an override the reason?")
    return not status


async def write_share(
    words: list[str], place: Path, card: str, rows: list[Key], seeds: range, progress: Callable[[int], object]
) -> AsyncIterator[None]:
    """Has an ad written for each of the rows, in parts; yields after each part. seeds: a number for each row.

    The batches are halved each time that memory runs out.
    """
    (size, batches), start = batch_size(read_choices(), words), 0
    while start < len(rows):
        part = rows[start : start + size * batches]
        size = min(size, len(part))
        if await run_part([*words, f"seed={seeds[start]}"], place, card, part, size, progress):
            yield
            start += len(part)
        else:
            size //= 2
            print(f"\nMemory ran out: goes on with batches of {size}", file=sys.stderr)


def take(place: Path, todo: dict[Key, int], done: Done, too_long: str) -> dict[Key, str]:
    """Hands the ads of a part to `done`, and takes them off `todo`; returns the reasons for those that are missing."""
    ads, reasons = defaultdict(list), {}
    for key, prompt, ad in read_part(place):
        if ad and is_asked(prompt, key[0]):
            ads[key].append(ad)
        elif key in todo:
            reasons[key] = "the model wrote nothing" if is_asked(prompt, key[0]) else too_long
    for key, new in ads.items():
        if new := new[: todo.get(key, 0)]:
            todo[key] -= len(new)
            done(key, new)
    return reasons


async def write_ads(
    words: list[str],
    folder: Path,
    todo: dict[Key, int],
    done: Done,
    progress: Callable[[int], object],
    seed: int,
) -> dict[Key, str]:
    """Has the tuned model write as many ads of each product as `todo` says, with a process on each of GPUS cards.

    words: overrides of the predict recipe. folder: see `work_folder`. The rest is as in `lib.journal.Writer`. Returns
    the reason for each product without an ad; raises Stopped if LLaMA-Factory cannot go on.
    """
    choices = read_choices()
    check_cards(choices)
    cutoff = int(read_recipe(ROOT / choices.recipe("predict"), words).get("cutoff_len") or 2048)
    too_long = f"the attributes are longer than the recipe's cutoff_len of {cutoff} tokens"
    # Rows of one length side by side need little padding. The longest come first: if they fit, all fit.
    keys = sorted((key for key in todo if len(key[0]) <= cutoff), key=lambda key: -len(key[0]))
    reasons, asked = dict.fromkeys(todo.keys() - keys, too_long), dict(todo)
    # A run that was killed may have left a finished part.
    for place in (ROOT / folder).glob("*"):
        reasons |= take(place, todo, done, too_long)
    progress(sum(asked.values()) - sum(todo.values()))
    rows = [key for key in keys for _ in range(todo[key])]

    async def work(number: int, card: str) -> None:
        place, share = ROOT / folder / str(number), slice(number, None, choices.gpus)
        seeds = range(seed, seed + len(rows))[share]
        async for _ in write_share(words, place, card, rows[share], seeds, progress):
            reasons.update(take(place, todo, done, too_long))

    try:
        async with asyncio.TaskGroup() as group:
            for number, card in enumerate(cards_of(choices.gpus)):
                group.create_task(work(number, card))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    shutil.rmtree(ROOT / folder, ignore_errors=True)
    return {key: reason for key, reason in reasons.items() if todo[key] == asked[key]}
