"""LLaMA-Factory reads the registry in data/, where it looks by default, and in dataset_info/, where the file is."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from corpus import attempt, mutated
from hypothesis import given
from hypothesis import strategies as st
from lib.files import ROOT
from lib.predictions import read_data
from lib.registry import COLUMNS, TAGS, check_sets, data_files
from llamafactory.data.converter import align_dataset
from llamafactory.data.parser import DatasetAttr, get_dataset_list
from llamafactory.hparams import DataArguments

REGISTRY = json.loads((ROOT / "dataset_info/dataset_info.json").read_text(encoding="ascii"))


class Training:
    """What LLaMA-Factory's loader asks of the arguments of a training."""

    local_process_index = 0


def test_both_folders_hold_the_same_registry():
    assert (ROOT / "data/dataset_info.json").read_bytes() == (ROOT / "dataset_info/dataset_info.json").read_bytes()
    assert {f"{data}_{split}" for data in ("adgen", "sample") for split in ("train", "val", "dev")} < set(REGISTRY)


@pytest.mark.parametrize("folder", ["data", "dataset_info"])
@pytest.mark.parametrize("name", REGISTRY)
def test_llamafactory_reads_the_entry(name, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    (found,) = get_dataset_list([name], folder)
    if found.load_from == "file":
        path = (ROOT / folder / found.dataset_name).resolve()
        assert path.parent in (ROOT / "data", ROOT / "data/sample")
        assert path.name.startswith("adgen_") or path.stem.endswith(("_pairs", "_verdicts")) or path.is_file()
    else:
        assert found.dataset_name == "HasturOfficial/adgen"
        monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
        assert get_dataset_list([name], folder)[0].load_from == "ms_hub"


@pytest.mark.parametrize("name", ["sample_train", "sample_val", "sample_dev"])
def test_rows_become_prompt_and_response(name, monkeypatch):
    from datasets import load_dataset

    monkeypatch.chdir(ROOT)
    (found,) = get_dataset_list([name], "data")
    rows = load_dataset("json", data_files=str(ROOT / "data" / found.dataset_name), split="train").select(range(3))

    aligned = align_dataset(rows, found, DataArguments(dataset=name, overwrite_cache=True), Training())
    for row, raw in zip(aligned, rows, strict=True):
        assert row["_prompt"] == [{"role": "user", "content": raw["content"]}]
        assert row["_response"] == [{"role": "assistant", "content": raw["summary"]}]


def test_what_an_entry_leaves_out_is_what_llamafactory_takes():
    defaults = asdict(DatasetAttr("file", "x"))
    assert {part: defaults[part] for part in COLUMNS | TAGS} == COLUMNS | TAGS


# --- the registry ---

NAMED = {"file_name": "行.jsonl", "columns": {"prompt": "标题", "response": "文案"}}
# Name → registry as bytes, and words of the error; none if LLaMA-Factory reads it.
REGISTRIES = {
    "Chinese names": (json.dumps({"集": NAMED}, ensure_ascii=False).encode(), ""),
    "white space": (b"\r\n\t" + json.dumps({"集": NAMED}, indent=4).encode() + b"\n\n", ""),
    "a key twice": ('{"集": {"file_name": "x"}, "集": {"file_name": "行.jsonl"}}'.encode(), ""),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps({"集": NAMED}).encode(), "UTF-8 without one"),
    "comma at the end": ('{\n "集": {"file_name": "x"},\n}'.encode(), "line 3, column 1: a comma stands where nothing"),
    "comma in an entry": ('{"集": {"file_name": "x",}}'.encode(), "a comma stands"),
    "comment": ('{"集": {"file_name": "x"} // mine\n}'.encode(), "line 1, column 26: Expecting"),
    "cut off": ('{"集": {"file_name"'.encode(), "line 1, column 19"),
    "GB18030": (json.dumps({"集": NAMED}, ensure_ascii=False).encode("gb18030"), "line 1: not UTF-8"),
    "UTF-16": (json.dumps({"集": NAMED}).encode("utf-16"), "line 1: not UTF-8"),
    "nothing": (b"", "line 1, column 1: Expecting value"),
    "too deep": (b'{"a":' * 10**5, "nested too deeply"),
    "a list": (json.dumps([NAMED]).encode(), "does not hold"),
    "a text as entry": ('{"集": "行.jsonl"}'.encode(), "does not hold"),
    "another set": (b'{"mine": {}}', '"集" is not registered in'),
    "no file": ('{"集": {"columns": {}}}'.encode(), 'the set "集" in'),
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
    for key in ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"):
        (tmp_path / "dataset_info.json").write_text(json.dumps({"x": {key: "someone/rows"}}))
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
    "a column too many": (TWO, [ROW, ROW | {"id": 1}], ""),
    "an empty cell": (TWO, [ROW, {"content": "a"}], ""),
    "byte order mark": (TWO, b"\xef\xbb\xbf" + json.dumps(ROW).encode(), ""),
    "blank lines": (TWO, json.dumps(ROW).encode() + b"\r\n\n\n", ""),
    "an array": (TWO, json.dumps([ROW, ROW], indent=1).encode(), ""),
    "chats": (OPENAI, [MESSAGES], ""),
    "chats of ShareGPT": ({"formatting": "sharegpt"}, [{"conversations": [
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "c"}]}], ""),
    "chats of OpenAI": (OPENAI | {"formatting": "openai"}, [MESSAGES], ""),
    "pairs": (PAIRS, [{"p": "a", "good": "b", "bad": "c"}], ""),
    "verdicts": (VERDICTS, [{"p": "a", "r": "b", "ok": True}, {"p": "a", "r": "c", "ok": False}], ""),
    "yes in words": (VERDICTS, [{"p": "a", "r": "b", "ok": "yes"}], 'the column "ok" is str, not true or false'),
    "no input": ({}, [{"instruction": "a", "output": "c"}], 'no column "input", its query; its columns are '),
    "no content": (TWO, [{"prompt": "a", "response": "c"}], 'no column "content", its prompt; its columns are '),
    "no answer": (TWO, [{"content": "a"}], 'no column "summary", its response; its columns are content'),
    "no rejected": (PAIRS, [{"p": "a", "good": "b"}], 'no column "bad", its rejected; its columns are p, good'),
    "no chats": ({"formatting": "sharegpt"}, [ROW], 'no column "conversations", its messages; its columns are content'),
    "other tags": ({"formatting": "sharegpt", "columns": {"messages": "messages"}}, [MESSAGES], 'line 1: the column "'),
    "a text as chat": (OPENAI, [{"messages": "a#b"}], 'line 1: the column "messages" is no list of turns'),
    "a number in text": (TWO, [ROW, ROW | {"content": 1}], 'line 2: the column "content" is int, not text'),
    "a list in text": (TWO, [{"content": ["a"], "summary": "c"}], 'line 1: the column "content" is list, not text'),
    "another format": ({"formatting": "chatml"}, [ROW], "LLaMA-Factory knows alpaca, sharegpt, openai"),
    "a line that is cut off": (TWO, json.dumps(ROW).encode() + b'\n{"content"', "JSON array: .* line 2 column 11"),
    "a list among rows": (TWO, json.dumps(ROW).encode() + b"\n[1]", "line 2: a JSON object was expected"),
    "comma in an array": (TWO, b'[{"content": "a", "summary": "c"},]', "neither JSON lines nor a JSON array"),
    "mark before an array": (TWO, b'\xef\xbb\xbf[{"content": "a", "summary": "c"}]', "BOM"),
    "GB18030": (TWO, '{"content": "类型#裙", "summary": "c"}'.encode("gb18030"), "not UTF-8"),
    "nothing": (TWO, b"\n", "holds no row"),
}  # fmt: skip


