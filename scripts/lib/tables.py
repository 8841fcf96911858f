"""Tables: as aligned text for a terminal, and as Markdown. Scores, published results and example ads are shown so."""

import hashlib
import json
import re
import unicodedata

from lib.baselines import BASELINES
from lib.files import ROOT
from lib.health import is_better
from lib.law import NO_ADVICE
from lib.metrics import MAIN, OVERLAP, SCORES, Values, covered, invented

PUBLISHED = ROOT / "results/published.json"
# The systems of `make eval` in words. Another name is shown as it is.
IN_WORDS = {"base": "before fine-tuning", "tuned": "after fine-tuning", **BASELINES}
DIFFERENCE = "tuned - base"
ELSEWHERE = "What others published on the same rows: results/published.md."


# --- tables of any kind ---


def width(text: str) -> int:
    """How many columns a text takes in a terminal. A Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def align(lines: list[list[str]]) -> str:
    """Rows of cells as aligned text. The first column is flush left, the others are flush right."""
    widths = [max(width(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ""
    for line in lines:
        padded = [" " * (room - width(cell)) for room, cell in zip(widths, line, strict=True)]
        text += "  ".join([line[0] + padded[0], *(pad + cell for pad, cell in zip(padded[1:], line[1:], strict=True))])
        text = text.rstrip() + "\n"
    return text


def markdown(lines: list[list[str]], words: tuple[int, ...] = (0,)) -> str:
    """Rows of cells, the head first, as a Markdown table. `words`: the columns flush left; the others are flush right.

    A | in a cell is escaped. Other marks of Markdown stay marks; `escape` makes them text.
    """
    lines = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line] for line in lines]
    rule = ["---" if column in words else "---:" for column in range(len(lines[0]))]
    return "".join("| " + " | ".join(line) + " |\n" for line in [lines[0], rule, *lines[1:]])


def escape(text: str) -> str:
    """The text on one line, so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")


# --- scores ---


def show(score: str, entry: dict | None, sign: str = "") -> str:
    """A score of eval_results.json with half the width of its 95% interval. `sign`: "+" puts a plus before gains."""
    if entry is None:
        return "–"
    digits = SCORES[score].digits
    low, high = entry["ci95"]
    return f"{entry['value']:{sign}.{digits}f} ±{(high - low) / 2:.{digits}f}"


def score_tables(results: dict) -> list[list[list[str]]]:
    """Two tables, as rows of cells: the six main scores of all systems, and the other scores."""
    rows = [(name, row, "") for name, row in results["systems"].items()]
    if results[DIFFERENCE]:
        rows.append((DIFFERENCE, results[DIFFERENCE], "+"))
    others = [score for score in SCORES if score not in MAIN and any(score in row for _, row, _ in rows)]
    return [
        [["", *(SCORES[score].label for score in part)]]
        + [[name, *(show(score, row.get(score), sign) for score in part)] for name, row, sign in rows]
        for part in (MAIN, others)
    ]


def warnings_of(results: dict) -> list[tuple[str, str]]:
    """(model, warning) for every sign of ill health."""
    return [(name, warning) for name, warnings in results["health"].items() for warning in warnings]


def verdict(results: dict) -> str:
    """Which model is best, and in which scores it beats what needs no model."""
    best = results["best"]
    if not best:
        return "No model is named best: each has a warning.\n"
    text = f"Best model: {best}.\n"
    for name in ("nearest", "template"):
        if name in results["systems"]:
            row, other = results["systems"][best], results["systems"][name]
            lost = [SCORES[score].label for score in MAIN if not is_better(score, row, other)]
            text += f"It beats {BASELINES[name]} in {len(MAIN) - len(lost)} of {len(MAIN)} scores"
            text += f", not in {', '.join(lost)}.\n" if lost else ".\n"
    return text


def results_text(results: dict) -> str:
    """The scores of an eval_results.json for a terminal: two aligned tables, the warnings and the verdict."""
    text = ""
    for lines in score_tables(results):
        text += align([[name + " !" * bool(results["health"].get(name)), *cells] for name, *cells in lines]) + "\n"
    text += f"± half the width of the 95% interval.\n{NO_ADVICE}\n"
    text += "".join(f"! {name}: {warning}.\n" for name, warning in warnings_of(results)) + verdict(results)
    return text + f"{ELSEWHERE}\n" * results["adgen_dev"]


