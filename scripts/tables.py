"""Writes the result tables of README.md and README_zh.md anew: what stands between these two lines:

  <!-- results:begin NAME -->
  <!-- results:end -->

NAME is a folder under results/ with an eval_results.json, `published` for results/published.json, `bench` for what
`make bench` wrote to results/bench, `profile` and `served` for what scripts/profile_steps.py and bench_server.py wrote
there, `learning` for results/equal_learning.json, or `computed_scale` for what scripts/sizing.py computed.
"""

import argparse
import hashlib
import json
import re
import unicodedata
from pathlib import Path

from adgen import ROOT, fail, whole_file

RESULTS = ROOT / "results"
READMES = {"en": "README.md", "zh": "README_zh.md"}
MARKED = re.compile(r"(<!-- results:begin (\S+) -->\n).*?(<!-- results:end -->)", re.DOTALL)
# What an English or Chinese document calls things; names that do not stand here are shown as they are.
WORDS = {
    "en": {
        "base": "before fine-tuning",
        "tuned": "after fine-tuning",
        "tuned - base": "difference",
        "reference": "the reference itself",
        "nearest": "ad of the most similar training row",
        "template": "a fixed sentence with the values in it",
        "random": "any training ad",
        "rouge-mean": "mean of ROUGE-1/2/L",
        "corpus": "corpus BLEU",
        "computed": "{gpu}, computed: rows/s",
        "bench": "{gpu}, {memory_gib:.0f} GiB, driver {driver}; bf16 matrix products of {size}: {tflops:.3g} TFLOP/s.",
        "profile": "{gpu}, shares of a step's time, without the profiler:",
        "served": "{gpu}, at most {max_tokens} tokens an ad; seconds are medians:",
        "bound": "Times plain: {ratios}. The whole matrix rate, nothing done twice: {rows:.0f} rows/s, {times:.0f}.",
        "failed": "failed",
        "strategy": "strategy; on {cards} cards",
        "scale": "Computed, not measured: {gpu}, {memory_gib:.0f} GiB, {tflops:.0f} TFLOP/s, {wire_gb_per_s:.0f} GB/s.",
        "check": "`{recipe}`, 1 card: {computed_gib:.1f} GiB; measured {measured_gib:.1f} ({error:+.0%}).",
    },
    "zh": {
        "system": "系统",
        "source": "出处",
        "rows": "行数",
        "coverage": "属性覆盖率",
        "hallucination": "编造率",
        "base": "微调前",
        "tuned": "微调后",
        "tuned - base": "差值",
        "reference": "参考文案本身",
        "nearest": "最相似训练行的文案",
        "template": "填入属性值的固定句子",
        "random": "任意训练文案",
        "rouge-mean": "ROUGE-1/2/L 均值",
        "corpus": "语料级 BLEU",
        "run": "运行",
        "settings": "配方与改动",
        "rows/s": "行/秒",
        "tokens/s": "token/秒",
        "peak GiB": "峰值 GiB",
        "run s": "全程秒数",
        "first step s": "首步秒数",
        "matmul share": "占矩阵乘算力",
        "spread": "波动",
        "computed": "{gpu} 推算值：行/秒",
        "bench": "{gpu}，{memory_gib:.0f} GiB，驱动 {driver}；{size} 阶 bf16 矩阵乘：{tflops:.3g} TFLOP/s。",
        "step s": "一步秒数",
        "attention": "注意力",
        "4-bit weights": "4 位权重还原",
        "matrix products": "矩阵乘",
        "fused by Liger": "Liger 融合核",
        "copies and casts": "拷贝与转型",
        "other": "其他",
        "no kernel": "GPU 空等",
        "profile": "{gpu}，各类核占一步时间的比例（时间不含性能分析器的开销）：",
        "clients": "同时请求数",
        "ads/s": "文案/秒",
        "first words s": "首字秒数",
        "whole ad s": "整条秒数",
        "served": "{gpu}，每条文案至多 {max_tokens} 个 token；秒数为中位数：",
        "bound": "plain 的倍数：{ratios}。矩阵乘算力用满、没有任何重复计算：每秒 {rows:.0f} 行，{times:.0f} 倍。",
        "failed": "失败",
        "learning rate": "学习率",
        "warm-up": "预热",
        "steps": "步数",
        "validation loss": "验证损失",
        "model": "模型",
        "strategy": "策略；卡数 {cards}",
        "GiB a card": "每卡 GiB",
        "GB sent a step": "每步每卡发送 GB",
        "scales to": "可扩展到",
        "scale": "推算值，非实测：{gpu}，{memory_gib:.0f} GiB，{tflops:.0f} TFLOP/s，卡间 {wire_gb_per_s:.0f} GB/s。",
        "check": "`{recipe}` 单卡：推算 {computed_gib:.1f} GiB，实测 {measured_gib:.1f}（{error:+.0%}）。",
    },
}


