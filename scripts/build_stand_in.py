"""Writes a model that is Llama 3 in all but knowledge: its architecture, special tokens, chat template; random weights.

`--size tiny` is for machines without a GPU: small enough to learn the embedded sample on two CPU cores. `--size 8b` has
the true shape, vocabulary size and special-token ids of Meta-Llama-3-8B-Instruct, for tests of memory and speed.
`--size 70b` has those of the 70B model: its layers are all the same, and quantised, 40 GB instead of 141. FSDP takes no
quantised base: `--layers N` writes so many layers, in bf16.
"""

import argparse
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from adgen import ROOT, fail, read_json_lines

# Meta-Llama-3-8B-Instruct: 128,000 text tokens, then these 256, in this order.
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

# Learnt tokens are those that text encodes to; the other text tokens are fillers. With 780 learnt from AdGen, its rows
# are as long as with Llama 3's own tokenizer, 157 tokens, and so take as much time and memory. A filler reads as two
# Chinese characters: what random weights write is then streamed, cut into words and scored as Chinese is.
SIZES = {
    "tiny": {
        "text_tokens": 2048,
        "learnt_tokens": 2048,
        # Llama 3 has none, LLaMA-Factory then pads with <|eot_id|>, and pretraining masks padding: a model that learns
        # its first language there would never learn to stop.
        "pad_token": "<|end_of_text|>",
        # Multiples of 64, bitsandbytes's block: on CPUs with AVX-512 BF16 it predicts with no other sizes.
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    "small": {
        "text_tokens": 2048,
        "learnt_tokens": 2048,
        "pad_token": "<|end_of_text|>",
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        # A few thousand rows are learnt by heart otherwise.
        "attention_dropout": 0.1,
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
    "70b": {
        "text_tokens": 128000,
        "learnt_tokens": 780,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
}


def special_tokens() -> list[str]:
    """The 256 special tokens of Llama 3.0 in the order of their ids; `<|eom_id|>` came with 3.1 and is not one."""
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(SPECIAL_TOKENS))
    return [NAMED_SPECIAL_TOKENS.get(offset) or next(reserved) for offset in range(SPECIAL_TOKENS)]


def corpus_texts(path: Path) -> Iterator[str]:
    """The strings in the rows of a JSON lines file, whatever their columns are called, and the recipes' system prompt.

    The prompt comes with every row: Llama 3 knows its words; a tokenizer that does not would spend half a row on it.
    """
    import yaml

    recipe = yaml.safe_load((ROOT / "configs/tiny/chat.yaml").read_text(encoding="utf-8"))
    for row in read_json_lines(path):
        yield recipe["default_system"]
        yield from (value for value in row.values() if isinstance(value, str))


def build_tokenizer(shape: dict, corpus: Path):
    """A PreTrainedTokenizerFast of exactly `text_tokens` + 256 entries, byte-level BPE learnt from `corpus`."""
    text_tokens, learnt_tokens, pad_token = (shape.get(name) for name in ("text_tokens", "learnt_tokens", "pad_token"))
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), byte_level]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=learnt_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(corpus_texts(corpus), trainer)

    learnt = json.loads(learner.to_str())["model"]
    vocabulary = learnt["vocab"]
    fillers = (first + second for first, second in product(map(chr, range(0x4E00, 0x9FA5)), repeat=2))
    while len(vocabulary) < text_tokens:
        # As byte-level BPE writes it; no merge leads to it.
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
        **({"pad_token": pad_token} if pad_token else {}),
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=SIZES["8b"]["max_position_embeddings"],
        chat_template=CHAT_TEMPLATE,
    )


def build_model(shape: dict, bos_token_id: int, eos_token_id: int, seed: int):
    """A LlamaForCausalLM of the given shape, random by `seed`; a big one bfloat16, on the GPU where there is one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    sizes = {name: value for name, value in shape.items() if not name.endswith(("_tokens", "_token"))}
    config = LlamaConfig(
        vocab_size=shape["text_tokens"] + SPECIAL_TOKENS,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        tie_word_embeddings=False,
        **sizes,
    )
    big = shape["hidden_size"] >= SIZES["8b"]["hidden_size"]
    with torch.device("cuda" if big and torch.cuda.is_available() else "cpu"):
        return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if big else torch.float32)


def quantise(model, layers: int, folder: Path):
    """A LlamaForCausalLM of one layer in NF4, as the recipes quantise, with copies of the layer until it has `layers`.

    `folder`, empty, is given to what is read back quantised.
    """
    import torch
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    model.save_pretrained(folder)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16,
    )
    small = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=nf4)
    small.model.layers.extend(copy.deepcopy(small.model.layers[0]) for _ in range(layers - 1))
    small.config.num_hidden_layers = layers
    return small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write; it must not exist or be empty")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument(
        "--corpus",
        type=Path,
        default=ROOT / "data/sample/train.jsonl",
        help="JSON lines file that the tokenizer learns from (default: the embedded sample)",
    )
    parser.add_argument("--layers", type=int, help="other than the size has, and not quantised")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    if options.layers is not None and options.layers < 1:
        parser.error("--layers is at least 1")
    folder: Path = options.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(f"{folder} exists and is not an empty folder; remove it or name another one")

    shape = SIZES[options.size] | ({"num_hidden_layers": options.layers} if options.layers else {})
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = build_tokenizer(shape, options.corpus)
    folder.parent.mkdir(parents=True, exist_ok=True)
    ids = tokenizer.bos_token_id, tokenizer.eos_token_id, options.seed
    if options.size == "70b" and not options.layers:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            one = build_model(shape | {"num_hidden_layers": 1}, *ids)
            model = quantise(one, shape["num_hidden_layers"], Path(scratch))
    else:
        model = build_model(shape, *ids)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{folder}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens, random weights")


if __name__ == "__main__":
    main()