def results_markdown(results: dict) -> str:
    """The table.md of an eval_results.json: all scores, the warnings, the verdict, and how the scores came about."""

    def row_of(name: str, *cells: str) -> list[str]:
        words = f": {IN_WORDS[name]}" if name in IN_WORDS else ""
        cells = [f"**{cell}**" for cell in cells] if name == results["best"] else cells
        return [escape(name) + words + " ⚠" * bool(results["health"].get(name)), *cells]

    def rows_of(part: str) -> str:
        split = results[part]
        return f"{split['rows']:,} rows of {escape(split['file'])} (sha256 `{split['sha256'][:12]}`)" if split else "?"

    text = "# Scores\n\n"
    text += "\n".join(markdown([row_of(*line) for line in lines]) for lines in score_tables(results))
    text += "\n" + "".join(f"⚠ {escape(name)}: {escape(warning)}.\n\n" for name, warning in warnings_of(results))
    text += escape(verdict(results)) + "\n\n" + "The scores of the best model are bold.\n\n" * bool(results["best"])
    decoding = (f"`{key}: {json.dumps(value)}`" for key, value in (results["decoding"] or {}).items())
    text += f"- Rows scored: {rows_of('split')}.\n- Training rows: {rows_of('train')}.\n"
    text += f"- Decoding: {', '.join(decoding) or '?'}.\n- ± is half the width of the 95% interval.\n"
    if judge := results.get("judge"):
        text += f"- Judge: {escape(judge['model'])}, by the prompt in eval_results.json. "
        text += f"Of {judge['ads']:,} ads, {judge['ads without a mark']:,} got no mark.\n"
    text += f"- {NO_ADVICE}\n"
    versions = (f"{name} {version}" for name, version in results["versions"].items())
    text += f"- Versions: {', '.join(versions)}.\n"
    text += f"\nThis command wrote the table:\n\n```sh\n{results['command']}\n```\n"
    return text + f"\n{ELSEWHERE}\n" * results["adgen_dev"]


# --- published results ---


def read_published() -> dict:
    """results/published.json: scores on AdGen that others have published, with their sources."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def is_adgen_dev(contents: list[str], references: list[str]) -> bool:
    """Whether these rows are AdGen's dev rows, on which the published results are, whatever file holds them."""
    rows = "\n".join("".join(f"{content}\t{ad}".split()) for content, ad in zip(contents, references, strict=True))
    return hashlib.sha256(rows.encode("utf-8", "replace")).hexdigest() == read_published()["rows_sha256"]


def published_cells(result: dict) -> list[str]:
    """A published result's BLEU-4 and ROUGE-1/2/L. A score of another kind is named."""
    values = {score: f"{result[score]:.2f}" if score in result else "–" for score in OVERLAP}
    for kind, place, name in (
        ("rouge-mean", "rouge-1", "mean of ROUGE-1/2/L"),
        ("corpus-bleu", "bleu-4", "corpus BLEU"),
    ):
        if kind in result:
            values[place] = f"{result[kind]:.2f} ({name})"
    return list(values.values())


def published_table() -> str:
    """All published results as a Markdown table, each with its rows and its source."""
    lines = [["system", *(SCORES[score].label for score in OVERLAP), "rows", "source"]]
    for result in read_published()["results"]:
        mark = " †" if result["procedure"] is None else ""
        source = f"[{result['source']}]({result['url']})" if "url" in result else result["source"]
        notes = "".join(f"; {note}" for note in [result.get("note")] if note)
        rows = f"{result['rows']:,}" if result["rows"] else "?"
        lines.append([result["system"] + mark, *published_cells(result), rows, source + notes])
    return markdown(lines, (0, 6))


def published_markdown() -> str:
    """results/published.md: the table, and in English and Chinese how its scores were computed."""
    notes = "\n\n".join(read_published()["procedures"].values())
    written = "`python scripts/score.py --published` writes this file from published.json."
    return f"# Published results on AdGen\n\n{published_table()}\n{notes}\n\n{written}\n"


# --- examples ---


def examples_markdown(systems: dict[str, list[str]], contents: list[str], references: list[str], values: Values) -> str:
    """examples.md: ten rows at equal distances, with each system's ad and the reference, their attributes marked.

    `values` is a `metrics.vocabulary`.
    """
    rows = min(len(texts) for texts in systems.values())
    text = "# Examples\n\n✓ the ad names the value; ✗ it does not; ⚠ **a value** that the product does not have.\n"
    for number in sorted({rows * step // 10 for step in range(10)}):
        lines = [["", "ad", "attributes"]]
        for name, ads in {**systems, "reference": references}.items():
            hits = covered(contents[number], ads[number]).items()
            marks = " ".join("✓✗"[not hit] + escape(value) for (_, value), hit in hits)
            lines.append([escape(name), mark_invented(contents[number], ads[number], values) or "(empty)", marks])
        content = "".join(contents[number].replace("`", "'").splitlines())
        text += f"\n## Row {number + 1}\n\n`{content}`\n\n{markdown(lines, (0, 1, 2))}"
    return text


def mark_invented(content: str, ad: str, values: Values) -> str:
    """The ad as Markdown, each invented value bold and after a warning sign."""
    bad = sorted(map(escape, invented(content, ad, values)[1]), key=len, reverse=True)
    return re.sub("|".join(map(re.escape, bad)), r"⚠**\g<0>**", escape(ad), flags=re.I) if bad else escape(ad)
