"""The layouts in which people have AdGen: columns of every usual name, chats, and columns that the user names."""

import json

import pytest
from lib.layouts import LAYOUTS
from lib.predictions import read_data
from test_prepare_data import DEV, TRAIN, lines, pairs_of, prepared, raw_folder, refused


def chats(pairs, column, role="role", content="content", user="user", assistant="assistant", system=""):
    """The rows as chats of one turn each, after a system turn if there is one."""
    first = [{role: "system", content: system}] if system else []
    turns = [[*first, {role: user, content: c}, {role: assistant, content: s}] for c, s in pairs]
    return "".join(json.dumps({"id": 1, column: row}, ensure_ascii=False) + "\n" for row in turns)


LAYOUTS_OF_ROWS = {
    **{
        " ".join(names): lambda pairs, names=names: lines(pairs, names)
        for layout in LAYOUTS
        if "messages" not in layout and (names := (layout["prompt"], layout["response"]))
    },
    "task first": lambda pairs: lines([("写广告", c, s) for c, s in pairs], ("instruction", "input", "output")),
    "task last": lambda pairs: lines(
        [(c, "请写一段广告文案", s) for c, s in pairs], ("instruction", "input", "output")
    ),
    "chatglm": lambda pairs: lines([(c, s, []) for c, s in pairs], ("prompt", "response", "history")),
    "messages": lambda pairs: chats(pairs, "messages"),
    "system": lambda pairs: chats([(f"写广告：{c}", s) for c, s in pairs], "messages", system="你是文案写手。"),
    "conversations": lambda pairs: chats(pairs, "conversations", "from", "value", "human", "gpt"),
    "conversations with roles": lambda pairs: chats(pairs, "conversations"),
    "parts": lambda pairs: chats([([{"type": "text", "text": c}], s) for c, s in pairs], "messages"),
}


@pytest.mark.parametrize("layout", LAYOUTS_OF_ROWS)
def test_every_layout_gives_the_same_rows(tmp_path, layout):
    write = LAYOUTS_OF_ROWS[layout]
    raw = raw_folder(tmp_path / "raw", write(TRAIN).encode(), write(DEV).encode())
    rows, _ = prepared(raw, tmp_path / "out")
    assert pairs_of(rows["train"]) | pairs_of(rows["val"]) == set(TRAIN)
    assert [(row["instruction"], row["output"]) for row in rows["dev"]] == DEV
    # The scores read the same files.
    assert read_data(raw / "dev.json").references == [ad for _, ad in DEV]


COLUMNS = {
    "prompt=标题,response=文案": lambda pairs: lines(pairs, ("标题", "文案")),
    "response=ad text,prompt=content": lambda pairs: lines(
        [(c, s, "x") for c, s in pairs], ("content", "ad text", "summary")
    ),
    "prompt=task,query=product,response=ad": lambda pairs: lines(
        [("写广告", c, s) for c, s in pairs], ("task", "product", "ad")
    ),
    "messages=对话": lambda pairs: chats(pairs, "对话"),
}


@pytest.mark.parametrize("columns", COLUMNS)
def test_columns_that_the_user_names(tmp_path, columns):
    write = COLUMNS[columns]
    raw = raw_folder(tmp_path / "raw", write(TRAIN).encode(), write(DEV).encode())
    rows, _ = prepared(raw, tmp_path / "out", "--columns", columns)
    assert pairs_of(rows["train"]) | pairs_of(rows["val"]) == set(TRAIN)
    assert [(row["instruction"], row["output"]) for row in rows["dev"]] == DEV


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("prompt=标题,response=ad", "no known columns (it has content, summary)"),
        ("prompt=content", "not of the form prompt="),
        ("prompt=content,response=summary,image=x", "not of the form prompt="),
        ("messages=content", "its turns are no list of objects"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, expected):
    assert expected in refused(raw_folder(tmp_path / "raw"), tmp_path / "out", "--columns", columns)
