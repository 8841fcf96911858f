"""Turns AdGen's raw rows into the Alpaca files that the recipes train and score on, and says what it did with each row.

Without RAW the rows come from the Hugging Face hub, or from ModelScope when USE_MODELSCOPE_HUB=1.
"""

import argparse
import base64
import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from adgen import ROOT, fail, parse_attributes, printable, read_bounded, whole_file

DEV_NAMES = ("dev", "val", "valid", "validation", "test")
SUFFIXES = (".json", ".jsonl")
# The first bytes of what is compressed as a whole → what reads it.
UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
UNREADABLE = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
UNREADABLE += (RuntimeError, ValueError, OverflowError)
# An archive of AdGen has three members.
MOST_MEMBERS = 10_000
# AdGen's longest row takes a kilobyte.
LONGEST_ROW = 2**20
QUANTILES = (0, 25, 50, 75, 95, 99, 100)

CHANGED = "attribute string tidied"
CUT = "clause with <UNK> cut"
UNK = "<UNK> in the ad"
DUPLICATE = "duplicate pair"
LEAK = "product is in dev"
PLAIN = "no attributes"
TOO_LONG = "longer than a mebibyte"


class Row(NamedTuple):
    """One raw row: where it stood, its text there, and its attribute string and ad, or why it has none."""

    file: str
    line: int
    raw: str | bytes
    content: str = ""
    summary: str = ""
    problem: str = ""


class Result(NamedTuple):
    """What became of a row: kept, repaired, dropped or rejected, why, and the texts to write."""

    row: Row
    status: str
    reason: str = ""
    instruction: str = ""
    output: str = ""


def split_of(name: str) -> str:
    """`train` or `dev` by a file's name, or nothing."""
    path = Path(name)
    if path.suffix not in SUFFIXES or path.name.startswith("."):
        return ""
    return "dev" if path.stem in DEV_NAMES else "train" if path.stem == "train" else ""


def read_sources(raw: Path) -> dict[str, tuple[str, bytes]]:
    """Split → name and bytes of its file, from a folder, a file, or an archive, which is read without unpacking it."""
    if not raw.exists():
        fail(f"{raw} does not exist; RAW is a folder, a file, a .tar.gz or a .zip with AdGen's train.json and dev.json")
    try:
        if raw.is_dir():
            found = files_of_folder(raw)
        elif packed := tar_of(raw):
            found = files_of_tar(packed)
        elif zipfile.is_zipfile(raw):
            found = files_of_zip(raw)
        else:
            siblings = [path for path in sorted(raw.parent.iterdir()) if split_of(path.name) == "dev" and path != raw]
            found = [(split_of(path.name) or "train", path.name, read_file(path)) for path in [raw, *siblings[:1]]]
    except UNREADABLE as error:
        fail(f"{raw} cannot be read: {error}")
    sources: dict[str, tuple[str, bytes]] = {}
    for split, name, data in found:
        name = printable(name)
        if split in sources:
            fail(f"{raw} holds two {split} files, {sources[split][0]} and {name}; leave one")
        sources[split] = (name, data)
    if "train" not in sources:
        fail(f"{raw} holds no train.json; AdGen's files are train.json and dev.json, JSON lines or JSON arrays")
    return sources


def files_of_folder(folder: Path) -> list[tuple[str, str, bytes]]:
    """The split files in a folder, or else in the folders within it."""
    for pattern in ("*", "*/*"):
        paths = [path for path in sorted(folder.glob(pattern)) if path.is_file() and split_of(path.name)]
        if paths:
            return [(split_of(path.name), str(path.relative_to(folder)), read_file(path)) for path in paths]
    return []


