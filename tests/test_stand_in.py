"""The stand-in has Llama 3's tokens, and is written whole or not at all."""

import re
import subprocess
import sys

import pytest
import stand_in
from lib.files import ROOT

SAMPLE = ROOT / "data/sample/train.jsonl"


def test_random_weights_of_the_8b_shape_write_what_reads_as_chinese():
    tokenizer = stand_in.build_tokenizer(stand_in.SIZES["8b"], SAMPLE)
    assert len(tokenizer) == 128256 and tokenizer.convert_tokens_to_ids("<|eot_id|>") == 128009
    texts = tokenizer.batch_decode([[token] for token in range(1000, 128000, 1000)])
    assert all(re.fullmatch(r"[\u4e00-\u9fff]{2}", text) for text in texts)
    # No text is encoded in fillers, so its length is that of the learnt tokens.
    assert max(tokenizer("".join(texts), add_special_tokens=False)["input_ids"]) < 780


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    command = [sys.executable, "scripts/stand_in.py", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "not an empty folder" in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_model_is_written_whole_or_not_at_all(tmp_path):
    class Model:
        def save_pretrained(self, folder):
            (folder / "config.json").write_text("{}")

    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        stand_in.write(tmp_path / "base", Model(), FullDisk())
    assert list(tmp_path.iterdir()) == []
