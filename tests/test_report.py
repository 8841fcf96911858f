"""Scores, health, tables: through the program, held against LLaMA-Factory's own code, sacrebleu and plain counting."""

import hashlib
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import report
import scores
import tables
from adgen import ROOT, parse_attributes, read_json_lines

SAMPLE = ROOT / "data/sample/dev.jsonl"
TRAIN = ROOT / "data/sample/train.jsonl"
SHARED = ROOT.parent / "shared/adgen"
ROWS = read_json_lines(SAMPLE)[:40]
CONTENTS = [row["content"] for row in ROWS]
ADS = [row["summary"] for row in ROWS]


def run(*words):
    return subprocess.run([sys.executable, ROOT / "scripts/report.py", *words], capture_output=True, text=True)


def one_error(*words):
    """The single line that the program ends with, with a non-zero exit."""
    result = run(*words)
    assert result.returncode != 0 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


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
    "filled": [report.fill_template(CONTENTS[0])[:-1] + f"{number}。" for number in range(40)],
    "copied": [row["summary"] for row in read_json_lines(TRAIN)[:40]],
    "few": fair(ADS)[:30],
}


@pytest.fixture(scope="module")
def scored(data, tmp_path_factory):
    """One run with an ill system of each kind: the output folder, its eval_results.json and what was printed."""
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
    recipe = ROOT / "configs/tiny/predict.yaml"
    result = run(*files, "--data", data, "--train", TRAIN, "--decoding", recipe, "num_beams=4", "--trainer-log", log,
                 "--out", folder / "out")  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "out", json.loads((folder / "out/eval_results.json").read_text()), result.stdout


