"""Makes preference pairs from the tuned model's own ads, for `make train METHOD=dpo`.

  MODEL=gemma3_270m METHOD=lora python scripts/pairs.py --rows 2400 --samples 6

The tuned model writes several ads for each of the first training rows, with sampling. Each ad is judged by its product:
the share of attribute values missed, the share of values invented, and bad form. The best and the worst ad of a row
become a pair if they lie far enough apart. Among equally good ads, the one most like the row's own ad is chosen.

The pairs go to data/<model>_pairs.jsonl, and data/<model>_pairs_card.json counts them. Only training rows are used, so
no dev product enters a pair. Ads that were written before are used again, as long as nothing has changed that they
depend on: the same command continues after a kill.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

from lib.candidates import badness, likeness
from lib.choices import Choices, read_choices, rows_of, saves, trained
from lib.files import ROOT, fail, read_json_lines, sha256, whole_file, write_json
from lib.form import flaws
from lib.metrics import Values, vocabulary
from lib.predictions import read_data
from lib.recipes import check_overrides

# How the ads are sampled: more widely than ads for a shop, so that a row's best and worst ad differ.
SAMPLING = ["do_sample=true", "temperature=1.0", "top_p=1.0", "top_k=50"]


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides of the predict recipe")
    parser.add_argument("--rows", type=int, default=2400, help="training rows to write ads for (default: 2400)")
    parser.add_argument("--samples", type=int, default=6, help="ads for each row (default: 6)")
    parser.add_argument("--margin", type=float, default=0.15, help="how far the two ads of a pair lie apart (0.15)")
    parser.add_argument(
        "--half", action="store_true", help="judge by one half of the attribute values; the scores of the other half "
        "then show what was learnt (coverage and hallucination, unseen)"
    )  # fmt: skip
    options = parser.parse_args()
    if options.rows < 1 or options.samples < 2 or options.margin < 0:
        parser.error("--rows is at least 1, --samples at least 2, --margin at least 0")
    options.words = check_overrides(options.words, "train")
    return options


def write_sample(choices: Choices, options: argparse.Namespace, seed: int) -> list[str]:
    """One ad of the tuned model for each row; written ads are used again if nothing has changed."""
    folder = saves(choices) / "samples" / f"{trained(choices).name}_{seed}"
    words = [f"eval_dataset={choices.data}_train", f"max_samples={options.rows}", *SAMPLING, f"seed={seed}"]
    words += [f"output_dir={folder}", *options.words]
    weights = sorted(trained(choices).glob("*.safetensors"))
    known = [rows_of(choices, "train"), choices.recipe("predict"), *weights]
    inputs = " ".join([*words, *(sha256(path) for path in known)])
    noted, ads = folder / "inputs.txt", folder / "generated_predictions.jsonl"
    if not (noted.exists() and ads.exists() and noted.read_text(encoding="utf-8") == inputs):
        shutil.rmtree(folder, ignore_errors=True)
        print(f"Ads {seed} of {options.samples}", file=sys.stderr, flush=True)
        if status := subprocess.run([sys.executable, "scripts/launch.py", "predict", *words]).returncode:
            raise SystemExit(status)
        with whole_file(noted) as file:
            file.write(inputs)
    return [row["predict"] for row in read_json_lines(ads)]


def make_pair(product: str, reference: str, ads: list[str], values: Values, options: argparse.Namespace) -> dict | None:
    """The row of the pairs' file for one product; None if its ads do not lie far enough apart, or are no ads."""
    judged = sorted(set(ads), key=lambda ad: (badness(product, ad, values, options.half), -likeness(ad, reference)))
    best, worst = judged[0], judged[-1]
    gap = badness(product, worst, values, options.half) - badness(product, best, values, options.half)
    if gap < max(options.margin, 1e-9) or flaws(product, best):
        return None
    return {"instruction": product, "chosen": best, "rejected": worst}


def main() -> None:
    options, choices = read_options(), read_choices()
    os.chdir(ROOT)
    samples = [write_sample(choices, options, seed) for seed in range(1, options.samples + 1)]
    data = read_data(rows_of(choices, "train"))
    rows = list(zip(*data, strict=True))[: options.rows]
    if len({len(rows), *map(len, samples)}) != 1:
        fail(
            f"{len(rows)} rows and {', '.join(str(len(ads)) for ads in samples)} ads: were the rows changed meanwhile?"
        )
    values = vocabulary([content for content, _ in rows])
    pairs = [make_pair(*row, ads, values, options) for row, *ads in zip(rows, *samples, strict=True)]
    kept = [pair for pair in pairs if pair]
    if not kept:
        fail("no two ads of a row lie far enough apart; a smaller --margin or more --samples may help")
    path = ROOT / f"data/{choices.model}_pairs.jsonl"
    with whole_file(path) as file:
        file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in kept)
    mean = {
        name: sum(badness(pair["instruction"], pair[name], values) for pair in kept) / len(kept)
        for name in ("chosen", "rejected")
    }
    card = {
        "model": choices.model, "method": choices.method, "rows": len(rows), "samples": options.samples,
        "margin": options.margin, "judge sees half of the values": options.half, "pairs": len(kept),
        "mean badness": {name: round(value, 4) for name, value in mean.items()},
        "sha256": sha256(path),
    }  # fmt: skip
    write_json(path.with_name(f"{choices.model}_pairs_card.json"), card)
    print(
        f"{path.relative_to(ROOT)}: {len(kept)} pairs of {len(rows)} rows; {len(rows) - len(kept)} rows lie too close"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
