"""The scoring program: what it writes, whom it calls ill and whom the best, and how it answers to bad input."""

import hashlib
import json
import subprocess
import sys
from unittest.mock import patch

import pytest
import score
from corpus import is_one_line
from lib.attributes import parse_attributes
from lib.baselines import fill_template
from lib.files import ROOT, read_json_lines
from lib.metrics import SCORES
from lib.pictures import FONT

SAMPLE = ROOT / "data/sample/dev.jsonl"
TRAIN = ROOT / "data/sample/train.jsonl"
ROWS = read_json_lines(SAMPLE)[:40]
CONTENTS = [row["content"] for row in ROWS]
ADS = [row["summary"] for row in ROWS]
TRAINED = [(row["content"], row["summary"]) for row in read_json_lines(TRAIN)[:40]]


def run(*words):
    """Runs the program in this process."""
    with patch.object(sys, "argv", ["score.py", *map(str, words)]):
        score.main()


def one_error(*words):
    """The single line that ends the program."""
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert is_one_line(end.value.code), end.value.code
    return end.value.code


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def predictions(texts, contents=CONTENTS, ads=ADS):
    """Rows as LLaMA-Factory writes them."""
    rows = zip(contents, texts, ads, strict=False)
    return [{"prompt": f"写广告\n\n{content}\n", "predict": text, "label": ad} for content, text, ad in rows]


