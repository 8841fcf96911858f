"""Predictions that LLaMA-Factory's own code writes, with tokenizers of all kinds, are scored as it scored them."""

from types import SimpleNamespace

import numpy as np
import pytest
import stand_in
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
    """A tokenizer of the kind; AdGen's marks are among its special tokens, except in that of the tiny model."""
    from transformers import PreTrainedTokenizerFast

    if kind == "tiny":
        return stand_in.build_tokenizer(stand_in.SIZES["tiny"], ROOT / "data/sample/train.jsonl")
    unknown = {"wordpiece": {"unk_token": "[UNK]"}, "unigram": {"unk_token": "<unk>"}}.get(kind, {})
    made = {"bytewise": bytewise, "wordpiece": wordpiece, "unigram": unigram}[kind]()
    made = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|pad|>", **unknown)
    made.add_special_tokens({"additional_special_tokens": ["<UNK>", "<BRAND>"]})
    return made


def predict(folder, made, prompts=PROMPTS, ads=ADS, cutoff=10**6):
    """The file that LLaMA-Factory writes, and the scores that it computes, for a model that gives back half an ad."""
    from llamafactory.train.sft.metric import ComputeSimilarity
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from transformers import EvalPrediction
    from transformers.trainer_utils import PredictionOutput

    def ids(texts):
        rows = [made(text, add_special_tokens=False).input_ids[:cutoff] for text in texts]
        longest = max(map(len, rows))
        return np.array([row + [-100] * (longest - len(row)) for row in rows])

    guesses, labels = ids([ad[: len(ad) // 2] + "。" for ad in ads]), ids(ads)
    inputs = [made(prompt, add_special_tokens=False).input_ids[:cutoff] for prompt in prompts]
    trainer = SimpleNamespace(
        is_world_process_zero=lambda: True, args=SimpleNamespace(output_dir=str(folder)), processing_class=made
    )
    output = PredictionOutput(guesses.copy(), labels.copy(), {})
    CustomSeq2SeqTrainer.save_predictions(trainer, {"input_ids": inputs}, output)
    own = ComputeSimilarity(made)(EvalPrediction(predictions=guesses, label_ids=labels))
    return folder / "generated_predictions.jsonl", own


@pytest.mark.parametrize("kind", ["tiny", "bytewise", "wordpiece", "unigram"])
@pytest.mark.parametrize("cutoff", [10**6, 60, 8])
def test_scored_as_llamafactory_did(tmp_path, kind, cutoff):
    path, own = predict(tmp_path, tokenizer(kind), cutoff=cutoff)
    data = Rows(CONTENTS, ADS)
    predicted = read_predictions(path, data, path)
    found = score_systems({"x": predicted}, data, None)["systems"]["x"]
    for score in OVERLAP:
        assert found[score]["value"] == pytest.approx(own[score], abs=5e-5), score
    said = " ".join(check_rows(predicted, data, None))
    assert ("references were cut" in said) == (cutoff < 100), said


@pytest.mark.parametrize("kind", ["tiny", "bytewise", "wordpiece", "unigram"])
@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([1, 0, *range(2, 20)], "row 1 of rows.json, but that of row 2: rows were shuffled or left out"),
        ([0, *range(2, 24)], "row 2 of rows.json, but that of row 3: rows were shuffled or left out"),
        (range(23, -1, -1), "row 1 of rows.json, but that of row 24: rows were shuffled or left out"),
    ],
)
def test_other_orders_are_refused(tmp_path, kind, order, words):
    path, _ = predict(tmp_path, tokenizer(kind), [PROMPTS[n] for n in order], [ADS[n] for n in order])
    assert words in refused(path, Rows(CONTENTS, ADS))


@pytest.mark.parametrize("kind", ["bytewise", "wordpiece"])
def test_rows_of_another_split_are_refused(tmp_path, kind):
    rows = read_json_lines(ROOT / "data/sample/train.jsonl")[:24]
    path, _ = predict(tmp_path, tokenizer(kind), [row["content"] for row in rows], [row["summary"] for row in rows])
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
