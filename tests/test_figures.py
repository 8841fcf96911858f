"""Every figure in the READMEs and on the pages under docs/ is the one that stands in results/."""

import re
from pathlib import Path

import pytest
from card_figures import (
    BATCHES,
    DISTRIBUTED,
    EXPORTED,
    H100,
    H200,
    ROWS,
    VLLM,
    hours,
    minutes,
    read,
    results,
    scale_figures,
    serving_figures,
    speed_figures,
)
from lib.files import ROOT
from lib.recipes import read_recipe

READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
TRIES = ROOT / "results/gemma3_270m/tries.md"
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), TRIES]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


DIGITS = dict.fromkeys(("bleu-4", "rouge-1", "rouge-2", "rouge-l"), 2)


def gemma_row(system: str, *scores: str) -> str:
    """The cells of a system of results/gemma3_270m; those of three seeds are means."""
    rows = results("gemma3_270m/eval_results.json")["systems"]
    seeds = [rows[system]] if system in rows else [rows[f"{system}-{seed}"] for seed in (1, 2, 3)]
    means = {score: sum(seed[score]["value"] for seed in seeds) / len(seeds) for score in scores}
    return "| " + " | ".join(f"{value:.{DIGITS.get(score, 3)}f}" for score, value in means.items()) + " |"


MAIN = (*DIGITS, "coverage", "hallucination", "distinct-4", "unsupported")
RUNS = {run["name"]: run for run in results("gemma3_270m/judge.json")["runs"]}


def judge_row(system: str, *scores: str) -> str:
    """The cells of the runs of results/gemma3_270m/judge.json with a name; those of several seeds are means."""
    seeds = [run["dev"] for name, run in RUNS.items() if re.fullmatch(rf"{system}(-\d)?", name)]
    means = {score: sum(seed[score] for seed in seeds) / len(seeds) for score in scores}
    return "| " + " | ".join(f"{value:.{DIGITS.get(score, 3)}f}" for score, value in means.items()) + " |"


def faithfulness_figures() -> list[str]:
    """What docs/faithfulness.md must hold."""
    found = [gemma_row(system, *MAIN) for system in ("base", "qv-1-epoch", "qv-3-epochs", "sft", "reference")]
    found += [judge_row(system, *MAIN) for system in ("dpo", "half-judge")]
    again = {
        score: entry["value"]
        for score, entry in results("gemma3_270m/eval_results.json")["systems"]["likeness-1"].items()
    }
    found.append(
        "BLEU-4 {bleu-4:.2f}, ROUGE-L {rouge-l:.2f}, coverage {coverage:.3f}, hallucination {hallucination:.3f}".format(
            **again
        )
    )
    found.append(f"coverage to at most {max(run['dev']['coverage'] for run in RUNS.values()):.3f}")
    found.append(gemma_row("sft", "coverage-unseen", "hallucination-unseen"))
    found += [judge_row(system, "coverage-unseen", "hallucination-unseen") for system in ("dpo", "half-judge")]
    few = ("bleu-4", "coverage", "hallucination")
    for count in (250, 500, 1000, 2000):
        cells = [judge_row(f"rows {count}, {method}", *few).strip("| ") for method in ("sft", "dpo")]
        found.append(f"| {count:,} | {' | '.join(cells)} |")
    cells = [gemma_row(system, *few).strip("| ") for system in ("sft", "features-1")]
    found.append(f"| 4,750 | {' | '.join(cells)} |")
    for score, label in (("bleu-4", "BLEU-4"), ("rouge-l", "ROUGE-L"), ("coverage", ""), ("hallucination", "")):
        values = [RUNS[f"dpo-{seed}"]["dev"][score] for seed in (1, 2, 3)]
        digits = DIGITS.get(score, 3)
        found.append(f"{label or score} {min(values):.{digits}f}–{max(values):.{digits}f}")
    keys = results("gemma3_270m/eval_results.json")["by_key"]["systems"]
    types = [keys[system]["类型"]["coverage"]["value"] for system in ("likeness-1", "reference")]
    found.append("a share of {:.3f} of them, and of {:.3f} of the human ads".format(*types))
    pairs, dpo = DISTRIBUTED["llama3_8b_pairs"], DISTRIBUTED["llama3_8b_dpo"]
    took = f"`make pairs` took {pairs['peak_gib']:.1f} GiB, and `make train METHOD=dpo` {dpo['peak_gib']:.1f} GiB"
    found.append(f"{took} at {dpo['pairs_per_s']:.1f} pairs per second")
    found.append(f"takes {minutes(BATCHES)} ([{BATCHES['ads_per_s']:.1f} ads per second]")
    found.append(f"or {minutes(VLLM)} with `BACKEND=vllm` ({VLLM['ads_per_s']:.1f})")
    found.append(f"One epoch of DPO takes {5000 / dpo['pairs_per_s'] / 60:.0f} minutes")
    features = results("gemma3_270m/features.json")
    row = "| {marks} | {precision:.3f} | {recall:.3f} | {f1:.3f} |"
    found += [row.format(**scores) for name, scores in features["agreement"].items() if name != "held-out, all"]
    models = [scores for models in features["models"].values() for scores in models.values()]
    found += ["| " + " | ".join(f"{value:.3f}" for value in scores.values()) + " |" for scores in models]
    return [*found, f"torch {results('gemma3_270m/seconds.json')['torch']}"]


