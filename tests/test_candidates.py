"""The ads of one product are judged and ranked as the documents say."""

import pytest
from lib.candidates import compare, judge, known_products, mark_terminal
from lib.files import ROOT, read_json_lines
from lib.metrics import vocabulary
from lib.predictions import Predictions, Rows
from lib.system_scores import score_systems

PRODUCT = "类型#裙*颜色#白色*材质#雪纺"
VALUES = vocabulary([PRODUCT, "类型#裙*颜色#黑色*图案#碎花"])
FULL = "这条裙子选用雪纺面料，白色清爽百搭，穿上它走路带风，怎么搭都好看，出门不用再纠结。"
INVENTING, SHORT, HALF = f"{FULL}碎花浪漫。", "白色的雪纺裙，清爽。", FULL.replace("雪纺", "轻薄")


def test_ranked_by_bans_then_values_named_then_values_invented_then_cautions_then_length():
    banned, doubtful = f"{FULL}你的最佳选择。", f"{FULL}限量的独家款。"
    ranked = sorted((banned, HALF, SHORT, INVENTING, doubtful, FULL), key=lambda ad: judge(PRODUCT, ad, VALUES).rank)
    assert ranked == [FULL, SHORT, doubtful, INVENTING, HALF, banned]
    assert judge(PRODUCT, INVENTING, VALUES)[1:3] == ([], ["碎花"])
    assert judge(PRODUCT, HALF, VALUES)[1:3] == (["雪纺"], [])
    # A value that stands twice in the attribute string is missed once.
    assert judge("颜色#白色*里布#白色", "。", VALUES).missing == ["白色"]


def test_marks_for_a_terminal():
    ad = HALF + "碎花浪漫。"
    assert mark_terminal(PRODUCT, judge(PRODUCT, ad, VALUES)) == f"{ad}\n✓ 裙  ✓ 白色  ✗ 雪纺  ⚠ 碎花"


def test_known_products_are_those_of_the_training_rows():
    sample = [row["content"] for row in read_json_lines(ROOT / "data/sample/train.jsonl")]
    assert known_products()[: len(sample)] == sample


def test_compared_as_in_a_report():
    products = [PRODUCT, "类型#裙*颜色#黑色*图案#碎花"]
    systems = {"one sample": [HALF, SHORT], "best of 2": [FULL, INVENTING]}
    data = Rows(products, [FULL, INVENTING])
    names = dict(zip(("base", "tuned"), systems.values(), strict=True))
    report = score_systems({name: Predictions(ads, ads) for name, ads in names.items()}, data, None)
    found = compare(products, systems, VALUES)
    assert list(found) == ["one sample", "best of 2", "difference"]
    expected = [report["systems"]["base"], report["systems"]["tuned"], report["tuned - base"]]
    for own, other in zip(found.values(), expected, strict=True):
        for score in ("coverage", "hallucination"):
            assert own[score]["value"] == pytest.approx(other[score]["value"], abs=1e-4)
            assert own[score]["ci95"] == other[score]["ci95"]