def fair(texts):
    """Ads that a healthy model could have written: near the reference, no two alike."""
    return [text[: len(text) // 2] + "很好看，" + text[len(text) // 2 :] for text in texts]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "rows.jsonl", ROWS)


OUTPUTS = {
    "good": fair(ADS),
    "empty": [""] * 3 + fair(ADS)[3:],
    "unfinished": [ad[:-3] for ad in ADS],
    "endless": [ad * 9 for ad in ADS[:5]] + fair(ADS)[5:],
    "special": [*fair(ADS)[:-1], "<|eot_id|>" + ADS[-1]],
    "unknown": [*fair(ADS)[:-1], "<UNK>" + ADS[-1]],
    "alike": [ADS[0]] * 15 + fair(ADS)[15:],
    "repeating": ["真的很好看。" * 12] + [f"{number}号很好看。" * 12 for number in range(9)] + fair(ADS)[10:],
    "filled": [fill_template(CONTENTS[0])[:-1] + f"{number}。" for number in range(40)],
    "copied": [row["summary"] for row in read_json_lines(TRAIN)[:40]],
    "few": fair(ADS)[:30],
    "echo": [f"{content}\n{ad[: len(ad) // 2]}。" for content, ad in zip(CONTENTS, ADS, strict=True)],
    "thinks": [f"<think>{content}</think>{ad}" for content, ad in zip(CONTENTS, fair(ADS), strict=True)],
    "marked": ["**新品**" + ad for ad in fair(ADS)],
}


@pytest.fixture(scope="module")
def scored(data, tmp_path_factory):
    """One run of the program as a process, with an ill system of each kind: its folder, results and output."""
    folder = tmp_path_factory.mktemp("scored")
    files = [f"{name}={write(folder / f'{name}.jsonl', predictions(texts))}" for name, texts in OUTPUTS.items()]
    bare = [{"predict": text, "extra": 1} for text in OUTPUTS["good"]]
    files.append(f"bare={write(folder / 'bare.jsonl', bare)}")
    files.append(f"base={write(folder / 'base.jsonl', predictions([ad[:9] + '。' for ad in ADS]))}")
    files.append(f"tuned={write(folder / 'tuned.jsonl', predictions(OUTPUTS['good']))}")
    log = [
        {"current_steps": 5, "loss": 2.0},
        {"current_steps": 10, "loss": 1.5},
        {"current_steps": 10, "eval_loss": 1.7},
    ]
    log = write(folder / "trainer_log.jsonl", [*log, {"current_steps": 10, "total_steps": 10}])
    words = ["--data", data, "--train", TRAIN, "--decoding", ROOT / "configs/tiny/predict.yaml", "num_beams=4"]
    words += ["temperature=7e-1", "--trainer-log", log, "--out", folder / "out"]
    result = subprocess.run(
        [sys.executable, ROOT / "scripts/score.py", *files, *words], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return folder / "out", json.loads((folder / "out/eval_results.json").read_text()), result.stdout


def test_results_file(scored, data):
    _, results, _ = scored
    assert results["split"] == {
        "file": data.name,
        "rows": 40,
        "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
    }
    assert results["decoding"] == {"do_sample": False, "num_beams": 4, "temperature": 0.7, "max_new_tokens": 128}
    assert results["command"].startswith("python scripts/score.py good=")
    assert " --train data/sample/train.jsonl " in results["command"]
    assert results["adgen_dev"] is False
    assert {"jieba", "nltk", "rouge-chinese", "sacrebleu", "numpy"} <= results["versions"].keys()
    assert [*OUTPUTS, "bare", "base", "tuned", "reference", "nearest", "template", "random"] == list(results["systems"])
    for row in results["systems"].values():
        assert list(row) == list(SCORES)
        for score_, entry in row.items():
            low, high = entry["ci95"]
            # Percentiles are kept to 4 decimals.
            assert low - 1e-3 <= entry["value"] <= high + 1e-3, (score_, entry)
    assert results["systems"]["reference"]["bleu-4"] == {"value": 100.0, "ci95": [100.0, 100.0]}
    assert results["systems"]["template"]["coverage"]["value"] == 1
    keys = {key for content in CONTENTS for key, _ in parse_attributes(content)}
    assert set(results["by_key"]["systems"]["tuned"]) == set(results["by_key"]["rows"]) == keys


def test_difference_is_that_of_the_values(scored):
    _, results, _ = scored
    for name, entry in results["tuned - base"].items():
        tuned, base = (results["systems"][system][name]["value"] for system in ("tuned", "base"))
        assert entry["value"] == pytest.approx(tuned - base, abs=2e-6)
    assert results["tuned - base"]["bleu-4"]["ci95"][0] > 0


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("empty", "8% of the outputs are empty"),
        ("unfinished", "100% of the outputs end without closing punctuation"),
        ("endless", "12% of the outputs are far longer than any reference"),
        ("special", "2% of the outputs carry special tokens or <UNK>"),
        ("unknown", "2% of the outputs carry special tokens or <UNK>"),
        ("alike", "38% of the outputs are the same as the ad of another product"),
        ("repeating", "25% of the outputs repeat themselves"),
        ("filled", "repeat each other's phrases as a template does"),
        ("copied", "100% of the outputs are copied from training ads"),
        ("few", "only 30 of 40 rows were scored"),
        ("bare", "40 rows hold neither label nor prompt"),
        ("echo", "100% of the outputs repeat the attributes of their product"),
        ("thinks", "100% of the outputs hold reasoning"),
        ("marked", "100% of the outputs hold Markdown"),
    ],
)
def test_ill_systems_are_said_to_be(scored, system, words):
    _, results, printed = scored
    assert any(words in warning for warning in results["health"][system]), results["health"][system]
    assert f"! {system}: " in printed and words in printed


def test_values_in_an_echo_or_in_reasoning_are_not_covered(scored):
    systems = {name: row["coverage"]["value"] for name, row in scored[1]["systems"].items()}
    assert systems["echo"] < 0.8 < systems["thinks"] == systems["good"]


def test_best_is_a_healthy_system(scored):
    _, results, printed = scored
    assert results["health"]["good"] == results["health"]["tuned"] == []
    assert results["best"] in ("good", "tuned")
    assert f"Best model: {results['best']}." in printed


def test_rows_that_were_trained_on(data, tmp_path, capsys):
    rows = [(row["content"], row["summary"]) for row in read_json_lines(TRAIN)[:50]]
    # The same product with its attributes in another order is the same row.
    rows += [("*".join(reversed(content.split("*"))), ad) for content, ad in zip(CONTENTS[:7], ADS, strict=False)]
    train = write(tmp_path / "train.jsonl", [{"instruction": content, "output": ad} for content, ad in rows])
    run(write(tmp_path / "x.jsonl", predictions(fair(ADS))), "--data", data, "--train", train)
    printed = capsys.readouterr().out
    assert "7 of the 40 rows scored were trained on" in printed
    assert "No model is named best" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl", "x.jsonl"]


def test_other_forms_of_the_same_rows(scored, tmp_path):
    """Alpaca or AdGen columns, an array, GB18030, white space and width that a tokenizer changed: the same scores."""
    _, results, _ = scored
    alpaca = [{"instruction": row["content"], "output": row["summary"], "system": "写"} for row in ROWS]
    array = tmp_path / "rows.json"
    array.write_bytes(json.dumps(alpaca, ensure_ascii=False).encode("gb18030"))
    rows = predictions(fair(ADS))
    for row in rows:
        row["prompt"] = " ".join(row["prompt"]).replace("#", "＃")
    run(f"x={write(tmp_path / 'x.jsonl', rows)}", "--data", array, "--out", tmp_path)
    found = json.loads((tmp_path / "eval_results.json").read_text())
    assert found["systems"]["x"]["rouge-l"] == results["systems"]["good"]["rouge-l"]
    assert found["health"]["x"] == [] and "nearest" not in found["systems"]


def bad_files(folder, data):
    good = predictions(fair(ADS))
    whole = write(folder / "good.jsonl", good).read_text(encoding="utf-8")
    (folder / "cut.jsonl").write_text(whole[:-40], encoding="utf-8")
    (folder / "binary.jsonl").write_bytes(b"\x89PNG\xff\xfe\x00")
    (folder / "none.jsonl").write_text("")
    shuffled = [good[1], good[0], *good[2:]]
    pairs = [{**row, "prompt": other["prompt"]} for row, other in zip(good, shuffled, strict=True)]
    files = {"cut": "line 40", "binary": "UTF-8", "none": "is empty", "nowhere": "No such file"}
    for name, rows, words in (
        ("foreign", [{"text": "x"}], 'no text "predict"'),
        ("null", [{"predict": None, "label": "x"}], 'no text "predict"'),
        ("numbers", [3, 4], "a JSON object was expected"),
        ("shuffled", shuffled, f"row 1 of {data}, but that of row 2: rows were shuffled"),
        ("pairs", pairs, f"its prompt is not that of row 1 of {data}, but that of row 2"),
        ("gap", good[1:], f"its label is not that of row 1 of {data}, but that of row 2"),
        ("train", predictions(fair(ADS), *zip(*TRAINED, strict=True)), "nor of another: these are other rows"),
        ("prompts", [{"predict": "x", "prompt": TRAINED[0][0]}], "nor of another: these are other rows"),
        ("unlabelled", [row | {"label": ""} for row in good], "all its labels are empty"),
        ("data", ROWS, 'no text "predict" but content, summary'),
        ("more", [*good, good[-1]], "41 rows"),
    ):
        write(folder / f"{name}.jsonl", rows)
        files[name] = words
    return {folder / f"{name}.jsonl": words for name, words in files.items()}


def test_bad_files_get_one_line(data, tmp_path):
    for path, words in bad_files(tmp_path, data).items():
        line = one_error(path, "--data", data, "--out", tmp_path / "out")
        assert words in line and path.name in line, line
    good, out = tmp_path / "good.jsonl", tmp_path / "out"
    for flags, words in (
        (["--data", tmp_path / "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", tmp_path / "none.jsonl"], "is empty"),
        (["--data", tmp_path / "foreign.jsonl"], "no known columns"),
        (["--data", data, "--train", tmp_path / "foreign.jsonl"], "no known columns"),
        (["--data", data, "--trainer-log", good], "holds no loss"),
        (["--data", data, "--decoding", tmp_path / "nowhere.yaml"], "nowhere.yaml"),
        (["--data", data, "--decoding", good], "cannot be read as a recipe"),
        (["--data", write(tmp_path / "chat.jsonl", [{"prompt": "你好", "response": "好。"}])], "holds no attributes"),
        (["--data", data, "--out", good], "good.jsonl"),
    ):
        assert words in one_error(good, *([] if "--out" in flags else ["--out", out]), *flags)
    assert '"nearest" cannot be the name' in one_error(f"nearest={good}", "--data", data)
    assert "two systems are called" in one_error(good, good, "--data", data)
    assert not out.exists()


def test_a_bad_file_ends_the_process_with_one_line(tmp_path):
    command = [sys.executable, ROOT / "scripts/score.py", tmp_path / "nowhere.jsonl", "--data", SAMPLE]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and not result.stdout
    assert is_one_line(result.stderr.removesuffix("\n")), result.stderr


def test_pictures_examples_and_table(scored):
    folder, _, _ = scored
    names = ["eval.png", "eval_results.json", "examples.md", "table.md", "train_loss.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in ("eval.png", "train_loss.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    text = (folder / "examples.md").read_text(encoding="utf-8")
    # The shortest system has 30 rows.
    assert [line for line in text.split("\n") if line.startswith("## ")] == [f"## Row {3 * n + 1}" for n in range(10)]
    assert text.count("\n| tuned | ") == text.count("\n| reference | ") == 10 and "✓" in text and "✗" in text
    first = next(line for line in text.split("\n") if line.startswith("| reference"))
    assert first.count("✓") == len(parse_attributes(CONTENTS[0])) and "⚠" not in first
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert "⚠ empty: 8% of the outputs are empty." in table and "`num_beams: 4`" in table


def test_chinese_labels_can_be_drawn_without_a_chinese_font():
    from matplotlib import ft2font

    drawn = set(ft2font.FT2Font(FONT).get_charmap())
    keys = {
        key for path in (SAMPLE, TRAIN) for row in read_json_lines(path) for key, _ in parse_attributes(row["content"])
    }
    adgen = "类型版型材质颜色风格图案衣样式领长袖门襟款裙下摆腰裤口"
    assert {ord(char) for char in "".join(keys) + adgen} <= drawn
    assert FONT.stat().st_size < 200_000 and "SIL OPEN FONT LICENSE" in (FONT.parent / "OFL.txt").read_text()
