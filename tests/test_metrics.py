"""Metrics and intervals, compared with LLaMA-Factory's own code, with sacrebleu and with plain counting."""

import random

import numpy as np
import pytest
from lib import metrics, system_scores
from lib.attributes import parse_attributes
from lib.baselines import nearest_ads, write_baselines
from lib.files import ROOT, read_json_lines
from lib.form import repetition
from lib.intervals import RESAMPLES, ci95, draw_rows
from lib.marking import show
from lib.predictions import Rows, read_data
from lib.tables import is_adgen_dev

ROWS = read_json_lines(ROOT / "data/sample/dev.jsonl")[:40]
CONTENTS = [row["content"] for row in ROWS]
ADS = [row["summary"] for row in ROWS]
NEAR = [ad[: len(ad) // 2] + "很好看，" + ad[len(ad) // 2 :] for ad in ADS]
SHARED = ROOT.parent / "shared/adgen"


def test_several_processes_give_the_same_scores(monkeypatch):
    pairs = list(zip(NEAR[:6], ADS, strict=False))
    alone = system_scores.score_overlaps(pairs)
    monkeypatch.setattr(system_scores, "FEWEST_FOR_PROCESSES", 1)
    monkeypatch.setattr(system_scores.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert system_scores.score_overlaps(pairs) == alone and len(alone) == 6


def test_corpus_bleu_equals_sacrebleus():
    from sacrebleu.metrics import BLEU

    texts, draws = [*NEAR[:-2], "", ADS[0]], draw_rows(40)
    value, samples = metrics.corpus_bleu(texts, ADS, draws)
    assert value == pytest.approx(BLEU(tokenize="zh").corpus_score(texts, [ADS]).score, abs=1e-9)
    drawn = np.repeat(np.arange(40), draws[0].astype(int))
    again = BLEU(tokenize="zh").corpus_score([texts[n] for n in drawn], [[ADS[n] for n in drawn]]).score
    assert samples[0] == pytest.approx(again, abs=1e-9)


def test_attributes_kept_and_invented_by_hand():
    contents = ["类型#裙*颜色#红色*图案#碎花", "类型#裙*颜色#酒红色*风格#复古", "类型#裤*版型#宽松"]
    texts = ["红色的碎花裙，宽松又复古。", "酒红色，只此一色。", "什么也没说。"]
    values = metrics.vocabulary(contents)
    # In the second text, 红色 stands within 酒红色, which alone counts. 裙 and 裤 are types: no values to look for.
    assert [metrics.find_values(text, values) for text in texts] == [
        {"红色": "颜色", "碎花": "图案", "宽松": "版型", "复古": "风格"},
        {"酒红色": "颜色"},
        {},
    ]
    nothing = [(0, 0, 0, 0)] * 3
    found, samples = system_scores.score_system(contents, texts, texts, nothing, values)
    assert found["coverage", ""] == pytest.approx(4 / 8)
    assert found["hallucination", ""] == pytest.approx((2 / 4 + 0 / 1) / 2)
    assert found["coverage", "类型"] == pytest.approx(1 / 3) and found["coverage", "风格"] == 0
    assert found["hallucination", "版型"] == 1 and found["hallucination", "颜色"] == 0
    assert found["length", ""] == 1 and len(samples["coverage", ""]) == RESAMPLES


def test_case_makes_no_other_value():
    content, values = "类型#裙*衣领型#V领*材质#PU", metrics.vocabulary(["衣领型#V领*材质#PU", "款式#oversize"])
    text = "小v领，pu面料，Oversize。"
    assert list(metrics.covered(content, text).values()) == [False, True, True]
    assert metrics.invented(content, text, values)[1] == {"oversize"}
    page = show(content, text, values)
    assert '<mark class="covered">v领</mark>' in page and '<mark class="invented">Oversize</mark>' in page


def test_repetition_and_distinct_by_hand():
    assert repetition("一二三四五") == 0 and repetition("一二三") == 0
    # The 4-grams are 一二三四, 二三四一, 三四一二, 四一二三, 一二三四. The last one occurred before.
    assert repetition("一二三四 一二三四") == pytest.approx(1 / 5)
    assert metrics.distinct(["一二三四五", "一二三四", ""])[0] == pytest.approx(2 / 3)


def test_copies_are_those_that_plain_comparison_finds():
    dice = random.Random(1)
    ads = ["".join(dice.choices("红黄蓝白黑长短宽松紧", k=dice.randrange(3, 160))) for _ in range(60)]
    texts = [ads[0], " ".join(ads[1]), ads[2] + "。"]
    for _ in range(200):
        ad = dice.choice(ads)
        start = dice.randrange(len(ad))
        texts.append("新" + ad[start : start + dice.randrange(30, 70)] + "款")

    def naive(text):
        text = "".join(text.split())
        runs = [text[start : start + metrics.COPY] for start in range(len(text) - metrics.COPY + 1)]
        return text in ads or any(run in ad for run in runs for ad in ads)

    expected = [naive(text) for text in texts]
    assert 20 < sum(expected) < 180
    assert metrics.find_copies(texts, ads).tolist() == expected


def test_nearest_is_the_first_row_of_largest_overlap():
    dice = random.Random(2)
    contents = ["*".join(f"键{dice.randrange(4)}#值{dice.randrange(4)}" for _ in range(5)) for _ in range(80)]
    train = Rows(contents[20:], [f"文案{number}" for number in range(60)])

    def naive(content):
        own, best = set(parse_attributes(content)), []
        for other in map(set, map(parse_attributes, train.contents)):
            best.append(len(own & other) / len(own | other))
        return train.references[best.index(max(best))]

    assert nearest_ads(contents[:20], train) == [naive(content) for content in contents[:20]]
    assert nearest_ads(["键#无"], train) == ["文案0"]


def test_bootstrap_is_fixed_and_covers_the_mean():
    draws = draw_rows(200)
    assert (draws.sum(1) == 200).all() and (draws == draw_rows(200)).all()
    column = np.random.default_rng(3).normal(5, 2, 200)
    low, high = ci95("bleu-4", column.mean(), draws @ column / 200)
    error = column.std() / 200**0.5
    assert low == pytest.approx(column.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(column.mean() + 1.96 * error, abs=0.3 * error)


@pytest.mark.long
@pytest.mark.skipif(not SHARED.exists(), reason="AdGen's rows are not beside the project")
def test_real_rows_give_the_known_figures():
    data, train = read_data(SHARED / "dev.json"), read_data(SHARED / "train.json")
    values = metrics.vocabulary(data.contents + train.contents)
    nothing = [(0, 0, 0, 0)] * len(data.contents)
    free = write_baselines(data, train)

    def attributes(texts):
        found, samples = system_scores.score_system(data.contents, texts, data.references, nothing, values)
        kept, bad = found["coverage", ""], found["hallucination", ""]
        return round(kept, 3), round(bad, 3), ci95("coverage", kept, samples["coverage", ""])

    assert attributes(free["reference"])[:2] == (0.867, 0.069)
    assert attributes(free["random"])[:2] == (0.098, 0.925)
    assert attributes(free["template"])[:2] == (1, 0)
    low, high = attributes(free["nearest"])[2]
    assert low <= 0.563 <= high
    assert is_adgen_dev(*data) and not is_adgen_dev(data.contents[1:], data.references[1:])
