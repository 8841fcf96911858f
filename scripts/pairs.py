"""Makes preference pairs from the tuned model's own ads, for `make train METHOD=dpo`.

  MODEL=gemma3_270m METHOD=lora python scripts/pairs.py --rows 2400 --samples 6

The tuned model writes several ads for each of the first training rows, with sampling. Each ad is judged by its product:
the share of attribute values missed, the share of values invented, features that the product does not imply, and bad
form. Likeness to the row's own ad counts for an ad. The best and the worst ad of a row become a pair if they lie far
enough apart. An ad with words that the law or WORDS forbids (see scripts/lib/law.py) is never chosen.

The pairs go to data/<model>_pairs.jsonl, and data/<model>_pairs_card.json counts them. Only training rows are used, so
no dev product enters a pair. The ads are kept under saves/, and used again as long as nothing has changed that they
depend on: the same command continues after a kill.

  MODEL=gemma3_270m FEEDBACK=data/feedback.jsonl python scripts/pairs.py

With FEEDBACK no model writes: what an editor decided at the desk becomes pairs, and ads with a yes or a no for
`make train METHOD=kto` in data/<model>_verdicts.jsonl (see scripts/lib/feedback.py).
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lib import vllm
from lib.batches import BATCH, make_base, work_folder, write_ads
from lib.candidates import badness, likeness
from lib.choices import Choices, hub_overrides, read_choices, rows_of, saves, trained, tuned_overrides
from lib.features import learn
from lib.feedback import make_rows, read_feedback, select
from lib.files import ROOT, fail, sha256, write_json, write_json_lines
from lib.form import flaws
from lib.journal import numbered, open_journal, write_missing
from lib.law import has_ban, read_rules
from lib.metrics import vocabulary
from lib.predictions import read_data
from lib.recipes import check_overrides, read_recipe

# Keys of the predict recipe that no override may change.
OWN = ("eval_dataset", "max_samples", "seed", "output_dir")
# How the ads are sampled: more widely than ads for a shop, so that a row's best and worst ad differ. A repetition
# penalty would make the tokens of the prompt less likely, too, and with them the attributes.
SAMPLING = ["do_sample=true", "temperature=1.0", "top_p=1.0", "top_k=50", "repetition_penalty=1.0"]
# How much likeness to the row's own ad (0 to 1) weighs beside the shares of values missed and invented. The ads of one
# row differ in it by about 0.1. docs/faithfulness.md has what other weights lead to.
LIKENESS = 4.0


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
    if taken := [word for word in options.words if word.split("=")[0] in OWN]:
        fail(f"{taken[0]}: this program sets {', '.join(OWN)} itself, for only training rows become pairs")
    return options


def write_samples(choices: Choices, options: argparse.Namespace, products: list[str]) -> list[list[str]]:
    """Some ads of the tuned model for each product. Ads that are there from an earlier run are used again."""
    words = [*hub_overrides(choices), *tuned_overrides(choices), *SAMPLING, *options.words]
    weights = sorted(trained(choices).glob("*.safetensors"))
    if not weights:
        fail(f"there is no model in {trained(choices)}: run `make train MODEL={choices.model} METHOD={choices.method}`")
    settings = read_recipe(choices.recipe("predict"), words) | {
        BATCH: None,
        "weights": [sha256(path) for path in weights],
        "engine": os.environ.get("BACKEND") or "batches",
    }
    folder = work_folder(settings)
    journal, ads = open_journal(saves(choices) / "samples" / f"{folder.name}.jsonl", settings)
    keys = numbered(products)
    if vllm.is_wanted():
        write = partial(vllm.write_ads, [*SAMPLING, *options.words])
    else:
        make_base(choices)
        write = partial(write_ads, words, folder)
    write_missing(write, journal, ads, keys, options.samples)
    return [ads[key][: options.samples] for key in keys]


def make_pair(product: str, reference: str, ads: list[str], judge: Callable, margin: float) -> dict | None:
    """The row of the pairs' file for one product; None if its ads do not lie far enough apart.

    judge: how bad an ad of a product is. The row's own ad draws the choice towards fluent copy: see `LIKENESS`.
    """
    bad = {ad: judge(product, ad) - LIKENESS * likeness(ad, reference) for ad in ads}
    good = [ad for ad in bad if not has_ban(product, ad) and not flaws(product, ad)]
    if not good:
        return None
    best, worst = min(good, key=bad.get), max(bad, key=bad.get)
    if bad[worst] - bad[best] < max(margin, 1e-9):
        return None
    return {"instruction": product, "chosen": best, "rejected": worst}


def write_rows(choices: Choices, kind: str, rows: list[dict], about: dict) -> None:
    """Writes data/<model>_<kind>.jsonl, and the card beside it, which says `about` the rows what is known."""
    path = ROOT / f"data/{choices.model}_{kind}.jsonl"
    write_json_lines(path, rows)
    card = {"model": choices.model, **about, kind: len(rows), "sha256": sha256(path)}
    write_json(path.with_name(f"{path.stem}_card.json"), card)
    print(f"{path.relative_to(ROOT)}: {len(rows)} {kind}")


def from_feedback(choices: Choices, path: Path) -> None:
    """Makes pairs and verdicts of an editor's decisions, as far as these have both sides of each."""
    decisions = read_feedback(path)
    kept, left = select(decisions, choices.model, read_data(rows_of(choices, "dev")).contents)
    pairs, verdicts = make_rows(kept)
    answers = {"yes": sum(row["approved"] for row in verdicts), "no": sum(not row["approved"] for row in verdicts)}
    counts = ", ".join(f"{count} {name}" for name, count in left.items()) or "none"
    said = f"{path}: {len(decisions)} decisions; left out: {counts}; ads: {answers['yes']} yes, {answers['no']} no"
    about = {"feedback": path.name, "decisions": len(decisions), "left out": left}
    if not pairs and not all(answers.values()):
        fail(f"{said}. A training needs ads with a yes and ads with a no")
    print(said)
    if pairs:
        write_rows(choices, "pairs", pairs, about)
    if all(answers.values()):
        write_rows(choices, "verdicts", verdicts, about | answers)