def width(text: str) -> int:
    """Columns that a text takes in a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def align(lines: list[list[str]]) -> str:
    """Rows of cells as text: the first column flush left, the others flush right."""
    widths = [max(width(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ""
    for line in lines:
        padded = [" " * (room - width(cell)) for room, cell in zip(widths, line, strict=True)]
        text += "  ".join([line[0] + padded[0], *(pad + cell for pad, cell in zip(padded[1:], line[1:], strict=True))])
        text = text.rstrip() + "\n"
    return text


def markdown(lines: list[list[str]]) -> str:
    """Rows of cells, the head first, as a Markdown table."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---"] + ["---:"] * (len(lines[0]) - 1)
    return "".join("| " + " | ".join(line) + " |\n" for line in [lines[0], rule, *lines[1:]])


def show(score: str, entry: dict | None, sign: str = "") -> str:
    """A score with half the width of its 95% interval."""
    import scores

    if entry is None:
        return "–"
    digits = scores.SCORES[score][1]
    low, high = entry["ci95"]
    return f"{entry['value']:{sign}.{digits}f} ±{(high - low) / 2:.{digits}f}"


def better(score: str, one: dict, other: dict) -> bool:
    """Whether one system's scores beat another's in this score; a score that one of them lacks is not beaten."""
    import scores

    if score not in one or score not in other:
        return False
    gap = one[score]["value"] - other[score]["value"]
    return gap > 0 if scores.SCORES[score][2] else gap < 0


def healthy_models(results: dict) -> list[str]:
    """The models (not the systems that need none) whose health has nothing against crowning them."""
    return [name for name, warnings in results["health"].items() if not warnings]


def find_best(results: dict) -> str | None:
    """The healthy model that beats the other healthy ones most often in the six main scores, if there is one."""
    import scores

    models = healthy_models(results)
    rows = results["systems"]

    def wins(name: str) -> tuple[int, float]:
        won = sum(better(score, rows[name], rows[other]) for score in scores.MAIN for other in models)
        return won, rows[name]["coverage"]["value"] - rows[name]["hallucination"]["value"]

    return max(models, key=wins, default=None)


def verdict(results: dict) -> str:
    """Warnings, which model is best, and whether it beats what needs no model, in plain words."""
    import scores

    text = "".join(f"! {name}: {warning}.\n" for name, warnings in results["health"].items() for warning in warnings)
    best = results["crowned"]
    if not best:
        return text + "No model is crowned: see the lines marked with !.\n"
    text += f"Best model: {best}.\n"
    for name, words in (("nearest", "copying the most similar training ad"), ("template", "a fixed template")):
        if name in results["systems"]:
            row, other = results["systems"][best], results["systems"][name]
            lost = [scores.SCORES[score][0] for score in scores.MAIN if not better(score, row, other)]
            text += f"It beats {words} in {len(scores.MAIN) - len(lost)} of {len(scores.MAIN)} scores"
            text += f", not in {', '.join(lost)}.\n" if lost else ".\n"
    return text


def format_results(results: dict) -> str:
    """The scores as two aligned tables with 95% intervals, and the verdict."""
    import scores

    models = healthy_models(results)
    systems, text = results["systems"], ""
    # With one model alone, every mark would be its.
    marks = {
        (name, score)
        for score in scores.MAIN
        for name in models
        if len(results["health"]) > 1 and not any(better(score, systems[other], systems[name]) for other in models)
    }
    shown = [score for score in scores.SCORES if any(score in row for row in systems.values())]
    for part in (shown[:6], shown[6:]):
        lines = [["", *(scores.SCORES[score][0] for score in part)]]
        for name, row in systems.items():
            cells = [show(score, row.get(score)) + ("*" if (name, score) in marks else " ") for score in part]
            lines.append([name + " !" * bool(results["health"].get(name)), *cells])
        if results["tuned - base"]:
            row = results["tuned - base"]
            lines.append(["tuned - base", *(show(score, row.get(score), "+") + " " for score in part)])
        text += align(lines) + "\n"
    legend = "± half the 95% interval" + ("; * best healthy model" if marks else "") + ".\n"
    return text + legend + verdict(results)


