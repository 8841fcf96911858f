"""Predictions that LLaMA-Factory's own code writes, with tokenizers of all kinds, are scored as it scored them."""

from types import SimpleNamespace

import numpy as np
import pytest
from corpus import is_one_line
from lib.files import ROOT, read_json_lines
from lib.health import check_rows
from lib.metrics import OVERLAP
from lib.predictions import Predictions, Rows, read_predictions
from lib.system_scores import score_systems

ROWS = read_json_lines(ROOT / "data/sample/dev.jsonl")[:24]
CONTENTS = [row["content"] for row in ROWS]
# AdGen has <UNK> in place of rare words; some of its ads hold a dozen.
ADS = [row["summary"].replace("，", "<UNK>，" if place % 3 else "<UNK><UNK>，") for place, row in enumerate(ROWS)]
# The whole ad of one row is such a mark; another has letters that no vocabulary holds.
ADS[5], ADS[6] = "<UNK>", ADS[6].replace("。", "龘𠮷😀。", 1)
SYSTEM = "你是电商文案写手。根据商品属性写一段中文广告文案：写到每个属性，不编造属性。"
# What a model may write, beside half of an ad.
ODD = ["", " ", "。", "好", "A-line 裙 2024 款！", "显瘦\n显高\n", "？”好……", ADS[0], "<UNK>" + ADS[1], ADS[2] * 12]
PROMPTS = [f"{SYSTEM}\n\n{content}\n" for content in CONTENTS]


def bytewise():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE({char: n for n, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def wordpiece():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = {char.lower() for text in [*CONTENTS, *ADS, SYSTEM] for char in text} - set("龘𠮷😀 ")
    made = Tokenizer(
        models.WordPiece({token: n for n, token in enumerate(["[UNK]", *sorted(letters)])}, unk_token="[UNK]")
    )
    made.normalizer, made.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return made


def unigram():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = {char for text in [*CONTENTS, *ADS, SYSTEM] for char in text} - set("龘𠮷😀 ")
    made = Tokenizer(models.Unigram([("<unk>", -9), ("▁", -2), *((char, -3) for char in sorted(letters))], 0))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made


def tokenizer(kind):
    """A tokenizer of the kind, with AdGen's marks among its special tokens."""
    from transformers import PreTrainedTokenizerFast

    unknown = {"wordpiece": {"unk_token": "[UNK]"}, "unigram": {"unk_token": "<unk>"}}.get(kind, {})
    made = {"bytewise": bytewise, "wordpiece": wordpiece, "unigram": unigram}[kind]()
    made = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|pad|>", **unknown)
    made.add_special_tokens({"additional_special_tokens": ["<UNK>", "<BRAND>"]})
    return made


def predict(folder, made, prompts=PROMPTS, ads=ADS, cutoff=10**6):
    """The file that LLaMA-Factory writes, and the scores that it computes, for a model of odd and of half ads."""
    from llamafactory.train.sft.metric import ComputeSimilarity
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from transformers import EvalPrediction
    from transformers.trainer_utils import PredictionOutput

    def ids(texts):
        rows = [made(text, add_special_tokens=False).input_ids[:cutoff] for text in texts]
        longest = max(map(len, rows))
        return np.array([row + [-100] * (longest - len(row)) for row in rows])

    guesses, labels = ids([*ODD, *(ad[: len(ad) // 2] + "。" for ad in ads)][: len(ads)]), ids(ads)
    inputs = [made(prompt, add_special_tokens=False).input_ids[:cutoff] for prompt in prompts]
    trainer = SimpleNamespace(
        is_world_process_zero=lambda: True, args=SimpleNamespace(output_dir=str(folder)), processing_class=made
    )
    output = PredictionOutput(guesses.copy(), labels.copy(), {})
    CustomSeq2SeqTrainer.save_predictions(trainer, {"input_ids": inputs}, output)
    own = ComputeSimilarity(made)(EvalPrediction(predictions=guesses, label_ids=labels))
    return folder / "generated_predictions.jsonl", own


@pytest.mark.parametrize(
    ("kind", "cutoff"),
    [("bytewise", 10**6), ("bytewise", 60), ("wordpiece", 10**6), ("wordpiece", 8), ("unigram", 10**6)],
)
def test_scored_as_llamafactory_did(tmp_path, kind, cutoff):
    path, own = predict(tmp_path, tokenizer(kind), cutoff=cutoff)
    data = Rows(CONTENTS, ADS)
    predicted = read_predictions(path, data, path)
    found = score_systems({"x": predicted}, data, None)["systems"]["x"]
    for score in OVERLAP:
        assert found[score]["value"] == pytest.approx(own[score], abs=5e-5), score
    said = " ".join(check_rows(predicted, data, None))
    assert ("references were cut" in said) == (cutoff < 100), said


@pytest.mark.parametrize("kind", ["bytewise", "wordpiece"])
@pytest.mark.parametrize(("order", "row"), [([1, 0, *range(2, 20)], 1), ([0, *range(2, 24)], 2)])
def test_other_orders_are_refused(tmp_path, kind, order, row):
    path, _ = predict(tmp_path, tokenizer(kind), [PROMPTS[n] for n in order], [ADS[n] for n in order])
    words = f"its label is not that of row {row} of rows.json, but that of another: rows were shuffled or left out"
    assert words in refused(path, Rows(CONTENTS, ADS))


def test_rows_of_another_split_are_refused(tmp_path):
    rows = read_json_lines(ROOT / "data/sample/train.jsonl")[:24]
    columns = [row["content"] for row in rows], [row["summary"] for row in rows]
    path, _ = predict(tmp_path, tokenizer("wordpiece"), *columns)
    assert "nor of another: these are other rows" in refused(path, Rows(CONTENTS, ADS))


def test_labels_that_are_all_empty_are_said_to_be(tmp_path):
    path, _ = predict(tmp_path, tokenizer("bytewise"), ads=["<UNK>"] * 24)
    assert "all its labels are empty" in refused(path, Rows(CONTENTS, [row["summary"] for row in ROWS]))


def refused(path, data):
    """The one line with which a file is refused."""
    with pytest.raises(SystemExit) as end:
        read_predictions(path, data, "rows.json")
    assert is_one_line(end.value.code) and str(path) in end.value.code
    return end.value.code


def test_lost_characters_are_no_cut_references():
    lost = [ad.replace("的", "").replace("<UNK>", "") for ad in ADS]
    assert check_rows(Predictions(lost, lost), Rows(CONTENTS, ADS), None) == []
