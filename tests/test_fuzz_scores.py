"""Bad input to scoring: no traceback, no row lost silently, nothing half written, memory bounded."""

import json
import math
import os
import tempfile
from pathlib import Path

import pytest
import score
from corpus import (
    FEW,
    GOOD,
    MANY,
    SMALL,
    attempt,
    attributes,
    json_values,
    lines_of,
    run_main,
    run_program,
    texts,
    words,
)
from hypothesis import example, given
from hypothesis import strategies as st
from lib import metrics
from lib.form import FLAWS, flaws, own_words
from lib.intervals import draw_rows, ratio
from lib.predictions import Rows, read_predictions
from lib.system_scores import row_ratios

WRITTEN = {"eval_results.json", "eval.png", "examples.md", "table.md"}
TRAIN = lines_of(GOOD)
DATA = Rows([content for content, _ in GOOD[:3]], [ad for _, ad in GOOD[:3]])

# The end of a file. It is seldom torn.
ends = st.sampled_from([b""] * 9) | st.binary(max_size=6)
any_texts = st.text(max_size=40) | st.lists(words, max_size=20).map("".join)


@given(st.lists(st.tuples(attributes, any_texts, any_texts), min_size=1, max_size=4))
def test_scores_of_any_texts_are_numbers_within_bounds(rows):
    contents, ads, references = map(list, zip(*rows, strict=True))
    overlaps = [metrics.overlap_scores(pair) for pair in zip(ads, references, strict=True)]
    assert all(0 <= value <= 100 + 1e-6 for row in overlaps for value in row)
    for row in rows:
        assert set(flaws(*row[:2])) <= FLAWS.keys() and len(own_words(*row[:2])) <= len(row[1])
    values = metrics.vocabulary(contents)
    copies = metrics.find_copies(ads, references)
    columns = row_ratios(contents, ads, references, overlaps, values, copies)
    for (name, _), column in columns.items():
        value = float(ratio(column.sum(0)))
        assert math.isfinite(value)
        assert name in (*metrics.OVERLAP, "length") or 0 <= value <= 1
    for value, samples in (metrics.corpus_bleu(ads, references, draw_rows(len(ads))[:5]), metrics.distinct(ads)):
        assert math.isfinite(value) and all(map(math.isfinite, samples))


# --- what is no ad ---

DRESS = "类型#裙*颜色#白色*材质#雪纺*图案#碎花*风格#简约"
PRAISE = "这条白色的碎花裙选用轻盈的雪纺面料，走动起来裙摆飘逸，简约的剪裁怎么搭都好看。"
marks = st.sampled_from(["#", ":", "：", "=", " ", "->", "|", " - ", "＃", "是", "为", '":"'])
between = st.sampled_from(["*", "，", ",", "\n", "；", " | ", "、", "/", "\t"])
wraps = st.sampled_from(["{}", "<think>{}</think>", "<think>{}", "[THINK]{}[/THINK]", "<reasoning>{}</reasoning>"])
tails = st.sampled_from(["", PRAISE, "\n" + PRAISE])


@given(marks, between, st.permutations(DRESS.split("*")), st.integers(3, 5), wraps, tails)
@example(":", "，", DRESS.split("*"), 3, "{}", PRAISE)
def test_any_echo_in_any_wrapping_is_no_ad(mark, separator, pairs, count, wrap, tail):
    text = wrap.format(separator.join(pair.replace("#", mark) for pair in pairs[:count])) + tail
    assert {"echo", "reasoning"} & set(flaws(DRESS, text))
    hits = metrics.covered(DRESS, text).values()
    assert not any(hits) or (tail and all(hits))


@given(
    st.text(st.sampled_from("白裙好看又显瘦的面料轻"), min_size=2, max_size=30),
    st.integers(5, 40),
    st.sampled_from(["", PRAISE]),
)
def test_any_phrase_again_and_again_is_a_loop(phrase, times, start):
    assert "loop" in flaws(DRESS, start + (phrase + "，") * times + "。")


# --- files of predictions, logs and recipes ---

good_predictions = st.fixed_dictionaries({"predict": texts | any_texts}, optional={"extra": json_values})
odd_predictions = json_values | st.fixed_dictionaries(
    {"predict": any_texts | json_values},
    optional={
        "label": st.sampled_from(DATA.references) | json_values,
        "prompt": st.sampled_from(DATA.contents) | texts,
    },
)


