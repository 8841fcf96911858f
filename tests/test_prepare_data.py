"""Data preparation: every form that AdGen is found in, every policy, every kind of bad file."""

import hashlib
import io
import json
import tarfile
import zipfile

import prepare_data
import pytest
from corpus import WRAPPERS, is_one_line, run_main
from lib import files
from lib.files import read_json_lines

ADS = [
    ("类型#上衣*颜色#白色*材质#纯棉", "白色的纯棉上衣，清爽好搭。"),
    ("类型#裙*颜色#墨绿*图案#碎花", "墨绿底色缀着碎花，裙摆轻轻一动就很美。"),
    ("类型#裤*版型#宽松*风格#休闲", "宽松的休闲裤，坐着站着都自在。"),
    ("类型#口红*质地#丝绒*颜色#豆沙色", "丝绒质地的豆沙色，温柔不挑人。"),
]
TRAIN = [(f"{content}*编号#{number}", f"{ad}第{number}款。") for number in range(30) for content, ad in ADS]
DEV = [
    ("类型#耳机*连接#蓝牙", " 蓝牙一连就响，<UNK>音质干净。"),
    ("类型#裙*颜色#酒红", "酒红衬肤色。"),
    ("类型#裙*颜色#酒红", "一身酒红。"),
]


def lines(pairs, columns=("content", "summary")):
    return "".join(json.dumps(dict(zip(columns, pair, strict=True)), ensure_ascii=False) + "\n" for pair in pairs)


def raw_folder(folder, train=None, dev=None):
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_bytes(train if train is not None else lines(TRAIN).encode())
    (folder / "dev.json").write_bytes(dev if dev is not None else lines(DEV).encode())
    return folder


def prepared(raw, out, *flags):
    """The rows of the four files, and the card, of a preparation in this process."""
    run_main(prepare_data, raw, "--out", out, *flags)
    names = ("train", "val", "dev", "rejected")
    rows = {n: read_json_lines(out / f"adgen_{n}.jsonl") if (out / f"adgen_{n}.jsonl").exists() else [] for n in names}
    return rows, json.loads((out / "adgen_card.json").read_text())


def refused(raw, out, *flags):
    """The one line that says why."""
    with pytest.raises(SystemExit) as end:
        run_main(prepare_data, raw, "--out", out, *flags)
    assert is_one_line(end.value.code), end.value.code
    assert not out.exists() or not list(out.iterdir())
    return end.value.code


def pairs_of(rows):
    return {(row["instruction"], row["output"]) for row in rows}


ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "bom": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "gb18030": lambda text: text.encode("gb18030"),
    "windows lines": lambda text: text.replace("\n", "\r\n").encode(),
    "blank lines": lambda text: text.replace("\n", "\n\n").encode(),
}
FORMS = {
    "lines": lines,
    "array": lambda pairs: json.dumps([{"content": c, "summary": s} for c, s in pairs], ensure_ascii=False, indent=1),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, encoding, form):
    write = lambda pairs: ENCODINGS[encoding](FORMS[form](pairs))  # noqa: E731
    rows, card = prepared(raw_folder(tmp_path / "raw", write(TRAIN), write(DEV)), tmp_path / "out")
    assert pairs_of(rows["train"]) | pairs_of(rows["val"]) == set(TRAIN)
    assert [(row["instruction"], row["output"]) for row in rows["dev"]] == DEV
    counts = card["input"]["train"]
    assert counts["kept"] + counts["repaired"] == len(TRAIN)
    assert all(set(row) == {"instruction", "output"} for name in ("train", "val", "dev") for row in rows[name])


def test_no_product_in_two_splits(tmp_path):
    reordered = "颜色#酒红*类型#裙"
    train = [
        *TRAIN,
        (DEV[0][0], "蓝牙耳机。"),
        (reordered, "酒红的裙子。"),
        *[(TRAIN[0][0], f"又一种说法{n}。") for n in range(9)],
    ]
    rows, card = prepared(raw_folder(tmp_path / "raw", lines(train).encode()), tmp_path / "out")
    products = {name: {row["instruction"] for row in rows[name]} for name in ("train", "val", "dev")}
    assert products["val"] and not products["train"] & products["val"]
    assert not (products["train"] | products["val"]) & (products["dev"] | {reordered})
    assert card["input"]["train"]["dropped_because"] == {"product is in dev": 2}


