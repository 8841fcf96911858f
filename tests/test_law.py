"""Words that the law forbids or wants proved: found in any spelling, not found in harmless words that hold them."""

import json
import re

import prepare_data
import pytest
from corpus import run_main
from lib.files import ROOT, read_json_lines
from lib.law import describe, find_hits, has_ban, kinds_of, read_law

LAW = json.loads((ROOT / "data/ad_law.json").read_text(encoding="utf-8"))
DRESS, LIPSTICK, EARPHONES, NUTS = "类型#裙*颜色#白色", "类型#口红", "类型#蓝牙耳机", "类型#每日坚果礼盒"
PILLS, TOY, WINE, DEVICE = "类型#保健食品", "类型#玩具", "类型#葡萄酒", "类型#血压计"
# Product, ad, and what must be found: rule, level and words of each hit.
EXAMPLES = [
    (DRESS, "第一次穿就爱上的牛仔外套，最后一粒扣子藏着小巧思，最近降温正好上身。", ""),
    (DRESS, "甄选100%棉面料，最大的亮点是腰间蝴蝶结，黑白配色永不过时。", ""),
    (
        DRESS,
        "全网最低的顶级羊绒大衣，仅限今日，错过再等一年！",
        "PRICE-LOW ban 全网最低, ABS-TOP ban 顶级, URGE caution 仅限今日, URGE caution 错过再等",
    ),
    (
        LIPSTICK,
        "这支口红黄皮显白，药妆级配方零刺激，三天美白看得见。",
        "COS-MED ban 药妆, COS-TEST caution 零刺激, COS-FALSE ban 三天美白, COS-SPECIAL caution 美白",
    ),
    (
        EARPHONES,
        "降噪100%、零延迟的蓝牙耳机，临床验证保护听力，销量第一。",
        "ABS-TOTAL caution 100%, EAR caution 零延迟, EXPERT caution 临床验证, EAR caution 保护听力, "
        "ABS-RANK ban 销量第一",
    ),
    (
        NUTS,
        "国宴特供坚果零添加，每天一把增强免疫力、降血糖。",
        "STATE ban 国宴, STATE ban 特供, FOOD-FREE caution 零添加, FOOD-FN ban 增强免疫力, MED ban 降血糖",
    ),
    (DRESS, "本系列里容量最大的一款双肩包，比上一代更轻，脏了最好手洗。", ""),
    (DRESS, "治愈系奶油色连衣裙，高矮胖瘦身型都能驾驭，环保健康的面料很亲肤。", "ORIGIN caution 环保"),
    (DRESS, "据某研究院报告，2025年上半年本品牌女裤浙江省线上销售额第一。", "ABS-RANK caution 销售额第一"),
    ("", "我们始终坚持质量第一、顾客至上，追求极致的工艺。", ""),
    # Hits.
    (DRESS, "这是国家级的工艺", "ABS-TOP ban 国家级"),
    (DRESS, "你的最佳选择", "ABS-TOP ban 最佳"),
    (DRESS, "通勤的最佳搭档", "ABS-TOP caution 最佳"),
    (DRESS, "今年最畅销的裙子", "ABS-BEST ban 最畅销"),
    (DRESS, "本系列最保暖的一款", "ABS-BEST caution 最保暖"),
    (DRESS, "人群里最亮眼的一抹红", "ABS-LOOK caution 最亮眼"),
    (DRESS, "全网TOP1的百褶裙", "ABS-RANK ban TOP1"),
    (DRESS, "绝无仅有的剪裁，全国首家", "ABS-SOLE ban 绝无仅有, ABS-SOLE ban 全国首家, ABS-MAYBE caution 首家"),
    (DRESS, "独一无二的印花", "ABS-MAYBE caution 独一无二"),
    (DRESS, "专柜价三百，现在三折", "PRICE-REF caution 专柜价, PRICE-REF caution 三折"),
    (DRESS, "最后三天，即将涨价", "URGE caution 最后三天, URGE caution 即将涨价"),
    (DRESS, "买一送一，假一赔十", "GIFT caution 买一送一, GIFT caution 假一赔十"),
    (DRESS, "可以缓解关节炎的护膝面料", "MED ban 缓解关节炎, MED-NAME caution 关节炎"),
    (DEVICE, "高血压患者在家测量", ""),
    (DRESS, "部队专用面料，国旗配色", "STATE ban 部队专用, STATE ban 国旗"),
    (DRESS, "旺夫又开运的红裙", "FATE ban 旺夫, FATE ban 开运"),
    (DRESS, "吊打大牌的平替", "RIVAL ban 吊打, RIVAL-SOFT caution 平替"),
    (DRESS, "进口面料，明星同款", "ORIGIN caution 进口, CELEB caution 明星同款"),
    (PILLS, "人人必备，专家推荐", "HEALTHF ban 人人必备, HEALTHF ban 专家推荐, EXPERT ban 专家推荐"),
    (DRESS, "专家推荐的颜色", "EXPERT caution 专家推荐"),
    (DRESS, "保证有效的抗菌面料", "GUAR caution 保证有效, BODY caution 抗菌"),
    (PILLS, "无副作用", "GUAR ban 无副作用"),
    (TOY, "让妈妈买给你", "CHILD caution 让妈妈买"),
    (WINE, "千杯不醉", "ALC ban 千杯不醉"),
    (LIPSTICK, "医美同款成分，EGF修护", "COS-MED ban 医美, COS-MED ban EGF, COS-TEST caution 修护"),
    # Harmless words that hold a risky one.
    (DRESS, "春天最好先试穿，最好搭配白鞋", ""),
    (DRESS, "做最好的自己，遇见最美的你", ""),
    (DRESS, "第一眼就心动，给人的第一印象很好", ""),
    (DRESS, "最新的印花，最适合春天，是最喜欢的一件", ""),
    (DRESS, "最大限度地修饰身形，最终选了这件", ""),
    (DRESS, "唯一不变的是经典", ""),
    (DRESS, "百分百纯棉，棉100%", ""),
    (DRESS, "无限时尚，无限量的想象，秒杀路人", ""),
    (DRESS, "立体折线与折叠领，三折叠袖口", ""),
    (DRESS, "一抹治愈人心的绿，治愈感满满", ""),
    (DRESS, "独特供应链做出的面料", ""),
    (DRESS, "改良的中国旗袍，军装风外套，印着国徽章纹", ""),
    (DRESS, "复古风水洗牛仔裤，展开运动的一天", ""),
    (DRESS, "短裙不是小个子的专利", ""),
    (DRESS, "绝非遗憾的选择", ""),
    (DRESS, "手插进口袋里很自然", ""),
    (DRESS, "男女同款，情侣同款", ""),
    (DRESS, "防晒又舒缓的棉麻衫，温和的颜色", ""),
    (DRESS, "全网状材料，完全能驾驭", ""),
    (DRESS, "显瘦显高，收腹提臀，不起球不褪色", ""),
    (LIPSTICK, "学生发色也能配，完美白皙的质感", ""),
    (NUTS, "有机会一起去爬山，与山野有机结合", ""),
    (NUTS, "最佳食用时间是早晨，防病毒包装", ""),
    (EARPHONES, "低延迟连接，不是首领先锋也能用的颜色", ""),
    ("类型#裙*材质功能#环保*产地#进口面料", "环保面料，进口", ""),
]  # fmt: skip


