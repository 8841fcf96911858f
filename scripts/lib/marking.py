"""An ad as HTML, with its product's attributes, words that the law forbids and flaws marked."""

import html
import re
from itertools import groupby

from lib.attributes import parse_attributes
from lib.candidates import judge
from lib.law import Hit
from lib.metrics import Values
from lib.output import labelled

SIGNS = {"covered": "✓", "missing": "缺", "invented": "多"}
LEVELS = {"ban": "禁用词", "caution": "须有依据"}
# `lib.form.FLAWS` for the page.
NO_AD = {
    "empty": "没有内容",
    "reasoning": "写了思考或说明",
    "echo": "照抄属性",
    "special": "有特殊符号",
    "markup": "有排版标记",
    "broken": "有乱码",
    "loop": "反复重复",
    "unfinished": "没有写完",
}


def show(product: str, ad: str, values: Values, button: str | None = "") -> str:
    """An ad as HTML with its attributes marked. button: HTML beside it; None while the ad is being written.

    values: see `lib.metrics.vocabulary`.
    """
    found = judge(product, ad, values)
    kinds = {value: "covered" for _, value in parse_attributes(product)}
    kinds |= dict.fromkeys(found.missing, "missing") | dict.fromkeys(found.invented, "invented")
    spans = [f'<span class="{kind}">{SIGNS[kind]} {html.escape(value)}</span>' for value, kind in kinds.items()]
    if button is not None and found.flaw:
        spans.append(f'<span class="invented">不是文案：{NO_AD[found.flaw]}</span>')
    risks = {hit.words: hit for hit in found.hits}
    spans += [f"<span {risk(hit)}>{LEVELS[hit.level]} {html.escape(words)}</span>" for words, hit in risks.items()]
    marked = mark(ad, kinds, found.hits) or "…"
    return f'<div class="ad">{button or ""}<p>{marked}</p><div>{"".join(spans)}</div></div>'


def copy_button(ad: str) -> str:
    """A button that copies an ad."""
    return f'<button data-ad="{html.escape(labelled(ad))}" onclick="copyAd(this)">复制</button>'


def risk(hit: Hit) -> str:
    """The HTML attributes of risky words. They show the legal basis under the pointer or the finger, see desk.html."""
    return f'class="risk" tabindex="0" data-basis="{html.escape(f"{LEVELS[hit.level]}：{hit.basis}")}"'


def mark(ad: str, kinds: dict[str, str], hits: list[Hit]) -> str:
    """An ad as HTML, its values and risky words marked. kinds: value → class. Of hits within hits, the outer shows."""
    # What each character belongs to: where its mark begins, and what is written in that mark.
    marks = [(-1, "")] * len(ad)
    kinds = {value.lower(): kind for value, kind in kinds.items()}
    values = sorted(kinds, key=len, reverse=True)
    for match in re.finditer("|".join(map(re.escape, values)), ad, re.IGNORECASE) if kinds else []:
        kind = kinds.get(match[0].lower(), "")
        marks[slice(*match.span())] = [(match.start(), f'class="{kind}"')] * len(match[0])
    for hit in reversed(hits):
        marks[hit.start : hit.end] = [(hit.start, risk(hit))] * len(hit.words)
    text = ""
    for (_, words), run in groupby(zip(marks, ad, strict=True), key=lambda pair: pair[0]):
        piece = html.escape("".join(character for _, character in run))
        text += f"<mark {words}>{piece}</mark>" if words else piece
    return text