def test_a_dev_product_stays_out_of_train_in_every_wrapping(tmp_path):
    """The same product in words, quotes or Markdown is the same product; the task is no part of what is learnt."""
    train, dev = list(TRAIN), list(DEV)
    for number, (before, after) in enumerate(WRAPPERS):
        train.append((f"{before}颜色#酒红*类型#裙{after}", f"酒红的裙子{number}。"))
        train.append((f"{before}类型#靴*颜色#驼色{after}", f"驼色的靴{number}。"))
        dev.append((f"{before}类型#靴*颜色#黑色{after}", f"黑色的靴{number}。"))
    raw = raw_folder(tmp_path / "raw", lines(train).encode(), lines(dev).encode())
    rows, card = prepared(raw, tmp_path / "out")
    assert card["input"]["train"]["dropped_because"] == {"product is in dev": len(WRAPPERS)}
    boots = {("类型#靴*颜色#驼色", f"驼色的靴{number}。") for number in range(len(WRAPPERS))}
    assert pairs_of(rows["train"]) | pairs_of(rows["val"]) == {*TRAIN} | boots
    assert {row["instruction"] for row in rows["dev"][len(DEV) :]} == {"类型#靴*颜色#黑色"}


def test_unk_policies(tmp_path):
    train = [
        *TRAIN,
        ("类型#裙*颜色#杏色", "杏色很温柔。<UNK>的裙摆。好搭！"),
        ("类型#裙*颜色#浅灰", "浅灰的裙子，好看，<UNK>。"),
    ]
    raw = raw_folder(tmp_path / "raw", lines(train).encode())
    for policy, kept in (
        ("drop", []),
        ("cut", ["杏色很温柔。好搭！", "浅灰的裙子，好看。"]),
        ("keep", [train[-2][1], train[-1][1]]),
    ):
        rows, card = prepared(raw, tmp_path / policy, "--unk", policy)
        ads = {output for _, output in pairs_of(rows["train"]) | pairs_of(rows["val"])}
        assert ads - {output for _, output in TRAIN} == set(kept)
        assert card["policy"]["unk"] == policy
    rows, card = prepared(raw, tmp_path / "again")
    assert [json.loads(row["text"])["summary"] for row in rows["rejected"]] == [train[-2][1], train[-1][1]]


def test_duplicates_and_rows_without_attributes(tmp_path):
    """The order of the attributes makes no other product."""
    same = ("颜色#白色*材质#纯棉*编号#0*类型#上衣", TRAIN[0][1])
    train = [*TRAIN, TRAIN[0], same, ("你是谁？", "我是小助手。")]
    rows, card = prepared(raw_folder(tmp_path / "raw", lines(train).encode()), tmp_path / "out")
    assert card["input"]["train"]["dropped_because"] == {"duplicate pair": 2, "no attributes": 1}
    assert len(rows["rejected"]) == 3


def test_attribute_strings_are_tidied(tmp_path):
    messy = " 类型＃裙 ＊颜色 # 墨绿**图案#碎花*"
    train = [*TRAIN, (messy, "墨绿碎花裙。")]
    rows, card = prepared(raw_folder(tmp_path / "raw", lines(train).encode()), tmp_path / "out")
    assert ("类型#裙*颜色#墨绿*图案#碎花", "墨绿碎花裙。") in pairs_of(rows["train"]) | pairs_of(rows["val"])
    assert card["input"]["train"]["repaired_because"] == {"attribute string tidied": 1}


# What a line may hold that is no row, and the reason.
BAD = [
    ("not JSON", b'{"content": "x'),
    ("not JSON", b"[" * 100000),
    ("not JSON", b"\xff"),
    ("not an object", b"[1]"),
    ("no known columns", '{"标题": "a#b", "文案": "x"}'.encode()),
    ("a column is not text", b'{"content": 1, "summary": "x"}'),
    ("a column is empty", b'{"content": " ", "summary": "x"}'),
    ("not valid Unicode", b'{"content": "a#\\ud800", "summary": "x"}'),
    ("not valid Unicode", b'{"content": "\xff\xff\xff", "summary": "x"}'),
    ("more than one turn", b'{"prompt": "a#b", "response": "x", "history": [["a#b", "y"]]}'),
    ("not a turn of the user and one of the assistant", b'{"messages": [{"role": "user", "content": "a#b"}]}'),
    ("a turn is of neither user, assistant nor system", b'{"messages": [{"role": "tool", "content": "a#b"}]}'),
    ("a turn is of neither user, assistant nor system", b'{"messages": [{"role": ["user"], "content": "a#b"}]}'),
    ("its turns are no list of objects", b'{"conversation": [1]}'),
]