def from_samples(choices: Choices, options: argparse.Namespace) -> None:
    """Makes pairs of ads that the tuned model writes for training rows."""
    data = read_data(rows_of(choices, "train"))
    rows = list(zip(*data, strict=True))[: options.rows]
    samples = write_samples(choices, options, [content for content, _ in rows])
    judge = partial(badness, values=vocabulary(data.contents), lexicon=learn(*data))
    seen = partial(judge, half=options.half)
    pairs = [make_pair(*row, ads, seen, options.margin) for row, ads in zip(rows, samples, strict=True)]
    kept = [pair for pair in pairs if pair]
    if not kept:
        fail("no two ads of a row lie far enough apart; a smaller --margin or more --samples may help")
    mean = {
        name: sum(judge(pair["instruction"], pair[name]) for pair in kept) / len(kept)
        for name in ("chosen", "rejected")
    }
    about = {
        "run": trained(choices).name, "rows": len(rows), "samples": options.samples,
        "margin": options.margin, "judge sees half of the values": options.half,
        "mean badness": {name: round(value, 4) for name, value in mean.items()},
    }  # fmt: skip
    print(f"{len(rows)} rows, of which {len(rows) - len(kept)} have ads that lie too close")
    write_rows(choices, "pairs", kept, about)


def main() -> None:
    options, choices, feedback = read_options(), read_choices(), os.environ.get("FEEDBACK")
    read_rules()
    os.chdir(ROOT)
    if not feedback:
        return from_samples(choices, options)
    if len(sys.argv) > 1:
        fail(f"with FEEDBACK, no ads are written or judged: leave out {' '.join(sys.argv[1:])}")
    from_feedback(choices, Path(feedback))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