def tar_of(path: Path) -> bytes:
    """The tar archive that a file is, unpacked, or nothing; unpacked first, for a header in it can be of any size."""
    with path.open("rb") as file:
        start = file.read(512)
    unpack = next((unpack for magic, unpack in UNPACKERS.items() if start.startswith(magic)), None)
    if not unpack:
        try:
            tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
        except tarfile.TarError:
            return b""
    with unpack(path) if unpack else path.open("rb") as file:
        return read_bounded(file, str(path), b"")


def files_of_tar(packed: bytes) -> list[tuple[str, str, bytes]]:
    """The split files in a tar archive; links and devices are passed over."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        for count, member in enumerate(tar):
            # A negative size would lead back to the same member for ever.
            if count == MOST_MEMBERS or member.size < 0:
                raise tarfile.TarError(f"more than {MOST_MEMBERS:,} members" if member.size >= 0 else "bad header")
            if member.isfile() and split_of(member.name):
                found.append((split_of(member.name), member.name, read_bounded(tar.extractfile(member), member.name)))
    return found


def files_of_zip(archive: Path) -> list[tuple[str, str, bytes]]:
    """The split files in a zip archive."""
    with zipfile.ZipFile(archive) as zipped:
        names = [name for name in zipped.namelist() if split_of(name)]
        return [(split_of(name), name, read_bounded(zipped.open(name), name)) for name in names]


def read_file(path: Path) -> bytes:
    """All of a file on disk, within bounds."""
    with path.open("rb") as file:
        return read_bounded(file, str(path))


def decode_lines(data: bytes) -> list[str | bytes]:
    """The lines as text: in UTF-8 or GB18030 if one fits all, else each line in the one that fits it, else as bytes."""
    # Line by line even where one fits all: in a text as a whole, one rare character quadruples the memory of all.
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for encoding in ("utf-8", "gb18030"):
        with suppress(UnicodeDecodeError):
            return [line.decode(encoding) for line in lines]
    return [decode_line(line) for line in lines]


def decode_line(line: bytes) -> str | bytes:
    """A line in UTF-8, in GB18030, or as it is."""
    for encoding in ("utf-8", "gb18030"):
        with suppress(UnicodeDecodeError):
            return line.decode(encoding)
    return line


def read_rows(name: str, data: bytes) -> Iterator[Row]:
    """The rows of a JSON lines file or of a JSON array; blank lines are no rows."""
    lines = decode_lines(data)
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[" and all(isinstance(line, str) for line in lines):
        try:
            values = json.loads("\n".join(lines))
            texts = [json.dumps(value, ensure_ascii=False) for value in values]
        except (ValueError, RecursionError) as error:
            fail(f"{name} starts as a JSON array but is none ({error}); is it cut off?")
        for number, (text, value) in enumerate(zip(texts, values, strict=True), 1):
            yield read_value(Row(name, number, text), value)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = Row(name, number, line.removesuffix("\r") if isinstance(line, str) else line)
        if isinstance(line, bytes):
            yield row._replace(problem="neither UTF-8 nor GB18030")
            continue
        if len(line) > LONGEST_ROW:
            yield row._replace(problem=TOO_LONG)
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield row._replace(problem="not JSON")
            continue
        yield read_value(row, value)


def read_value(row: Row, value: object) -> Row:
    """The row with attribute string and ad found under one of the known pairs of column names, or with its problem."""
    if len(row.raw) > LONGEST_ROW:
        return row._replace(problem=TOO_LONG)
    if not isinstance(value, dict):
        return row._replace(problem="not an object")
    for prompt, response in (("content", "summary"), ("prompt", "response"), ("instruction", "output")):
        if prompt in value and response in value:
            break
    else:
        return row._replace(problem="no known columns")
    content, summary = value[prompt], value[response]
    extra = value.get("input") if prompt == "instruction" else None
    if isinstance(extra, str) and extra.strip() and isinstance(content, str):
        # The instruction may be a task, "write an ad", and the input the attributes.
        content = extra if parse_attributes(extra) and not parse_attributes(content) else f"{content}\n{extra}"
    if not isinstance(content, str) or not isinstance(summary, str):
        return row._replace(problem="a column is not text")
    try:
        (content + summary).encode("utf-8")
    except UnicodeEncodeError:
        return row._replace(problem="not valid Unicode")
    if not content.strip() or not summary.strip():
        return row._replace(problem="a column is empty")
    return row._replace(content=content, summary=summary)


def read_hub() -> dict[str, list[Row]]:
    """Split → rows from the hub that the registry names; ends the program when it cannot be reached."""
    registry = json.loads((ROOT / "dataset_info/dataset_info.json").read_text(encoding="ascii"))
    modelscope = os.environ.get("USE_MODELSCOPE_HUB") in ("1", "true")
    hub, key = ("ModelScope", "ms_hub_url") if modelscope else ("the Hugging Face hub", "hf_hub_url")
    rows = {}
    for split in ("train", "dev"):
        entry = registry[f"adgen_hub_{split}"]
        name = f"{entry[key]}:{entry['split']}"
        print(f"Fetching {name} from {hub}")
        try:
            loaded = load_from_modelscope(entry) if modelscope else load_from_hugging_face(entry)
            rows[split] = [
                read_value(Row(name, number, json.dumps(value, ensure_ascii=False)), value)
                for number, value in enumerate(loaded, 1)
            ]
        except Exception as error:
            fail(
                f"{name} cannot be fetched from {hub} ({type(error).__name__}): check the network, "
                "give local files with `make data RAW=<folder>`, or see everything run on the sample with `make demo`"
            )
    return rows


def load_from_hugging_face(entry: dict) -> Iterable[dict]:
    """The rows of a registry entry by `datasets`."""
    from datasets import load_dataset

    return load_dataset(entry["hf_hub_url"], split=entry["split"])


def load_from_modelscope(entry: dict) -> Iterable[dict]:
    """The rows of a registry entry by `modelscope`."""
    from modelscope import MsDataset

    return MsDataset.load(entry["ms_hub_url"], split=entry["split"])


def tidy(content: str) -> str:
    """The attribute string without stray spaces, full-width # and * and empty parts; other text only stripped."""
    if "＃" in content or "＊" in content:
        content = content.replace("＃", "#").replace("＊", "*")
    pairs = parse_attributes(content)
    return "*".join(f"{key}#{value}" for key, value in pairs) if pairs else content.strip()


