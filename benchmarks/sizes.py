"""Computes memory, traffic and speed of the recipes on 1 to 8 cards of 24 GB, without running them.

  make bench BENCH=sizes

Writes results/bench/sizes.json and .md. What is counted:

Memory of one card
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

Traffic, sent by one card in a step. A ring sends (n - 1) / n of what it shares out or collects.
- ddp: the gradients of the adapter, twice in a step.
- zero2: the same, but the first half once in each batch of the gradient accumulation.
- zero3, fsdp: all weights of the base, twice in each batch: forward and backward.

Speed. The arithmetic takes as long as with the measured share of the matrix rate. Traffic is added as if the two did
not overlap.
"""

import argparse
import json
from pathlib import Path

from arithmetic import OTHER_CARD, count_adapter, count_frozen, count_operations
from lib.files import ROOT
from lib.gpu import measured_peak
from lib.recipes import read_recipe
from lib.tables import align, markdown
from measuring import tidy, write_results

MEASURED = ROOT / "results/bench/nvidia-h200.json"
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
# An RTX 3090 with 16 lanes of PCIe 4.0 for itself. Consumer boards often give a second card eight lanes, half of that.
CARD = OTHER_CARD | {"memory_gib": 24.0, "wire_gb_per_s": 25.0}
# Bytes of an NF4 weight: 4 bits, a scale of 8 bits for each 64 weights, and one of 32 bits for each 256 of the scales.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# Bytes of the CUDA context and of NCCL's buffers.
CONTEXT, NCCL = 0.5e9, 0.3e9


def batch_tokens(settings: dict) -> int:
    """The tokens of one batch of a recipe, padding included."""
    return settings["per_device_train_batch_size"] * settings["cutoff_len"]


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
    tokens = batch_tokens(settings)
    repeated = 2 * tokens * (4 * shape["intermediate_size"] + 10 * hidden)
    training = 2 * tokens * layers * hidden + 2 * repeated
    evaluation = 10 * tokens * shape["vocab_size"] if settings.get("eval_strategy") else 0
    return (weights + states + max(training, evaluation) + CONTEXT + NCCL * (cards > 1)) / GIB


def traffic(shape: dict, settings: dict, strategy: str, cards: int, batches: int) -> float:
    """Bytes that one card sends in a step in which it computes `batches` batches."""
    ring, adapter = (cards - 1) / cards, 4 * count_adapter(shape, settings)
    if strategy == "ddp":
        return ring * 2 * adapter
    if strategy == "zero2":
        return ring * (batches + 1) * adapter
    base = count_frozen(shape) * (NF4 if settings.get("quantization_bit") else 2)
    base += 2 * 2 * shape["vocab_size"] * shape["hidden_size"]
    return ring * batches * (2 * base + adapter)


