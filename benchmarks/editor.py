"""Shows what an editor's yes and no teach. The editor is simulated: he rejects each ad that says one word, and approves
the best of the others.

  make bench BENCH=editor MODEL=gemma3_270m METHOD=lora ARGS="--word 显瘦 --rows 2400 --n 4 --methods kto,dpo"

The model of METHOD writes N ads for each of the first training products, as `make generate` does. The decisions go to
saves/bench/editor/<model>/feedback.jsonl, as the desk writes them, and `make pairs FEEDBACK=…` makes training rows of
them. Each of --methods goes on from the model, as in METHOD=lora+kto. Then all write greedy ads for the dev rows, whose
products the editor never saw.

Writes editor.json and editor.md into RESULTS: the share of ads that say the word, coverage and hallucination. If the
word is an attribute value, a model that avoids it loses coverage by that alone: so the coverage of the other values
stands beside it. The pairs and verdicts of the model in data/ are written anew; an earlier run is set aside.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from lib.attributes import join_attributes, parse_attributes, product
from lib.choices import Choices, read_choices, rows_of, saves
from lib.files import ROOT, read_json_lines, write_json_lines
from lib.intervals import draw_rows, entry, ratio
from lib.metrics import attribute_ratios, vocabulary
from lib.predictions import Rows, read_data, read_predictions
from lib.recipes import check_overrides
from lib.tables import markdown
from measuring import SCRATCH, library_versions, write_results


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides of the trainings")
    parser.add_argument("--word", default="显瘦", help="what the editor does not want to read (default: 显瘦)")
    parser.add_argument("--rows", type=int, default=2400, help="training products to write ads for (default: 2400)")
    parser.add_argument("--n", type=int, default=4, help="ads for each product (default: 4)")
    parser.add_argument("--dev", type=int, help="score the first so many dev rows (default: all)")
    parser.add_argument("--methods", default="kto", help="what to train, such as kto,dpo (default: kto)")
    options = parser.parse_intermixed_args()
    check_overrides(options.words, "train")
    return options


def call(*command: str | Path, **variables: str) -> None:
    """Runs one of the project's programs with variables; ends this one if it fails."""
    if status := subprocess.run([sys.executable, *command], env=os.environ | variables).returncode:
        raise SystemExit(status)


def decide(choices: Choices, row: dict, word: str) -> Iterator[dict]:
    """The editor's decisions on the ads of a row that `make generate` wrote, with the fields of lib/feedback.py."""
    ads = dict.fromkeys(row[name] for name in row if row[name] and (name == "ad" or name.startswith("runner_up_")))
    best = next((ad for ad in ads if word not in ad), "")
    for ad in ads:
        # The rest is passed over, as at the desk. If all were approved, ads that miss attributes would teach, too.
        if ad != best and word not in ad:
            continue
        yield {
            "product": row["product"],
            "decision": "reject" if word in ad else "approve",
            "ad": ad,
            "written": ad,
            "others": [other for other in ads if other != ad],
            "reason": f"says {word}" if word in ad else "",
            "model": f"{choices.model} {choices.method}",
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def score(word: str, contents: list[str], systems: dict[str, list[str]], values: dict) -> dict[str, dict]:
    """Score → system, or its difference to the first → {"value": number, "ci95": [low, high]}."""
    draws, found, start = draw_rows(len(contents)), defaultdict(dict), {}
    parsed = map(parse_attributes, contents)
    others = [join_attributes([pair for pair in pairs if word not in pair[1]]) for pairs in parsed]
    for system, ads in systems.items():
        own, rest = (attribute_ratios(products, ads, values) for products in (contents, others))
        columns = {f"ads that say {word}": np.array([[word in ad, 1] for ad in ads], float)}
        columns |= {"coverage": own["coverage", ""], "coverage of the other values": rest["coverage", ""]}
        columns |= {"hallucination": own["hallucination", ""]}
        for name, column in columns.items():
            parts = float(ratio(column.sum(0))), ratio(draws @ column)
            found[name][system] = entry(name, *parts)
            first, *before = start.setdefault(name, (system, *parts))
            if first != system:
                gap = [one - other for one, other in zip(parts, before, strict=True)]
                found[name][f"{system} - {first}"] = entry(name, *gap)
    return found


def main() -> None:
    options, choices = read_options(), read_choices()
    os.chdir(ROOT)
    train, dev_path = read_data(rows_of(choices, "train")), rows_of(choices, "dev")
    dev, folder = read_data(dev_path), SCRATCH / "editor" / choices.model
    values = vocabulary(dev.contents + train.contents)
    dev = Rows(*(column[: options.dev] for column in dev))
    catalogue, table, feedback = (folder / f"{name}.jsonl" for name in ("products", "ads", "feedback"))
    products = list({product(content): content for content in train.contents}.values())[: options.rows]
    write_json_lines(catalogue, [{"product": content} for content in products])
    # A base model that the user named lies below all of them.
    base = [word for word in options.words if word.startswith("model_name_or_path=")]
    call("scripts/generate.py", catalogue, table, *base, "--n", str(options.n), LABEL="", SERVER="")
    decisions = [one for row in read_json_lines(table) for one in decide(choices, row, options.word)]
    write_json_lines(feedback, decisions)
    call("scripts/pairs.py", FEEDBACK=str(feedback))
    systems = {}
    for method in (choices.method, *(f"{choices.method}+{name}" for name in options.methods.split(","))):
        if method != choices.method:
            call("scripts/launch.py", "train", *options.words, METHOD=method, FRESH="1")
        out = saves(choices) / "predict" / f"editor_{method}"
        words = [f"eval_dataset={choices.data}_dev", f"output_dir={out}", f"max_samples={len(dev.contents)}", *base]
        call("scripts/launch.py", "predict", *words, METHOD=method)
        systems[method] = read_predictions(out / "generated_predictions.jsonl", dev, dev_path).texts
    scores = score(options.word, dev.contents, systems, values)
    lines = [["", *next(iter(scores.values()))]]
    for name, row in scores.items():
        lines.append([name, *("{:.3f} ({:.3f} to {:.3f})".format(one["value"], *one["ci95"]) for one in row.values())])
    about = {"word": options.word, "model": choices.model, "method": choices.method, "products": len(products)}
    about |= {"decisions": len(decisions), "rejected": sum(one["decision"] == "reject" for one in decisions)}
    text = (
        "Read: {decisions} ads of {model} for {products} training products. Rejected: {rejected}, which say {word}.\n"
    )
    text = text.format(**about) + f"Greedy ads for {len(dev.contents)} dev rows, 95% intervals.\n\n" + markdown(lines)
    results = {"command": shlex.join(["benchmarks/editor.py", *sys.argv[1:]]), **about, "scores": scores}
    path = Path(os.environ.get("RESULTS") or f"results/{choices.model}") / "editor.json"
    write_results(path, results | library_versions(), text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