def registered(folder, entry, rows, name="rows.jsonl") -> dict:
    """The settings of a training on rows that a registry of their own names."""
    data = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    (folder / name).write_bytes(data)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": name} | entry}))
    stage = "dpo" if entry.get("ranking") else "kto" if entry == VERDICTS else "sft"
    return {"dataset": "mine", "dataset_dir": str(folder), "do_train": True, "stage": stage}


def align(settings: dict, cache: Path) -> list[dict]:
    """The rows as LLaMA-Factory takes them."""
    from datasets import load_dataset

    (found,) = get_dataset_list(["mine"], settings["dataset_dir"])
    path = Path(settings["dataset_dir"], found.dataset_name)
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    return list(align_dataset(rows, found, DataArguments(dataset="mine", overwrite_cache=True), Training()))


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_llamafactory_reads_and_those_that_it_does_not(tmp_path, name):
    entry, rows, expected = ROWS[name]
    settings = registered(tmp_path, entry, rows)
    if not expected:
        check_sets(settings, set())
        assert all(row["_prompt"] and row["_response"] for row in align(settings, tmp_path)[:1])
        return
    with pytest.raises(SystemExit, match=expected) as error:
        check_sets(settings, set())
    assert 'the set "mine" in' in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(Exception):  # noqa: B017 - whatever its libraries raise
        # A preference training leaves out rows with one response.
        least = 1 if settings["stage"] == "sft" else 2
        assert any(len(row["_response"]) >= least for row in align(settings, tmp_path))


