"""Bad archives of AdGen: read within bounds of memory or refused with one line, and never unpacked to disk."""

import gzip
import io
import tarfile
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from corpus import (
    BLOCK,
    GOOD,
    LARGE,
    MIB,
    SMALL,
    THOROUGH,
    lines_of,
    mutated,
    run_program,
    zip_bomb,
    zip_of,
)
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_data import prepare_in

TRAIN = lines_of(GOOD)


def tar_of(members: dict[str, bytes], mode="w", **header) -> bytes:
    """A tar archive of these files; `header` sets fields of all their headers."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in header.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


MEMBERS = {"AdvertiseGen/train.json": TRAIN, "AdvertiseGen/dev.json": lines_of(GOOD[:2])}
ARCHIVES = [
    tar_of(MEMBERS),
    tar_of(MEMBERS, "w:gz"),
    tar_of(MEMBERS, pax_headers={"comment": "公开" * 40}),
    zip_of(MEMBERS),
    zip_of({f"数据/{name}": data for name, data in MEMBERS.items()}, zipfile.ZIP_STORED),
]


@given(st.sampled_from(ARCHIVES).flatmap(mutated))
def test_archives_changed_anywhere(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archive").write_bytes(data)
        card = prepare_in(folder, folder / "archive")
        assert card is None or card["input"]["train"]["read"] > 0


# --- bad archives, through the program ---


def bomb(pattern: bytes, size: int, name="train.json", kind=tarfile.REGTYPE, start=b"") -> bytes:
    """A .tar.gz of one file, which repeats the pattern after `start` until it has `size` bytes.

    Packed streams may follow one another, so that one block is packed once.
    """
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = pattern * (BLOCK // len(pattern))
    return gzip.compress(info.tobuf() + start) + gzip.compress(block) * (size // len(block) + 1)


def patched_zip(place: int, value: int) -> bytes:
    """A zip archive with one byte changed in both headers of its file; `place` is that in the local header."""
    data = bytearray(zip_of({"train.json": TRAIN}))
    data[place] = data[data.index(b"PK\x01\x02") + place + 2] = value
    return bytes(data)


LINKS = {
    name: {"type": kind, "linkname": "/etc/passwd"}
    for name, kind in {"symbolic": b"2", "hard": b"1", "pipe": b"6", "device": b"3"}.items()
}
NEGATIVE = tarfile.TarInfo("dev.json")
NEGATIVE.size = -1024
# Name → what makes the file, and a word of the error; an empty word says that it is read.
BAD_ARCHIVES = {
    "absolute path": (lambda: tar_of({"/train.json": TRAIN}), ""),
    "parent path": (lambda: tar_of({"../../../../tmp/train.json": TRAIN}, "w:gz"), ""),
    "parent path in zip": (lambda: zip_of({"../../train.json": TRAIN}), ""),
    "name that is no Unicode": (lambda: tar_of({"\udcff\udcfe/train.json": TRAIN}), ""),
    "name with control characters": (lambda: tar_of({"a\n\x1b[2J/train.json": TRAIN}), ""),
    **{f"{name} link": (partial(tar_of, {"train.json": b""}, **header), "no train") for name, header in LINKS.items()},
    "folder": (lambda: tar_of({"train.json": b""}, type=tarfile.DIRTYPE), "no train.json"),
    "two of a split": (lambda: tar_of({"a/train.json": TRAIN, "b\n/train.json": TRAIN}), "two train files"),
    "no archive within": (lambda: gzip.compress(TRAIN), "cannot be read"),
    "empty archive": (lambda: tar_of({}), "no AdGen row"),
    "negative size": (lambda: NEGATIVE.tobuf(tarfile.GNU_FORMAT) + bytes(1024), "backwards"),
    "too many members": (lambda: tar_of({f"{n}": b"" for n in range(10_001)}, "w:gz"), "10,000 members"),
    "too many members in zip": (lambda: zip_of({f"{n}": b"" for n in range(10_001)}), "10,000 members"),
    "encrypted zip": (lambda: patched_zip(6, 1), "encrypted"),
    "unknown compression": (lambda: patched_zip(8, 99), "compression"),
    "wrong checksum": (lambda: patched_zip(14, 0), "CRC"),
    "smaller than it says": (lambda: patched_zip(22, 9), "cannot be read"),
    "gz bomb": (lambda: bomb(b" ", 513 * MIB), "512 MiB"),
    "gz bomb of empty rows": (lambda: bomb(b"{}\n", 48 * MIB), "values"),
    "gz bomb of lists": (lambda: bomb(b"[],", 48 * MIB, start=b"["), "values"),
}
HEAVY_ARCHIVES = {
    "large gz bomb of lists": (lambda: bomb(b"[],", 300 * MIB, start=b"["), "values"),
    "zip bomb of blank lines": (lambda: zip_bomb(b"\n", 300 * MIB), "values"),
    "gz bomb in a header": (lambda: bomb(b"a", 2000 * MIB, kind=tarfile.XHDTYPE), "512 MiB"),
    "zip bomb": (lambda: zip_bomb(b" ", 513 * MIB), "512 MiB"),
    "gz bomb of one row": (lambda: bomb("𠮷".encode(), 400 * MIB), "rejected"),
}
ALL_ARCHIVES = BAD_ARCHIVES | (HEAVY_ARCHIVES if THOROUGH else {})


@pytest.mark.parametrize("name", ALL_ARCHIVES)
def test_bad_archives(tmp_path, name):
    build, expected = ALL_ARCHIVES[name]
    inner = tmp_path / "a/b/c/d/e"
    inner.mkdir(parents=True)
    (inner / "archive").write_bytes(build())
    before = set(tmp_path.rglob("*"))
    peak = LARGE if "bomb" in name else SMALL
    code, _, errors = run_program(inner, "prepare_data.py", "archive", "--out", "out", peak=peak)
    assert bool(code) == bool(expected) and expected in errors, errors
    assert {path for path in tmp_path.rglob("*") if (inner / "out") not in (path, path.parent)} == before
    assert (inner / "out").exists() != bool(code)