def tries_figures() -> list[str]:
    """What results/gemma3_270m/tries.md must hold."""
    rows = results("gemma3_270m/eval_results.json")["systems"]
    models = dict.fromkeys(re.sub("^(qv-1-epoch|sft|dpo|half-judge)-[123]$", r"\1", system) for system in rows)
    elsewhere = ("base", "qv-1-epoch", "qv-3-epochs", "sft", "reference", "nearest", "template", "random")
    found = [gemma_row(system, *MAIN) for system in models if system not in elsewhere]
    tried = [re.sub("-[123]$", "", name) for name, run in RUNS.items() if "rows" not in run]
    found += [judge_row(system, *MAIN) for system in tried if system not in ("sft", "dpo", "half-judge")]
    sampled = results("gemma3_270m/best_of_4/eval_results.json")
    found.append(f"for {sampled['split']['rows']} dev products")
    for scores in list(sampled["systems"].values())[:4]:
        shown = (scores[score]["value"] for score in ("coverage", "hallucination", "distinct-4", "unsupported"))
        found.append("| " + " | ".join(f"{value:.3f}" for value in shown) + " |")
    [every, *_] = results("gemma3_270m/best_of_4_all/eval_results.json")["systems"].values()
    shown = "coverage {:.3f}, hallucination {:.3f}, distinct-4 {:.3f}"
    found.append(shown.format(*(every[score]["value"] for score in ("coverage", "hallucination", "distinct-4"))))
    found += [
        "temperature 0.7",
        "temperature 1,",
        "greedy ads it is {:.3f}".format(rows["likeness-1"]["distinct-4"]["value"]),
    ]
    chat = read_recipe(ROOT / "configs/gemma3_270m/chat.yaml")
    assert (chat["temperature"], chat.get("repetition_penalty", 1)) == (1, 1)
    # What the recipes hold, beside which the tries stand.
    dpo = read_recipe(ROOT / "configs/gemma3_270m/dpo.yaml")
    assert (dpo.get("pref_beta", 0.1), dpo["pref_ftx"], dpo["learning_rate"]) == (0.1, 0.5, 1e-4)
    found += ["beta 0.05 instead of 0.1", "`pref_ftx` 1 instead of 0.5", "margin 0.3 instead of 0.15"]
    return found