@given(st.lists(good_predictions, max_size=3), st.lists(odd_predictions, max_size=1), st.booleans(), ends)
@example([{"predict": "好" * 10**6}], [], False, b"")
@example([{"predict": "好", "label": "白" * 10**6}], [], False, b"")
def test_any_predictions_are_read_or_refused(good, odd, escaped, end):
    rows = good + odd
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "generated_predictions.jsonl")
        data = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
        path.write_bytes(data.encode("utf-8", "surrogatepass") + end)
        found = attempt(read_predictions, path, DATA, path)
        assert found is None or len(found.texts) == len(found.labels) == len(rows) + bool(end.strip())
        "".join(found.texts if found else []).encode()


@pytest.mark.long
@FEW
@given(
    st.lists(st.tuples(attributes, any_texts).filter(lambda row: row[0].strip() and row[1].strip()), max_size=3),
    st.lists(any_texts, min_size=3, max_size=5),
)
def test_reports_of_any_rows_are_whole(rows, ads):
    # To matplotlib, the dollar signs would start a formula.
    rows = [*GOOD[:2], ("$\\x$#^{", "一个公式。"), *rows]
    ads = ads[: len(rows)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data.json").write_bytes(lines_of(rows))
        (folder / "train.json").write_bytes(lines_of(rows[::-1]))
        predictions = [{"predict": ad, "label": row[1]} for ad, row in zip(ads, rows, strict=False)]
        (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in predictions))
        words = [f"$x^{{={folder / 'p.jsonl'}", "--data", folder / "data.json", "--train", folder / "train.json"]
        words += ["--out", folder / "out"]
        if attempt(run_main, score, *words) is None:
            assert not (folder / "out").exists()
            return
        found = json.loads((folder / "out/eval_results.json").read_text(encoding="utf-8"))
        assert found["rows"] == {"$x^{": len(predictions)} and found["split"]["rows"] == len(rows)
        assert {path.name for path in (folder / "out").iterdir()} == WRITTEN


# --- bad files, through the program ---

SHORT = b'{"predict": "\xe8\xa3\x99\xe3\x80\x82"}'
ONE = GOOD[0]
# Name → the bytes of a predictions file, the one row of its data, and a word of the error; no word: it is scored.
BAD = {
    "a giant ad": (json.dumps({"predict": "白" * 2 * 10**6}).encode(), ONE, "characters"),
    "a long ad": (json.dumps({"predict": "白色的裙，" * 4_000}).encode(), ONE, ""),
    "a giant label": (json.dumps({"predict": "好", "label": "白" * 10**7}).encode(), ONE, "label"),
    "deep arrays": (b"[" * 10**6, ONE, "not JSON"),
    "a million blank lines": (b"\n" * 10**6, ONE, "empty"),
    "a lone surrogate": (rb'{"predict": "\ud800"}', ONE, ""),
    "many attributes": (SHORT, ("*".join(f"k{n}#v" for n in range(90_000)), "裙。"), "attribute keys"),
    "more than a mebibyte": (SHORT, (MANY, "裙。"), "mebibyte"),
    "a giant reference": (SHORT, ("类型#裙", "白" * 10**5), "characters"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    """The program either names what is wrong and writes nothing, or writes all its files."""
    predictions, row, expected = BAD[name]
    (tmp_path / "p.jsonl").write_bytes(predictions)
    (tmp_path / "data.json").write_bytes(lines_of([row]))
    words = "score.py", "tuned=p.jsonl", "--data", "data.json", "--train", "data.json", "--out", "out"
    code, _, errors = run_program(tmp_path, *words, peak=3 * SMALL)
    assert bool(code) == bool(expected) and expected in errors, errors
    written = {path.name for path in tmp_path.glob("out/*")}
    assert written == (set() if expected else WRITTEN)


@pytest.mark.long
def test_file_names_that_are_no_text(tmp_path):
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\n\x1b[2J"))
    odd.mkdir()
    (odd / "train.json").write_bytes(TRAIN)
    (odd / "p.jsonl").write_text("".join(json.dumps({"predict": ad}) + "\n" for _, ad in GOOD))
    words = "score.py", odd / "p.jsonl", "--data", odd / "train.json", "--out", odd / "out"
    assert run_program(tmp_path, *words, peak=3 * SMALL, PYTHONIOENCODING="ascii")[0] == 0
    table = (odd / "out/table.md").read_text(encoding="utf-8")
    assert "\x1b" not in table and table.count("```") == 2
