"""What docs/speed.md, docs/serving.md and docs/scale.md must hold, by the measurements under results/."""

import json
from pathlib import Path

from lib.files import ROOT
from lib.tables import show
from lib.vllm import LEFT


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def results(path: str) -> dict:
    return json.loads(read(ROOT / "results" / path))


def runs_of(card: str) -> dict[str, dict]:
    """The measured runs of Llama 3 8B on a card, by name."""
    return {run["name"]: run for run in results(f"bench/{card}.json")["runs"] if "llama3_8b" in run["recipe"]}


DISTRIBUTED = {run["name"]: run for run in results("distributed.json")["runs"]}
H100, H200 = runs_of("nvidia-h100-80gb-hbm3"), runs_of("nvidia-h200")
ROWS = results("bench/scale.json")["costs"][-1]["rows"]


def hours(rows_per_s: float) -> float:
    return ROWS / rows_per_s / 3600


WRITTEN = {(run["way"], run["cards"]): run for run in results("bench/bulk-nvidia-h200.json")["written"]}
BATCHES, FOUR = (WRITTEN["make generate", cards] for cards in (1, 4))
VLLM, EXPORTED = (WRITTEN[f"make api BACKEND=vllm{more}", 1] for more in ("", " EXPORTED=1"))


def minutes(run: dict, ads: int = 40_000) -> str:
    """What a way to write ads takes for so many, with its start."""
    return f"{(ads / run['ads_per_s'] + run.get('up_s', 0)) / 60:.0f} minutes"


def speed_figures() -> list[str]:
    """What docs/speed.md must hold."""
    found = []
    for run in ("sft_qlora", "sft_lora", "sft_fast"):
        times = [card[run]["rows_per_s"] / card["plain"]["rows_per_s"] for card in (H100, H200)]
        found.append(f"| `{run}` | {times[0]:.1f} | {times[1]:.1f} |")
    cards = {"H100": "nvidia-h100-80gb-hbm3", "H200": "nvidia-h200"}
    for card, file in cards.items():
        for run in results(f"bench/profile-{file}.json")["profiled"]:
            kinds = ("matrix products", "attention", "4-bit weights", "no kernel")
            shares = " | ".join(f"{run['shares'][kind]:.0%}" for kind in kinds)
            found.append(f"| `{run['name']}` | {card} | {shares} |")
    found.append(f"fills a 24 GB card ({H200['sft_fast']['peak_gib']:.1f} GiB)")
    same_card = min(repeat["rows_per_s"] for repeat in H200["sft_fast"]["measured"])
    assert round(1 - H200["all_linear"]["rows_per_s"] / same_card, 1) == 0.2
    peak = f"{H200['all_linear']['peak_gib']:.1f} GiB"
    found.append(f"a fifth fewer rows per second than `sft_fast` on the same card, and take {peak}")
    for with_it, without in (("sft_qlora", "qlora_no_cudnn"), ("predict_cudnn", "predict")):
        rows = [f"{H200[run]['rows_per_s']:.1f}" for run in (with_it, without)]
        found += [f"{rows[0]} rows per second with it (`{with_it}`", f"{rows[1]} without it (`{without}`)"]
    found += waits() + tries()
    cost = results("bench/scale.json")["costs"][-1]["prepare"]
    found.append(f"all {ROWS:,} rows took {cost['seconds']:.1f} seconds and at most {cost['peak_rss_gib']:.2f} GiB")
    large = DISTRIBUTED["llama3_70b"]
    found.append(
        f"with {large['left_gib']} GiB left on the card, the same training took {large['peak_gib_per_process']:.1f} GiB"
    )
    return found


def waits() -> list[str]:
    """How long clients wait."""
    served = {(run["server"], run["clients"]): run for run in results("bench/server-nvidia-h200.json")["served"]}
    fast = {clients: run for (server, clients), run in served.items() if server == "make api BACKEND=vllm"}
    found = []
    for clients, run in fast.items():
        slow = served.get(("make api", clients))
        cell = f"{slow['whole_ad_s']['median']:.1f} s" if slow else "–"
        found.append(f"| {clients} | {cell} | {run['whole_ad_s']['median']:.1f} s |")
    firsts = [run["first_words_s"]["longest"] for run in fast.values()]
    return [*found, f"after up to {max(firsts):.1f} seconds, at 128 clients after {firsts[-1]:.1f}"]


def tries() -> list[str]:
    """What larger batches give on a slow host."""
    runs = {run: H200[run] for run in ("qlora_512x32", "lora_512x24_checkpointed")}
    shown = [
        f"{run['rows_per_s']:.1f} ({run['matmul_share']:.0%}) in {run['peak_gib']:.1f} GiB" for run in runs.values()
    ]
    [_, fast], [_, slow] = (H200[f"{recipe}_1_card"]["measured"] for recipe in ("sft_fast", "sft_qlora"))
    return [
        f"made {fast['rows_per_s']:.1f} rows per second ({fast['matmul_share']:.0%} of the matrix rate)",
        f"`qlora_512x32` made {shown[0]}",
        f"`lora_512x24_checkpointed` {shown[1]}",
        f"which made {slow['rows_per_s']:.1f} rows per second there",
        f"faster still ({H200['sft_fast']['rows_per_s']:.1f})",
        f"More than {H200['qlora_512x32']['matmul_share']:.0%} was not reached",
    ]


