"""The part of the desk on which editors read the ads of a list: they choose, edit, approve or reject each of them."""

import html
import secrets
import tempfile
import time
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from lib import reviews
from lib.attributes import parse_attributes
from lib.candidates import known_products
from lib.marking import show
from lib.metrics import Values, vocabulary
from lib.reviews import Item, Review, Stale, State

# What an editor sees: the list, the row and its version, and a number for the editor. The browser keeps it and sends it
# with all that the editor does; so a second click, which comes too late, does not decide the next row.
Seen = dict
States = dict[int, State]
WORDS = {"open": "待定", "approve": "通过", "reject": "退回", "all": "全部"}
REASONS = ("内容不实", "语句不通", "用词违规", "不合品牌")
# Editor → the list and the row on the screen, and since when. It counts for so many seconds.
READERS: dict[str, tuple[str, int, float]] = {}
READING = 120


def complaint(words: str):
    """The error with which the page says what is wrong."""
    import gradio as gr

    return gr.Error(html.escape(words), title="出错了", print_exception=False)


# --- lists ---


@cache
def products() -> list[str]:
    """The attribute strings of the training data."""
    return known_products()


def read(path: Path) -> Review:
    """A table as a list. Complains if it cannot be read."""
    try:
        return reviews.read_review(path, {key for product in products() for key, _ in parse_attributes(product)})
    except SystemExit as end:
        raise complaint(f"这张表打不开：{str(end.code).removeprefix('error: ')}") from None


def keep(path: Path) -> str:
    """Keeps a table as a list; returns its name there, or nothing if the table has no ads."""
    return reviews.keep(path) if read(path).items else ""


@lru_cache(maxsize=4)
def open_list(name: str) -> tuple[Review, Values]:
    """A list, and the values that are looked for in its ads, see `lib.metrics.vocabulary`."""
    if name not in reviews.list_names():
        raise complaint("没有这张表")
    review = read(reviews.FOLDER / name)
    if not review.items:
        raise complaint("这张表里没有文案")
    with reviews.locked():
        reviews.write_feedback(review, reviews.read_decisions(review))
    return review, vocabulary([*products(), *(item.product for item in review.items.values())])


def labels() -> list[tuple[str, str]]:
    """What the page calls each list, and its name; the one that was worked on last comes first."""
    found = []
    for name in reviews.list_names():
        made = time.localtime((reviews.FOLDER / name).stat().st_mtime)
        found.append((f"{name.rpartition('-')[0]}{Path(name).suffix}（{time.strftime('%m-%d %H:%M', made)}）", name))
    return found


def next_open(name: str, states: States, row: int, editor: str) -> int:
    """The open row after this one, or the first one; this row if none is open. Rows that others read come last."""
    others = [place for reader, place in list(READERS.items()) if reader != editor]
    read = {other for there, other, since in others if there == name and time.monotonic() - since < READING}
    rows = [other for other, state in states.items() if state.decision == "open" and other != row]
    return min(rows, key=lambda other: (other in read, other < row), default=row)


# --- what is shown ---


def view(seen: Seen, row: int, only: str) -> list:
    """What the page shows of a row: Seen, the counts, the card, the fields for its text and a reason, the other ads."""
    import gradio as gr

    name, editor = seen["list"], seen["editor"]
    review, values = open_list(name)
    states = reviews.read_states(review)
    state, item = states[row], review.items[row]
    READERS[editor] = name, row, time.monotonic()
    counts = reviews.count(states) | {"all": len(states)}
    counted = gr.Radio([(f"{word} {counts[key]}", key) for key, word in WORDS.items()], value=only)
    seen = {"list": name, "row": row, "version": state.version, "editor": editor}
    return [seen, counted, card(review, states, row, state.ad, values), state.ad, "", others(item, state, values), ""]


def card(review: Review, states: States, row: int, ad: str, values: Values) -> str:
    """A row as HTML: its product, what was decided of it, and an ad with marks."""
    state, item, counts = states[row], review.items[row], reviews.count(states)
    pairs = (map(html.escape, pair) for pair in parse_attributes(item.product))
    product = "".join(f"<span>{key} <b>{value}</b></span>" for key, value in pairs)
    badge = f"<em class='{state.decision}'>{WORDS[state.decision]}</em> {html.escape(state.reason)}"
    done = f"<h3>全部看完：通过 {counts['approve']} 条，退回 {counts['reject']} 条。</h3>" * (not counts["open"])
    place = f"第 {list(states).index(row) + 1} 条，共 {len(states)} 条"
    return f"<div class='item'>{done}{place} {badge}<p>{product}</p></div>{show(item.product, ad, values)}"


def others(item: Item, state: State, values: Values) -> str:
    """The candidates of a row that are not on top, as HTML; a click, or the key of its number, takes one."""
    cards = ""
    for place, ad in enumerate(item.ads):
        if ad != state.ad:
            button = f"<button class='take' data-place='{place}'>用这条<kbd> {place + 1}</kbd></button>"
            cards += show(item.product, ad, values, button)
    return f"<h3>其他候选</h3>{cards}" if cards else ""


# --- what an editor does ---


