"""Computes memory, traffic and speed of the recipes on 1 to 8 cards, and writes results/computed_scale.json.

Counted, not measured; `python scripts/tables.py` shows it in the READMEs. Memory of a card, in bytes:
- Weights. NF4: half a byte for each weight of a linear layer, with its doubly quantised scales; bf16: 2; embeddings and
  output layer always 2. ddp and zero2 hold all of them, zero3 and fsdp their share, and while they are used, whole: two
  layers and the embeddings (fsdp: and the output layer, which stands in the same unit).
- Adapter, its gradient and AdamW's two states: 4 each; zero2 shares the last three, zero3 and fsdp all of them.
- Activations under gradient checkpointing: the input of every layer, and of the one that is computed again all that it
  keeps (4 of the inner width, 10 of the hidden one) and the gradients of it.
- Evaluation keeps no activations, but the logits of a batch: 10 bytes each (bf16, fp32, their log-softmax).
- The CUDA context, and NCCL's buffers beside other cards. What the allocator keeps unused is not counted.

On the wire, sent by a card in a step: rings send (n - 1) / n of what they share out or collect. ddp: the adapter's
gradients, twice, once in a step. zero2: the same, its first half in each batch of the accumulation. zero3 and fsdp: all
base weights, twice in each batch (forward, backward). Wire and arithmetic are added up, as if nothing overlapped.
"""

import argparse
import json
from pathlib import Path

from adgen import ROOT, write_json
from bench import OTHER_CARD, count_adapter, count_frozen, count_operations, tidy
from doctor import measured_peak, read_recipe

GIB = 2**30
CARDS = (1, 2, 4, 8)
# Strategy → the recipe that it is meant for.
STRATEGIES = {"ddp": "sft_qlora", "zero2": "sft_qlora", "zero3": "sft_lora", "fsdp": "sft_qlora"}
LLAMA = {"num_key_value_heads": 8, "vocab_size": 128_256}
SHAPES = {
    "llama3_8b": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama3_70b": LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "qwen3_8b": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32}
    | {"vocab_size": 151_936},
}
# An RTX 3090 with 16 lanes of PCIe 4.0 of its own; consumer boards often give a second card eight, half of it.
CARD = OTHER_CARD | {"memory_gib": 24.0, "wire_gb_per_s": 25.0}
# Bytes for each NF4 weight: 4 bits, for 64 weights a scale of 8 bits, for 256 of these one of 32.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
CONTEXT, NCCL = 0.5e9, 0.3e9


def memory(shape: dict, settings: dict, strategy: str, cards: int) -> float:
    """GiB that one card needs, in training or in evaluation, whichever is more."""
    layers, hidden = shape["num_hidden_layers"], shape["hidden_size"]
    embedding = shape["vocab_size"] * hidden
    layer_bytes = count_frozen(shape) // layers * (NF4 if settings.get("quantization_bit") else 2)
    weights = layers * layer_bytes + 2 * 2 * embedding
    adapter = count_adapter(shape, settings)
    if strategy in ("ddp", "zero2") or cards == 1:
        states = 4 * adapter + 12 * adapter / (cards if strategy == "zero2" else 1)
    else:
        used = 2 * layer_bytes + 2 * embedding * (2 if strategy == "fsdp" else 1)
        weights, states = weights / cards + used, 16 * adapter / cards
    tokens = settings["per_device_train_batch_size"] * settings["cutoff_len"]
    again = 2 * tokens * (4 * shape["intermediate_size"] + 10 * hidden)
    training = 2 * tokens * layers * hidden + 2 * again
    evaluation = 10 * tokens * shape["vocab_size"] if settings.get("eval_strategy") else 0
    return (weights + states + max(training, evaluation) + CONTEXT + NCCL * (cards > 1)) / GIB


def wire(shape: dict, settings: dict, strategy: str, cards: int, batches: int) -> float:
    """Bytes that one card sends in a step of `batches` batches."""
    ring, adapter = (cards - 1) / cards, 4 * count_adapter(shape, settings)
    if strategy == "ddp":
        return ring * 2 * adapter
    if strategy == "zero2":
        return ring * (batches + 1) * adapter
    base = count_frozen(shape) * (NF4 if settings.get("quantization_bit") else 2)
    base += 2 * 2 * shape["vocab_size"] * shape["hidden_size"]
    return ring * batches * (2 * base + adapter)


def compute(bench: dict) -> list[dict]:
    """An entry for each model and strategy: lists over CARDS; rows/s is None where the memory does not suffice."""
    measured = {run["recipe"]: run for run in bench["runs"] if run["name"] == Path(run["recipe"]).stem}
    entries = []
    for model, shape in SHAPES.items():
        for strategy, recipe in STRATEGIES.items():
            settings = read_recipe(ROOT / f"configs/{model}/{recipe}.yaml")
            # The share of the matrix rate that it uses, measured with this model or else with 8B.
            own = measured.get(f"configs/{model}/{recipe}.yaml")
            run = own or measured[f"configs/llama3_8b/{recipe}.yaml"]
            tokens = settings["per_device_train_batch_size"] * settings["cutoff_len"]
            rows = tokens / run["tokens_per_row"]
            operations = rows * count_operations(shape, settings, [round(run["tokens_per_row"])])
            entry = {"model": model, "strategy": strategy, "recipe": f"configs/{model}/{recipe}.yaml", "cards": CARDS}
            entry |= {"memory_gib": [], "wire_gb_per_step": [], "wire_share": [], "rows_per_s": []}
            for cards in CARDS:
                batches = -(-settings["gradient_accumulation_steps"] // cards)
                sent = wire(shape, settings, strategy, cards, batches)
                seconds = batches * operations / (run["matmul_share"] * CARD["tflops"] * 1e12)
                waited = sent / (CARD["wire_gb_per_s"] * 1e9)
                need = memory(shape, settings, strategy, cards)
                entry["memory_gib"].append(need)
                entry["wire_gb_per_step"].append(sent / 1e9)
                entry["wire_share"].append(waited / (seconds + waited))
                fits = need < CARD["memory_gib"]
                entry["rows_per_s"].append(cards * batches * rows / (seconds + waited) if fits else None)
            # Beyond it a card has less than one batch of the recipe's step: steps grow instead.
            entry["scales_to"] = settings["gradient_accumulation_steps"]
            entries.append(tidy(entry | {"cards": list(CARDS)}))
    return entries


def check(bench: dict) -> list[dict]:
    """Computed against measured memory of recipes on one card, in training: evaluation was left out or takes less."""
    found = []
    for run in bench["runs"]:
        recipe = ROOT / run["recipe"]
        if run["name"] == recipe.stem and recipe.stem in STRATEGIES.values():
            settings, peak = read_recipe(recipe) | {"eval_strategy": None}, measured_peak(recipe)
            computed = memory(SHAPES[recipe.parent.name], settings, "ddp", 1)
            row = {"recipe": run["recipe"], "computed_gib": computed, "measured_gib": peak}
            found.append(tidy(row | {"error": computed / peak - 1}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results/computed_scale.json")
    options = parser.parse_args()
    path = ROOT / "results/bench/nvidia-h200.json"
    bench = json.loads(path.read_text(encoding="utf-8"))
    results = {"computed": True, "card": CARD, "share_from": str(path.relative_to(ROOT))}
    results |= {"check": check(bench), "entries": compute(bench)}
    for row in results["check"]:
        print("{recipe}: {computed_gib} GiB computed, {measured_gib} measured: {error:+.1%}".format(**row))
    write_json(options.out, results)


if __name__ == "__main__":
    main()
