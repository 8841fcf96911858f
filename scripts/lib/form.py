"""Tells whether a text is an ad, and finds what in it is none: an echo of the product, reasoning, markup, a loop.

Generation, the desk, the pairs and the report ask here, and nowhere else.
"""

import re
import unicodedata
from functools import lru_cache
from itertools import groupby

from lib.attributes import parse_attributes

# What makes a text no ad, in the order in which it is named.
FLAWS = {
    "empty": "no words",
    "reasoning": "reasoning or talk about the task",
    "echo": "a copy of the product",
    "special": "special tokens or <UNK>",
    "markup": "Markdown, JSON or HTML",
    "broken": "broken characters",
    "loop": "a loop",
    "unfinished": "cut off or without an end",
}
# The marks with which an ad may end, beside emoji.
CLOSING = tuple("。！？!?.…~～;；」』”\"’')）】》")
# The share of repeated 4-grams above which a text is a loop. AdGen's ads reach 0.28.
LOOP = 0.3

# Full-width ASCII → ASCII, one character for one.
NARROW = {0xFF01 + place: 0x21 + place for place in range(94)}

# Marks that open and close reasoning, in whatever brackets: <think>, [THINK], ◁think▷, 【思考】, or a heading.
WORDS = r"(?:think|thought|reason|analysis|reflection|scratchpad|思考|推理|分析)"
OPENS = rf"[<\[◁]\|?(?:begin_of_|channel\|>|seed:)?{WORDS}[^<>\[\]\n]{{0,40}}[>\]▷]|【(?:思考|推理|分析)(?:过程)?】"
OPENS += r"|^[\s*#]*(?:thinking process|reasoning|thoughts?|analysis|思路|(?:思考|推理|分析)(?:过程)?)[\s*]*:"
CLOSES = rf"[<\[◁【]\|?(?:/|end_of_)(?:seed:)?{WORDS}[^<>\[\]】\n]{{0,40}}[>\]▷】]|<\|(?:end|start)\|>"
CLOSES += r"|^[\s*#]*(?:(?:最终|正式)?(?:广告)?(?:文案|答案|回答|输出)|(?:final )?answer)[\s*]*:"
REASONING = re.compile(rf"(?P<closes>{CLOSES})|(?P<opens>{OPENS})", re.IGNORECASE | re.MULTILINE)