def where(seen: Seen | None) -> tuple[Review, Values, int]:
    """The list, its values and the row that a browser has."""
    if not seen:
        raise complaint("请先打开一张文案表")
    review, values = open_list(seen["list"])
    if seen["row"] not in review.items:
        raise complaint("没有这一条")
    return review, values, seen["row"]


def begin(name: str | None, seen: Seen | None) -> list:
    """Shows a list at its first open row, or at its first one if none is open."""
    if not name:
        return [None, "open", "", "", "", "", ""]
    states = reviews.read_states(open_list(name)[0])
    rows = [row for row, state in states.items() if state.decision == "open"]
    editor = seen["editor"] if seen else secrets.token_hex(8)
    return view({"list": name, "editor": editor}, [*rows, *states][0], "open" if rows else "all")


def choose(name: str | None, seen: Seen | None) -> list:
    """Shows a list, by default the one that was worked on last, and the names of all lists.

    The part for new tables is closed, unless there is no list.
    """
    import gradio as gr

    found = labels()
    name = name or next((name for _, name in found), None)
    try:
        shown = begin(name, seen)
    except gr.Error as error:
        # The other lists can still be chosen.
        gr.Warning(error.message, title="出错了")
        shown = begin(None, seen)
    return [gr.Accordion(open=not name), gr.Dropdown(found, value=name), *shown]


def bring(path: str | None, seen: Seen | None) -> list:
    """Keeps a table of ads as a list and shows it. A table of products without ads is left for `make generate`."""
    import gradio as gr

    name = keep(Path(path)) if path else ""
    return choose(name, seen) if name else [gr.skip()] * 9


def move(step: int, seen: Seen | None, only: str) -> list:
    """Shows the next or the previous row of those that `only` names; step 0 shows the first of them."""
    review, _, row = where(seen)
    rows = [other for other, state in reviews.read_states(review).items() if only in (state.decision, "all")]
    if step:
        rows = [other for other in rows if other > row] if step > 0 else [other for other in rows[::-1] if other < row]
    return view(seen, [*rows, row][0], only)


def decide(seen: Seen, text: str, decision: str, reason: str = "", chosen: int | None = None) -> States | None:
    """Writes a decision; returns the states of the list, or nothing if another editor was faster."""
    import gradio as gr

    review, _, row = where(seen)
    if chosen is None:
        chosen = reviews.read_states(review)[row].chosen
    if not text.strip() or max(len(text), len(reason)) > reviews.LONGEST_AD:
        raise complaint(f"文案不能为空；文案和原因都不能超过 {reviews.LONGEST_AD} 字")
    try:
        new = State(text, decision, chosen, reason.strip(), seen["editor"])
        return reviews.decide(review, row, seen["version"], new)
    except Stale:
        gr.Warning("这条刚被另一位编辑处理过，您的操作没有保存。请看最新的状态。", title="注意")
    except OSError as error:
        raise complaint(f"没有存上：{error.strerror}。请稍后再试") from None


def approve(seen: Seen | None, only: str, text: str) -> list:
    """Approves the text as it stands, and shows the next row."""
    return after(decide(seen, text, "approve"), seen, only)


def reject(seen: Seen | None, only: str, text: str, reason: str) -> list:
    """Rejects the text, and shows the next row."""
    return after(decide(seen, text, "reject", reason), seen, only)


def after(states: States | None, seen: Seen, only: str) -> list:
    """Shows the row that comes after a decision; the same row if the decision was refused."""
    if not states:
        return view(seen, seen["row"], only)
    if only == "open":
        return view(seen, next_open(seen["list"], states, seen["row"], seen["editor"]), only)
    return move(1, seen, only)


def reopen(seen: Seen | None, only: str, text: str) -> list:
    """Takes a decision back."""
    decide(seen, text, "open")
    return view(seen, seen["row"], only)


def take(seen: Seen | None, only: str, place: str) -> list:
    """Puts another candidate on top."""
    ads = where(seen)[0].items[seen["row"]].ads
    if place.isdecimal() and int(place) < len(ads):
        decide(seen, ads[int(place)], "open", chosen=int(place))
    return view(seen, seen["row"], only)


def save(seen: Seen | None, text: str) -> None:
    """Keeps an edit when the editor leaves the field. A text that is not new changes nothing."""
    if seen and text.strip() and text.strip() != reviews.read_states(where(seen)[0])[seen["row"]].ad:
        decide(seen, text, "open")


def remark(seen: Seen | None, text: str) -> str:
    """The card of a row with an edit that is not kept yet."""
    review, values, row = where(seen)
    return card(review, reviews.read_states(review), row, text, values)


def export(seen: Seen | None) -> Iterator:
    """Yields the files of the approved ads."""
    import gradio as gr

    review, values, _ = where(seen)
    if not reviews.count(reviews.read_states(review))["approve"]:
        raise complaint("还没有通过的文案")
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for form in (".csv", ".xlsx"):
            path = Path(folder, f"{review.path.name.rpartition('-')[0]}_approved{form}")
            try:
                reviews.write_approved(review, path, values)
                paths.append(str(path))
            except SystemExit:
                gr.Warning("表太大，或者有过长的格子，Excel 放不下，所以只有 CSV。", title="注意")
        yield gr.File(paths, visible=True)
