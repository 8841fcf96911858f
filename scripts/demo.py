"""Runs the whole path on a CPU with the embedded sample: base model, fine-tuning, evaluation, export, three ads.

Each stage shows a progress bar and its time. Everything else that the stages say goes to saves/Custom/demo.log.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from lib.candidates import judge, known_products, mark_terminal
from lib.files import ROOT, fail
from lib.metrics import MAIN, SCORES, vocabulary
from lib.tables import align, show

LOG = Path("saves/Custom/demo.log")
RESULTS = Path("saves/Custom/report")
ADS = Path("saves/Custom/three_ads.csv")
PERCENT = re.compile(rb"(\d+)%\|")


class Stage(NamedTuple):
    """A stage: its name, the program with its words, and how many progress bars it shows that last a while."""

    name: str
    words: tuple[str, ...]
    bars: int


STAGES = (
    Stage("Base model", ("scripts/launch.py", "base"), 1),
    Stage("Fine-tuning", ("scripts/launch.py", "train"), 1),
    Stage("Evaluation", ("scripts/launch.py", "eval"), 3),
    Stage("Export", ("scripts/launch.py", "export"), 0),
    Stage("Three ads, best of 4", ("scripts/generate.py", "examples/attributes.csv", str(ADS)), 1),
)


def run(stage: Stage, log) -> None:
    """Runs a stage with a progress bar; ends the program if it fails."""
    from tqdm import tqdm

    look = "{desc:<22}{bar:32}{percentage:4.0f}%  {elapsed}"
    command = [sys.executable, *stage.words]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with tqdm(total=100, desc=stage.name, bar_format=look, mininterval=0.5, miniters=1) as bar:
        ended, last = 0, 0
        while chunk := child.stdout.read1():
            log.write(chunk)
            for percent in map(int, PERCENT.findall(chunk)):
                # A program's next bar begins at 0 again.
                ended += percent < last
                last = percent
                bar.update(max(0, min(99, (100 * ended + percent) // max(1, stage.bars)) - bar.n))
        status = child.wait()
        bar.update(100 - bar.n if status == 0 else 0)
    if status:
        log.flush()
        said = re.findall(r"^error: (.*)", LOG.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        fail(f"{stage.name} failed: {said[-1] if said else f'exit status {status}'} (the whole output: {LOG})")


def show_scores() -> None:
    """Prints the scores before and after fine-tuning, and where the pictures are."""
    results = json.loads((RESULTS / "eval_results.json").read_text(encoding="utf-8"))
    lines = [["", *(SCORES[score][0] for score in MAIN)]]
    for name in ("base", "tuned"):
        lines.append([name, *(show(score, results["systems"][name].get(score)) for score in MAIN)])
    print(f"\n{align(lines)}\nPictures: {RESULTS}/eval.png, {RESULTS}/train_loss.png")


def show_ads() -> None:
    """Prints the best ad of four for each of three products, its attributes marked."""
    products = known_products()
    print("\nThree ads for products that were not in training (✓ kept, ✗ missed, ⚠ invented):")
    with ADS.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            product, ad = row["attributes"], row["ad"]
            values = vocabulary([*products, product])
            print(f"\n{product}\n{mark_terminal(product, judge(product, ad, values))}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    os.chdir(ROOT)
    os.environ |= {"MODEL": "tiny", "METHOD": "qlora", "DATA": "sample", "EXPORTED": "1", "RESULTS": str(RESULTS)}
    # The demo begins anew each time, but keeps the base model.
    os.environ |= {"FRESH": "1", "GPUS": "1", "STRATEGY": "", "SERVER": ""}
    LOG.parent.mkdir(parents=True, exist_ok=True)
    ADS.unlink(missing_ok=True)
    with LOG.open("wb") as log:
        for stage in STAGES:
            run(stage, log)
    show_scores()
    show_ads()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