def found(product, ad):
    return ", ".join(f"{hit.rule} {hit.level} {hit.words}" for hit in find_hits(product, ad))


@pytest.mark.parametrize(("product", "ad", "expected"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples(product, ad, expected):
    assert found(product, ad) == expected


@pytest.mark.parametrize(
    ("ad", "words"),
    [
        ("这是全网 最低的", "全网 最低"),
        ("ＮＯ．１的卫衣", "ＮＯ．１"),
        ("№1的卫衣", "№1"),
        ("NO. 1", "NO. 1"),
        ("顶\u200b级\ufeff羊绒", "顶\u200b级"),
        ("最\u3000佳", "最\u3000佳"),
        ("😀１００％好看", "１００％"),
    ],
)
def test_width_and_spacing_do_not_hide_words(ad, words):
    """The span is that of the original text."""
    (hit,) = find_hits(DRESS, ad)
    assert hit.words == ad[hit.start : hit.end] == words


def test_a_rank_with_year_place_and_source_is_a_caution():
    for ad, level in (
        ("据协会报告，2025年全国销量第一。", "caution"),
        ("据说2025年全国销量第一。", "ban"),
        ("据协会报告，全国销量第一。", "ban"),
        ("据协会报告，2025年大卖。全国销量第一。", "ban"),
    ):
        assert [hit.level for hit in find_hits(DRESS, ad)] == [level], ad


def test_kinds_are_known_by_the_product():
    for product, kinds in (
        ("类型#面包服", {"clothing"}),
        ("类型#面包*颜色#白", {"food"}),
        ("类型#口红礼盒", {"cosmetics"}),
        ("品类#保健食品", {"healthfood"}),
        ("类型#连衣裙*适用人群#儿童", {"clothing", "children"}),
        ("类型#咖啡机*颜色#口红", set()),
        ("", set()),
    ):
        assert kinds_of(product) == kinds | {"nonmedical"}, product
    assert kinds_of(DEVICE) == {"medical"}


def test_the_rules_are_sound():
    """Each word is found by its rule for a product of its kind, and each basis names a source."""
    products = {"cosmetics": LIPSTICK, "food": NUTS, "healthfood": PILLS, "alcohol": WINE, "clothing": DRESS}
    products |= {"electronics": EARPHONES, "children": TOY, "nonmedical": DRESS}
    names = [rule["id"] for rule in LAW["rules"]]
    assert len(set(names)) == len(names) == len(read_law()["rules"])
    allowed = {"id", "level", "kinds", "ban_for", "basis", "words", "patterns", "except", "caution", "ranks", "own"}
    for rule in LAW["rules"]:
        assert set(rule) <= allowed and rule["level"] in ("ban", "caution") and rule.get("words", rule.get("patterns"))
        for basis in rule["basis"].split("；"):
            assert any(source in basis for source in LAW["sources"]) or basis.startswith("GB ") or "第18条" in basis
        for kind in rule.get("kinds", [""]):
            for word in rule.get("words", []):
                assert rule["id"] in {hit.rule for hit in find_hits(products.get(kind, ""), word)}, word
    for kind, ends in LAW["kinds"].items():
        assert ends and (kind in {name for rule in LAW["rules"] for name in rule.get("kinds", [])} or kind == "medical")
    assert "no legal advice" in LAW["note"]


def test_a_shop_adds_words(tmp_path, monkeypatch):
    path = tmp_path / "words.txt"
    text = "# 竞争对手的品牌\n某某牌\nＢig  Brand，caution\n\n"
    for encoding in ("utf-8", "utf-8-sig", "gb18030"):
        path = tmp_path / f"{encoding}.txt"
        path.write_text(text, encoding=encoding)
        monkeypatch.setenv("WORDS", str(path))
        assert (
            found(DRESS, "某 某牌也比不上，bigbrand的最佳")
            == "SHOP ban 某 某牌, SHOP caution bigbrand, ABS-TOP ban 最佳"
        )
    assert find_hits(DRESS, "某某牌")[0].basis == path.name


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("好\n某某牌,forbidden".encode(), "line 2"),
        (b",ban", "line 1"),
        (b"# none\n", "holds no word"),
        (b"\xff\xfe\xff", "not clearly UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_list_is_one_line(tmp_path, monkeypatch, content, line):
    path = tmp_path / f"{line}.txt".replace(" ", "_")
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("WORDS", str(path))
    with pytest.raises(SystemExit, match=f"^error: [^\n]*{re.escape(line)}[^\n]*$"):
        has_ban(DRESS, "裙")


def test_hits_in_words():
    risk, basis = describe(find_hits(DRESS, "顶级，限时，顶级，最佳，原价"))
    assert risk == "ban: 顶级、最佳; caution: 限时、原价"
    assert "第9条第3项；绝对化用语指南第2条: 顶级、最佳" in basis and basis.count("; ") == 2
    assert describe([]) == ("", "")


@pytest.mark.parametrize(
    ("policy", "kept", "dropped"),
    [
        ("keep", {"杏色的裙子很温柔。是你的最佳选择，好搭。", "全网最低！"}, {}),
        ("drop", set(), {"forbidden words in the ad": 2}),
        ("cut", {"杏色的裙子很温柔。好搭。"}, {"forbidden words in the ad": 1}),
    ],
)
def test_training_ads_with_forbidden_words(tmp_path, policy, kept, dropped):
    """Only training ads are dropped or cut, and the card counts what is left."""
    harmless = {f"第{number}款裙子。" for number in range(30)}
    ads = {
        "train": [*harmless, "杏色的裙子很温柔。是你的最佳选择，好搭。", "全网最低！", "限量的蓝。"],
        "dev": ["全网最低！"],
    }
    for split, texts in ads.items():
        rows = [{"content": f"类型#裙*编号#{split}{number}", "summary": ad} for number, ad in enumerate(texts)]
        (tmp_path / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "out"
    printed = run_main(prepare_data, tmp_path, "--out", out, "--risky", policy)
    found = [row["output"] for name in ("train", "val") for row in read_json_lines(out / f"adgen_{name}.jsonl")]
    assert set(found) == harmless | {"限量的蓝。"} | kept and len(found) == len(set(found))
    card = json.loads((out / "adgen_card.json").read_text(encoding="utf-8"))
    assert card["policy"]["risky"] == policy and card["input"]["train"]["dropped_because"] == dropped
    count = {name: card["output"][f"adgen_{name}.jsonl"] for name in ("train", "val", "dev")}
    assert count["dev"]["ads_with_forbidden_words"] == count["dev"]["rows"] == 1
    for name, number in (("ads_with_forbidden_words", 2 * (policy == "keep")), ("ads_with_words_to_be_proved", 1)):
        assert count["train"][name] + count["val"][name] == number
    assert "adgen_dev.jsonl: 1 rows, 1 with forbidden words" in printed and "no legal advice" in printed


def test_a_bad_list_ends_a_preparation_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORDS", str(tmp_path / "nowhere.txt"))
    with pytest.raises(SystemExit, match=r"nowhere\.txt cannot be read"):
        run_main(prepare_data, tmp_path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