def product(instruction: str) -> str:
    """What tells products apart: the attributes, in whatever order they stand."""
    return "*".join(sorted(instruction.split("*")))


def cut_unk(summary: str) -> str:
    """The ad without the clauses that hold `<UNK>`; a sentence that loses its end ends where it is cut."""
    kept = ""
    for clause, mark in re.findall(r"([^，,；;。！？!?]*)([，,；;。！？!?]*)", summary):
        if "<UNK>" not in clause:
            kept += clause + mark
        elif kept and kept[-1] in "，,；;" and not (mark and mark[-1] in "，,；;"):
            kept = kept[:-1] + (mark or "。")
    return kept


def judge_dev(rows: Iterable[Row]) -> list[Result]:
    """Every dev row that can be read is kept, in order, its ad unaltered: published scores are on them."""
    results = []
    for row in rows:
        if row.problem:
            results.append(Result(row, "rejected", row.problem))
            continue
        instruction = tidy(row.content)
        changed = instruction != row.content
        results.append(Result(row, "repaired" if changed else "kept", CHANGED * changed, instruction, row.summary))
    return results


def judge_train(rows: Iterable[Row], dev_products: set[str], policy: argparse.Namespace) -> list[Result]:
    """What becomes of each training row under the policy; a row of a dev product is always dropped."""
    results, seen = [], set()
    for row in rows:
        if row.problem:
            results.append(Result(row, "rejected", row.problem))
            continue
        instruction, output = tidy(row.content), row.summary.strip()
        reasons = [CHANGED] if instruction != row.content else []
        if "<UNK>" in output and policy.unk == "cut":
            output = cut_unk(output)
            reasons.append(CUT)
        dropped = ""
        if policy.plain == "drop" and not parse_attributes(instruction):
            dropped = PLAIN
        elif product(instruction) in dev_products:
            dropped = LEAK
        elif not output or (policy.unk == "drop" and "<UNK>" in output):
            dropped = UNK
        elif policy.duplicates == "drop" and (instruction, output) in seen:
            dropped = DUPLICATE
        if dropped:
            results.append(Result(row, "dropped", dropped))
            continue
        seen.add((instruction, output))
        results.append(Result(row, "repaired" if reasons else "kept", "; ".join(reasons), instruction, output))
    return results


