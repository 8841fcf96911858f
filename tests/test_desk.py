"""`make desk`: who may open the page, and in a real browser what copywriters see and click."""

import codecs
import csv
import io

import httpx
import pytest
from common import KEY, copy_demo
from lib.files import ROOT
from lib.marking import copy_button, show
from lib.metrics import vocabulary
from served import DESKTOP, PHONE, choose, field, needs_browser, serve, wait_for, watch

CONTENT = "属性串（可以直接粘贴）"
CARDS = """cards => cards.map(card => {
    const words = (selector, start) => [...card.querySelectorAll(selector)].map(e => e.innerText.slice(start));
    return {ad: card.querySelector('p').innerText, copy: card.querySelector('button').dataset.ad,
        covered: words('span.covered', 2), missing: words('span.missing', 2),
        invented: words('span.invented', 2), marks: words('mark:not(.risk)', 0)} })"""


@pytest.fixture(scope="module")
def desk(demo, tmp_path_factory):
    """The URL of a desk that is open to other machines and has started a server of its own. It has no lists yet."""
    folder = copy_demo(demo[0], tmp_path_factory.mktemp("desk"))
    with serve(folder, "desk", API_KEY=KEY, GRADIO_SERVER_NAME="0.0.0.0") as url:
        yield url.replace("0.0.0.0", "127.0.0.1")


@pytest.fixture
def open_page(desk, page):
    """The desk's page after the login."""
    assert page.request.post(f"{desk}/login", form={"username": "desk", "password": KEY}).ok
    page.goto(desk)
    field(page, CONTENT).wait_for()
    return page


def test_the_key_lets_others_in(desk):
    with httpx.Client(base_url=desk, trust_env=False) as stranger:
        assert stranger.get("/config").status_code == 401
        assert stranger.post("/login", data={"username": "desk", "password": "other"}).status_code == 400
        assert stranger.post("/login", data={"username": "desk", "password": KEY}).status_code == 200
        assert stranger.get("/config").status_code == 200


@needs_browser
@pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)
def test_ads_are_written_and_their_attributes_marked(open_page):
    page, content = open_page, field(open_page, CONTENT)
    choose(page, "类型", "口红")
    wait_for_value(page, "类型#口红")
    choose(page, "属性", "质地")
    choose(page, "值（选了就加上）", "丝绒")
    wait_for_value(page, "类型#口红*质地#丝绒")
    # No ad of the data names the last value.
    content.fill("类型#口红*质地#丝绒*功效#显白*场景#登月")
    field(page, "写几条").fill("8")
    watch(page, ".prose:has(.ad)")
    page.get_by_role("button", name="写文案").click()
    page.locator(".ad button").first.wait_for()
    assert len(page.evaluate("seen")) > 1
    cards = page.locator(".ad").evaluate_all(CARDS)
    assert 1 <= len(cards) <= 8
    for card in cards:
        assert card["ad"] == card["copy"]
        assert set(card["covered"]) | set(card["missing"]) == {"口红", "丝绒", "显白", "登月"}
        assert all(value in card["ad"] for value in card["covered"] + card["invented"])
        assert not any(value in card["ad"] for value in card["missing"])
        assert set(card["marks"]) == set(card["covered"] + card["invented"])
    assert any(card["covered"] for card in cards)
    for kind, colour in (("covered", "rgb(187, 247, 208)"), ("missing", "rgb(229, 231, 235)")):
        colours = "spans => spans.map(span => getComputedStyle(span).backgroundColor)"
        assert set(page.locator(f"span.{kind}").evaluate_all(colours)) == {colour}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Copy with one click, then paste.
    page.locator(".ad button").first.click()
    page.locator(".ad button", has_text="已复制").wait_for()
    content.fill("")
    content.press("Control+v")
    wait_for_value(page, cards[0]["ad"])