def read_json(path: Path) -> dict:
    """A JSON file of results/; ends the program when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read ({error}); `make eval` writes eval_results.json")


def is_adgen_dev(contents: list[str], references: list[str]) -> bool:
    """Whether these are the rows that published results are on, whatever file they stand in."""
    rows = "\n".join("".join(f"{content}\t{ad}".split()) for content, ad in zip(contents, references, strict=True))
    return (
        hashlib.sha256(rows.encode("utf-8", "replace")).hexdigest()
        == read_json(RESULTS / "published.json")["rows_sha256"]
    )


def published_cells(result: dict, language: str) -> list[str]:
    """A published result's four scores; other kinds of score say what they are."""
    import scores

    values = {score: f"{result[score]:.2f}" if score in result else "–" for score in scores.OVERLAP}
    for kind, place in (("rouge-mean", "rouge-1"), ("corpus-bleu", "bleu-4")):
        if kind in result:
            words = WORDS[language]["rouge-mean" if kind == "rouge-mean" else "corpus"]
            values[place] = f"{result[kind]:.2f} ({words})"
    return list(values.values())


def format_published() -> str:
    """The published results on AdGen's dev rows as an aligned table; † marks figures that cannot be checked."""
    published = read_json(RESULTS / "published.json")
    lines = [["published elsewhere", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"]]
    for result in published["results"]:
        if result["procedure"] in ("A", None):
            lines.append([result["system"] + " †" * (result["procedure"] is None), *published_cells(result, "en")])
    return align(lines) + "† rows or procedure were never published. Sources: results/published.json.\n"


def readme_published(language: str) -> str:
    """The published results as a Markdown table with their sources."""
    published = read_json(RESULTS / "published.json")
    words = WORDS[language]
    lines = [[words.get("system", "system"), "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", words.get("rows", "rows")]]
    lines[0].append(words.get("source", "source"))
    for result in published["results"]:
        mark = " †" if result["procedure"] is None else ""
        source = f"[{result['source']}]({result['url']})" if "url" in result else result["source"]
        rows = f"{result['rows']:,}" if result["rows"] else "?"
        lines.append([result["system"] + mark, *published_cells(result, language), rows, source])
    return markdown(lines) + "\n" + published["procedures"][language] + "\n"


def readme_results(name: str, language: str) -> str:
    """The six main scores of results/NAME as a Markdown table, with rows, decoding and health."""
    import scores

    results = read_json(RESULTS / name / "eval_results.json")
    words = WORDS[language]
    lines = [["", *(words.get(score, scores.SCORES[score][0]) for score in scores.MAIN)]]
    gaps = {"tuned - base": results["tuned - base"]} if results["tuned - base"] else {}
    for rows, sign in ((results["systems"], ""), (gaps, "+")):
        for system, row in rows.items():
            mark = " ⚠" if results["health"].get(system) else ""
            cells = [show(score, row.get(score), sign) for score in scores.MAIN]
            if system == results["crowned"]:
                cells = [f"**{cell}**" for cell in cells]
            lines.append([words.get(system, system) + mark, *cells])
    split = f"{results['split']['rows']:,} × `{results['split']['file']}` (sha256 `{results['split']['sha256'][:12]}`)"
    decoding = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in (results["decoding"] or {}).items()) or "?"
    trained = f"{results['train']['rows']:,}" if results["train"] else "?"
    if language == "zh":
        text = f"训练行：{trained}；评测行：{split}；解码：{decoding}；±：95% 区间的一半。"
    else:
        text = f"Training rows: {trained}; rows scored: {split}; decoding: {decoding}; ±: half the 95% interval."
    text = markdown(lines) + f"\n{text}\n"
    for system, warnings in results["health"].items():
        text += "".join(f"\n⚠ {words.get(system, system)}: {warning}.\n" for warning in warnings)
    return text


def bench_lines(results: dict, language: str = "en") -> list[list[str]]:
    """The runs of a file of results/bench as cells; memory is the GPU's, or the process's where there was none."""
    words = WORDS[language]
    shown = ("rows_per_s", "tokens_per_s", "peak_gib", "seconds", "time_to_first_step_s", "matmul_share", "spread")
    heads = ("run", "rows/s", "tokens/s", "peak GiB", "run s", "first step s", "matmul share", "spread")
    lines = [[words.get(head, head) for head in heads]]
    computed = results.get("computed")
    if computed:
        lines[0].append(words["computed"].format(**computed))
    for run in results["runs"]:
        values = {"peak_gib": run.get("peak_rss_gib")} | run
        cells = [show_figure(key, values.get(key)) for key in shown]
        if computed:
            ends = dict.fromkeys(f"{value:.2g}" for value in run.get("computed_rows_per_s", ()))
            cells.append("–".join(ends) or "–")
        lines.append([run["name"], *cells])
    return lines


def profile_lines(results: dict, language: str = "en") -> list[list[str]]:
    """What a file of scripts/profile_steps.py holds as cells: shares of a step's time."""
    words, kinds = WORDS[language], list(results["profiled"][0]["shares"])
    lines = [[words.get(head, head) for head in ("run", "step s", *kinds)]]
    for run in results["profiled"]:
        shares = (f"{run['shares'][kind]:.0%}" for kind in kinds)
        lines.append([run["name"], show_figure("step_s", run["step_s"]), *shares])
    return lines


def show_figure(key: str, value: float | None) -> str:
    """A measured figure: shares in per cent, others with at least two digits."""
    if value is None:
        return "–"
    if key in ("matmul_share", "spread"):
        return f"{value:.0%}"
    return f"{value:,.{2 if value < 1 else 1 if value < 100 else 0}f}"


def ratios(runs: list[dict]) -> str:
    """How many times faster than the copied settings of its kind each run is."""
    speeds = {run["name"]: run["rows_per_s"] for run in runs if "rows_per_s" in run}
    pairs = []
    for name, speed in speeds.items():
        slow = "predict_plain" if name.startswith("predict") else "plain"
        if slow in speeds and slow != name:
            pairs.append(f"{name} {show_figure('times', speed / speeds[slow])}")
    return ", ".join(pairs)


def readme_bench(language: str) -> str:
    """Every file of results/bench as a Markdown table, with what each run is, and failures below."""
    words = WORDS[language]
    files = [read_json(path) for path in sorted((RESULTS / "bench").glob("*.json"))]
    texts = []
    for results in (results for results in files if "runs" in results):
        lines = bench_lines(results, language)
        settings = [words.get("settings", "settings")]
        for run in results["runs"]:
            pairs = [f"{key}={value}" for key, value in run["overrides"].items()]
            variables = run["command"].split("llamafactory-cli")[0].split()
            settings.append(" ".join(f"`{word}`" for word in [*variables, run["recipe"], *pairs]))
        versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        table = markdown([[line[0], cell, *line[1:]] for line, cell in zip(lines, settings, strict=True)])
        texts.append(f"{words['bench'].format(**results, **results['matmul'])} {versions}.\n\n{table}")
        # Another model's rows cost more, or less.
        folders = {Path(run["recipe"]).parent for run in results["runs"] if run["name"] == "plain"}
        alike = [run for run in results["runs"] if Path(run["recipe"]).parent in folders]
        counted = {run["name"]: run for run in alike if "operations_per_row" in run}
        if "plain" in counted and len(counted) > 1:
            least = min(run["operations_per_row"] for run in counted.values())
            rows = results["matmul"]["tflops"] * 1e12 / least
            times = rows / counted["plain"]["rows_per_s"]
            texts.append(words["bound"].format(rows=rows, times=times, ratios=ratios(alike)) + "\n")
        failed = [run for run in results["runs"] if "error" in run]
        texts += [f"`{run['name']}` {words['failed']}: {escape(run['error'])}\n" for run in failed]
    return "\n".join(texts) or fail(f"{RESULTS / 'bench'} holds no measurements; `make bench` writes them")


def readme_profile(language: str) -> str:
    """Where the time of a step goes, a Markdown table for each card."""
    files = [read_json(path) for path in sorted((RESULTS / "bench").glob("profile-*.json"))]
    tables = (markdown(profile_lines(results, language)) for results in files)
    heads = (WORDS[language]["profile"].format(**results) for results in files)
    return "\n".join(f"{head}\n\n{table}" for head, table in zip(heads, tables, strict=True))


def readme_served(language: str) -> str:
    """What a server's clients get, a Markdown table for each card."""
    words, texts = WORDS[language], []
    for results in map(read_json, sorted((RESULTS / "bench").glob("server-*.json"))):
        lines = [[words.get(head, head) for head in ("clients", "ads/s", "first words s", "whole ad s")]]
        for run in results["served"]:
            figures = (run["requests_per_s"], run["first_words_s"]["median"], run["whole_ad_s"]["median"])
            lines.append([str(run["clients"]), *(show_figure("served", figure) for figure in figures)])
        texts.append(f"{words['served'].format(**results)}\n\n{markdown(lines)}")
    return "\n".join(texts)


def readme_learning(language: str) -> str:
    """The validation loss by settings, learning rate and warm-up, after the same rows."""
    results = read_json(RESULTS / "equal_learning.json")
    heads = ("run", "learning rate", "warm-up", "steps", "validation loss")
    lines = [[WORDS[language].get(head, head) for head in heads]]
    for run in results["runs"]:
        cells = [f"{run['learning_rate']:.1e}", str(run["warmup_ratio"]), str(run["steps"]), f"{run['val_loss']:.3f}"]
        lines.append([run["run"], *cells])
    return markdown(lines)


def readme_scale(language: str) -> str:
    """The computed figures as a Markdown table; cells hold a figure for each number of cards."""
    words, results = WORDS[language], read_json(RESULTS / "computed_scale.json")
    cards = " / ".join(map(str, results["entries"][0]["cards"]))
    heads = ["model", "strategy", "GiB a card", "GB sent a step", "rows/s", "scales to"]
    lines = [[words.get(head, head).format(cards=cards) for head in heads]]
    for entry in results["entries"]:
        row = [entry["model"], f"{entry['strategy']}, {Path(entry['recipe']).stem}"]
        for key in ("memory_gib", "wire_gb_per_step", "rows_per_s"):
            row.append(
                " / ".join(
                    "–" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in entry[key]
                )
            )
        lines.append([*row, str(entry["scales_to"])])
    checks = "".join("\n" + words["check"].format(**row) + "\n" for row in results["check"])
    return words["scale"].format(**results["card"]) + "\n\n" + markdown(lines) + checks


def rewrite(text: str, language: str) -> str:
    """A README's text with the tables between its marks as results/ has them now."""

    def table(match: re.Match) -> str:
        special = {"published": readme_published, "bench": readme_bench, "learning": readme_learning}
        special |= {"computed_scale": readme_scale, "profile": readme_profile, "served": readme_served}
        name = match[2]
        return match[1] + (special[name](language) if name in special else readme_results(name, language)) + match[3]

    return MARKED.sub(table, text)


def escape(text: str) -> str:
    """A text on one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")


def format_examples(systems: dict[str, list[str]], contents: list[str], references: list[str], values) -> str:
    """Ten rows, evenly spread, as Markdown: each system's ad and the reference, what they keep and what they invent.

    `values` is the vocabulary of attribute values, as `scores.vocabulary` gives it.
    """
    import scores

    rows = min(len(texts) for texts in systems.values())
    text = "# Examples\n\n✓ the value stands in the ad; ✗ it does not; ⚠ **a value** that the product does not have.\n"
    for number in sorted({rows * step // 10 for step in range(10)}):
        content = contents[number]
        lines = [["", "ad", "attributes"]]
        for name, ad in [
            *((name, texts[number]) for name, texts in systems.items()),
            ("reference", references[number]),
        ]:
            kept = " ".join("✓✗"[not hit] + escape(value) for (_, value), hit in scores.covered(content, ad).items())
            shown = escape(ad)
            bad = sorted(map(escape, scores.invented(content, ad, values)[1]), key=len, reverse=True)
            if bad:
                shown = re.sub("|".join(map(re.escape, bad)), r"⚠**\g<0>**", shown)
            lines.append([escape(name), shown or "(empty)", kept])
        shown = "".join(content.replace("`", "'").splitlines())
        head = f"\n## Row {number + 1}\n\n`{shown}`\n\n"
        # The cells are escaped already.
        text += head + "".join("| " + " | ".join(line) + " |\n" for line in [lines[0], ["---"] * 3, *lines[1:]])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for language, name in READMES.items():
        path = ROOT / name
        if not path.exists():
            fail(f"{path} does not exist")
        old = path.read_text(encoding="utf-8")
        new = rewrite(old, language)
        if new != old:
            with whole_file(path) as file:
                file.write(new)
        print(f"{name}: {len(MARKED.findall(old))} tables, {'rewritten' if new != old else 'unchanged'}")


if __name__ == "__main__":
    main()
