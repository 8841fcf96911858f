"""The registry: what LLaMA-Factory reads is taken, and the rest is one line that says what is wrong and where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import attempt, is_one_line, mutated
from hypothesis import given
from hypothesis import strategies as st
from lib.files import ROOT
from lib.predictions import read_data
from lib.registry import check_sets, data_files

REGISTRY = json.loads((ROOT / "dataset_info/dataset_info.json").read_text(encoding="ascii"))


def get_dataset_list(names: list[str], folder: str) -> list:
    """By LLaMA-Factory. Its import takes seconds, which at the top each worker would spend."""
    from llamafactory.data.parser import get_dataset_list

    return get_dataset_list(names, folder)


def test_both_folders_hold_the_same_registry():
    assert (ROOT / "data/dataset_info.json").read_bytes() == (ROOT / "dataset_info/dataset_info.json").read_bytes()
    assert {f"{data}_{split}" for data in ("adgen", "sample") for split in ("train", "val", "dev")} < set(REGISTRY)


@pytest.mark.parametrize("name", REGISTRY)
def test_llamafactory_reads_the_entry(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for folder in ("data", "dataset_info"):
        (found,) = get_dataset_list([name], folder)
        if found.load_from == "file":
            path = (ROOT / folder / found.dataset_name).resolve()
            assert path.parent in (ROOT / "data", ROOT / "data/sample")
            assert path.name.startswith("adgen_") or path.stem.endswith(("_pairs", "_verdicts")) or path.is_file()
    if found.load_from != "file":
        assert found.dataset_name == "HasturOfficial/adgen"
        monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
        assert get_dataset_list([name], "data")[0].load_from == "ms_hub"


# --- the registry ---

NAMED = {"file_name": "行.jsonl", "columns": {"prompt": "标题", "response": "文案"}}
# Name → registry as bytes, and words of the error; none if LLaMA-Factory reads it.
REGISTRIES = {
    "Chinese names": (json.dumps({"集": NAMED}, ensure_ascii=False).encode(), ""),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps({"集": NAMED}).encode(), "without a byte order mark"),
    "comma at the end": ('{\n "集": {"file_name": "x"},\n}'.encode(), "line 3 column 1"),
    "comment": ('{"集": {"file_name": "x"} // mine\n}'.encode(), "line 1 column 26"),
    "cut off": ('{"集": {"file_name"'.encode(), "line 1 column 19"),
    "GB18030": (json.dumps({"集": NAMED}, ensure_ascii=False).encode("gb18030"), "JSON in UTF-8"),
    "nothing": (b"", "line 1 column 1"),
    "too deep": (b'{"a":' * 10**5, "cannot be read"),
    "a list": (json.dumps([NAMED]).encode(), "does not hold"),
    "a text as entry": ('{"集": "行.jsonl"}'.encode(), "does not hold"),
    "another set": (b'{"mine": {}}', '"集" is not registered in'),
    "a number as file": ('{"集": {"file_name": 1}}'.encode(), "names no file"),
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_registries_that_llamafactory_reads_and_those_that_it_does_not(tmp_path, name):
    data, expected = REGISTRIES[name]
    (tmp_path / "dataset_info.json").write_bytes(data)
    settings = {"dataset": "集", "dataset_dir": str(tmp_path)}
    if not expected:
        assert data_files(settings) == {"集": tmp_path / get_dataset_list(["集"], str(tmp_path))[0].dataset_name}
        return
    with pytest.raises(SystemExit, match=expected) as error:
        data_files(settings)
    assert str(tmp_path / "dataset_info.json") in str(error.value)


@given(st.data())
def test_a_registry_that_is_read_is_one_that_llamafactory_reads(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("registry")
    text = json.dumps({"集": NAMED}, ensure_ascii=data.draw(st.booleans())).encode()
    (folder / "dataset_info.json").write_bytes(data.draw(mutated(text)))
    found = attempt(data_files, {"dataset": "集", "dataset_dir": str(folder)})
    if found and found["集"]:
        assert found["集"] == Path(folder, get_dataset_list(["集"], str(folder))[0].dataset_name)


@pytest.mark.parametrize(
    "names", ["sample_train, sample_val", ["sample_train", "sample_val"], " sample_train ,sample_val,"]
)
def test_sets_are_named_as_llamafactory_takes_them(names, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert list(data_files({"dataset": names})) == ["sample_train", "sample_val"]


def test_sets_that_are_on_no_disk(tmp_path):
    assert data_files({"dataset": "someone/rows", "dataset_dir": "ONLINE"}) == {"someone/rows": None}
    assert data_files({"dataset": "x", "dataset_dir": "REMOTE:someone/registry"}) == {"x": None}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"x": {"ms_hub_url": "someone/rows"}}))
    assert data_files({"dataset": "x", "dataset_dir": str(tmp_path)}) == {"x": None}


# --- rows ---

MESSAGES = {"messages": [{"role": "user", "content": "a#b"}, {"role": "assistant", "content": "c"}]}
OPENAI = {
    "formatting": "sharegpt", "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}  # fmt: skip
TWO = {"columns": {"prompt": "content", "response": "summary"}}
PAIRS = {"ranking": True, "columns": {"prompt": "p", "chosen": "good", "rejected": "bad"}}
VERDICTS = {"columns": {"prompt": "p", "response": "r", "kto_tag": "ok"}}
ROW = {"content": "a#b", "summary": "c"}
# Name → entry, rows as values or bytes, and words of the error; none if LLaMA-Factory reads the rows.
ROWS = {
    "two columns": (TWO, [ROW], ""),
    "three columns": ({}, [{"instruction": "a", "input": "", "output": "c"}], ""),
    "an empty cell": (TWO, [ROW, {"content": "a"}], ""),
    "byte order mark": (TWO, b"\xef\xbb\xbf" + json.dumps(ROW).encode(), ""),
    "an array": (TWO, json.dumps([ROW, ROW], indent=1).encode(), ""),
    "chats": (OPENAI, [MESSAGES], ""),
    "chats of ShareGPT": ({"formatting": "sharegpt"}, [{"conversations": [
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "c"}]}], ""),
    "pairs": (PAIRS, [{"p": "a", "good": "b", "bad": "c"}], ""),
    "verdicts": (VERDICTS, [{"p": "a", "r": "b", "ok": True}, {"p": "a", "r": "c", "ok": False}], ""),
    "no input": ({}, [{"instruction": "a", "output": "c"}], "KeyError: 'input'.; its columns are instruction, output"),
    "no answer": (TWO, [{"content": "a"}], "KeyError: 'summary'.; its columns are content"),
    "no rejected": (PAIRS, [{"p": "a", "good": "b"}], "KeyError: 'bad'.; its columns are p, good"),
    "other tags": ({"formatting": "sharegpt", "columns": {"messages": "messages"}}, [MESSAGES], "KeyError: 'from'"),
    "a text as chat": (OPENAI, [{"messages": "a#b"}], "TypeError"),
    "a number in text": (TWO, [ROW, ROW | {"content": 1}], "content. changed from string to number in row 1"),
    "a list in text": (TWO, [{"content": ["a"], "summary": "c"}], "expected str instance, list found"),
    "no response": ({"columns": {"prompt": "content"}}, [ROW], "no row has a prompt and a response"),
    "an unknown part": ({"columns": {"promt": "content", "response": "summary"}}, [ROW], "no row has a prompt"),
    "a list of columns": ({"columns": ["content"]}, [ROW], "AttributeError"),
    "another format": ({"formatting": "chatml"}, [ROW], "chatml"),
    "a line that is cut off": (TWO, json.dumps(ROW).encode() + b'\n{"content"', "in row 1"),
    "a list among rows": (TWO, json.dumps(ROW).encode() + b"\n[1]", "row 1"),
    "GB18030": (TWO, '{"content": "类型#裙", "summary": "c"}'.encode("gb18030"), "Invalid UTF8|codec can't decode"),
    "nothing": (TWO, b"\n", "cannot read"),
}  # fmt: skip


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A function that gives the settings of a training on rows that a registry of their own names."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def register(entry, rows, name="rows.jsonl") -> dict:
        data = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        (tmp_path / name).write_bytes(data)
        (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": name} | entry}))
        stage = "dpo" if entry.get("ranking") else "kto" if entry == VERDICTS else "sft"
        return {"dataset": "mine", "dataset_dir": str(tmp_path), "stage": stage, "do_train": True}

    return register


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_llamafactory_reads_and_those_that_it_does_not(registered, name):
    entry, rows, expected = ROWS[name]
    settings = registered(entry, rows)
    if not expected:
        return check_sets(settings, {"mine"})
    with pytest.raises(SystemExit, match=expected) as error:
        check_sets(settings, {"mine"})
    message = error.value.code
    assert 'the set "mine" in' in message and "rows.jsonl" in message and is_one_line(message)


def test_a_prediction_needs_no_answers(registered):
    settings = registered(TWO, [{"content": "a#b", "summary": ""}])
    with pytest.raises(SystemExit, match="no row has a prompt and a response"):
        check_sets(settings, {"mine"})
    check_sets(settings | {"do_train": False}, {"mine"})


@pytest.mark.parametrize(
    ("entry", "stage", "what"),
    [(PAIRS, "sft", "pairs"), (TWO, "dpo", "pairs"), (VERDICTS, "sft", "yes or no"), (TWO, "kto", "yes or no")],
)
def test_pairs_and_verdicts_are_for_their_stages(registered, entry, stage, what):
    with pytest.raises(SystemExit, match=f"stage {stage} .* {what}"):
        check_sets(registered(entry, [ROW]) | {"stage": stage}, set())


def test_files_of_other_kinds(tmp_path, registered):
    settings = registered({"file_name": "rows"} | TWO, [ROW])
    (tmp_path / "rows").mkdir()
    for number in range(2):
        (tmp_path / f"rows/{number}.csv").write_text("content,summary\na,b\n", encoding="utf-8")
    check_sets(settings, {"mine"})
    (tmp_path / "rows/1.csv").rename(tmp_path / "rows/1.txt")
    with pytest.raises(SystemExit, match="of one kind"):
        check_sets(settings, {"mine"})


# --- through the program ---


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dataset_dir=/tmp/nope"], "/tmp/nope/dataset_info.json does not exist"),
        (["dataset=nope"], '"nope" is not registered in data/dataset_info.json: adgen_train, '),
        (["dataset=llama3_70b_pairs"], "data set llama3_70b_pairs is missing"),
        (["dataset_dir=ONLINE", "dataset=someone/rows", "eval_dataset=null"], ""),
    ],
)
def test_the_doctor_names_what_is_wrong(words, expected):
    variables = {"MODEL": "tiny", "METHOD": "lora", "DATA": "sample"}
    command = [sys.executable, "scripts/launch.py", "doctor", "--json", *words]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    (line,) = [line for line in json.loads(result.stdout) if line["check"] == "data"]
    assert line["status"] == ("wrong" if expected else "ok") and expected in line["text"]


def test_scores_read_the_columns_that_the_registry_names(monkeypatch, tmp_path):
    """A file of one's own is scored with the columns that it is trained with."""
    rows = [{"商品": "类型#裙", "属性": "颜色#白色", "文": "白色的裙。"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dataset_info").mkdir()
    entry = {"file_name": "../rows.jsonl", "columns": {"prompt": "商品", "query": "属性", "response": "文"}}
    (tmp_path / "dataset_info/dataset_info.json").write_text(json.dumps({"mine": entry}))
    monkeypatch.setattr("lib.registry.ROOT", tmp_path)
    data = read_data(tmp_path / "rows.jsonl")
    assert data.contents == ["类型#裙\n颜色#白色"] and data.references == ["白色的裙。"]