def serving_figures() -> list[str]:
    """What docs/serving.md must hold."""
    api = WRITTEN["make api", 1]
    found = [f"| {api['ads_per_s']:.2f} | {40_000 / api['ads_per_s'] / 3600:.0f} hours |"]
    found += [f"| {run['ads_per_s']:.3g} | {minutes(run)} |" for run in (BATCHES, FOUR, VLLM, EXPORTED)]
    assert max(run["peak_gib"] for run in WRITTEN.values()) < 22
    # From so many products on, of four ads each, the start of vLLM has paid.
    ends = [run["up_s"] / (1 / BATCHES["ads_per_s"] - 1 / run["ads_per_s"]) / 4 for run in (VLLM, EXPORTED)]
    assert min(ends) > 500 and max(ends) < 750
    versions = results("bench/bulk-nvidia-h200.json")["versions"]
    found += ["vLLM {vllm} with torch {torch}".format(**versions), "The lock's 0.19.1", f"less {LEFT} GiB"]
    engines = results("gemma3_270m/engines/eval_results.json")["systems"]
    for system in ("LLaMA-Factory", "batches of 512", "vLLM"):
        cells = (show(score, engines[system][score]) for score in ("bleu-4", "coverage", "hallucination"))
        found.append(f"{system} | {' | '.join(cells)} |")
    ties, again = (results(f"gemma3_270m/engines/ties{name}.json") for name in ("", "_batches"))
    pairs = {key: f"{ties[key]} and {again[key]}" for key in ties}
    found.append(f"Of the {ties['rows']:,} greedy ads of Gemma 3 270M, {ties['equal']} are equal")
    found += [f"instead of 535 wrote {again['equal']} as before", f"In {ties['looked at']} of the others"]
    found += [f"best two in {pairs['the best two']}, and in {pairs['two steps of bfloat16 apart at most']} their"]
    return found


CARDS = ("1_card", "2_cards", "4_cards")


def scale_figures() -> list[str]:
    """What docs/scale.md must hold."""
    peaks = (DISTRIBUTED[run]["peak_gib_per_process"] for run in ("ddp", "zero2", "zero3", "fsdp"))
    large, part = DISTRIBUTED["llama3_70b"], DISTRIBUTED["llama3_70b_fsdp"]
    one, two, four = ([H200[f"{run}_{cards}"]["rows_per_s"] for run in ("sft_qlora", "sft_fast")] for cards in CARDS)
    shares = [
        f"{many / alone / cards:.0%}"
        for rows, cards in ((two, 2), (four, 4))
        for alone, many in zip(one, rows, strict=True)
    ]
    whole = DISTRIBUTED["llama3_70b_fsdp_4"]
    worst = max(abs(row["error"]) for row in results("bench/sizes.json")["check"])
    return [
        "took {:.2f} GiB with DDP, {:.2f} with ZeRO-2, {:.2f} with ZeRO-3 and {:.2f} with FSDP".format(*peaks),
        "{:.1f} rows per second (`sft_qlora`), {:.1f} (`sft_fast`)".format(*one),
        "{:.1f} and {:.1f}: {} and {} of twice as many".format(*two, *shares[:2]),
        "{:.1f} and {:.1f}: {} and {} of four times as many".format(*four, *shares[2:]),
        f"{FOUR['ads']:,} ads in {FOUR['seconds']:.0f} seconds, on one card in {BATCHES['seconds']:.0f}",
        "wrote {:.1f} ads per second, one card {:.1f}".format(
            *(H200[f"predict_{cards}"]["rows_per_s"] for cards in ("4_cards", "1_card"))
        ),
        f"| {whole['peak_gib_per_process']:.1f} GiB on a card |",
        f"| {large['peak_gib_per_process']:.1f} GiB |",
        f"held to {whole['pytorch_gib']} GiB of each",
        f"took at most {whole['peak_gib_per_process']:.1f} GiB, with evaluation",
        f"{large['left_gib']} GiB were left, like a 48 GB card. It took {large['peak_gib_per_process']:.1f} GiB",
        f"{part['layers']} of 70B's 80 layers trained by FSDP on two cards with {part['left_gib']} GiB left",
        f"differs by at most {worst:.0%}",
        # Computed from the shape: 40 layers keep 40 inputs of 2 × 2,048 × 8,192 bytes each.
        f"{40 * 2 * 2048 * 8192 / 1e9:.1f} GB more activations",
    ]
