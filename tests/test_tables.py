"""Tables and examples show what was scored, and the tracked ones are those of their JSON files."""

import json

import pytest
from lib import metrics, tables
from lib.files import ROOT

SCORED = sorted((ROOT / "results").glob("*/eval_results.json"))
TINY = ROOT / "results/tiny/eval_results.json"


@pytest.fixture
def results():
    """The results of the demo's model."""
    return json.loads(TINY.read_text(encoding="utf-8"))


def test_columns_align_with_chinese_names():
    lines = tables.align([["", "分数"], ["微调后", "1.0"], ["x", "10"]]).split("\n")
    assert {tables.width(line) for line in lines[:-1]} == {12} and lines[2].endswith("    10")


def test_markdown_escapes_what_would_part_cells():
    text = tables.markdown([["a|b", "c"], [tables.escape("d|e"), "1"]], (1,))
    assert text == "| a\\|b | c |\n| ---: | --- |\n| d\\|e | 1 |\n"


def test_examples_mark_invented_values():
    values = metrics.vocabulary(["颜色#红色*图案#碎花*版型#宽松"])
    ads = {"x": ["红色|碎花*裙<UNK>，很好看。"]}
    text = tables.examples_markdown(ads, ["颜色#红色*版型#宽松"], ["这件上衣宽松，红色。"], values)
    assert "| x | 红色\\|⚠**碎花**\\*裙&lt;UNK>，很好看。 | ✓红色 ✗宽松 |" in text
    assert "| reference | 这件上衣宽松，红色。 | ✓红色 ✓宽松 |" in text


@pytest.mark.parametrize("file", SCORED, ids=lambda file: file.parent.name)
def test_tracked_tables_are_those_of_their_results(file):
    expected = tables.results_markdown(json.loads(file.read_text(encoding="utf-8")))
    assert file.with_name("table.md").read_text(encoding="utf-8") == expected, "score these predictions anew"


def test_tracked_table_of_published_results():
    text = tables.PUBLISHED.with_suffix(".md").read_text(encoding="utf-8")
    assert text == tables.published_markdown(), "run: python scripts/score.py --published"


def test_table_follows_the_results(results):
    results["systems"]["nearest"]["coverage"]["value"] = 0.123
    results["health"]["base"] = ["8% of the outputs are empty"]
    results["decoding"] = {"do_sample": False, "num_beams": 4}
    text = tables.results_markdown(results)
    row = next(line for line in text.split("\n") if line.startswith("| nearest"))
    assert "the ad of the most similar training row" in row and "| 0.123 ±" in row and "**" not in row
    assert all(metrics.SCORES[name].label in text for name in results["systems"]["tuned"])
    assert "| base: before fine-tuning ⚠ |" in text and "⚠ base: 8% of the outputs are empty." in text
    assert "| tuned: after fine-tuning | **" in text and "Best model: tuned." in text
    assert "`num_beams: 4`" in text and "120 rows of dev.jsonl" in text and results["command"] in text
    assert "±" in text and "published.md" not in text
    for write in (tables.results_markdown, tables.results_text):
        assert "results/published.md" in write(results | {"adgen_dev": True})


def test_table_without_a_best_model(results):
    results |= {"best": None, "train": None, "decoding": None, "tuned - base": {}}
    results["health"] = {"base": ["bad"], "tuned": ["worse"]}
    for text in (tables.results_markdown(results), tables.results_text(results)):
        assert "No model is named best" in text and "tuned - base" not in text and "worse" in text
    assert "Training rows: ?." in tables.results_markdown(results)


def test_published_results_have_source_procedure_and_marks():
    published = tables.read_published()
    assert len(published["rows_sha256"]) == 64
    for result in published["results"]:
        assert result["source"] and result["procedure"] in ("A", "mean", "corpus", None), result
        assert result["rows"] or result["procedure"] is None
    marked = [line for line in tables.published_table().split("\n") if "42.77" in line or "8.35" in line]
    assert len(marked) == 2 and all(("†" in line) == ("42.77" in line) for line in marked)
