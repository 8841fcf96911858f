"""An independent judge of ads: a chat model behind any OpenAI-compatible server, asked with a fixed prompt.

It did not choose the pairs that taught the model, so the model was not trained to please it.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
from lib import chat_client
from lib.files import fail
from lib.form import without_reasoning
from lib.journal import open_journal, write_missing

PROMPT = """你是电商平台的审稿人。请给下面这则商品广告打分，分数是 1 到 5 的一个整数：
5 分：每个属性都写到了，没有编造属性里没有的材质、工艺、图案、颜色、部件或功能，语句通顺，有吸引力，可以直接发布；
3 分：漏写或编造了一处，或者语句有明显的毛病；
1 分：漏写或编造了很多处，或者读不通，不能用。
只回答这个整数。

商品属性：{product}
广告：{ad}"""


def ask_judge(
    server: str, model: str | None, ads: dict[str, list[tuple[str, str]]], journal: Path
) -> tuple[dict[str, np.ndarray], dict]:
    """Asks the judge for a mark from 1 to 5 for each ad.

    ads: system → (product, ad) of each row. model: the server's name for the judge; None for its only model. What is
    answered stands in the journal, and a later call with the same judge goes on from there.

    Returns system → array (rows, 2), the mark and 1, or 0 and 0 where there is none; and what the report says of the
    judge. Ends the program if the server does not answer, or gives no ad a mark.
    """
    model = model or chat_client.find_model(server)
    # Services refuse sampling keys that they do not know, and a judge that reasons needs room: no other key is sent.
    body = {"model": model, "messages": [], "temperature": 0}
    asked = {
        name: [(PROMPT.format(product=product, ad=ad), 0) if ad else None for product, ad in rows]
        for name, rows in ads.items()
    }
    keys = sorted({key for rows in asked.values() for key in rows if key})
    file, answers = open_journal(journal, {"judge": model, "request": body})
    with file:
        write = partial(chat_client.write_ads, server, body, chat_client.in_flight(server))
        write_missing(write, file, answers, keys, 1)
    # All is answered. A judge that is no good would otherwise stand in the way of the next one.
    journal.unlink()
    read = {key: read_mark(answers[key][0]) for key in keys if answers[key]}
    marks = {key: mark for key, mark in read.items() if mark}
    if keys and not marks:
        fail(f"the judge {model} gave no ad a mark from 1 to 5: choose another one with JUDGE and JUDGE_MODEL")
    found = {}
    for name, rows in asked.items():
        # No ad cannot be published.
        given = [marks.get(key, 0) if key else 1 for key in rows]
        found[name] = np.array([[mark, mark > 0] for mark in given], float)
    return found, {"model": model, "prompt": PROMPT, "ads": len(keys), "ads without a mark": len(keys) - len(marks)}


def read_mark(answer: str) -> int:
    """The mark in a judge's answer, such as 4 in 4/5; 0 if it holds none from 1 to 5, or several."""
    numbers = set(re.findall(r"(?<![/.\d])\d+(?![.\d])", without_reasoning(answer)))
    return int(*numbers) if len(numbers) == 1 and numbers <= set("12345") else 0