def compute(model: str, strategy: str, measured: dict[str, dict]) -> dict:
    """Memory, traffic and speed of one model by one strategy, as lists over CARDS.

    `measured`: recipe → its run in results/bench, for the share of the matrix rate; a model that was not measured is
    taken to use the share of the 8B model. rows_per_s is None if the memory of a card does not suffice.
    """
    shape, recipe = SHAPES[model], f"configs/{model}/{STRATEGIES[strategy]}.yaml"
    settings = read_recipe(ROOT / recipe)
    run = measured.get(recipe) or measured[f"configs/llama3_8b/{STRATEGIES[strategy]}.yaml"]
    rows = batch_tokens(settings) / run["tokens_per_row"]
    operations = rows * count_operations(shape, settings, [round(run["tokens_per_row"])])
    entry = {"model": model, "strategy": strategy, "recipe": recipe, "cards": list(CARDS)}
    entry |= {"memory_gib": [], "wire_gb_per_step": [], "wire_share": [], "rows_per_s": []}
    for cards in CARDS:
        batches = -(-settings["gradient_accumulation_steps"] // cards)
        sent = traffic(shape, settings, strategy, cards, batches)
        computing = batches * operations / (run["matmul_share"] * CARD["tflops"] * 1e12)
        sending = sent / (CARD["wire_gb_per_s"] * 1e9)
        need = memory(shape, settings, strategy, cards)
        entry["memory_gib"].append(need)
        entry["wire_gb_per_step"].append(sent / 1e9)
        entry["wire_share"].append(sending / (computing + sending))
        fits = need < CARD["memory_gib"]
        entry["rows_per_s"].append(cards * batches * rows / (computing + sending) if fits else None)
    # The most cards that keep the recipe's batch size: each of them has one batch of the accumulation.
    return tidy(entry | {"scales_to": settings["gradient_accumulation_steps"]})


def compute_all(bench: dict) -> list[dict]:
    """An entry for each model and strategy. `bench`: a results file of the training benchmark."""
    measured = {run["recipe"]: run for run in bench["runs"] if run["name"] == Path(run["recipe"]).stem}
    return [compute(model, strategy, measured) for model in SHAPES for strategy in STRATEGIES]


def compare(bench: dict) -> list[dict]:
    """The computed memory of each measured recipe on one card, beside the measured one.

    Only training is computed: the measured runs left evaluation out, or it took less.
    """
    found = []
    for run in bench["runs"]:
        recipe = ROOT / run["recipe"]
        if run["name"] == recipe.stem and recipe.stem in STRATEGIES.values():
            settings, peak = read_recipe(recipe) | {"eval_strategy": None}, measured_peak(recipe)
            computed = memory(SHAPES[recipe.parent.name], settings, "ddp", 1)
            row = {"recipe": run["recipe"], "computed_gib": computed, "measured_gib": peak}
            found.append(tidy(row | {"error": computed / peak - 1}))
    return found


def compute_results() -> dict:
    """The content of sizes.json."""
    bench = json.loads(MEASURED.read_text(encoding="utf-8"))
    head = {"computed": True, "card": CARD, "share_from": str(MEASURED.relative_to(ROOT))}
    return head | {"check": compare(bench), "entries": compute_all(bench)}


def per_cards(values: list[float | None]) -> str:
    """A value for each number of cards as a cell, with two digits; – for None."""
    texts = ["–" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in values]
    return " / ".join(texts)


def check_lines(results: dict) -> list[list[str]]:
    """The comparison of computed with measured memory as the cells of a table, the head first."""
    lines = [["recipe, on one card", "computed (GiB)", "measured (GiB)", "difference"]]
    for row in results["check"]:
        lines.append(
            [row["recipe"], f"{row['computed_gib']:.1f}", f"{row['measured_gib']:.1f}", f"{row['error']:+.0%}"]
        )
    return lines


def format_results(results: dict) -> str:
    """The content of sizes.json as Markdown."""
    card, cards = results["card"], " / ".join(map(str, results["entries"][0]["cards"]))
    lines = [["model", "strategy", "recipe", "memory of a card (GiB)", "sent by a card in a step (GB)"]]
    lines[0] += ["rows per second", "most cards that keep the recipe's batch size"]
    for entry in results["entries"]:
        figures = [per_cards(entry[key]) for key in ("memory_gib", "wire_gb_per_step", "rows_per_s")]
        line = [entry["model"], entry["strategy"], Path(entry["recipe"]).stem, *figures]
        lines.append([*line, str(entry["scales_to"])])
    return (
        "# Memory, traffic and speed of the recipes on several cards\n\n"
        f"Computed, not measured: for {card['gpu']}, {card['memory_gib']:.0f} GiB, {card['tflops']:.0f} TFLOP/s, "
        f"{card['wire_gb_per_s']:.0f} GB/s between cards. The share of the matrix rate is that measured in "
        f"`{results['share_from']}`.\n\n"
        f"A cell holds the values for {cards} cards. –: the memory of a card does not suffice. With more cards than "
        "keep the recipe's batch size, a step takes more rows.\n\n"
        f"{markdown(lines)}\n"
        f"Where memory was measured, too:\n\n{markdown(check_lines(results))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench", help="folder for sizes.json and sizes.md")
    options = parser.parse_args()
    results = compute_results()
    write_results(options.out / "sizes.json", results, format_results(results))
    print(align(check_lines(results)))


if __name__ == "__main__":
    main()
