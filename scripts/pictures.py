"""The pictures of a report: scores with their intervals, attributes by key, lengths of ads, and the loss by step."""

import warnings
from pathlib import Path

from adgen import fail, read_json_lines, whole_file

FONT = Path(__file__).with_name("fonts") / "ad_labels.otf"
# Fonts with all Chinese characters, used where they are installed; the one above has a thousand.
CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei")
COLOURS = ("#8d99a6", "#d1495b", "#2e86ab", "#66a182", "#edae49", "#8d6a9f", "#00798c", "#775144")
MODEL_FREE = {"nearest": "#e8b87a", "template": "#c9b6d8", "random": "#dcdcc8", "reference": "#222222"}
# Attribute keys rarer than this are left out: their intervals are as wide as the picture.
FEWEST = 20


def start():
    """Gives matplotlib.pyplot, drawing to files and with a font that has the Chinese labels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

    font_manager.fontManager.addfont(FONT)
    installed = [name for name in CHINESE if name in font_manager.get_font_names()]
    plt.rcParams.update({"font.family": ["DejaVu Sans", "Ad Labels", *installed], "axes.axisbelow": True})
    # A dollar sign in a name or an attribute is no formula.
    plt.rcParams.update({"text.parse_math": False})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
    return plt


def save(figure, picture: Path) -> None:
    """Writes a figure as PNG, the same bytes for the same figure."""
    with warnings.catch_warnings(), whole_file(picture, "wb") as file:
        # A rare character in a label is drawn as a box; that is no news for the terminal.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})


def read_losses(log: Path) -> dict[str, list[tuple[int, float]]]:
    """Training and validation loss by optimiser step, from LLaMA-Factory's trainer_log.jsonl; a later line wins."""
    losses = {"loss": {}, "eval_loss": {}}
    for row in read_json_lines(log):
        for name, points in losses.items():
            step = row.get("current_steps")
            if isinstance(step, int) and is_number(step) and is_number(row.get(name)):
                points[step] = row[name]
    if not losses["loss"]:
        fail(f"{log} holds no loss by step: is it LLaMA-Factory's trainer_log.jsonl of a training run?")
    return {name: sorted(points.items()) for name, points in losses.items()}


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that a picture can show; a loss that is not a number, NaN, is left in."""
    return isinstance(value, int | float) and not abs(value) > 1e15


def plot_loss(losses: dict[str, list[tuple[int, float]]], picture: Path) -> None:
    """Training and validation loss by step."""
    plt = start()
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    marker = "o" if len(losses["loss"]) < 3 else None
    axes.plot(*zip(*losses["loss"], strict=True), color="#8fb3cc", marker=marker, label="training rows")
    if losses["eval_loss"]:
        step, lowest = min(losses["eval_loss"], key=lambda point: point[1])
        axes.plot(*zip(*losses["eval_loss"], strict=True), color="#d1495b", marker="o", ms=4, label="validation rows")
        axes.annotate(f"lowest: {lowest:.3f}", (step, lowest), (0, 9), textcoords="offset points", ha="center")
    axes.set(xlabel="optimiser step", ylabel="loss (nats per token)", title="Loss while fine-tuning")
    axes.legend(frameon=False)
    save(figure, picture)
    plt.close(figure)


def plot_scores(results: dict, lengths: dict[str, list[int]], picture: Path) -> None:
    """Scores by system, attributes kept and invented by key, and lengths, from the parts of eval_results.json.

    `lengths`: system → characters of each of its ads, the reference's among them.
    """
    plt = start()
    models = list(results["health"])
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(models)} | MODEL_FREE
    keys = [key for key, rows in results["by_key"]["rows"].items() if rows >= FEWEST and key != "类型"]
    keys = keys or [key for key in results["by_key"]["rows"] if key != "类型"][:10]
    figure = plt.figure(figsize=(15, 5.2 + 0.27 * max(len(keys), 6)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[5, 0.6 + 0.27 * max(len(keys), 6)])
    overlap, attributes, length = top.subplots(1, 3, width_ratios=[1.5, 1, 1])
    draw_bars(overlap, results["systems"], ("bleu-4", "rouge-1", "rouge-2", "rouge-l"), colours)
    overlap.set_title("Overlap with the reference, 0–100: more is better")
    overlap.set_ylim(0, 1.15 * max(bar.get_height() for bar in overlap.patches) or 1)
    draw_bars(attributes, results["systems"], ("coverage", "hallucination"), colours)
    attributes.set_title("Attributes kept: more is better; invented: less")
    draw_lengths(length, lengths, colours)
    covered, invented = bottom.subplots(1, 2, sharey=True)
    shown = [*models, "reference"]
    draw_keys(covered, results["by_key"], "coverage", keys, shown, colours)
    covered.set_title("Attributes kept, by key (in brackets: rows with it)")
    draw_keys(invented, results["by_key"], "hallucination", keys, shown, colours)
    invented.set_title("Attributes invented, of those of the key that stand in the ads")
    # Bars by name, and the dotted line once.
    legend = dict(zip(*reversed(overlap.get_legend_handles_labels()), strict=True))
    legend |= dict(zip(*reversed(attributes.get_legend_handles_labels()), strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=9, frameon=False)
    save(figure, picture)
    plt.close(figure)


def draw_bars(axes, systems: dict, shown: tuple[str, ...], colours: dict[str, str]) -> None:
    """Scores as bars with their intervals, a group for each score; the reference's as dotted lines where below 100."""
    import scores

    names = [name for name in systems if name != "reference"]
    wide = 0.84 / len(names)
    for place, name in enumerate(names):
        bars = [systems[name][score] for score in shown]
        at = [group + (place + 0.5) * wide - 0.42 for group in range(len(shown))]
        heights = [bar["value"] for bar in bars]
        # A percentile interval may leave its value out by a rounding.
        errors = [[max(0, bar["value"] - bar["ci95"][0]) for bar in bars]]
        errors += [[max(0, bar["ci95"][1] - bar["value"]) for bar in bars]]
        axes.bar(at, heights, wide * 0.94, color=colours[name], label=name, yerr=errors, error_kw={"lw": 0.9})
    for group, score in enumerate(shown if "reference" in systems else ()):
        if scores.SCORES[score][1] == 3:
            value = systems["reference"][score]["value"]
            axes.hlines(value, group - 0.44, group + 0.44, color="#222222", ls=":", label="reference")
    axes.set_xticks(range(len(shown)), [scores.SCORES[score][0] for score in shown])
    axes.grid(visible=False, axis="x")