ENTRIES = {
    "an unknown column": ({"columns": {"promt": "content"}}, {}, "LLaMA-Factory knows no promt under"),
    "a list of columns": ({"columns": ["content"]}, {}, "LLaMA-Factory knows no"),
    "pairs for sft": (PAIRS, {"stage": "sft"}, "stage sft takes no pairs"),
    "rows for dpo": (TWO, {"stage": "dpo"}, "stage dpo needs pairs"),
    "rows for kto": (TWO, {"stage": "kto"}, "stage kto needs a column that says yes or no"),
    "verdicts for sft": (VERDICTS, {"stage": "sft"}, "stage sft takes no column that says yes or no"),
    "no response": ({"columns": {"prompt": "content"}}, {}, "no column named as its response"),
    "another kind of file": (TWO | {"file_name": "dataset_info.json.bak"}, {}, "reads files of one kind out of json"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_do_not_fit(tmp_path, name):
    entry, others, expected = ENTRIES[name]
    settings = registered(tmp_path, entry, [ROW]) | others
    with pytest.raises(SystemExit, match=expected):
        check_sets(settings, set())


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "rows").mkdir()
    for number in range(2):
        (tmp_path / f"rows/{number}.csv").write_text("\ufeffcontent,summary\na,b\n", encoding="utf-8")
    settings = registered(tmp_path, TWO, [ROW])
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": TWO | {"file_name": "rows"}}))
    check_sets(settings, set())
    (tmp_path / "rows/1.csv").rename(tmp_path / "rows/1.txt")
    with pytest.raises(SystemExit, match="of one kind"):
        check_sets(settings, set())


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
    settings = registered(tmp_path, {"columns": {"prompt": "商品", "query": "属性", "response": "文"}}, b"")
    rows = [{"商品": "类型#裙", "属性": "颜色#白色", "文": "白色的裙。"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("lib.registry.ROOT", tmp_path)
    (tmp_path / "dataset_info").mkdir()
    entry = json.loads((tmp_path / "dataset_info.json").read_text())["mine"] | {"file_name": "../rows.jsonl"}
    (tmp_path / "dataset_info/dataset_info.json").write_text(json.dumps({"mine": entry}))
    data = read_data(tmp_path / "rows.jsonl")
    assert data.contents == ["类型#裙\n颜色#白色"] and data.references == ["白色的裙。"] and settings
