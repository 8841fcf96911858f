"""Draws how many training rows a shop needs: the scores by rows, fine-tuned and after DPO, in results/<model>/rows.png.

  make bench BENCH=rows MODEL=gemma3_270m

The scores stand in judge.json there. Those of all rows are the systems sft-1 and features-1 of eval_results.json, whose
judge of pairs was the same.
"""

import argparse
import json
import os
from collections import defaultdict

from lib.choices import read_choices
from lib.files import ROOT
from lib.metrics import SCORES
from lib.pictures import COLOURS, load_pyplot, save

SHOWN = ("bleu-4", "coverage", "hallucination")
STEPS = {"sft": ("fine-tuned", "sft-1"), "dpo": ("after DPO", "features-1")}


def read_scores(model: str) -> dict[str, dict[int, dict[str, float]]]:
    """Step → training rows → score → value."""
    folder, found = ROOT / "results" / model, defaultdict(dict)
    for run in json.loads((folder / "judge.json").read_text(encoding="utf-8"))["runs"]:
        if "rows" in run:
            found[run["name"].rpartition(" ")[2]][run["rows"]] = run["dev"]
    report = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
    for step, (_, system) in STEPS.items():
        scores = report["systems"][system]
        found[step][report["train"]["rows"]] = {score: scores[score]["value"] for score in SHOWN}
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.chdir(ROOT)
    model = read_choices().model
    plt, found = load_pyplot(), read_scores(model)
    figure, plots = plt.subplots(1, len(SHOWN), figsize=(12, 3.4), layout="constrained")
    for axes, score in zip(plots, SHOWN, strict=True):
        for (step, (label, _)), colour in zip(STEPS.items(), COLOURS[1:], strict=False):
            points = sorted(found[step].items())
            rows, values = [rows for rows, _ in points], [scores[score] for _, scores in points]
            axes.plot(rows, values, "o-", color=colour, label=label)
        axes.set_xscale("log")
        axes.set_xticks(rows, [f"{count:,}" for count in rows])
        axes.minorticks_off()
        better = "more" if SCORES[score].more_is_better else "less"
        axes.set(title=f"{SCORES[score].label}: {better} is better", xlabel="training rows")
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
    plots[0].legend(frameon=False)
    path = ROOT / "results" / model / "rows.png"
    save(figure, path)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
