"""Lists of ads that editors work through: nothing is lost or overwritten, and what comes out is what was approved."""

import csv
import io
import json
import os
import signal
import subprocess
import sys

import openpyxl
import pytest
from generating import PRODUCTS, read_ads, run
from lib import review_page, reviews
from lib.catalogue import read_catalogue
from lib.feedback import read_feedback
from lib.files import ROOT, read_json_lines
from lib.metrics import vocabulary
from lib.output import MARK, write_table
from lib.reviews import Stale, State

KEYS = {"类型", "颜色"}
FEEDBACK = ["product", "decision", "ad", "written", "others", "reason", "model", "time"]
LABEL = f"{MARK}（tiny qlora，2026-11-26 14:00+00:00）"
HEADER = ["SKU", "客户", "类型", "颜色", "成本价"]
ADDED = ["ad", "missing", "invented", "risk", "basis", "runner_up_1", "runner_up_2", "reason", "ai_label"]
# Decides rows from the first on, and prints each row when its decision has been written.
EDITOR = """
import sys
from pathlib import Path
from lib import reviews
reviews.FOLDER, name, editor, rounds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
review = reviews.read_review(reviews.FOLDER / name, {"类型", "颜色"})
for version in range(rounds):
    for row in review.items:
        try:
            new = reviews.State(f"{editor}改的第{version}版。", "approve", editor=editor)
            reviews.decide(review, row, version, new)
            print(row, flush=True)
        except reviews.Stale:
            pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of the lists, beside the folder that holds them in the project."""
    monkeypatch.setattr(reviews, "FOLDER", tmp_path / "data/reviews")
    review_page.open_list.cache_clear()
    return reviews.FOLDER


def row_of(place: int, *ads: str) -> list[str]:
    """A row of a table of ads as generate.py writes it."""
    first, *others = [*ads, "", "", ""][:3]
    reason = "" if first else "the model wrote nothing"
    added = [first, "", "", "", "", *others, reason, LABEL * bool(first)]
    return [f"00{place}", f"客户{place}", "裙", f"色{place}", f"{place}.5", *added]


def make_list(tmp_path, rows: list[list[str]], name: str = "ads.csv") -> reviews.Review:
    """A list with these rows."""
    write_table(tmp_path / name, [*HEADER, *ADDED], rows, {})
    return reviews.read_review(reviews.FOLDER / reviews.keep(tmp_path / name), KEYS)


def ads_of(place: int) -> list[str]:
    """Three candidates."""
    return [f"色{place}的裙子，第{number}条。" for number in range(3)]


@pytest.fixture
def review(tmp_path):
    """A list of five rows, of which the third has no ad."""
    return make_list(tmp_path, [row_of(place, *ads_of(place) * (place != 2)) for place in range(5)])


def decide(review, row, decision="approve", ad=None, editor="one", saw=None, **more):
    """Decides a row, as an editor who has just seen it, or who saw the version `saw`."""
    now = reviews.read_states(review)[row]
    new = State(ad or now.ad, decision, editor=editor, **({"chosen": now.chosen} | more))
    return reviews.decide(review, row, now.version if saw is None else saw, new)


def feedback() -> list[dict]:
    return read_json_lines(reviews.FOLDER.with_name("feedback.jsonl"))


def start(review, editor: str, rounds: int = 1) -> subprocess.Popen:
    """Another process that decides all rows."""
    words = [reviews.FOLDER, review.path.name, editor, str(rounds)]
    paths = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.Popen([sys.executable, "-c", EDITOR, *words], env=paths, stdout=subprocess.PIPE, text=True)


# --- lists ---


