"""Bad input to data preparation: no traceback, no row lost silently, nothing written elsewhere, memory bounded."""

import json
import os
import re
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import prepare_data
import pytest
from corpus import (
    GOOD,
    MANY,
    MIB,
    SMALL,
    attempt,
    attributes,
    json_values,
    lines_of,
    mutated,
    plain_rows,
    run_main,
    run_program,
    texts,
    wrapped,
)
from hypothesis import assume, example, given
from hypothesis import strategies as st
from lib.attributes import join_attributes, parse_attributes, product, tidy
from lib.files import read_json_lines
from lib.layouts import LAYOUTS
from lib.raw_rows import read_rows
from lib.splits import cut_clauses

# --- generated files ---


@st.composite
def row_objects(draw):
    """A row in one of the usual layouts that is good, or nearly."""
    layout = draw(st.sampled_from(LAYOUTS))
    content, ad = draw(plain_rows | st.tuples(wrapped | json_values, texts | json_values))
    if "messages" in layout:
        turns = [{"role": "user", "content": content}, {"from": "gpt", "value": ad}, {"role": "tool"}]
        return {layout["messages"]: draw(st.permutations(turns[: draw(st.sampled_from([2, 2, 3]))]) | json_values)}
    row = {layout["prompt"]: content, layout["response"]: ad}
    return row | draw(st.dictionaries(st.sampled_from(["input", "id", "history"]), json_values, max_size=2))


# Lines that are rows, or nearly, whole or cut off, in several encodings.
raw_lines = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"   ", b"\r", b"[" * 3000, b"nul"]),
    st.builds(
        lambda value, escaped, encoding, end: json.dumps(value, ensure_ascii=escaped).encode(encoding, "replace")[:end],
        row_objects() | json_values,
        st.booleans(),
        st.sampled_from(["utf-8"] * 4 + ["gb18030", "utf-16", "latin-1"]),
        st.none() | st.integers(0, 60),
    ),
).map(lambda line: line.replace(b"\n", b" "))


