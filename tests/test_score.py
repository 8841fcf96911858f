"""The scoring program: what it writes, whom it calls ill and whom the best, and how it answers to bad input."""

import json
import subprocess
import sys
from unittest.mock import patch

import pytest
import score
from corpus import is_one_line
from lib.attributes import parse_attributes
from lib.baselines import fill_template
from lib.files import ROOT, read_json_lines, sha256
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


GOOD = fair(ADS)
# System → what it wrote, and what the report says of it; nothing if it is healthy.
SYSTEMS = {
    "good": (GOOD, ""),
    "empty": ([""] * 3 + GOOD[3:], "8% of the outputs are empty"),
    "unfinished": ([ad[:-3] for ad in ADS], "100% of the outputs end without closing punctuation"),
    "endless": ([ad * 9 for ad in ADS[:5]] + GOOD[5:], "12% of the outputs are far longer than any reference"),
    "special": ([*GOOD[:-1], "<|eot_id|>" + ADS[-1]], "2% of the outputs carry special tokens or <UNK>"),
    "alike": ([ADS[0]] * 15 + GOOD[15:], "38% of the outputs are the same as the ad of another product"),
    "repeating": (
        ["真的很好看。" * 12] + [f"{number}号很好看。" * 12 for number in range(9)] + GOOD[10:],
        "25% of the outputs repeat themselves",
    ),
    "filled": (
        [fill_template(CONTENTS[0])[:-1] + f"{number}。" for number in range(40)],
        "repeat each other's phrases as a template does",
    ),
    "copied": ([ad for _, ad in TRAINED], "100% of the outputs are copied from training ads"),
    "few": (GOOD[:30], "only 30 of 40 rows were scored"),
    "echo": (
        [f"{content}\n{ad[: len(ad) // 2]}。" for content, ad in zip(CONTENTS, ADS, strict=True)],
        "100% of the outputs repeat the attributes of their product",
    ),
    "thinks": (
        [f"<think>{content}</think>{ad}" for content, ad in zip(CONTENTS, GOOD, strict=True)],
        "100% of the outputs hold reasoning",
    ),
    "marked": (["**新品**" + ad for ad in GOOD], "100% of the outputs hold Markdown"),
    "base": ([ad[:9] + "。" for ad in ADS], ""),
    "tuned": (GOOD, ""),
    "bare": (GOOD, "40 rows hold neither label nor prompt"),
}


@pytest.fixture(scope="module")
def scored(data, tmp_path_factory):
    """One run of the program as a process, with an ill system of each kind: its folder, results and output."""
    folder = tmp_path_factory.mktemp("scored")
    files = [f"{name}={write(folder / f'{name}.jsonl', predictions(texts))}" for name, (texts, _) in SYSTEMS.items()]
    write(folder / "bare.jsonl", [{"predict": text, "extra": 1} for text in GOOD])
    words = ["--data", data, "--train", TRAIN, "--decoding", ROOT / "configs/tiny/predict.yaml", "num_beams=4"]
    words += ["temperature=7e-1", "--out", folder / "out"]
    result = subprocess.run(
        [sys.executable, ROOT / "scripts/score.py", *files, *words], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return folder / "out", json.loads((folder / "out/eval_results.json").read_text()), result.stdout


def test_results_file(scored, data):
    _, results, _ = scored
    assert results["split"] == {"file": data.name, "rows": 40, "sha256": sha256(data)}
    assert results["decoding"] == {"do_sample": False, "num_beams": 4, "temperature": 0.7, "max_new_tokens": 128}
    assert results["command"].startswith("python scripts/score.py good=")
    assert " --train data/sample/train.jsonl " in results["command"]
    assert results["adgen_dev"] is False
    assert {"jieba", "nltk", "rouge-chinese", "sacrebleu", "numpy"} <= results["versions"].keys()
    assert [*SYSTEMS, "reference", "nearest", "template", "random"] == list(results["systems"])
    for row in results["systems"].values():
        assert list(row) == [name for name in SCORES if name != "judge"]
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


@pytest.mark.parametrize("system", SYSTEMS)
def test_ill_systems_are_said_to_be(scored, system):
    _, results, printed = scored
    words = SYSTEMS[system][1]
    if words:
        assert any(words in warning for warning in results["health"][system]), results["health"][system]
        assert f"! {system}: " in printed and words in printed
    elif system != "base":
        assert results["health"][system] == []


def test_values_in_an_echo_or_in_reasoning_are_not_covered(scored):
    systems = {name: row["coverage"]["value"] for name, row in scored[1]["systems"].items()}
    assert systems["echo"] < 0.8 < systems["thinks"] == systems["good"]


def test_best_is_a_healthy_system(scored):
    _, results, printed = scored
    assert results["best"] in ("good", "tuned")
    assert f"Best model: {results['best']}." in printed


def test_rows_that_were_trained_on(data, tmp_path, capsys):
    rows = [(row["content"], row["summary"]) for row in read_json_lines(TRAIN)[:50]]
    # The same product with its attributes in another order is the same row.
    rows += [("*".join(reversed(content.split("*"))), ad) for content, ad in zip(CONTENTS[:7], ADS, strict=False)]
    train = write(tmp_path / "train.jsonl", [{"instruction": content, "output": ad} for content, ad in rows])
    run(write(tmp_path / "x.jsonl", predictions(GOOD)), "--data", data, "--train", train)
    printed = capsys.readouterr().out
    assert "7 of the 40 rows scored were trained on" in printed
    assert "No model is named best" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl", "x.jsonl"]


def bad_files(folder, data):
    good = predictions(GOOD)
    whole = write(folder / "good.jsonl", good).read_text(encoding="utf-8")
    (folder / "cut.jsonl").write_text(whole[:-40], encoding="utf-8")
    (folder / "binary.jsonl").write_bytes(b"\x89PNG\xff\xfe\x00")
    (folder / "none.jsonl").write_text("")
    shuffled = [good[1], good[0], *good[2:]]
    pairs = [{**row, "prompt": other["prompt"]} for row, other in zip(good, shuffled, strict=True)]
    files = {"cut": "line 40", "binary": "UTF-8", "none": "is empty", "nowhere": "No such file"}
    for name, rows, words in (
        ("foreign", [{"text": "x"}], 'no text "predict"'),
        ("numbers", [3, 4], "a JSON object was expected"),
        ("pairs", pairs, f"its prompt is not that of row 1 of {data}, but that of another: rows were shuffled"),
        ("gap", good[1:], f"its label is not that of row 1 of {data}, but that of another"),
        ("train", predictions(GOOD, *zip(*TRAINED, strict=True)), "nor of another: these are other rows"),
        ("prompts", [{"predict": "x", "prompt": TRAINED[0][0]}], "nor of another: these are other rows"),
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
        (["--data", data, "--decoding", tmp_path / "nowhere.yaml"], "nowhere.yaml"),
        (["--data", write(tmp_path / "chat.jsonl", [{"prompt": "你好", "response": "好。"}])], "holds no attributes"),
        (["--data", data, "--out", good], "good.jsonl"),
    ):
        assert words in one_error(good, *([] if "--out" in flags else ["--out", out]), *flags)
    assert '"nearest" cannot be the name' in one_error(f"nearest={good}", "--data", data)
    assert not out.exists()


def test_pictures_examples_and_table(scored):
    folder, _, _ = scored
    names = ["eval.png", "eval_results.json", "examples.md", "table.md"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "eval.png").read_bytes().startswith(b"\x89PNG")
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