def test_bad_rows_are_set_aside_and_nothing_is_lost(tmp_path):
    train = b"".join(line + b"\n" for _, line in BAD) + lines(TRAIN).encode()
    rows, card = prepared(raw_folder(tmp_path / "raw", train), tmp_path / "out")
    assert [(row["line"], row["reason"]) for row in rows["rejected"]] == [(n, why) for n, (why, _) in enumerate(BAD, 1)]
    assert [row["text"].encode("utf-8", "surrogateescape") for row in rows["rejected"]] == [line for _, line in BAD]
    assert pairs_of(rows["train"]) | pairs_of(rows["val"]) == set(TRAIN)
    assert card["input"]["train"]["rejected"] == len(BAD)


def test_card_adds_up_and_names_what_was_written(tmp_path):
    train = [*TRAIN, TRAIN[0], ("类型#裙", "<UNK>"), ("聊天", "好")]
    raw = raw_folder(tmp_path / "raw", lines(train).encode() + b"oops\n")
    _, card = prepared(raw, tmp_path / "out")
    for split, counts in card["input"].items():
        assert counts["read"] == sum(counts[status] for status in ("kept", "repaired", "dropped", "rejected"))
        for status in ("repaired", "dropped", "rejected"):
            assert counts[status] == sum(counts[f"{status}_because"].values())
        assert counts["sha256"] == hashlib.sha256((raw / f"{split}.json").read_bytes()).hexdigest()
    for name, entry in card["output"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["rows"] == data.count(b"\n")
    train, val = card["output"]["adgen_train.jsonl"], card["output"]["adgen_val.jsonl"]
    assert train["rows_by_type"]["裙"] + val["rows_by_type"].get("裙", 0) == 30
    assert train["rows_by_key"]["类型"] == train["rows"]


def test_same_input_same_bytes(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    first, second = tmp_path / "a", tmp_path / "b"
    prepared(raw, first), prepared(raw, second)
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_archives_are_read_without_unpacking(tmp_path):
    members = {"AdvertiseGen/train.json": lines(TRAIN), "AdvertiseGen/dev.json": lines(DEV), "._train.json": "x"}
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar, zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
            zipped.writestr(name, text)
    for name in ("a.tar.gz", "a.zip"):
        rows, _ = prepared(tmp_path / name, tmp_path / f"{name}.out")
        assert len(rows["train"]) + len(rows["val"]) == len(TRAIN) and len(rows["dev"]) == len(DEV)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "a.tar.gz.out", "a.zip", "a.zip.out"}


def test_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_FILE", 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("train.json", b" " * (2**20 + 1))
    assert "more than 1 MiB" in refused(tmp_path / "bomb.zip", tmp_path / "out")


def test_single_file_and_its_neighbour(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    (raw / "products.jsonl").write_bytes((raw / "train.json").read_bytes())
    rows, _ = prepared(raw / "products.jsonl", tmp_path / "with")
    assert len(rows["dev"]) == len(DEV)
    (raw / "dev.json").unlink()
    assert "no dev rows" in run_main(prepare_data, raw / "products.jsonl", "--out", tmp_path / "with")
    assert not (tmp_path / "with/adgen_dev.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("train.json", b"", "empty"),
        ("train.json", b"\n\n", "empty"),
        ("train.json", b"a,b\n1,2\n", "not JSON"),
        ("train.json", b'{"title": "x", "body": "y"}\n', "no known columns (it has title, body)"),
        ("train.json", b'{"title": "x", "body": "y"}\n', 'ARGS="--columns prompt='),
        ("train.json", b'[{"content": "a#b", "summary": "c"}', "cut off"),
        ("train.json", "\n".join(["聊天"] * 3).encode("utf-16"), "AdGen"),
        ("train.json", lines([("聊天", "你好")]).encode(), "no attributes"),
        ("cut.tar.gz", b"\x1f\x8b\x08\x00broken", "cannot be read"),
    ],
)
def test_files_that_are_not_adgen(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    assert expected in refused(tmp_path / name, tmp_path / "out")


def test_missing_file_and_folder_without_train(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "train.json" in refused(tmp_path / "empty", tmp_path / "out")


def test_a_failure_leaves_the_files_before(tmp_path):
    out = tmp_path / "out"
    prepared(raw_folder(tmp_path / "raw"), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "raw/train.json").write_bytes(b"broken")
    with pytest.raises(SystemExit):
        prepared(tmp_path / "raw", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
