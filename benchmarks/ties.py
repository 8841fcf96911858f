"""Counts the greedy ads that two engines wrote alike, and tells how close the choice was where they first differ.

  make bench BENCH=ties ARGS="one/generated_predictions.jsonl other/generated_predictions.jsonl --out ties.json \
    --model google/gemma-3-270m --adapter saves/Gemma-3-270M/lora/sft_lora"

Both files hold ads for the same rows. For some rows whose ads differ, the model computes the logits at the first token
that differs in float32, on the CPU. If the two tokens are its best two and their logits lie as close as bfloat16 can
tell apart, the difference is one of rounding. The result is written as JSON.
"""

import argparse
import math
import random
import statistics
from itertools import takewhile
from pathlib import Path

from lib.files import fail, read_json_lines, write_json
from measuring import tidy


def gap(model, prompt: list[int], pair: list[list[int]], end: int, penalty: float) -> dict:
    """How close two token lists are where they first differ, by the logits of a model after the prompt.

    Returns `gap`, how far the two logits lie apart; `step`, the distance of two neighbouring bfloat16 numbers there;
    `best_two`, whether no other token has a higher logit; and `first`, whether the best is that of the first list. A
    list that has ended goes on with the token `end`.
    """
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    same = [token for token, _ in takewhile(lambda both: both[0] == both[1], zip(*pair, strict=False))]
    rivals = [tokens[len(same)] if len(tokens) > len(same) else end for tokens in pair]
    ids = torch.tensor([[*prompt, *same]])
    with torch.inference_mode():
        logits = RepetitionPenaltyLogitsProcessor(penalty)(ids, model(ids).logits[:, -1].float())[0]
    best = logits.topk(2)
    step = 2 ** (math.floor(math.log2(abs(best.values[0]))) - 7)
    apart = abs(float(logits[rivals[0]] - logits[rivals[1]]))
    order = best.indices.tolist()
    return {"gap": apart, "step": step, "best_two": set(order) == set(rivals), "first": order[0] == rivals[0]}


def load(folder: str, adapter: str | None):
    """The model of a folder in float32, with an adapter merged into it, if one is named."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not adapter:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE", help="generated_predictions.jsonl of an engine")
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--adapter", help="folder of the adapter, if there is one")
    parser.add_argument("--penalty", type=float, default=1.1, help="the repetition penalty of the ads (default: 1.1)")
    parser.add_argument("--rows", type=int, default=200, help="rows to look at, drawn at random (default: 200)")
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    options = parser.parse_args()
    one, other = map(read_json_lines, options.files)
    if not one or len(one) != len(other) or "prompt" not in one[0]:
        fail(f"{options.files[0]} and {options.files[1]} are not ads with prompts for the same rows")
    pairs = [(row["prompt"], row["predict"], mate["predict"]) for row, mate in zip(one, other, strict=True)]
    differ = [row for row in pairs if row[1] != row[2]]
    from tqdm import tqdm
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(options.model), load(options.model, options.adapter)
    end = model.generation_config.eos_token_id
    drawn = random.Random(0).sample(differ, min(options.rows, len(differ)))
    found = []
    for texts in tqdm(drawn, unit="row"):
        prompt, *pair = (tokenizer(text, add_special_tokens=False).input_ids for text in texts)
        found.append(gap(model, prompt, pair, end[-1] if isinstance(end, list) else end, options.penalty))
    result = {"rows": len(pairs), "equal": len(pairs) - len(differ), "looked at": len(found)}
    result |= {"the best two": sum(row["best_two"] for row in found)}
    result |= {"the best is the first file's": sum(row["first"] for row in found)}
    result |= {"two steps of bfloat16 apart at most": sum(row["gap"] <= 2 * row["step"] for row in found)}
    result |= {"median gap": statistics.median(row["gap"] for row in found)} if found else {}
    write_json(options.out, tidy(result))
    print(result)


if __name__ == "__main__":
    main()
