"""The editors' part of the desk in a real browser, on a phone and on a desktop: by finger, by keyboard, two at once."""

import sys

import openpyxl
import pytest
from common import KEY
from lib.files import read_json_lines
from lib.output import MARK, write_table
from served import DESKTOP, PHONE, field, needs_browser, serve, wait_for

LABEL = f"{MARK}（tiny qlora，2026-11-26 14:00+00:00）"
HEADER = ["SKU", "成本价", "类型", "颜色"]
HEADER += ["ad", "missing", "invented", "risk", "basis", "runner_up_1", "reason", "ai_label"]
HARMFUL = "<img src=x onerror=document.title=1>"
VISIBLE = "elements => elements.filter(one => one.getClientRects().length).map(one => one.getBoundingClientRect())"

pytestmark = needs_browser


@pytest.fixture
def folder(copy_project):
    """A copy of the project without lists."""
    return copy_project()


def open_desk(folder, api, **variables):
    """A desk of its own that asks the tests' API server."""
    command = [sys.executable, folder / "scripts/desk.py", "--server", api]
    choices = {"MODEL": "tiny", "DATA": "sample"}
    return serve(folder, "desk", command=command, API_KEY=KEY, **choices, **variables)


def write_ads(path, count: int):
    """A table of ads as generate.py writes it. The first ad would run in a page that does not escape it."""
    rows = []
    for place in range(count):
        colour = HARMFUL if place == 0 else "白色"
        ads = [f"这条{colour}的裙子，是最佳的第{place}条。", f"白色的裙子，第{place}条，怎么搭都好看。"]
        rows.append([f"00{place}", "9.9", "裙", colour, ads[0], "", "", "", "", ads[1], "", LABEL])
    write_table(path, HEADER, rows, {})
    return path


def open_table(page, url, path=None):
    """Opens the page, and there the table of ads; without one, the list that was open last."""
    page.goto(url)
    page.get_by_role("tab", name="一张商品表").locator("visible=true").click()
    if path:
        page.locator("input[type=file]").first.set_input_files(path)
    page.locator(".item").wait_for()


def wait_for_counts(page, *words: str) -> None:
    """Waits until the page shows how many ads are open, approved, rejected and in all. Gradio draws them anew."""
    from playwright.sync_api import expect

    expect(page.locator("#only label")).to_have_text(words, timeout=60_000)


def decisions(folder) -> list[dict]:
    """What editors have decided in a copy of the project."""
    return [entry for path in (folder / "data/reviews").glob("*.decisions") for entry in read_json_lines(path)]


def wait_for_head(page, words: str) -> None:
    page.locator(".item", has_text=words).wait_for()


def press(page, key: str) -> None:
    """A key of an editor who reads before deciding."""
    page.wait_for_timeout(450)
    page.keyboard.press(key)


@pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)
def test_a_list_is_worked_through(api, folder, page, tmp_path):
    """By keyboard and by finger; then the desk is killed, and a new one goes on."""
    with open_desk(folder, api, stops=False) as url:
        open_table(page, url, write_ads(tmp_path / "ads.csv", 6))
        wait_for_head(page, "第 1 条，共 6 条")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.title() == "文案台" and not page.locator(".ad img, .item img").count()
        assert HARMFUL in page.locator(".ad p").first.inner_text()
        wait_for_counts(page, "待定 6", "通过 0", "退回 0", "全部 6")
        boxes = page.locator("#review button, #only label").evaluate_all(VISIBLE)
        assert len(boxes) > 8 and all(box["height"] >= 44 and box["width"] >= 44 for box in boxes)
        assert page.locator(".item + .ad mark.risk").inner_text() == "最佳"
        # Take the other candidate with its number, approve it; edit the next ad, and its marks follow.
        press(page, "2")
        page.locator(".item + .ad p", has_text="怎么搭都好看").wait_for()
        press(page, "a")
        wait_for_head(page, "第 2 条")
        press(page, "e")
        page.keyboard.press("Control+a")
        page.keyboard.type("白色的裙子。aj2")
        page.locator(".item + .ad mark.covered", has_text="白色").wait_for()
        page.locator(".item + .ad mark.risk").wait_for(state="detached")
        page.locator("#approve").click()
        wait_for_head(page, "第 3 条")
        # Reject with a reason: one that is offered, then one that is typed.
        page.wait_for_timeout(450)
        page.locator("#reject").click()
        page.get_by_role("button", name="内容不实").click()
        wait_for_head(page, "第 4 条")
        press(page, "r")
        page.keyboard.type(f"太短{HARMFUL}")
        press(page, "Enter")
        wait_for_head(page, "第 5 条")
        wait_for_counts(page, "待定 2", "通过 2", "退回 2", "全部 6")
        # Forth and back; an edit that the editor leaves is kept; a decision is taken back.
        press(page, "j")
        wait_for_head(page, "第 6 条")
        press(page, "k")
        wait_for_head(page, "第 5 条")
        page.locator("#edit").click()
        page.locator("#text textarea").fill("还没有写完的裙子")
        page.locator("#text textarea").press("Escape")
        wait_for(lambda: "还没有写完的裙子" in decisions(folder)[-1]["ad"])
        page.locator("#only label", has_text="退回").click()
        wait_for_head(page, "内容不实")
        press(page, "u")
        wait_for_head(page, "待定")
        press(page, "j")
        wait_for_head(page, f"太短{HARMFUL}")
        assert page.title() == "文案台"
    with open_desk(folder, api) as url:
        open_table(page, url)
        wait_for_head(page, "第 3 条")
        wait_for_counts(page, "待定 3", "通过 2", "退回 1", "全部 6")
        page.get_by_role("button", name="导出通过的文案").click()
        link = page.locator("a[download$='_approved.xlsx']").first
        link.wait_for()
        (tmp_path / "out.xlsx").write_bytes(page.request.get(link.evaluate("link => link.href")).body())
        assert page.locator("a[download$='_approved.csv']").count()
    cells = list(openpyxl.load_workbook(tmp_path / "out.xlsx")["ads"].iter_rows(values_only=True))
    assert cells[0][:5] == ("SKU", "成本价", "类型", "颜色", "ad")
    assert [row[4] for row in cells[1:]] == ["白色的裙子，第0条，怎么搭都好看。", "白色的裙子。aj2"]
    lines = read_json_lines(folder / "data/feedback.jsonl")
    reasons = [entry["decision"] + entry["reason"] for entry in lines]
    assert reasons == ["approve", "approve", f"reject太短{HARMFUL}"]


def test_two_editors(api, folder, browser, page, tmp_path):
    """Who decides what another one has decided meanwhile is told so, and sees it. A double click decides one ad."""
    with open_desk(folder, api) as url:
        open_table(page, url, write_ads(tmp_path / "ads.csv", 4))
        other = browser.new_page()
        open_table(other, url)
        wait_for_head(other, "第 1 条")
        page.locator("#approve").dblclick()
        wait_for_head(page, "第 2 条")
        other.keyboard.press("r")
        other.keyboard.press("Enter")
        other.get_by_text("刚被另一位编辑处理过").wait_for()
        wait_for_head(other, "第 1 条，共 4 条 通过")
        # Row 2 is on the other screen.
        press(other, "j")
        wait_for_head(other, "第 2 条")
        press(other, "j")
        wait_for_head(other, "第 3 条")
        press(page, "a")
        wait_for_head(page, "第 4 条")
        assert [(entry["row"], entry["decision"]) for entry in decisions(folder)] == [(0, "approve"), (1, "approve")]
        other.close()


def test_what_is_wrong_is_said_in_chinese(api, folder, page, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text(f"甲,{HARMFUL},ad\n乙,丙,丁\n", encoding="utf-8")
    with open_desk(folder, api) as url:
        page.goto(url)
        page.get_by_role("tab", name="一张商品表").locator("visible=true").click()
        page.get_by_role("button", name="导出通过的文案").click()
        page.get_by_text("请先打开一张文案表").wait_for()
        page.locator("input[type=file]").first.set_input_files(bad)
        page.get_by_text("这张表打不开").wait_for()
        open_table(page, url, write_ads(tmp_path / "ads.csv", 1))
        press(page, "e")
        field(page, "修改文案").fill(" ")
        page.locator("#approve").click()
        page.get_by_text("文案不能为空").wait_for()
        page.get_by_role("button", name="导出通过的文案").click()
        page.get_by_text("还没有通过的文案").wait_for()
        assert page.title() == "文案台" and not decisions(folder)