def test_overlap_equals_llamafactorys_own_metric(data, tmp_path):
    from llamafactory.train.sft.metric import ComputeSimilarity
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import EvalPrediction, PreTrainedTokenizerFast

    bytewise = Tokenizer(models.BPE({char: n for n, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<|pad|>")
    odd = ["", " ", "。", "好", "A-line 裙 2024 款！", "显瘦\n显高\n", "？”好……", ADS[0], "<UNK>" + ADS[1], ADS[2] * 12]
    texts = odd + [ad[number % 7 :] + ads for number, (ad, ads) in enumerate(zip(ADS[10:], ADS[9:], strict=False))]

    def ids(rows):
        rows = [tokenizer(row).input_ids for row in rows]
        longest = max(map(len, rows))
        return np.array([row + [-100] * (longest - len(row)) for row in rows])

    expected = ComputeSimilarity(tokenizer)(EvalPrediction(predictions=ids(texts), label_ids=ids(ADS)))
    file = write(tmp_path / "odd.jsonl", predictions(texts))
    result = run(f"odd={file}", "--data", data, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "eval_results.json").read_text())["systems"]["odd"]
    for score, value in expected.items():
        assert found[score]["value"] == pytest.approx(value, abs=5e-5), score


def test_corpus_bleu_equals_sacrebleus():
    from sacrebleu.metrics import BLEU

    texts = [*fair(ADS)[:-2], "", ADS[0]]
    value, samples = scores.corpus_bleu(texts, ADS, scores.weights(40))
    assert value == pytest.approx(BLEU(tokenize="zh").corpus_score(texts, [ADS]).score, abs=1e-9)
    drawn = np.repeat(np.arange(40), scores.weights(40)[0].astype(int))
    again = BLEU(tokenize="zh").corpus_score([texts[n] for n in drawn], [[ADS[n] for n in drawn]]).score
    assert samples[0] == pytest.approx(again, abs=1e-9)


def test_attributes_kept_and_invented_by_hand():
    contents = ["类型#裙*颜色#红色*图案#碎花", "类型#裙*颜色#酒红色*风格#复古", "类型#裤*版型#宽松"]
    texts = ["红色的碎花裙，宽松又复古。", "酒红色，只此一色。", "什么也没说。"]
    values = scores.vocabulary(contents)
    # In the second text 红色 stands within 酒红色, which alone counts; 裙 and 裤 are no values, being a type.
    assert [scores.find_values(text, values) for text in texts] == [
        {"红色": "颜色", "碎花": "图案", "宽松": "版型", "复古": "风格"},
        {"酒红色": "颜色"},
        {},
    ]
    found, samples = scores.score_system(contents, texts, texts, [(0, 0, 0, 0)] * 3, [(0, 0, 0, 0)] * 3, values)
    assert found["coverage", ""] == pytest.approx(4 / 8)
    assert found["hallucination", ""] == pytest.approx((2 / 4 + 0 / 1) / 2)
    assert found["coverage", "类型"] == pytest.approx(1 / 3) and found["coverage", "风格"] == 0
    assert found["hallucination", "版型"] == 1 and found["hallucination", "颜色"] == 0
    assert found["length", ""] == 1 and len(samples["coverage", ""]) == scores.RESAMPLES


def test_repetition_and_distinct_by_hand():
    assert scores.repetition("一二三四五") == 0 and scores.repetition("一二三") == 0
    # 一二三四, 二三四一, 三四一二, 四一二三, 一二三四: the last had occurred.
    assert scores.repetition("一二三四 一二三四") == pytest.approx(1 / 5)
    assert scores.distinct(["一二三四五", "一二三四", ""])[0] == pytest.approx(2 / 3)


def test_copies_are_those_that_plain_comparison_finds():
    dice = random.Random(1)
    ads = ["".join(dice.choices("红黄蓝白黑长短宽松紧", k=dice.randrange(3, 160))) for _ in range(60)]
    texts = [ads[0], " ".join(ads[1]), ads[2] + "。"]
    for _ in range(200):
        ad = dice.choice(ads)
        start = dice.randrange(len(ad))
        texts.append("新" + ad[start : start + dice.randrange(30, 70)] + "款")

    def naive(text):
        text = "".join(text.split())
        runs = [text[start : start + scores.COPY] for start in range(len(text) - scores.COPY + 1)]
        return text in ads or any(run in ad for run in runs for ad in ads)

    expected = [naive(text) for text in texts]
    assert 20 < sum(expected) < 180
    assert scores.find_copies(texts, ads).tolist() == expected


def test_nearest_is_the_first_row_of_largest_overlap():
    dice = random.Random(2)
    contents = ["*".join(f"键{dice.randrange(4)}#值{dice.randrange(4)}" for _ in range(5)) for _ in range(80)]
    train = report.Rows(contents[20:], [f"文案{number}" for number in range(60)])

    def naive(content):
        own, best = set(parse_attributes(content)), []
        for other in map(set, map(parse_attributes, train.contents)):
            best.append(len(own & other) / len(own | other))
        return train.references[best.index(max(best))]

    assert report.nearest_summaries(contents[:20], train) == [naive(content) for content in contents[:20]]
    assert report.nearest_summaries(["键#无"], train) == ["文案0"]


def test_bootstrap_is_fixed_and_covers_the_mean():
    draws = scores.weights(200)
    assert (draws.sum(1) == 200).all() and (draws == scores.weights(200)).all()
    column = np.random.default_rng(3).normal(5, 2, 200)
    low, high = scores.ci95("bleu-4", column.mean(), draws @ column / 200)
    error = column.std() / 200**0.5
    assert low == pytest.approx(column.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(column.mean() + 1.96 * error, abs=0.3 * error)


def test_results_file(scored, data):
    _, results, _ = scored
    assert results["split"] == {
        "file": data.name,
        "rows": 40,
        "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
    }
    assert results["decoding"] == {"do_sample": False, "num_beams": 4, "max_new_tokens": 128}
    assert {"jieba", "nltk", "rouge-chinese", "sacrebleu", "numpy"} <= results["versions"].keys()
    assert [*OUTPUTS, "bare", "base", "tuned", "reference", "nearest", "template", "random"] == list(results["systems"])
    for row in results["systems"].values():
        assert list(row) == list(scores.SCORES)
        for score, entry in row.items():
            low, high = entry["ci95"]
            # Percentiles are kept to 4 decimals.
            assert low - 1e-3 <= entry["value"] <= high + 1e-3, (score, entry)
    assert results["systems"]["reference"]["bleu-4"] == {"value": 100.0, "ci95": [100.0, 100.0]}
    assert results["systems"]["template"]["coverage"]["value"] == 1
    keys = {key for content in CONTENTS for key, _ in parse_attributes(content)}
    assert set(results["by_key"]["systems"]["tuned"]) == set(results["by_key"]["rows"]) == keys


def test_difference_is_paired(scored):
    _, results, _ = scored
    for score, entry in results["tuned - base"].items():
        tuned, base = (results["systems"][name][score]["value"] for name in ("tuned", "base"))
        assert entry["value"] == pytest.approx(tuned - base, abs=2e-6)
    assert results["tuned - base"]["bleu-4"]["ci95"][0] > 0
    systems = {name: report.Predictions(fair(ADS), ADS) for name in ("base", "tuned")}
    same = report.score_systems(systems, report.Rows(CONTENTS, ADS), None)["tuned - base"]
    assert all(entry == {"value": 0, "ci95": [0, 0]} for entry in same.values()) and len(same) > 8


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
    ],
)
def test_ill_systems_are_said_to_be_and_not_crowned(scored, system, words):
    _, results, printed = scored
    assert any(words in warning for warning in results["health"][system]), results["health"][system]
    assert f"! {system}: " in printed and words in printed


def test_healthy_systems_are_crowned(scored):
    _, results, printed = scored
    assert results["health"]["good"] == results["health"]["tuned"] == []
    assert results["crowned"] in ("good", "tuned")
    assert f"Best model: {results['crowned']}." in printed
    rows = [line.split("  ")[0] for line in printed.split("\n") if line.endswith("*") or "* " in line]
    assert rows and set(rows) <= {"good", "tuned", "± half the 95% interval; * best healthy model."}


def test_rows_that_were_trained_on(data, tmp_path):
    rows = [(row["content"], row["summary"]) for row in read_json_lines(TRAIN)[:50]]
    # The same product with its attributes in another order is the same row.
    rows += [("*".join(reversed(content.split("*"))), ad) for content, ad in zip(CONTENTS[:7], ADS, strict=False)]
    train = write(tmp_path / "train.jsonl", [{"instruction": content, "output": ad} for content, ad in rows])
    result = run(write(tmp_path / "x.jsonl", predictions(fair(ADS))), "--data", data, "--train", train)
    assert "7 of the 40 rows scored were trained on" in result.stdout, result.stderr
    assert "No model is crowned" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl", "x.jsonl"]


def test_best_over_references():
    data = report.Rows(
        ["颜色#红色*材质#棉", "材质#棉*颜色#红色", "颜色#白色"], ["红色的棉衣很暖和。", "棉质的红色上衣。", "白色。"]
    )
    texts = ["棉质的红色上衣。", "红色的棉衣很暖和。", "白色。"]
    results = report.score_systems({"x": report.Predictions(texts, data.references)}, data, None)
    assert results["systems"]["x"]["rouge-1"]["value"] < 90
    assert results["best_over_references"]["rows_with_several"] == 2
    assert results["best_over_references"]["systems"]["x"]["rouge-1"]["value"] == pytest.approx(100)


def test_other_forms_of_the_same_rows(scored, tmp_path):
    """Alpaca or AdGen columns, an array, GB18030, white space and width that a tokenizer changed: the same scores."""
    _, results, _ = scored
    alpaca = [{"instruction": row["content"], "output": row["summary"], "system": "写"} for row in ROWS]
    array = tmp_path / "rows.json"
    array.write_bytes(json.dumps(alpaca, ensure_ascii=False).encode("gb18030"))
    rows = predictions(fair(ADS))
    for row in rows:
        row["prompt"] = " ".join(row["prompt"]).replace("#", "＃")
    assert run("x=" + str(write(tmp_path / "x.jsonl", rows)), "--data", array, "--out", tmp_path).returncode == 0
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
    files = {"cut": "line 40", "binary": "UTF-8", "none": "is empty", "nowhere": "does not exist"}
    for name, rows, words in (
        ("foreign", [{"text": "x"}], 'no text "predict"'),
        ("null", [{"predict": None, "label": "x"}], 'no text "predict"'),
        ("numbers", [3, 4], "a JSON object was expected"),
        ("shuffled", shuffled, "row 1: its prompt is not that of row 1"),
        ("pairs", pairs, "row 1: its prompt is not that of row 1"),
        ("labels", [{"predict": "x", "label": ADS[1]}], "row 1: its label is not that of row 1"),
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


def test_pictures_and_examples(scored):
    folder, _, _ = scored
    assert sorted(path.name for path in folder.iterdir()) == [
        "eval.png",
        "eval_results.json",
        "examples.md",
        "train_loss.png",
    ]
    for name in ("eval.png", "train_loss.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    text = (folder / "examples.md").read_text(encoding="utf-8")
    # The shortest system has 30 rows.
    assert [line for line in text.split("\n") if line.startswith("## ")] == [f"## Row {3 * n + 1}" for n in range(10)]
    assert text.count("\n| tuned | ") == text.count("\n| reference | ") == 10 and "✓" in text and "✗" in text
    first = next(line for line in text.split("\n") if line.startswith("| reference"))
    assert first.count("✓") == len(parse_attributes(CONTENTS[0])) and "⚠" not in first


def test_invented_values_are_marked():
    values = scores.vocabulary(["颜色#红色*图案#碎花*版型#宽松"])
    text = tables.format_examples({"x": ["红色|碎花*裙<UNK>。"]}, ["颜色#红色*版型#宽松"], ["宽松，红色。"], values)
    assert "| x | 红色\\|⚠**碎花**\\*裙&lt;UNK>。 | ✓红色 ✗宽松 |" in text
    assert "| reference | 宽松，红色。 | ✓红色 ✓宽松 |" in text


def test_chinese_labels_can_be_drawn_without_a_chinese_font(scored):
    from matplotlib import ft2font
    from pictures import FONT

    drawn = set(ft2font.FT2Font(FONT).get_charmap())
    keys = {
        key for path in (SAMPLE, TRAIN) for row in read_json_lines(path) for key, _ in parse_attributes(row["content"])
    }
    adgen = "类型版型材质颜色风格图案衣样式领长袖门襟款裙下摆腰裤口"
    assert {ord(char) for char in "".join(keys) + adgen} <= drawn
    assert FONT.stat().st_size < 200_000 and "SIL OPEN FONT LICENSE" in (FONT.parent / "OFL.txt").read_text()


def test_columns_align_with_chinese_names():
    lines = tables.align([["", "分数"], ["微调后", "1.0"], ["x", "10"]]).split("\n")
    assert {tables.width(line) for line in lines[:-1]} == {12} and lines[2].endswith("    10")


def test_published_results_have_source_procedure_and_marks():
    published = tables.read_json(tables.RESULTS / "published.json")
    assert len(published["rows_sha256"]) == 64
    for result in published["results"]:
        assert result["source"] and result["procedure"] in ("A", "mean", "corpus", None), result
        assert result["rows"] or result["procedure"] is None
    text = tables.format_published()
    marked = [line for line in text.split("\n") if "42.77" in line or "8.35" in line]
    assert len(marked) == 2 and all(("†" in line) == ("42.77" in line) for line in marked)


def test_readme_tables_are_those_of_results():
    for language, name in tables.READMES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert tables.MARKED.search(text), f"{name} has no result table"
        assert tables.rewrite(text, language) == text, f"{name} differs from results/: python scripts/tables.py"


def test_readme_table_follows_the_results(scored, monkeypatch, tmp_path):
    _, results, _ = scored
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "tiny").mkdir()
    file = tmp_path / "tiny/eval_results.json"
    file.write_text(json.dumps(results))
    text = "before\n<!-- results:begin tiny -->\nformer\n<!-- results:end -->\nafter\n"
    new = tables.rewrite(text, "en")
    assert new.startswith("before\n<!-- results:begin tiny -->\n| ") and new.endswith("<!-- results:end -->\nafter\n")
    assert "former" not in new and tables.rewrite(new, "en") == new
    value = results["systems"]["nearest"]["coverage"]["value"]
    assert f"{value:.3f} ±" in next(line for line in new.split("\n") if "most similar training row" in line)
    assert "⚠ empty: 8% of the outputs are empty." in new and "`num_beams: 4`" in new
    assert "| 最相似训练行的文案 |" in tables.rewrite(text, "zh")
    results["systems"]["nearest"]["coverage"]["value"] = 0.123
    file.write_text(json.dumps(results))
    assert "0.123 ±" in tables.rewrite(new, "en") != new
    with pytest.raises(SystemExit, match="none/eval_results"):
        tables.rewrite(text.replace("tiny", "none"), "en")


@pytest.mark.skipif(not SHARED.exists(), reason="AdGen's rows are not beside the project")
def test_real_rows_give_the_known_figures():
    data, train = report.read_data(SHARED / "dev.json"), report.read_data(SHARED / "train.json")
    values = scores.vocabulary(data.contents + train.contents)
    nothing = [(0, 0, 0, 0)] * len(data.contents)
    free = report.model_free_systems(data, train)

    def attributes(texts):
        found, samples = scores.score_system(data.contents, texts, data.references, nothing, nothing, values)
        kept, bad = found["coverage", ""], found["hallucination", ""]
        return round(kept, 3), round(bad, 3), scores.ci95("coverage", kept, samples["coverage", ""])

    assert attributes(free["reference"])[:2] == (0.867, 0.069)
    assert attributes(free["random"])[:2] == (0.098, 0.925)
    assert attributes(free["template"])[:2] == (1, 0)
    low, high = attributes(free["nearest"])[2]
    assert low <= 0.563 <= high
    assert tables.is_adgen_dev(*data) and not tables.is_adgen_dev(data.contents[1:], data.references[1:])
