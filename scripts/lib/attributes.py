"""Attribute strings such as `类型#裙*颜色#白色`: how they are found in a text, tidied and compared.

What stands around the attributes belongs to no product: a task in words, quotes, Markdown, another line.
"""

import re
import unicodedata

# A text without any of these is an attribute string and nothing else: it is only split.
UNUSUAL = re.compile(r"[^#*\w]|[_请帮给据写生的为是]|#(?:[#*]|$)")
# Other forms of # and *, and characters that nobody sees.
SIGNS = str.maketrans(
    {"＃": "#", "﹟": "#", "＊": "*", "﹡": "*", "∗": "*"} | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff")
)
# What may stand at either end of a key or a value, and belongs to neither.
MARGIN = "# \\'\"‘’“”「」『』`：:，,；;、。.…—"
# The same before a # or *, such as a space, a quotation mark, or the backslash of Markdown.
BEFORE_SIGNS = re.compile(f"([{re.escape(MARGIN[1:])}]+)([#*]?)")
# A key and its #: 颜色#, 重量（kg）# or sleeve length#. Chinese keys hold no space.
KEY = r"(?:\w{1,12}|[a-zA-Z]{1,12} [a-zA-Z]{1,12})(?:[（(][^（(）)*#\n]{1,12}[）)])?#"
# Where a new part begins: at an asterisk, on a new line (which may be a heading in Markdown), or at a mark or a space
# before a key.
PARTS = re.compile(
    r"[*\n]+(?:#+ )?"
    rf"|[：:，,；;、。！？!?“”\"「」『』【】《》<>（）()\[\]{{}}`|] ?(?={KEY})| (?=[\u4e00-\u9fff])(?={KEY})"
)
# What ends a value: the end of a sentence, quotes, tags, or a task in words. Behind a mark or a space, fewer words show
# a task than without one: 邀请函 and 手写笔 are values.
ENDS = re.compile(
    r"[。！？!?“”\"「」『』`<>]|\[/"
    r"|请(?:[你您写为用帮给按以创撰]|根据|生成)|帮[我忙]|根据[以上这此]|(?:写|生成)[一个条段篇广文]|的(?:广告|文案)"
    r"|[ ，,；;、（(—-](?:请|帮|写|要求|任务|字数|生成|创作|撰写|根据|输出|为[它其此这])"
    r"|[ ，,；;、（(—-](?i:please|write|generate|create)\b"
)
# What leads to a key without a mark that parts them: the words of a task, as in 请为类型#裙, or the sign of a list.
TASK = re.compile(
    rf"^(?:[-–•·>|~_{re.escape(MARGIN)}]|(?=.*(?:请|根据|写[一出个广文]|生成|帮我)).*(?:为|据|写|出|关于|文案|广告|关键词|以下|上述|产品|商品|信息)"
    r"|.*(?:关键词|属性|信息|描述|产品|商品)[为是]|[为给])*"
)
OPENING, CLOSING = "（([【《{", "）)]】》}"


def parse_attributes(text: str) -> list[tuple[str, str]]:
    """Finds 类型#上衣*颜色#白色 in a text, as [("类型", "上衣"), ("颜色", "白色")]; order and repeated keys are kept.

    Parts without `#`, or with nothing on one side of it, are left out. A value may contain further `#`.
    """
    unusual = UNUSUAL.search(text)
    parts = split_unusual(text) if unusual else text.split("*")
    pairs = [part.partition("#")[::2] for part in parts]
    if unusual:
        pairs = [(TASK.sub("", key).strip(MARGIN), end_value(value)) for key, value in pairs]
    return [(key, value) for key, value in pairs if key and value]


def split_unusual(text: str) -> list[str]:
    """The parts of a text that may hold an attribute each, in ordinary signs and with single spaces."""
    lines = (" ".join(line.split()) for line in text.translate(SIGNS).splitlines())
    return PARTS.split("\n" + BEFORE_SIGNS.sub(lambda found: found[2] or found[1], "\n".join(lines)))


def end_value(text: str) -> str:
    """The value at the beginning of a text: without a task that follows it, and without brackets around the product."""
    text = text.strip(MARGIN)
    text = text[: end.start()] if (end := ENDS.search(text)) else text
    depth = 0
    for place, character in enumerate(text):
        depth += (character in OPENING) - (character in CLOSING)
        if depth < 0:
            text = text[:place]
            break
    return text.strip(MARGIN)


def join_attributes(pairs: list[tuple[str, str]]) -> str:
    """The attribute string of (key, value) pairs."""
    return "*".join(f"{key}#{value}" for key, value in pairs)


def tidy(content: str) -> str:
    """The attribute string in a text, and nothing else of the text; a text without attributes is only stripped."""
    return join_attributes(parse_attributes(content)) or content.strip()


def product(content: str) -> str:
    """What identifies a product: its attributes in a fixed order, or the text itself if it has none.

    Width (NFKC), case and white space make no other product.
    """
    return "*".join(sorted(set(fold(tidy(content)).split("*"))))


def fold(text: str) -> str:
    """The text in one width (NFKC), in lower case and without white space."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())
