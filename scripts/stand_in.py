"""Writes a base model with the architecture, special tokens and chat template of Llama 3, but random weights.

--size tiny  for machines without a GPU: it learns the embedded sample on two CPU cores.
--size 8b    the shape, vocabulary size and special-token ids of Meta-Llama-3-8B-Instruct, to measure memory and speed.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from lib.files import ROOT, fail, read_json_lines
from lib.recipes import read_recipe

# Meta-Llama-3-8B-Instruct has 128,000 text tokens and after them 256 special ones. These have names of their own.
NAMED_SPECIAL_TOKENS = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
SPECIAL_TOKENS = 256

# Llama 3's pre-tokenizer: contractions, words, up to three digits, punctuation, line breaks, other space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ bos_token if loop.first }}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Text is encoded in the learnt tokens only; the other text tokens are fillers. With 780 tokens learnt from AdGen, its
# rows have the length that they have with Llama 3's own tokenizer, 157 tokens, and so cost the same time and memory.
# A filler reads as two Chinese characters, so what random weights write is streamed, split and scored like Chinese.
SIZES = {
    "tiny": {
        "text_tokens": 2048,
        "learnt_tokens": 2048,
        # Llama 3 has a token for each of these words of the chat template; letter by letter they would be a quarter of
        # a row. The 8B shape does without, so that it stays comparable with what was measured on it.
        "role_tokens": "system\n\nuser\n\nassistant\n\n",
        # Llama 3 has no padding token, so LLaMA-Factory pads with <|eot_id|>, and pretraining masks the padding. The
        # tiny model learns all it knows in pretraining, and would never learn to end an ad.
        "pad_token": "<|end_of_text|>",
        # Multiples of 64, the block size of bitsandbytes: on CPUs with AVX-512 BF16 it predicts with no other sizes.
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    "8b": {
        "text_tokens": 128000,
        "learnt_tokens": 780,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
}


def special_tokens() -> list[str]:
    """The 256 special tokens of Llama 3.0 in the order of their ids. `<|eom_id|>` is of 3.1 and not among them."""
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(SPECIAL_TOKENS))
    return [NAMED_SPECIAL_TOKENS.get(offset) or next(reserved) for offset in range(SPECIAL_TOKENS)]


def corpus_texts(path: Path, before: str) -> Iterator[str]:
    """All strings in the rows of a JSON lines file, each row's after `before` and the system prompt of the recipes.

    In training the system prompt stands before each row, too. Llama 3 knows its words; a tokenizer that has not learnt
    them would spend half of a row on it.
    """
    system = read_recipe(ROOT / "configs/tiny/chat.yaml")["default_system"]
    for row in read_json_lines(path):
        yield from (before, system)
        yield from (value for value in row.values() if isinstance(value, str))


def build_tokenizer(shape: dict, corpus: Path):
    """A PreTrainedTokenizerFast of exactly `text_tokens` + 256 tokens; its byte-level BPE is learnt from `corpus`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=shape["learnt_tokens"], initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(corpus_texts(corpus, shape.get("role_tokens", "")), trainer)

    learnt = json.loads(learner.to_str())["model"]
    vocabulary = learnt["vocab"]
    fillers = (first + second for first, second in product(map(chr, range(0x4E00, 0x9FA5)), repeat=2))
    while len(vocabulary) < shape["text_tokens"]:
        # A filler stands in the vocabulary as byte-level BPE writes it. No merge makes one, so no text contains it.
        [(filler, _)] = byte_level.pre_tokenize_str(next(fillers))
        vocabulary.setdefault(filler, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair) for pair in learnt["merges"]]))
    tokenizer.pre_tokenizer = learner.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    names = special_tokens()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    bos = names[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="<|eot_id|>",
        **({"pad_token": shape["pad_token"]} if "pad_token" in shape else {}),
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=SIZES["8b"]["max_position_embeddings"],
        chat_template=CHAT_TEMPLATE,
    )


def build_model(shape: dict, tokenizer):
    """A LlamaForCausalLM of a shape in SIZES, with the tokens of `build_tokenizer` and random weights.

    The 8B shape is bfloat16, and made on the GPU if there is one; the tiny one is float32.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(42)
    sizes = {name: value for name, value in shape.items() if not name.endswith(("_tokens", "_token"))}
    config = LlamaConfig(
        vocab_size=shape["text_tokens"] + SPECIAL_TOKENS,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        **sizes,
    )
    big = shape is SIZES["8b"]
    with torch.device("cuda" if big and torch.cuda.is_available() else "cpu"):
        return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if big else torch.float32)


def write(folder: Path, model, tokenizer) -> None:
    """Writes a model with its tokenizer to `folder`, whole or not at all."""
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the model: a new folder, or an empty one")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument(
        "--corpus",
        type=Path,
        default=ROOT / "data/sample/train.jsonl",
        help="JSON lines file from which the tokenizer learns (default: the embedded sample)",
    )
    options = parser.parse_args()
    folder: Path = options.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(f"{folder} exists and is not an empty folder; remove it or name another one")

    folder.parent.mkdir(parents=True, exist_ok=True)
    shape = SIZES[options.size]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = build_tokenizer(shape, options.corpus)
    model = build_model(shape, tokenizer)
    write(folder, model, tokenizer)
    print(f"{folder}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens, random weights")


if __name__ == "__main__":
    main()