def carve_val(results: list[Result]) -> tuple[list[Result], list[Result]]:
    """Training rows and validation rows: whole products, chosen by hash, about 1,000 rows and at most a twentieth."""
    usable = [result for result in results if result.status in ("kept", "repaired")]
    by_product = defaultdict(list)
    for result in usable:
        by_product[product(result.instruction)].append(result)
    wanted = min(1000, len(usable) // 20)
    chosen: set[str] = set()
    count = 0
    for name in sorted(by_product, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if count >= wanted:
            break
        chosen.add(name)
        count += len(by_product[name])
    val = [result for result in usable if product(result.instruction) in chosen]
    return [result for result in usable if product(result.instruction) not in chosen], val


def quantiles(lengths: list[int]) -> dict[str, int]:
    """Percentile → length in characters."""
    ordered = sorted(lengths)
    return (
        {str(part): ordered[min(len(ordered) - 1, len(ordered) * part // 100)] for part in QUANTILES} if ordered else {}
    )


def describe(results: list[Result]) -> dict:
    """Rows by product type and by attribute key, and length quantiles, of the rows of one written split."""
    types: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for result in results:
        pairs = parse_attributes(result.instruction)
        types.update(list(dict.fromkeys(value for key, value in pairs if key == "类型")))
        keys.update(list(dict.fromkeys(key for key, _ in pairs)))
    return {
        "rows": len(results),
        "rows_by_type": dict(types.most_common()),
        "rows_by_key": dict(keys.most_common()),
        "instruction_characters": quantiles([len(result.instruction) for result in results]),
        "output_characters": quantiles([len(result.output) for result in results]),
    }


def account(results: list[Result]) -> dict:
    """Rows read, and of these kept, repaired, dropped and rejected, with the count for each reason."""
    counts = {"read": len(results)}
    for status in ("kept", "repaired", "dropped", "rejected"):
        found = [result.reason for result in results if result.status == status]
        counts[status] = len(found)
        if status != "kept":
            counts[f"{status}_because"] = dict(Counter(found).most_common())
    return counts


def write_lines(path: Path, values: Iterable[dict]) -> str:
    """Writes JSON lines and gives their sha256."""
    digest = hashlib.sha256()
    with whole_file(path, "wb") as file:
        for value in values:
            line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


def left_out(result: Result) -> dict:
    """A line of adgen_rejected.jsonl: the row as it stood, in base64 where it was no text."""
    row = result.row
    data = row.raw.encode("utf-8", "surrogatepass") if isinstance(row.raw, str) else row.raw
    try:
        original = {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        original = {"base64": base64.b64encode(data).decode()}
    return {"file": row.file, "line": row.line, "status": result.status, "reason": result.reason, **original}


def write_files(folder: Path, splits: dict[str, list[Result]], lost: list[Result], card: dict) -> None:
    """Writes the rows of each split, those left out, and the card, which it completes."""
    # The card is written last: where it is missing, the files are not of one preparation.
    (folder / "adgen_card.json").unlink(missing_ok=True)
    for split, results in splits.items():
        path = folder / f"adgen_{split}.jsonl"
        if not results:
            # A file of an earlier run would not belong to this one.
            path.unlink(missing_ok=True)
            continue
        values = ({"instruction": result.instruction, "output": result.output} for result in results)
        card["output"][path.name] = {"sha256": write_lines(path, values)} | describe(results)
    name = "adgen_rejected.jsonl"
    card["output"][name] = {"sha256": write_lines(folder / name, map(left_out, lost)), "rows": len(lost)}
    with whole_file(folder / "adgen_card.json") as file:
        json.dump(card, file, ensure_ascii=False, indent=2)
        file.write("\n")


def show(card: dict) -> None:
    """Prints what became of the rows."""
    for split, counts in card["input"].items():
        print(f"{split}: {counts['read']:,} rows read from {counts['file']}")
        for status in ("kept", "repaired", "dropped", "rejected"):
            because = counts.get(f"{status}_because", {})
            detail = ", ".join(f"{reason}: {count:,}" for reason, count in because.items())
            print(f"  {status:<9}{counts[status]:>9,}  {detail}")
    for name, entry in card["output"].items():
        print(f"{name}: {entry['rows']:,} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", nargs="?", type=Path, help="folder, file, .tar.gz or .zip with train.json and dev.json")
    parser.add_argument("--out", type=Path, default=ROOT / "data", help="folder to write to (default: data)")
    parser.add_argument(
        "--unk",
        choices=("drop", "cut", "keep"),
        default="drop",
        help="training ads with the placeholder <UNK>: drop the row (default), cut the clause, or keep it",
    )
    parser.add_argument(
        "--duplicates", choices=("drop", "keep"), default="drop", help="repeated training pairs (default: drop)"
    )
    parser.add_argument(
        "--plain", choices=("drop", "keep"), default="drop", help="training rows without attributes (default: drop)"
    )
    policy = parser.parse_args()
    if policy.raw:
        sources = read_sources(policy.raw)
        rows = {split: list(read_rows(name, data)) for split, (name, data) in sources.items()}
        files = {split: (name, hashlib.sha256(data).hexdigest()) for split, (name, data) in sources.items()}
        del sources
    else:
        rows = read_hub()
        files = {split: (rows[split][0].file, "") for split in rows}
    for split, (name, _) in files.items():
        if not any(not row.problem for row in rows[split]):
            problem = Counter(row.problem for row in rows[split]).most_common(1)
            why = f"its {len(rows[split])} lines are rejected, most as: {problem[0][0]}" if problem else "it is empty"
            fail(f"{name} holds no AdGen row ({why}); a row looks like {{'content': '类型#裙*…', 'summary': '…'}}")

    dev = judge_dev(rows.get("dev", []))
    usable_dev = [result for result in dev if result.status != "rejected"]
    judged = judge_train(rows["train"], {product(result.instruction) for result in usable_dev}, policy)
    train, val = carve_val(judged)
    if not train:
        fail(f"no training row of {files['train'][0]} is left: {account(judged)['dropped_because']}")

    card: dict = {
        "source": printable(policy.raw.name) if policy.raw else files["train"][0],
        "policy": {"unk": policy.unk, "duplicates": policy.duplicates, "plain": policy.plain, "dev products": "drop"},
        "input": {},
        "output": {},
    }
    for split, results in (("train", judged), ("dev", dev)):
        if split in files:
            card["input"][split] = {"file": files[split][0], "sha256": files[split][1], **account(results)}
    lost = [result for result in judged + dev if result.status in ("dropped", "rejected")]
    try:
        write_files(policy.out, {"train": train, "val": val, "dev": usable_dev}, lost, card)
    except OSError as error:
        fail(f"{policy.out} cannot be written to: {error.strerror or error}")
    show(card)
    if "dev" not in files:
        print("There are no dev rows: `make train` works, `make eval` needs a dev.json beside the training file.")


if __name__ == "__main__":
    main()