def draw_lengths(axes, lengths: dict[str, list[int]], colours: dict[str, str]) -> None:
    """The distribution of ad lengths by system; what is longer than three of the longest references is drawn there."""
    edge = min(max(map(max, lengths.values())), 3 * max(lengths["reference"])) or 1
    bins = [edge * step / 40 for step in range(41)]
    for name, counts in lengths.items():
        clipped = [min(count, edge) for count in counts]
        style = {"histtype": "stepfilled", "alpha": 0.15} if name == "reference" else {"histtype": "step", "lw": 1.8}
        axes.hist(clipped, bins, weights=[100 / len(counts)] * len(counts), color=colours[name], **style)
    axes.set(title="Length of the ads (shaded: references)", xlabel="characters", ylabel="% of the ads")


def draw_keys(axes, by_key: dict, score: str, keys: list[str], systems: list[str], colours: dict[str, str]) -> None:
    """A score by attribute key: a line for each key, a dot with its interval for each system."""
    for place, name in enumerate(systems):
        entries = [(row, by_key["systems"][name][key].get(score)) for row, key in enumerate(keys)]
        entries = [
            (row + 0.5 * (place - (len(systems) - 1) / 2) / len(systems), entry) for row, entry in entries if entry
        ]
        values = [entry["value"] for _, entry in entries]
        errors = [[max(0, entry["value"] - entry["ci95"][0]) for _, entry in entries]]
        errors += [[max(0, entry["ci95"][1] - entry["value"]) for _, entry in entries]]
        axes.errorbar(values, [row for row, _ in entries], xerr=errors, fmt="o", ms=4.5, lw=1, color=colours[name])
    axes.set_yticks(range(len(keys)), [f"{key} ({by_key['rows'][key]})" for key in keys])
    axes.set(xlim=(-0.03, 1.03), ylim=(len(keys) - 0.4, -0.6))
