"""Writes the embedded sample: product attributes and ads in AdGen's format, of clothing, lipstick and earphones.

The ads are put together from the phrases below, all of them ours. Every attribute value stands in its ad, with a phrase
that belongs to it alone, so that a model has to read the attributes; no ad holds a value that was not asked for.
"""

import argparse
import json
import random
from pathlib import Path

from adgen import ROOT, whole_file

# For each attribute key: the phrases that a value {v} and what is said of it {b} are put into, and what is said.
FABRIC = {
    "纯棉": "柔软亲肤",
    "牛仔布": "挺括耐磨",
    "雪纺": "轻盈飘逸",
    "真丝": "顺滑细腻",
    "羊毛": "蓬松保暖",
    "针织": "软糯有弹性",
    "灯芯绒": "厚实有型",
}
CLOTHES = {
    "材质": (["{v}面料{b}", "选用{v}面料，{b}", "{v}面料上身{b}"], FABRIC),
    "颜色": (
        ["{v}{b}", "{v}的配色{b}", "主打{v}，{b}"],
        {
            "白色": "清爽百搭",
            "黑色": "沉稳显瘦",
            "焦糖色": "温暖显气质",
            "奶茶色": "温柔衬肤",
            "墨绿": "沉静有味道",
            "酒红": "明艳大方",
        },
    ),
    "风格": (
        ["{v}风格{b}", "整体走{v}路线，{b}", "{v}的设计{b}"],
        {
            "简约": "耐看不过时",
            "复古": "韵味十足",
            "通勤": "得体又精神",
            "甜美": "减龄又讨喜",
            "休闲": "轻松自在",
            "优雅": "举手投足都有气质",
        },
    ),
    "图案": (
        ["{v}图案{b}", "点缀{v}，{b}", "{v}元素{b}"],
        {
            "刺绣": "精致有层次",
            "条纹": "视觉上更修长",
            "碎花": "浪漫清新",
            "波点": "灵动可爱",
        },
    ),
    "版型": (
        ["{v}版型{b}", "{v}的剪裁{b}", "采用{v}版型，{b}"],
        {"宽松": "包容各种身材", "修身": "勾勒身体曲线", "合体": "不紧绷也不拖沓"},
    ),
}
WAIST = (["{v}设计{b}", "{v}{b}", "做成{v}，{b}"], {"高腰": "悄悄拉长双腿", "松紧腰": "久坐也不勒"})
GOODS = {
    "上衣": {
        "noun": "这件上衣",
        "keys": CLOTHES
        | {
            "衣领型": (
                ["{v}设计{b}", "{v}{b}", "搭上{v}，{b}"],
                {
                    "圆领": "舒适不勒脖",
                    "V领": "修饰颈部线条",
                    "翻领": "利落有朝气",
                },
            ),
            "衣袖型": (
                ["{v}{b}", "{v}设计{b}", "两侧的{v}{b}"],
                {
                    "泡泡袖": "藏起手臂赘肉",
                    "灯笼袖": "饱满有造型",
                    "插肩袖": "活动不拘束",
                },
            ),
        },
    },
    "裙": {
        "noun": "这条裙子",
        "keys": CLOTHES
        | {
            "裙型": (
                ["{v}的轮廓{b}", "{v}款式{b}", "做成{v}，{b}"],
                {
                    "A字裙": "遮住胯部小缺点",
                    "百褶裙": "走动间层层摆动",
                    "鱼尾裙": "步步摇曳生姿",
                },
            ),
            "裙长": (
                ["裙长{v}，{b}", "{v}的长度{b}", "长度{v}，{b}"],
                {"及膝": "端庄又方便", "过膝": "遮肉又大方", "及踝": "走路自带风"},
            ),
            "裙腰型": WAIST,
        },
    },
    "裤": {
        "noun": "这条裤子",
        "keys": CLOTHES
        | {
            "裤型": (
                ["{v}的轮廓{b}", "{v}剪裁{b}", "做成{v}，{b}"],
                {
                    "阔腿裤": "走起来大步流星",
                    "直筒裤": "修饰腿部线条",
                    "哈伦裤": "抬腿下蹲都自如",
                },
            ),
            "裤长": (
                ["裤长{v}，{b}", "{v}的长度{b}"],
                {"七分": "轻便不闷腿", "九分": "露出脚踝更显高", "全长": "盖住鞋面更显腿长"},
            ),
            "裤腰型": WAIST,
        },
    },
    "口红": {
        "noun": "这支口红",
        "keys": {
            "质地": (
                ["{v}质地{b}", "膏体是{v}质地，{b}", "上唇是{v}妆效，{b}"],
                {
                    "丝绒": "触感柔滑",
                    "哑光": "高级不浮夸",
                    "水光": "双唇饱满莹润",
                    "雾面": "柔焦不显干",
                },
            ),
            "颜色": (
                ["{v}{b}", "一抹{v}{b}", "{v}的色调{b}"],
                {
                    "豆沙色": "温柔不挑人",
                    "正红色": "气场十足",
                    "梅子色": "神秘又迷人",
                    "蜜桃粉": "元气满满",
                    "番茄红": "明媚鲜活",
                },
            ),
            "功效": (
                ["{v}效果出众，{b}", "主打{v}，{b}", "{v}又好用，{b}"],
                {
                    "显白": "素颜也敢涂",
                    "保湿": "长时间不拔干",
                    "持久": "吃饭喝水都从容",
                    "不沾杯": "省去补妆的麻烦",
                    "提气色": "整张脸都亮起来",
                    "淡唇纹": "嘴唇看着平整饱满",
                },
            ),
            "场景": (
                ["{v}时涂上它，{b}", "很适合{v}，{b}", "{v}带上这一支，{b}"],
                {
                    "约会": "甜而不腻",
                    "上班": "得体又提神",
                    "聚会": "一眼就被记住",
                    "旅行": "拍照格外上镜",
                },
            ),
            "适合肤色": (
                ["对{v}很友好，{b}", "{v}上嘴{b}", "{v}姐妹放心选，{b}"],
                {"黄皮": "不显暗沉", "白皮": "更衬通透", "暖皮": "色调和谐自然", "冷皮": "衬得脸色干净"},
            ),
            "外壳": (
                ["{v}外壳{b}", "{v}手感好，{b}", "配上{v}，{b}"],
                {
                    "磨砂管": "细腻不留指纹",
                    "金属管": "握着有分量",
                },
            ),
        },
    },
    "耳机": {
        "noun": "这款耳机",
        "keys": {
            "连接": (
                ["{v}连接{b}", "支持{v}连接，{b}", "采用{v}连接，{b}"],
                {"蓝牙": "开盖就能用", "有线": "信号稳定不断连"},
            ),
            "佩戴": (
                ["{v}佩戴{b}", "{v}设计{b}", "采用{v}结构，{b}"],
                {
                    "入耳式": "稳稳贴合耳道",
                    "头戴式": "包裹耳廓更舒服",
                    "挂脖式": "摘下也不怕丢",
                    "耳夹式": "久戴不胀痛",
                },
            ),
            "功能": (
                ["支持{v}，{b}", "自带{v}，{b}", "{v}功能{b}"],
                {
                    "降噪": "隔开周围喧闹",
                    "防水": "出汗淋雨都不怕",
                    "低延迟": "声音画面同步",
                    "快充": "充一会儿就能听很久",
                    "多点连接": "手机电脑随意切换",
                },
            ),
            "续航": (
                ["续航长达{v}，{b}", "{v}续航{b}", "充满可听{v}，{b}"],
                {
                    "20小时": "一整天都够用",
                    "30小时": "出差不带充电器",
                    "40小时": "一周充一次就好",
                    "60小时": "很少为电量操心",
                },
            ),
            "音质": (
                ["{v}音质{b}", "{v}表现出色，{b}", "主打{v}，{b}"],
                {
                    "重低音": "鼓点扎实有力",
                    "高解析": "细节清晰可辨",
                    "环绕声": "仿佛坐在现场",
                },
            ),
            "颜色": (
                ["{v}外观{b}", "{v}机身{b}", "一身{v}，{b}"],
                {
                    "曜石黑": "沉稳大气",
                    "樱花粉": "少女感十足",
                    "薄荷绿": "清新亮眼",
                },
            ),
            "场景": (
                ["{v}时戴上它，{b}", "很适合{v}，{b}", "用来{v}，{b}"],
                {
                    "跑步": "怎么动都不掉",
                    "追剧": "沉浸又不扰人",
                    "打游戏": "听声辨位快人一步",
                    "开会": "对方听得清清楚楚",
                },
            ),
        },
    },
}
OPENINGS = {
    "穿": [
        "{n}一上身就舍不得脱。",
        "衣柜里少不了{n}。",
        "{n}好看又好搭。",
        "想换个心情，就穿上{n}。",
        "{n}的细节很用心，",
    ],
    "口红": [
        "{n}一涂就爱上。",
        "化妆包里少不了{n}。",
        "{n}好看又好上色。",
        "想换个妆容，就试试{n}。",
        "{n}让人挪不开眼，",
    ],
    "耳机": [
        "{n}一戴就爱上。",
        "爱听歌的人少不了{n}。",
        "{n}好听又好看。",
        "想好好听首歌，就选{n}。",
        "{n}的细节很用心，",
    ],
}
CLOSINGS = {
    "穿": ["怎么搭都好看。", "四季都能派上用场。", "穿出自己的好状态。", "出门不用再纠结。"],
    "口红": ["随手一涂就很美。", "送自己送朋友都合适。", "让好气质挂在嘴边。", "每天都想带着它。"],
    "耳机": ["好声音随身带走。", "送自己送朋友都合适。", "让耳朵享受每一刻。", "带着它出门就够了。"],
}
# Values with those that no shop would sell or no copywriter would put beside them.
CLASHES = {
    "灯芯绒": {"优雅", "七分"},
    "牛仔布": {"优雅", "百褶裙"},
    "羊毛": {"七分", "泡泡袖"},
    "修身": {"阔腿裤", "哈伦裤"},
    "宽松": {"鱼尾裙"},
    "甜美": {"墨绿"},
    "有线": {"防水", "多点连接", "低延迟", "20小时", "30小时", "40小时", "60小时", "快充", "跑步", "挂脖式", "降噪"},
    "头戴式": {"跑步", "防水"},
    "耳夹式": {"降噪", "有线"},
    "水光": {"不沾杯"},
    "哑光": {"保湿"},
}
# Rows of each split for each of clothing, lipstick and earphones.
SPLITS = {"dev": 40, "val": 34, "train": 620}
SECOND_REFERENCES = 0.05


