"""Computes how much memory the recipes take on 1 to 8 cards of 24 GB, without running them.

  make bench BENCH=sizes

Writes results/bench/sizes.json and .md. What counts for one card:

- Weights of the base. In NF4 a weight of a linear layer takes half a byte and its share of the doubly quantised scales;
  in bf16 it takes 2 bytes, as embeddings and output layer always do. ddp and zero2 keep all weights on each card. zero3
  and fsdp keep a share of them, and whole what is in use: two layers and the embeddings (fsdp: the output layer, too,
  which it treats as one unit with the embeddings).
- The adapter, its gradient and the two states of AdamW, 4 bytes each. zero2 shares the last three out, zero3 and fsdp
  all four.
- Activations under gradient checkpointing: the input of each layer, and for the layer that is computed again all that
  it keeps (4 times the inner width and 10 times the hidden width), with the gradients of that.
- Evaluation keeps no activations, but the logits of a batch at 10 bytes each (bf16, fp32 and their log-softmax). The
  larger of training and evaluation counts.
- The CUDA context, and the buffers of NCCL if there are several cards. What PyTorch's allocator holds back is left out.
"""

import argparse
from pathlib import Path

from arithmetic import count_adapter, count_frozen
from lib.files import ROOT
from lib.gpu import measured_peak
from lib.recipes import read_recipe
from lib.tables import align, markdown
from measuring import tidy, write_results

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
# The recipes whose memory was measured, too.
MEASURED = ("llama3_8b/sft_qlora", "llama3_8b/sft_lora", "llama3_70b/sft_qlora")
# Bytes of an NF4 weight: 4 bits, a scale of 8 bits for each 64 weights, and one of 32 bits for each 256 of the scales.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# Bytes of the CUDA context, and of NCCL's buffers by cards: measured on two and four H200, not on eight.
CONTEXT, NCCL = 0.5e9, {1: 0, 2: 0.85e9, 4: 1.6e9, 8: 1.6e9}


def memory(shape: dict, settings: dict, strategy: str, cards: int) -> float:
    """GiB that one card needs. `shape`: a Llama config.json; `settings`: the keys of a recipe."""
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
    # Padding counts, too.
    tokens = settings["per_device_train_batch_size"] * settings["cutoff_len"]
    repeated = 2 * tokens * (4 * shape["intermediate_size"] + 10 * hidden)
    training = 2 * tokens * layers * hidden + 2 * repeated
    evaluation = 10 * tokens * shape["vocab_size"] if settings.get("eval_strategy") else 0
    return (weights + states + max(training, evaluation) + CONTEXT + NCCL[cards]) / GIB


def compare(name: str) -> dict:
    """The computed memory of a recipe on one card, beside the measured one.

    Only training is computed: the measured runs left evaluation out, or it took less.
    """
    recipe = f"configs/{name}.yaml"
    settings, peak = read_recipe(ROOT / recipe) | {"eval_strategy": None}, measured_peak(ROOT / recipe)
    computed = memory(SHAPES[Path(name).parent.name], settings, "ddp", 1)
    return {"recipe": recipe, "computed_gib": computed, "measured_gib": peak, "error": computed / peak - 1}


def compute_results() -> dict:
    """The content of sizes.json: the comparison, and the memory of each model by each strategy as a list over CARDS."""
    entries = []
    for model, shape in SHAPES.items():
        for strategy, stem in STRATEGIES.items():
            recipe = f"configs/{model}/{stem}.yaml"
            needed = [memory(shape, read_recipe(ROOT / recipe), strategy, cards) for cards in CARDS]
            entries.append({"model": model, "strategy": strategy, "recipe": recipe, "memory_gib": needed})
    return tidy({"computed": True, "cards": list(CARDS), "check": [*map(compare, MEASURED)], "entries": entries})


def check_lines(results: dict) -> list[list[str]]:
    """The comparison of computed with measured memory as the cells of a table, the head first."""
    lines = [["recipe, on one card", "computed (GiB)", "measured (GiB)", "difference"]]
    for row in results["check"]:
        gib = (f"{row[key]:.1f}" for key in ("computed_gib", "measured_gib"))
        lines.append([row["recipe"], *gib, f"{row['error']:+.0%}"])
    return lines


def format_results(results: dict) -> str:
    """The content of sizes.json as Markdown."""
    lines = [["model", "strategy", "recipe", *(f"GiB on {cards}" for cards in results["cards"])]]
    for entry in results["entries"]:
        gib = (f"{value:.1f}" for value in entry["memory_gib"])
        lines.append([entry["model"], entry["strategy"], Path(entry["recipe"]).stem, *gib])
    return (
        "# Memory of the recipes on several cards\n\nComputed, not measured: what each of 1, 2, 4 or 8 cards needs. "
        f"A 24 GB card has room for 24.\n\n{markdown(lines, (0, 1, 2))}\n"
        f"Where memory was measured, too:\n\n{markdown(check_lines(results))}"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    results = compute_results()
    write_results(ROOT / "results/bench/sizes.json", results, format_results(results))
    print(align(check_lines(results)))


if __name__ == "__main__":
    main()
