"""The picture of a report: scores with their intervals, attributes by key, and lengths of ads."""

import warnings
from pathlib import Path

from lib.files import whole_file
from lib.metrics import OVERLAP, SCORES

# matplotlib is imported where it draws: it takes half a second, and an error or --help should come at once.

FONT = Path(__file__).with_name("fonts") / "ad_labels.otf"
# These fonts have all Chinese characters and are used if they are installed. The one above has a thousand.
CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei")
COLOURS = ("#8d99a6", "#d1495b", "#2e86ab", "#66a182", "#edae49", "#8d6a9f", "#00798c", "#775144")
BASELINE_COLOURS = {"nearest": "#e8b87a", "template": "#c9b6d8", "random": "#dcdcc8", "reference": "#222222"}
# An attribute key on fewer rows than this is left out, because its intervals would be as wide as the picture.
FEWEST_ROWS = 20


def load_pyplot():
    """matplotlib.pyplot, set up to draw to files, with a font that has the Chinese labels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

    font_manager.fontManager.addfont(FONT)
    installed = [name for name in CHINESE if name in font_manager.get_font_names()]
    plt.rcParams.update({"font.family": ["DejaVu Sans", "Ad Labels", *installed], "axes.axisbelow": True})
    # A dollar sign in a name or an attribute does not start a formula.
    plt.rcParams.update({"text.parse_math": False})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
    return plt


def save(figure, picture: Path) -> None:
    """Writes a figure as a PNG file. The same figure gives the same bytes, because no version stands in the file."""
    with warnings.catch_warnings(), whole_file(picture, "wb") as file:
        # A character that the fonts lack is drawn as a box. The terminal need not hear of it.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})


def plot_scores(results: dict, lengths: dict[str, list[int]], picture: Path) -> None:
    """Draws the scores of all systems, the attributes kept and invented by key, and the lengths of the ads.

    `results`: an eval_results.json. `lengths`: system → the number of characters of each of its ads; the reference
    has to be one of the systems.
    """
    plt = load_pyplot()
    models = list(results["health"])
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(models)} | BASELINE_COLOURS
    keys = shown_keys(results["by_key"]["rows"])
    rows = max(len(keys), 6)
    figure = plt.figure(figsize=(15, 5.2 + 0.27 * rows), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[5, 0.6 + 0.27 * rows])
    overlap, attributes, length = top.subplots(1, 3, width_ratios=[1.5, 1, 1])
    draw_bars(overlap, results["systems"], OVERLAP, colours)
    overlap.set_title("Overlap with the reference, 0–100: more is better")
    overlap.set_ylim(0, 1.15 * max(bar.get_height() for bar in overlap.patches) or 1)
    draw_bars(attributes, results["systems"], ("coverage", "hallucination"), colours)
    attributes.set_title("Attributes kept: more is better; invented: less is")
    draw_lengths(length, lengths, colours)
    covered, invented = bottom.subplots(1, 2, sharey=True)
    shown = [*models, "reference"]
    draw_keys(covered, results["by_key"], "coverage", keys, shown, colours)
    covered.set_title("Share of the attributes kept, by key (in brackets: rows with it)")
    draw_keys(invented, results["by_key"], "hallucination", keys, shown, colours)
    invented.set_title("Share of the attributes in the ads that are invented, by key")
    # Each system once, although both pictures have bars of it, and the dotted line once.
    legend = dict(zip(*reversed(overlap.get_legend_handles_labels()), strict=True))
    legend |= dict(zip(*reversed(attributes.get_legend_handles_labels()), strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=9, frameon=False)
    save(figure, picture)
    plt.close(figure)


def shown_keys(rows: dict[str, int]) -> list[str]:
    """The attribute keys on enough rows; if there are none, the ten on most. `rows`: key → rows, most first."""
    keys = [key for key in rows if key != "类型"]
    return [key for key in keys if rows[key] >= FEWEST_ROWS] or keys[:10]


def error_bars(entries: list[dict]) -> list[list[float]]:
    """How far the intervals reach below and above the values, as matplotlib takes it.

    It is never negative: rounding may put a value just outside its own percentile interval.
    """
    below = [max(0, entry["value"] - entry["ci95"][0]) for entry in entries]
    return [below, [max(0, entry["ci95"][1] - entry["value"]) for entry in entries]]


def draw_bars(axes, systems: dict, shown: tuple[str, ...], colours: dict[str, str]) -> None:
    """Draws scores as bars with their intervals, a group for each score. The reference's scores are dotted lines.

    Its overlap scores are left out: they are 100 by definition.
    """
    names = [name for name in systems if name != "reference"]
    wide = 0.84 / len(names)
    for place, name in enumerate(names):
        bars = [systems[name][score] for score in shown]
        at = [group + (place + 0.5) * wide - 0.42 for group in range(len(shown))]
        heights = [bar["value"] for bar in bars]
        errors = {"yerr": error_bars(bars), "error_kw": {"lw": 0.9}}
        axes.bar(at, heights, wide * 0.94, color=colours[name], label=name, **errors)
    for group, score in enumerate(shown):
        if "reference" in systems and score not in OVERLAP:
            value = systems["reference"][score]["value"]
            axes.hlines(value, group - 0.44, group + 0.44, color="#222222", ls=":", label="reference")
    axes.set_xticks(range(len(shown)), [SCORES[score].label for score in shown])
    axes.grid(visible=False, axis="x")


def draw_lengths(axes, lengths: dict[str, list[int]], colours: dict[str, str]) -> None:
    """Draws the distribution of the ads' lengths by system.

    The axis ends at three times the longest reference. A longer ad is drawn there.
    """
    edge = min(max(map(max, lengths.values())), 3 * max(lengths["reference"])) or 1
    bins = [edge * step / 40 for step in range(41)]
    for name, counts in lengths.items():
        clipped = [min(count, edge) for count in counts]
        style = {"histtype": "stepfilled", "alpha": 0.15} if name == "reference" else {"histtype": "step", "lw": 1.8}
        axes.hist(clipped, bins, weights=[100 / len(counts)] * len(counts), color=colours[name], **style)
    axes.set(title="Length of the ads (shaded: references)", xlabel="characters", ylabel="% of the ads")


def draw_keys(axes, by_key: dict, score: str, keys: list[str], systems: list[str], colours: dict[str, str]) -> None:
    """Draws a score by attribute key: a line for each key, and on it a dot with its interval for each system."""
    for place, name in enumerate(systems):
        found = [(row, by_key["systems"][name][key].get(score)) for row, key in enumerate(keys)]
        found = [(row, entry) for row, entry in found if entry]
        # The dots of one key stand below each other, so that none hides another.
        shift = 0.5 * (place - (len(systems) - 1) / 2) / len(systems)
        values, errors = [entry["value"] for _, entry in found], error_bars([entry for _, entry in found])
        at = [row + shift for row, _ in found]
        axes.errorbar(values, at, xerr=errors, fmt="o", ms=4.5, lw=1, color=colours[name])
    axes.set_yticks(range(len(keys)), [f"{key} ({by_key['rows'][key]})" for key in keys])
    axes.set(xlim=(-0.03, 1.03), ylim=(len(keys) - 0.4, -0.6))
