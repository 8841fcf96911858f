"""The tiny stand-in with random weights, and adapters on it: for tests that need a model, but not what it learns."""

import stand_in
from lib.files import ROOT


def build_base(folder):
    """Writes the tiny stand-in to `folder`, as it is before any training; returns `folder`."""
    shape = stand_in.SIZES["tiny"]
    tokenizer = stand_in.build_tokenizer(shape, ROOT / "data/sample/train.jsonl")
    stand_in.write(folder, stand_in.build_model(shape, tokenizer), tokenizer)
    return folder


def add_adapter(base, target):
    """The base model in a folder with a LoRA adapter on the layers that `target` names."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    return get_peft_model(model, LoraConfig(r=8, target_modules=target, task_type="CAUSAL_LM"))
