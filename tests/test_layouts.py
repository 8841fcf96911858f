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
        f"{layout['prompt']} {layout['response']}": lambda pairs, names=(layout["prompt"], layout["response"]): lines(
            pairs, names
        )
        for layout in LAYOUTS
        if "messages" not in layout
    },
    "chatglm": lambda pairs: lines([(c, s, []) for c, s in pairs], ("prompt", "response", "history")),
    "src": lambda pairs: lines(pairs, ("src", "tgt")),
    "input output": lambda pairs: lines(pairs, ("input", "output")),
    "completion": lambda pairs: lines(pairs, ("prompt", "completion")),
    "question": lambda pairs: lines(pairs, ("question", "answer")),
    "messages": lambda pairs: chats(pairs, "messages", "role", "content", "user", "assistant"),
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


# A chat or a pair of columns that holds no product with its ad, and the reason.
BAD = [
    ("more than one turn", {"prompt": "a#b", "response": "x", "history": [["a#b", "y"]]}),
    ("more than one turn", {"messages": [{"role": role, "content": "a#b"} for role in ("user", "assistant") * 2]}),
    ("not a turn of the user and one of the assistant", {"messages": [{"role": "user", "content": "a#b"}]}),
    ("not a turn of the user and one of the assistant", {"messages": []}),
    (
        "not a turn of the user and one of the assistant",
        {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "a#b"}]},
    ),
    ("a turn is of neither user, assistant nor system", {"messages": [{"role": "tool", "content": "a#b"}]}),
    ("a turn is of neither user, assistant nor system", {"messages": [{"role": ["user"], "content": "a#b"}]}),
    ("a turn is of neither user, assistant nor system", {"messages": [{"text": "a#b"}]}),
    ("its turns are no list of objects", {"messages": "a#b"}),
    ("its turns are no list of objects", {"conversation": [1]}),
    ("a column is not text", {"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "x"}]}),
    ("a column is not text", {"src": ["a#b"], "tgt": "x"}),
    ("a column is empty", {"instruction": "", "input": "", "output": "x"}),
    ("no known columns", {"标题": "a#b", "文案": "x"}),
]


def test_rows_without_a_product_and_an_ad_are_set_aside(tmp_path):
    train = "".join(json.dumps(row, ensure_ascii=False) + "\n" for _, row in BAD) + lines(TRAIN)
    rows, card = prepared(raw_folder(tmp_path / "raw", train.encode()), tmp_path / "out")
    assert [(row["line"], row["reason"]) for row in rows["rejected"]] == [(n, why) for n, (why, _) in enumerate(BAD, 1)]
    assert card["input"]["train"]["kept"] == len(TRAIN)


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
        ("prompt=content,response=", "not of the form prompt="),
        ("prompt=content,response=summary,image=x", "not of the form prompt="),
        ("content,summary", "not of the form prompt="),
        ("messages=content", "its turns are no list of objects"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, expected):
    assert expected in refused(raw_folder(tmp_path / "raw"), tmp_path / "out", "--columns", columns)