@needs_browser
@pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)
def test_risky_words_are_amber_and_show_the_law(page):
    """A finger has no pointer: a tap focuses the word, and the law stands at the foot of the window."""
    product, ad = "类型#裙*颜色#白色", "白色的最佳连衣裙，<b>限量，最 佳。"
    head = (ROOT / "scripts/desk.html").read_text(encoding="utf-8")
    page.set_content(head + show(product, ad, vocabulary([product]), copy_button(ad)))
    marks = page.locator("mark").evaluate_all("marks => marks.map(mark => [mark.className, mark.innerText])")
    assert marks == [["covered", "白色"], ["risk", "最佳"], ["covered", "裙"], ["risk", "限量"], ["risk", "最 佳"]]
    assert page.locator(".ad p").inner_text() == ad and page.locator("button").get_attribute("data-ad") == ad
    style = "getComputedStyle(document.querySelector('.risk'){})"
    assert page.evaluate(style.format("") + ".backgroundColor") == "rgb(252, 211, 77)"
    law = style.format(", '::after'")
    assert page.evaluate(f"{law}.content") == "none"
    page.locator(".risk").first.focus()
    assert page.evaluate(f"{law}.content").startswith('"禁用词：《广告法》第9条第3项')
    assert page.evaluate(f"parseFloat({law}.width) < innerWidth")


def wait_for_value(page, words: str) -> None:
    from playwright.sync_api import expect

    expect(field(page, CONTENT)).to_have_value(words, timeout=60_000)


@needs_browser
def test_the_page_says_what_is_wrong(open_page):
    page = open_page
    for words in ("一条裙子", "颜色#白*" * 200):
        field(page, CONTENT).fill(words)
        page.get_by_role("button", name="写文案").click()
        page.get_by_text("请填写属性").wait_for()
        assert not page.locator(".ad").count()
        page.locator(".toast-close").click()
        page.get_by_text("请填写属性").wait_for(state="detached")


@needs_browser
def test_what_is_typed_is_shown_as_text(open_page):
    page = open_page
    field(page, CONTENT).fill("类型#裙<img src=x onerror=document.title=1>*颜色#&lt;b id=bold&gt;")
    page.get_by_role("button", name="写文案").click()
    page.locator(".ad button").first.wait_for()
    shown = [words[2:] for words in page.locator(".ad span").all_inner_texts()]
    assert {"裙", "&lt;b id=bold&gt"} <= set(shown)
    assert page.title() == "文案台" and not page.locator("#bold, .ad img").count()


@needs_browser
def test_the_ads_of_a_table(open_page, desk):
    """The model is away meanwhile, which the other tab says, and then comes back."""
    page, table = open_page, ROOT / "examples/products.csv"
    page.get_by_role("tab", name="一张商品表").locator("visible=true").click()
    page.locator("input[type=file]").first.set_input_files(table)
    page.locator(".file-preview").first.wait_for()
    page.get_by_text("表写完后模型会重新载入").wait_for()
    page.get_by_role("button", name="写整张表").click()
    link = page.locator("a[download='products_ads.csv']")
    link.first.wait_for()
    data = page.request.get(link.first.evaluate("link => link.href")).body()
    assert data.startswith(codecs.BOM_UTF8)
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    with table.open(encoding="utf-8-sig", newline="") as file:
        products = list(csv.DictReader(file))
    assert [row | product for row, product in zip(rows, products, strict=True)] == rows
    assert all(row["ad"] for row in rows)
    # Editors see the same ads at once.
    page.locator(".item", has_text="第 1 条，共 12 条").wait_for()
    assert page.locator(".item + .ad p").inner_text() == rows[0]["ad"]
    page.get_by_role("tab", name="一个商品").locator("visible=true").click()
    field(page, CONTENT).fill("类型#裙*颜色#白色")
    page.get_by_role("button", name="写文案").click()
    page.get_by_text("现在连不上模型").wait_for()

    def written():
        page.get_by_role("button", name="写文案").click()
        page.wait_for_timeout(1000)
        return page.locator(".ad button").count()

    wait_for(written)