def readme_figures() -> list[str]:
    """What both READMEs must hold: figures with the words or the cells around them."""
    expected = [f"{ROWS:,}", "1,070"]
    for run, digits in (("sft_qlora", 2), ("sft_fast", 2), ("sft_lora", 2), ("plain", 1)):
        peak = max(card[run]["peak_gib"] for card in (H100, H200))
        cells = [f"{peak:.1f}", *(f"{hours(card[run]['rows_per_s']):.{digits}f}" for card in (H100, H200))]
        ends = [hours(rows) for card in (H100, H200) for rows in card[run]["computed_rows_per_s"]]
        # The range of `plain` would be too wide to say anything: the CPU limits it.
        cells.append("" if run == "plain" else f"{min(ends):.1f}–{max(ends):.1f}")
        expected.append("| " + " | ".join(cells).rstrip() + " |")
    tiny = results("tiny/eval_results.json")
    expected.append(f" {tiny['split']['rows']} ")
    for system in ("base", "tuned"):
        scores = {score: entry["value"] for score, entry in tiny["systems"][system].items()}
        expected.append("| {bleu-4:.2f} | {rouge-l:.2f} | {coverage:.3f} | {hallucination:.3f} |".format(**scores))
    expected += [gemma_row(system, *DIGITS, "coverage", "hallucination") for system in ("base", "sft", "reference")]
    expected.append(judge_row("dpo", *DIGITS, "coverage", "hallucination"))
    took = [sum(seed.values()) / 60 for seed in results("gemma3_270m/seconds.json")["seconds"]]
    expected.append(f" {round(sum(took) / 3)} ")
    expected += [f" {minutes(run).split()[0]} " for run in (BATCHES, EXPORTED)]
    published = [row for row in results("published.json")["results"] if row["procedure"] == "A"]
    for row in sorted(published, key=lambda row: -row["bleu-4"])[:3]:
        cells = [row["system"], *(f"{row[score]:.2f}" for score in ("bleu-4", "rouge-1", "rouge-2", "rouge-l"))]
        expected.append("| " + " | ".join(cells) + " |")
    return expected


def evaluation_figures() -> list[str]:
    """What docs/evaluation.md must hold."""
    systems = results("tiny/eval_results.json")["systems"]
    published = results("published.json")["results"]
    best = max(row["bleu-4"] for row in published if row["procedure"] == "A")
    found = [
        f"ROUGE-1 of {systems['template']['rouge-1']['value']:.2f}",
        f"similar row reaches BLEU-4 {systems['nearest']['bleu-4']['value']:.2f}",
        f"tuned model {systems['tuned']['bleu-4']['value']:.2f}",
        f"by a known procedure is {best}",
    ]
    [note] = [row["note"] for row in published if row["system"] == "Yi-9B, rsLoRA"]
    coverage, hallucination = re.findall(r"(?:coverage|hallucination) ([\d.]+)", note)
    return [*found, f"coverage of {coverage} and a hallucination of {hallucination}"]


def editor_figures() -> list[str]:
    """What docs/editor.md must hold."""
    best, every = (results(f"gemma3_270m/editor{name}.json") for name in ("", "_approves_all"))
    systems, scores = ("lora", "lora+dpo"), (f"ads that say {best['word']}", "coverage", "hallucination")
    cells = [[f"{best['scores'][score][system]['value']:.3f}" for score in scores] for system in systems]
    said, rest = (every["scores"][name] for name in ("ads that say 显瘦", "coverage of the other values"))
    gaps = [f"from {row['lora']['value']:.3f} to {row['lora+kto']['value']:.3f}" for row in (said, rest)]
    found = [f"After {every['decisions']:,} decisions", f"say it {gaps[0]}", f"values fell {gaps[1]}"]
    found += [f"each of {best['products']} training products. His {best['decisions']} decisions"]
    return [*found, *(f"| {' | '.join(row)} |" for row in cells)]


FIGURES = {
    "README.md": readme_figures,
    "README_zh.md": readme_figures,
    "docs/editor.md": editor_figures,
    "docs/evaluation.md": evaluation_figures,
    "docs/faithfulness.md": faithfulness_figures,
    "results/gemma3_270m/tries.md": tries_figures,
    "docs/speed.md": speed_figures,
    "docs/scale.md": scale_figures,
    "docs/serving.md": serving_figures,
}
# Version numbers.
VERSIONS = {"3.0", "3.1", "3.11"}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_figures_are_those_of_the_results(path):
    text = " ".join(read(path).split())
    expected = FIGURES.get(name(path), list)()
    assert not [figure for figure in expected if figure not in text]
    # A number with decimals that no result accounts for was typed by hand.
    plain = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", re.sub(r"```.*?```", "", text))
    numbers = set(re.findall(r"(?<![\w.-])\d+\.\d+(?!\.?\d)(?![A-Za-z])", plain)) - VERSIONS
    assert numbers <= set(re.findall(r"\d+\.\d+", " ".join(expected)))
