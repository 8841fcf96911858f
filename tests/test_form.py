"""What is no ad is recognised in every wrapping, and ads are left alone."""

import pytest
from lib.candidates import badness, judge
from lib.files import ROOT, read_json_lines
from lib.form import FLAWS, flaws, own_words
from lib.metrics import vocabulary

PRODUCT = "类型#裙*颜色#白色*材质#雪纺*图案#碎花*风格#简约"
AD = "这条白色的碎花裙选用轻盈的雪纺面料，走动起来裙摆飘逸，简约的剪裁怎么搭都好看。"
VALUES = vocabulary([PRODUCT, "类型#裙*颜色#黑色*图案#条纹"])
PLAN = "裙要白色，材质雪纺，图案碎花，风格简约"

NO_ADS = {
    "empty": ["", "  \n", "。", "……！", "✨🌸", "\u200b", "#*#*"],
    "echo": [
        PRODUCT,
        PRODUCT.replace("#", "＃").replace("*", "＊") + "。",
        f"{PRODUCT}\n{AD}",
        PRODUCT.replace("*", r"\*"),
        PRODUCT.rpartition("*")[0] + f"\n{AD}",
        "颜色#白色，" + AD,
        f"类型:裙，颜色:白色，材质:雪纺，图案:碎花，风格:简约。\n{AD}",
        f"类型 裙 颜色 白色 材质 雪纺\n{AD}",
        "类型裙，颜色白色，材质雪纺，图案碎花，风格简约。",
        "该商品类型为裙，颜色为白色，材质是雪纺。",
        "裙，白色，雪纺，碎花，简约。",
        "白色雪纺碎花裙。",
        f"类型\n裙\n颜色\n白色\n材质\n雪纺\n{AD}",
        "类型#裤*颜色#黑色*图案#条纹\n" + AD,
    ],
    "reasoning": [
        f"<think>{PLAN}</think>\n{AD}",
        f"<think>\n{PLAN}。",
        f"{PLAN}。\n</think>\n\n{AD}",
        f"[THINK]{PLAN}[/THINK]{AD}",
        f"◁think▷{PLAN}◁/think▷{AD}",
        f"<seed:think>{PLAN}</seed:think>{AD}",
        f"<|channel|>analysis<|message|>{PLAN}<|end|><|start|>assistant<|channel|>final<|message|>{AD}",
        f"<|begin_of_thought|>{PLAN}<|end_of_thought|>{AD}",
        f"思考过程：\n{PLAN}。\n\n最终文案：\n{AD}",
        f"【思考】{PLAN}【/思考】{AD}",
        f"**分析：** {PLAN}。\n**文案：** {AD}",
        f"好的，以下是一段广告文案：\n{AD}",
        f"以下是根据您提供的属性生成的广告文案：\n{AD}",
        f"用户要求我写一段裙子的文案。{PLAN}。",
        f"首先，我需要分析{PLAN}。",
        "你是电商文案写手。根据商品属性写一段中文广告文案：写到每个属性，不编造属性。",
        "抱歉，我无法写这段文案。",
        "作为一个人工智能语言模型，我可以帮助您。",
        f"Sure! Here is the ad:\n{AD}",
        f"Okay, the user wants an ad.\n{AD}",
        f"{AD}\n（注：以上文案突出了白色。）",
        f"{AD}\n希望这段文案对您有帮助！",
        f"文案一：{AD}\n文案二：{AD}",
    ],
    "special": [
        f"<|eot_id|>{AD}",
        f"{AD}</s>。",
        f"{AD}<UNK>。",
        f"[UNK]{AD}",
        f"<start_of_turn>{AD}",
        f"<｜end▁of▁sentence｜>{AD}",
        f"[INST]{AD}",
        f"<unused12>{AD}",
        f"assistant\n{AD}",
        f"{AD}\n用户：再来一条。",
    ],
    "broken": [f"\ufffd{AD}", f"{AD}\ufffd。"],
    "markup": [
        f"# 白色碎花裙\n{AD}",
        f"**白色碎花裙**\n{AD}",
        f"- {AD}\n- {AD[::-1]}。",
        f"一、{AD}\n二、{AD[::-1]}。",
        f"```\n{AD}\n```。",
        f'<div class="ad">{AD}</div>。',
        f"{AD}<br/>买它！",
        f'{{"ad": "{AD}"}}。',
        f'["{AD}"]。',
        f"| 文 |\n|---|\n| {AD} |。",
        f"{AD}&nbsp;买它！",
        f"[{AD}](x.html)。",
        f"---\n{AD}",
        f"{AD}\\n买它！",
        rf"\boxed{{{AD}}}。",
    ],
    "loop": [
        AD + "真的很好看。" * 12,
        AD * 3,
        "好看，" * 30 + "好看。",
        AD + "显瘦" * 9 + "。",
        "白色的裙，" * 4 + "买。",
    ],
    "unfinished": [AD[:-1], AD[:-6], AD + "而且，", AD + "还有：", AD + "第一、", AD + "“"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in NO_ADS.items() for text in texts])
def test_what_is_no_ad(kind, text):
    assert kind in flaws(PRODUCT, text)
    judged = judge(PRODUCT, text, VALUES)
    assert judged.flaw in FLAWS and judged.rank > judge(PRODUCT, "什么也没写到，也没有别的什么。", VALUES).rank
    assert badness(PRODUCT, text, VALUES) >= 1


@pytest.mark.parametrize(
    "ad",
    [
        AD,
        "颜色是白色与碎花的经典相遇，" + AD,
        "【白色雪纺碎花裙】\n" + AD,
        "“" + AD + "”",
        AD + "#显瘦# 🌸",
        AD + "夏天穿它✨",
        "好的面料自己会说话，" + AD,
        "首先是简约的剪裁，" + AD,
        "风格简约，" + AD,
        "穿上它，你就是办公室里的穿搭专家，" + AD,
        "可根据造型需求调节腰带，" + AD,
        AD.replace("。", "~"),
        "A-line 裙，2024 款，50% 显瘦！" + AD,
        "轻轻的，软软的，美美的。",
    ],
)
def test_ads_are_ads(ad):
    assert flaws(PRODUCT, ad) == [] and own_words(PRODUCT, ad) == ad and judge(PRODUCT, ad, VALUES).flaw == ""


def test_all_of_the_sample_are_ads():
    rows = [row for name in ("train", "dev") for row in read_json_lines(ROOT / f"data/sample/{name}.jsonl")]
    assert [row for row in rows if flaws(row["content"], row["summary"])] == []