def product(kind: str, dice: random.Random) -> list[tuple[str, str]]:
    """Three to five attributes of one product, in the order of the keys, as in AdGen."""
    keys = GOODS[kind]["keys"]
    while True:
        sampled = dice.sample(list(keys), dice.randint(3, 5))
        chosen = [key for key in keys if key in sampled]
        pairs = [(key, dice.choice(list(keys[key][1]))) for key in chosen]
        values = {value for _, value in pairs}
        if not any(CLASHES.get(value, set()) & values for value in values):
            return pairs


def advertisement(kind: str, pairs: list[tuple[str, str]], dice: random.Random) -> str:
    """An opening, one clause for each attribute in its order, two to a sentence, and mostly a closing."""
    group = kind if kind in OPENINGS else "穿"
    text = dice.choice(OPENINGS[group]).format(n=GOODS[kind]["noun"])
    clauses = []
    for key, value in pairs:
        phrases, values = GOODS[kind]["keys"][key]
        clauses.append(dice.choice(phrases).format(v=value, b=values[value]))
    for start in range(0, len(clauses), 2):
        pair = clauses[start : start + 2]
        text += ("；" if any("，" in clause for clause in pair) else "，").join(pair) + "。"
    return text + (dice.choice(CLOSINGS[group]) if dice.random() < 0.7 else "")


def build(seed: int = 42) -> dict[str, list[dict[str, str]]]:
    """Split name → rows {"content", "summary"}; no product is in two splits."""
    dice = random.Random(seed)
    seen = set()
    splits = {}
    for split, count in SPLITS.items():
        rows = []
        for kinds in (["上衣", "裙", "裤"], ["口红"], ["耳机"]):
            for number in range(count):
                kind = kinds[number % len(kinds)]
                pairs = product(kind, dice)
                while frozenset(pairs) in seen:
                    pairs = product(kind, dice)
                seen.add(frozenset(pairs))
                content = "*".join(f"{key}#{value}" for key, value in [("类型", kind), *pairs])
                references = 2 if split == "train" and dice.random() < SECOND_REFERENCES else 1
                rows += [{"content": content, "summary": advertisement(kind, pairs, dice)} for _ in range(references)]
        dice.shuffle(rows)
        splits[split] = rows
    return splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "data/sample", help="folder (default: data/sample)")
    options = parser.parse_args()
    for split, rows in build().items():
        with whole_file(options.out / f"{split}.jsonl") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{options.out / split}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