@pytest.mark.parametrize("form", ["csv", "xlsx", "jsonl"])
def test_what_generate_wrote_is_a_list(relay, tmp_path, monkeypatch, form):
    """With the visible mark, which is no part of what the model wrote."""
    monkeypatch.setenv("LABEL", "1")
    path = tmp_path / f"ads.{form}"
    assert run(PRODUCTS, path, "--n", 3, "--server", relay.url).returncode == 0
    keys = {key for product in review_page.products() for key in dict(part.split("#") for part in product.split("*"))}
    review = reviews.read_review(path, keys)
    own = read_catalogue(PRODUCTS, keys, [])
    assert review.header == own.header and [list(map(str, row)) for row in review.rows] == own.rows
    assert review.items
    for row, item in review.items.items():
        assert item.product == own.products[row]
        assert 1 <= len(item.ads) <= 3 and MARK not in "".join(item.ads) and item.marked
        assert reviews.model_of(item.label)


def test_a_table_without_ads_is_no_list(tmp_path):
    assert not reviews.read_review(PRODUCTS, KEYS).items
    (tmp_path / "x.csv").write_text("甲,ad\n乙,丙\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="none of the columns"):
        reviews.read_review(tmp_path / "x.csv", KEYS)


def test_the_same_table_is_the_same_list(review, tmp_path):
    decide(review, 0)
    copy = tmp_path / "又一次.csv"
    copy.write_bytes((tmp_path / "ads.csv").read_bytes())
    assert reviews.keep(copy) == review.path.name and reviews.list_names() == [review.path.name]
    other = make_list(tmp_path, [row_of(7, *ads_of(7))], "../../x y.csv")
    assert other.path.parent == reviews.FOLDER and reviews.list_names()[0] == other.path.name
    decide(review, 1)
    os.utime(reviews.decisions_of(review.path), (2e9, 2e9))
    assert reviews.list_names()[0] == review.path.name


# --- decisions ---


def test_decisions_survive_a_kill(tmp_path):
    review = make_list(tmp_path, [row_of(place, *ads_of(place)) for place in range(400)])
    process = start(review, "one")
    printed = [process.stdout.readline() for _ in range(25)]
    process.send_signal(signal.SIGKILL)
    printed += process.stdout.read().split("\n")
    process.wait()
    rows = {int(line) for line in printed if line.strip()}
    states = reviews.read_states(review)
    decided = {row for row, state in states.items() if state.decision == "approve"}
    # The last decision may have been written, and not yet been printed.
    assert rows <= decided and len(decided - rows) <= 1 and len(decided) < 400
    # What a kill has torn is left out, and does not spoil the next line.
    with reviews.decisions_of(review.path).open("ab") as file:
        file.write('{"row": 399, "ad": "裙'.encode())
    assert reviews.read_states(review) == states
    decide(review, 398, "reject")
    assert reviews.read_states(review)[398].decision == "reject" and reviews.read_states(review)[399].version == 0
    # The next desk goes on at the first open row, and the feedback holds what was decided.
    seen = review_page.begin(review.path.name, None)[0]
    assert seen["row"] == min(set(states) - decided)
    assert len(feedback()) == len(decided) + 1


def test_nobody_overwrites_what_another_editor_did(review):
    decide(review, 0, ad="甲改的。", editor="one", saw=0)
    for decision, ad in (("reject", None), ("approve", "乙改的。"), ("open", "乙改的。")):
        with pytest.raises(Stale):
            decide(review, 0, decision, ad, editor="two", saw=0)
    state = reviews.read_states(review)[0]
    assert (state.ad, state.decision, state.version) == ("甲改的。", "approve", 1)
    # The same decision overwrites nothing, and who has seen the newer state may change it.
    assert decide(review, 0, ad="甲改的。", editor="two", saw=0)[0].version == 1
    assert decide(review, 0, "reject", editor="two", saw=1)[0].decision == "reject"


def test_a_late_edit_of_the_same_editor_takes_no_decision_back(review):
    """A browser sends the edit and the click that ends it at once, in any order."""
    decide(review, 0, "open", "改过的裙子。", saw=0)
    assert decide(review, 0, "approve", "改过的裙子。", saw=0)[0].decision == "approve"
    assert decide(review, 0, "open", "改过一半的裙", saw=0)[0].ad == "改过的裙子。"
    assert decide(review, 0, "open", saw=2)[0].decision == "open"


def test_two_desks_on_one_list(tmp_path):
    """Of two decisions on one version, one is written and the other is refused; who was refused never shows up."""
    review = make_list(tmp_path, [row_of(place, *ads_of(place)) for place in range(40)])
    desks = [start(review, editor, 3) for editor in ("one", "two")]
    taken = [[int(line) for line in desk.communicate()[0].split()] for desk in desks]
    lines = read_json_lines(reviews.decisions_of(review.path))
    for editor, rows in zip(("one", "two"), taken, strict=True):
        assert [entry["row"] for entry in lines if entry["editor"] == editor] == rows
    assert len(lines) == len(taken[0]) + len(taken[1])
    states = reviews.read_states(review)
    assert all(state.decision == "approve" and state.ad.startswith(state.editor) for state in states.values())
    assert sorted(entry["ad"] for entry in feedback()) == sorted(state.ad for state in states.values())


def test_what_is_no_decision_is_refused(review):
    for decision, ad in (("delete", "裙。"), ("approve", " \n"), ("approve", "长" * 5001)):
        with pytest.raises(ValueError):
            reviews.decide(review, 0, 0, State(ad, decision))
    wrong = ["[]", "{}", "nul", '{"row": 0, "x": 1}', '{"row": 2, "ad": "x"}', '{"row": 0, "ad": "x", "chosen": 9}']
    reviews.decisions_of(review.path).write_text("\n".join(wrong), encoding="utf-8")
    assert all(state.version == 0 for state in reviews.read_states(review).values())


def test_editors_get_different_rows(review):
    """The next row is one that nobody else has on the screen; a reload goes back to the first open one."""
    name = review.path.name
    one, two = (review_page.begin(name, None)[0] for _ in range(2))
    assert one["row"] == two["row"] == 0 and one["editor"] != two["editor"]
    one = review_page.approve(one, "open", "色0的裙子。")[0]
    assert one["row"] == 1
    two = review_page.approve(two, "open", "色0的裙子。")[0]
    assert two["row"] == 3
    # What somebody has only passed by is nobody's.
    two = review_page.move(1, two, "open")[0]
    assert two["row"] == 4 and review_page.approve(one, "open", "色1的裙子。")[0]["row"] == 3
    assert review_page.begin(name, None)[0]["row"] == 3


# --- what comes out ---


def test_the_approved_ads_come_out_in_the_shops_order(tmp_path, monkeypatch):
    rows = [row_of(place, *ads_of(place)) for place in range(5)]
    rows[3][1] = "=1+1"
    review = make_list(tmp_path, rows)
    values = vocabulary(item.product for item in review.items.values())
    decide(review, 4, ad="色4的最佳裙子。")
    decide(review, 3)
    decide(review, 1, "reject")
    decide(review, 0, ad=review.items[0].ads[2], chosen=2)
    for form in ("csv", "xlsx"):
        reviews.write_approved(review, tmp_path / f"out.{form}", values)
    found = read_ads(tmp_path / "out.csv")
    assert list(found[0]) == [*HEADER, "ad", "missing", "invented", "risk", "basis", "ai_label"]
    assert [row["SKU"] for row in found] == ["000", "003", "004"]
    assert [row["ad"] for row in found] == ["色0的裙子，第2条。", "色3的裙子，第0条。", "色4的最佳裙子。"]
    assert [row["成本价"] for row in found] == ["0.5", "3.5", "4.5"] and found[1]["客户"] == "'=1+1"
    assert found[2]["risk"] == "ban: 最佳" and "第9条" in found[2]["basis"]
    assert all(row["ai_label"] == LABEL for row in found)
    book = openpyxl.load_workbook(tmp_path / "out.xlsx")
    cells = [[cell or "" for cell in row] for row in book["ads"].iter_rows(values_only=True)]
    assert cells[2][1] == "=1+1"
    assert cells[0] == list(found[0]) and [row[5] for row in cells[1:]] == [row["ad"] for row in found]
    about = dict(book["about"].iter_rows(min_row=2, values_only=True))
    assert (about["ads approved"], about["ads rejected"], about["ads without a decision"]) == ("3", "1", "1")
    monkeypatch.setenv("LABEL", "1")
    reviews.write_approved(review, tmp_path / "out.csv", values)
    assert all(row["ad"].endswith(f"。（{MARK}）") for row in read_ads(tmp_path / "out.csv"))


def test_a_visible_label_stays(tmp_path):
    """Nobody may remove it, LABEL or not."""
    review = make_list(tmp_path, [row_of(0, f"色0的裙子。（{MARK}）")])
    decide(review, 0, ad="色0的好裙子。")
    reviews.write_approved(review, tmp_path / "out.csv", {})
    assert read_ads(tmp_path / "out.csv")[0]["ad"] == f"色0的好裙子。（{MARK}）"
    assert feedback()[0]["written"] == "色0的裙子。"


def test_feedback(review, tmp_path):
    first, second = ads_of(0), ads_of(1)
    decide(review, 0, ad=first[1], chosen=1)
    decide(review, 0, ad="色0的裙子，改过。")
    decide(review, 1, "reject", reason="内容不实")
    decide(review, 3, "open", "没有决定的修改。")
    # What the desk writes, `make pairs` reads.
    one, two = read_feedback(reviews.FOLDER.with_name("feedback.jsonl"))
    assert list(one) == list(two) == FEEDBACK
    assert (one["product"], one["decision"], one["ad"]) == ("类型#裙*颜色#色0", "approve", "色0的裙子，改过。")
    assert one["written"] == first[1] and one["others"] == [first[0], first[2]]
    assert (two["decision"], two["ad"], two["written"], two["reason"]) == ("reject", second[0], second[0], "内容不实")
    assert one["model"] == "tiny qlora" and one["time"] < two["time"] and one["time"].endswith("+00:00")
    assert not [word for word in ("客户", "0.5", "001", MARK) if word in json.dumps([one, two], ensure_ascii=False)]
    # Other lists and what is no line of ours stay; a decision that was taken back goes.
    path = reviews.FOLDER.with_name("feedback.jsonl")
    path.write_text('{"foreign": 1}\n' + path.read_text(encoding="utf-8") + "no JSON\n", encoding="utf-8")
    other = make_list(tmp_path, [row_of(9, *ads_of(9))], "more.csv")
    decide(other, 0)
    decide(review, 1, "open")
    lines = path.read_text(encoding="utf-8").split("\n")
    assert (lines[0], lines[2], lines[4:]) == ('{"foreign": 1}', "no JSON", [""])
    assert [json.loads(lines[place])["product"] for place in (1, 3)] == ["类型#裙*颜色#色0", "类型#裙*颜色#色9"]
    # Lost feedback comes back when the list is opened.
    path.unlink()
    review_page.open_list(review.path.name)
    assert [row["product"] for row in feedback()] == ["类型#裙*颜色#色0"]


def test_cells_that_a_csv_guards_are_read_as_they_were(tmp_path):
    """An apostrophe that keeps Excel from running a cell is neither in the product nor in the ad."""
    row = row_of(0, "@裙子很美。", "+好看的裙子。")
    row[3] = "-5℃"
    review = make_list(tmp_path, [row])
    assert "'-5℃" in next(csv.reader(io.StringIO((tmp_path / "ads.csv").read_text("utf-8-sig").split("\n")[1])))
    item = review.items[0]
    assert (item.product, item.ads) == ("类型#裙*颜色#-5℃", ["@裙子很美。", "+好看的裙子。"])
    assert review.rows[0][3] == "-5℃"