# What a model says about its task instead of doing it: the prompt again, a preamble, a plan, a refusal, a note.
KIND = "(?:文案|广告|描述|介绍|短文)"
WRITE = "(?:写|生成|撰写|创作)"
TALK = (
    r"\A\s*(?:好的|好|当然可以|当然|没问题|明白了?|收到|可以的?|嗯|哦)[,!。:~]",
    rf"(?:以下|下面|如下|这|这里|这段|这篇)(?:就?是|为)?[^。!?\n,]{{0,20}}{KIND}[^。!?\n,]{{0,6}}:",
    rf"^[\s(*]*以上(?:就?是|为)?[^。!?\n]{{0,16}}{KIND}|希望(?:这|以上|对[您你])[^。!?\n]{{0,16}}(?:帮助|帮到|满意)",
    rf"(?:根据|基于|按照|结合)[^。!?\n]{{0,14}}(?:属性|关键词|信息|要求|提示|需求)[^。!?\n]{{0,16}}{WRITE}|不[要能得可以]*编造",
    rf"(?:请|帮我|为[您你]|给[您你]|需要|我[会将要来])[^。!?\n]{{0,12}}{WRITE}[^。!?\n]{{0,14}}{KIND}",
    r"^\W*你是(?:一[名个位])?[^。!?\n,]{0,10}(?:写手|助手|助理|专家|文案)|作为[^。!?\n]{0,4}(?:AI|人工智能|语言模型)",
    r"(?:抱歉|对不起|很遗憾)[^。!?\n]{0,16}(?:无法|不能|没法)",
    r"(?:^|[,。(:])\s*用户(?:想|希望|要求|需要我|让我|提供|给出|给了|输入|提到|说)",
    r"^[\s(*]*(?:首先|好的|嗯)?,?(?:让我(?!们)|我(?:们?需要|得|要|来))[^。!?\n]{0,6}(?:分析|想|考虑|写|看看|突出)",
    r"^[\s(*#【\[]*(?:注|备注|标题|正文|(?:广告)?文案|广告[语词]|产品描述|版本|方案|选项)[\s一二三四五\d]*[*】\])]*:",
    r"^\W*(?:here(?:'s| is| are)|sure|certainly|okay|ok|of course|let me|let's|the user|i (?:need|will|can't|cannot)|"
    r"i'm sorry|as an ai|you are an?|(?:write|generate|create)\b.{0,40}\b(?:ads?|advertisement|copy|copywriting))\b",
)
TALK = re.compile("|".join(TALK), re.IGNORECASE | re.MULTILINE)
SPECIAL = re.compile(
    r"<\|[^|<>]*\|>|<｜[^<>]*｜>|</?s>|<</?SYS>>|\[/?(?:UNK|PAD|CLS|SEP|MASK|INST|gMASK|BOS|EOS)\]"
    r"|<(?:unk|pad|eos|bos|mask|sop|eop|(?:start|end)_of_(?:turn|text|image)|unused\d+|extra_id_\d+|0x[0-9a-f]{2})>"
    r"|^\s*(?:user|assistant|system|human|model|用户|助手|系统)\s*(?:[:：]|$)",
    re.IGNORECASE | re.MULTILINE,
)
MARKUP = re.compile(
    r"^\s*#{1,6}\s|\*\*\S|__\S[^_\n]*__|`|^\s*\|.*\||^\s*(?:-{3,}|\*{3,}|={3,})\s*$|^>\s|\\n|\\[a-z]+\{"
    r"|\A\s*[\[{]\s*[\"'\[{]|[\"']\s*:\s*[\"'\[{]|</?[a-z][a-z\d]*(?:\s[^<>]*)?/?>|<!--|\]\(\S+\)"
    r"|&(?:amp|lt|gt|quot|nbsp|[lr]dquo|hellip|#\d+);"
    r"|(?:^\s*(?:[-*+•·●▪]|\d{1,2}[.)、)]|[一二三四五六七八九十]、)\s*\S.*$\s*){2}",
    re.IGNORECASE | re.MULTILINE,
)
# Part of an attribute string, of this product or of another.
ATTRIBUTES = re.compile(r"[^\W_]\s*#\s*[^\W_][^#\n]*?\*\s*[^\W_]+\s*#")


def squeeze(text: str) -> str:
    """The text without white space, which tokenizers may change."""
    return "".join(text.split())


def four_grams(text: str) -> list[str]:
    """All runs of four characters in a text without its white space."""
    text = squeeze(text)
    return [text[start : start + 4] for start in range(len(text) - 3)]


def repetition(text: str) -> float:
    """The share of a text's 4-grams that occurred in it before (seq-rep-4 of Welleck et al. 2020, on characters)."""
    grams = four_grams(text)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def flaws(product: str, text: str) -> list[str]:
    """The names of the FLAWS of a text as an ad for a product, its attribute string; none if it is an ad."""
    if not re.search(r"[^\W_]", text):
        return ["empty"]
    rest = without_reasoning(text)
    signs = {
        "reasoning": rest != text,
        "echo": bool(echoes(product, rest)),
        "special": bool(SPECIAL.search(rest)),
        "markup": bool(MARKUP.search(SPECIAL.sub("", rest))),
        "broken": "\ufffd" in text,
        "loop": is_loop(text),
        "unfinished": not is_closed(text),
    }
    return [name for name, found in signs.items() if found]