@st.composite
def raw_files(draw):
    """A file as bytes, and how many rows it has."""
    if draw(st.integers(0, 4)) == 0:
        values = draw(st.lists(row_objects() | json_values, max_size=8))
        return json.dumps(values, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"), len(values)
    # White space of another encoding would be a row in one encoding and none in another.
    lines = [line if any(33 <= byte < 127 for byte in line) else b"" for line in draw(st.lists(raw_lines, max_size=8))]
    lines.insert(draw(st.integers(0, len(lines))), lines_of([draw(plain_rows)]).rstrip(b"\n"))
    data = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + b"\n".join(lines)
    # A file that starts like an array is read as an array.
    assume(data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[")
    return data, sum(map(bool, lines))


# --- properties ---


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def prepare_in(folder: Path, raw: Path, *flags) -> dict | None:
    """The card of a preparation, None if it was refused; asserts that it wrote its own output and nothing else."""
    out, before = folder / "out", snapshot(folder)
    if attempt(run_main, prepare_data, raw, "--out", out, *flags) is None:
        assert snapshot(folder) == before
        return None
    names = {f"adgen_{name}" for name in ("train.jsonl", "val.jsonl", "dev.jsonl", "rejected.jsonl", "card.json")}
    after = snapshot(folder)
    assert {path: data for path, data in after.items() if path.parent != out} == before
    assert {path.name for path in after if path.parent == out} <= names
    return json.loads((out / "adgen_card.json").read_text(encoding="utf-8"))


@given(raw_files(), st.none() | raw_files(), st.sampled_from(["drop", "cut", "keep"]))
def test_preparation_accounts_for_every_row(train, dev, unk):
    files = {"train": train, "dev": dev} if dev else {"train": train}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw").mkdir()
        for split, (data, _) in files.items():
            (folder / f"raw/{split}.json").write_bytes(data)
        card = prepare_in(folder, folder / "raw", "--unk", unk)
        if card is None:
            return
        rows = {}
        for split in ("train", "val", "dev", "rejected"):
            path = folder / f"out/adgen_{split}.jsonl"
            rows[split] = read_json_lines(path) if path.exists() else []
    check_counts(card, files, rows)
    for split, (data, _) in files.items():
        check_originals(data, [row for row in rows["rejected"] if row["file"] == f"{split}.json"])


def check_counts(card: dict, files: dict, rows: dict) -> None:
    """Every row that was read is written, or set aside with a reason."""
    left_out = Counter((row["file"], row["status"]) for row in rows["rejected"])
    assert len({(row["file"], row["line"]) for row in rows["rejected"]}) == len(rows["rejected"])
    for split, (_, count) in files.items():
        counts = card["input"][split]
        assert counts["read"] == count
        assert count == sum(counts[status] for status in ("kept", "repaired", "dropped", "rejected"))
        written = rows["dev"] if split == "dev" else rows["train"] + rows["val"]
        assert len(written) == counts["kept"] + counts["repaired"]
        for status in ("dropped", "rejected"):
            assert left_out[f"{split}.json", status] == counts[status]


def check_originals(data: bytes, rejected: list[dict]) -> None:
    """Rows that are set aside are those of the file, byte for byte; the rows of an array are written anew."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\n")
    for row in [] if data.lstrip().startswith(b"[") else rejected:
        found, line = row["text"], lines[row["line"] - 1].removesuffix(b"\r")
        from_gb18030 = line.decode("gb18030", "replace")
        assert found == from_gb18030 or found.encode("utf-8", "surrogateescape") == line


@given(st.binary(max_size=300) | raw_files().flatmap(lambda file: mutated(file[0])))
@example(b"[" * 100_000)
@example(b"[" * 990 + b"]" * 990)
@example(b"[" + b"9" * 5000 + b"]")
def test_any_bytes_are_rows_or_refused(data):
    rows = attempt(lambda: list(read_rows("a file", data)))
    for row in rows or []:
        assert row.problem or (row.content.strip() and row.summary.strip())
        (row.content + row.summary).encode()


@given(attributes | texts | wrapped)
def test_tidied_attributes_are_the_same_attributes(text):
    tidied, pairs = tidy(text), parse_attributes(text)
    assert tidy(tidied) == tidied and parse_attributes(tidied) == pairs
    assert product(tidied) == product(text)
    assert not pairs or product(join_attributes(pairs[::-1])) == product(text)
    assert "<UNK>" not in cut_clauses(text, [match.span() for match in re.finditer("<UNK>", text)])


# --- bad files, through the program ---

# Name → the bytes of a train.json beside good rows, and how many rows these are.
BAD_ROWS = {
    "surrogates in UTF-8": ('{"content": "类型#\ud800", "summary": "x"}\n'.encode("utf-8", "surrogatepass"), 1),
    "three encodings": ("类型\n".encode("gb18030") + "类型\n".encode() + "类型".encode("utf-16-le") + b"\n", 3),
    "nulls": (b'null\n{"content": null, "summary": null}\n{}\n{"content": "a#b", "summary": null}\n', 4),
    "numbers": (b'{"content": 1, "summary": 2.5}\n1e999\n-0\n' + b"9" * 5000 + b"\n", 4),
    "NUL bytes": (b"\0\n" + b'{"content": "a#b\0", "summary": "\0"}\n', 2),
    "deep objects": (b'{"content":' * 10**5 + b"1" + b"}" * 10**5 + b"\n", 1),
    "a giant line": (b'{"content": "a#b", "summary": "' + b"x" * 16 * MIB + b'"}\n', 1),
    "a million attributes": (json.dumps({"content": MANY, "summary": "x"}, ensure_ascii=False).encode() + b"\n", 1),
    "a million blank lines": (b"\n" * 10**6, 0),
    "many tiny rows": (b"{}\n" * 50_000, 50_000),
    "a giant chat": (json.dumps({"messages": [{"role": "user", "content": "a#b"}] * 50_000}).encode() + b"\n", 1),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_among_good_ones(tmp_path, name):
    data, count = BAD_ROWS[name]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/train.json").write_bytes(lines_of(GOOD[:15]) + data + lines_of(GOOD[15:]))
    before = set(tmp_path.rglob("*"))
    code, _, errors = run_program(tmp_path, "prepare_data.py", "raw", "--out", "out", peak=SMALL + 4 * len(data))
    assert code == 0, errors
    assert {path for path in tmp_path.rglob("*") if (tmp_path / "out") not in (path, path.parent)} == before
    counts = json.loads((tmp_path / "out/adgen_card.json").read_text())["input"]["train"]
    assert counts["read"] == count + len(GOOD) == counts["kept"] + counts["repaired"] + counts["rejected"]
    assert counts["kept"] >= len(GOOD)
    assert len(read_json_lines(tmp_path / "out/adgen_rejected.jsonl")) == counts["rejected"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_file_names_that_are_no_text(tmp_path, encoding):
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\n\x1b[2J"))
    odd.mkdir()
    (odd / "train.json").write_bytes(lines_of(GOOD))
    (odd / "products.csv").write_text("id,类型,颜色\n1,裙,白色\n", encoding="utf-8")
    (odd / "file").write_text("")
    prepare = partial(run_program, tmp_path, "prepare_data.py", PYTHONIOENCODING=encoding)
    assert prepare(odd, "--out", odd / "out")[0] == 0
    for name in ("nowhere", "products.csv"):
        assert prepare(odd / name, "--out", odd / "out")[0] == 1
    assert prepare(odd, "--out", odd / "file")[0] == 1