def is_loop(text: str) -> bool:
    """Whether a text repeats itself over and over, or a phrase of 2 to 41 characters four times in a row."""
    share = repetition(text)
    return share > LOOP or (share > 0 and bool(re.search(r"(\w.{1,40}?)\1{3}", squeeze(text))))


def is_closed(text: str) -> bool:
    """Whether a text ends with a closing mark or an emoji."""
    text = text.rstrip()
    return text.endswith(CLOSING) or unicodedata.category(text[-1:] or "a") in ("So", "Sk", "Mn", "Cf")


def without_end(text: str) -> str:
    """The text without its closing marks. What was cut off has no end, even if the cut came after a full stop."""
    while is_closed(text):
        text = text.rstrip()[:-1]
    return text


@lru_cache(maxsize=2**12)
def own_words(product: str, text: str) -> str:
    """The text without reasoning and without the sentences that repeat the product; an ad is returned as it is."""
    rest = without_reasoning(text)
    echo = echoes(product, rest)
    return "".join(piece for piece in sentences(rest) if piece not in echo) if echo else rest


def without_reasoning(text: str) -> str:
    """The text without reasoning between marks, closed or not, and without the lines that talk about the task."""
    narrow, kept, start, thinks = text.translate(NARROW), [], 0, False
    for mark in REASONING.finditer(narrow):
        if mark["closes"] and not thinks:
            # What stands before a mark that only closes is reasoning that the prompt had opened.
            kept = []
        elif not thinks:
            kept.append(text[start : mark.start()])
        start, thinks = mark.end(), mark["closes"] is None
    rest = "".join(kept) + text[start:] * (not thinks)
    if not TALK.search(rest.translate(NARROW)):
        return rest
    return "".join(line for line in rest.splitlines(keepends=True) if not TALK.search(line.translate(NARROW)))


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, each with its end."""
    return re.split(r"(?<=[。！？!?\n])", text)


def words_of(text: str) -> str:
    """The words of a text in small letters, each between two spaces; 是 and 为 count as marks."""
    return " " + re.sub(r"[\W_是为]+", " ", unicodedata.normalize("NFKC", text).lower()).strip() + " "


def echoes(product: str, text: str) -> set[str]:
    """The sentences of a text in which it repeats its product instead of praising it; none if it is no echo.

    It is one if it holds a piece of an attribute string, if it names half of the attributes by key and value, or if all
    its words are the product's. One `颜色是白色`, or a headline of values above an ad, is none.
    """
    pairs = {(words_of(key).strip(), words_of(value).strip()) for key, value in parse_attributes(product)}
    pairs = {pair for pair in pairs if all(pair)}
    names = sorted({word for pair in pairs for word in pair}, key=len, reverse=True)
    pieces, found, named, words = sentences(text), set(), set(), words_of(text)
    if not foreign(words, names) and any(value in words for _, value in pairs):
        return set(pieces)
    narrow = text.translate(NARROW).lower()
    if "#" not in narrow and not any(key in words for key, _ in pairs):
        return set()
    for bare, group in groupby(pieces, lambda piece: not foreign(words_of(piece), names)):
        group = list(group)
        # A list or a table of keys and values stands in several lines.
        for part in ["".join(group)] if bare else group:
            words = words_of(part)
            listed = bare and any(key in words for key, _ in pairs)
            stated = {(k, v) for k, v in pairs if f"{k} {v}" in words or k + v in words or (listed and v in words)}
            named |= stated
            found |= set(group if bare else [part]) if stated else set()
    joined = squeeze(narrow)
    if ATTRIBUTES.search(narrow) or any(f"{key}#{value}" in joined for key, value in pairs):
        return found | {piece for piece in pieces if "#" in piece.translate(NARROW)}
    return found if len(named) > 1 and 2 * len(named) >= len(pairs) else set()


def foreign(words: str, names: list[str]) -> str:
    """What is left of a text's words without these names, the longest of which come first."""
    for name in names:
        words = words.replace(name, " ")
    return words.strip()
