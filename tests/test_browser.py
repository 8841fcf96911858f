"""WebChat, LlamaBoard and the desk in a real browser: what people see and click. Skipped where no Chromium is."""

import base64
import codecs
import csv
import io
import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from itertools import pairwise

import httpx
import pytest
from conftest import BIN
from test_servers import PRODUCT, serve
from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome: apt-get install chromium")
# Seconds until something that a page should show counts as missing.
PATIENCE = 120
# The options of the dropdown that is open.
OPTIONS = "[...document.querySelectorAll('ul.options li')]"


class Page:
    """A tab, driven over Chromium's DevTools protocol."""

    def __init__(self, socket):
        self.socket, self.sent = socket, 0

    def send(self, method, **params):
        """Sends a command; gives its result."""
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(PATIENCE))
            if message.get("id") == self.sent:
                assert "error" not in message, message
                return message["result"]

    def js(self, code):
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, code):
        """Until an expression is true; an element that is not there yet is no error."""
        end = time.monotonic() + PATIENCE
        while not self.js(f"(() => {{ try {{ return !!({code}) }} catch (e) {{ return false }} }})()"):
            assert time.monotonic() < end, f"{code} did not become true in:\n{self.text()}"
            time.sleep(0.1)

    def open(self, url, width=1280, height=900):
        mobile = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.send("Page.navigate", url=url)

    def text(self):
        return self.js("document.body.innerText")

    def click(self, element):
        """Clicks the middle of an element, given as JavaScript, with the mouse, once it is there and lies still."""
        self.wait(f"!({element}).disabled")
        end, before, place = time.monotonic() + PATIENCE, None, []
        while place != before or not place:
            assert time.monotonic() < end, f"{element} cannot be clicked in:\n{self.text()}"
            before, place = (
                place,
                self.js(
                    f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
                    "const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;"
                    "return e.contains(document.elementFromPoint(x, y)) ? [x, y] : [] })()"
                ),
            )
            time.sleep(0.1)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def type(self, element, words):
        """Types into a field, given as JavaScript."""
        self.click(element)
        self.send("Input.insertText", text=words)

    def replace(self, element, words):
        """Types over what stands in a field, given as JavaScript."""
        self.click(element)
        self.js(f"({element}).select()")
        self.send("Input.insertText", text=words)

    def choose(self, element, option):
        """Opens a dropdown, given as JavaScript, and clicks an option."""
        self.click(element)
        self.click(f"{OPTIONS}.find(e => e.innerText.trim().endsWith('{option}'))")

    def upload(self, element, path):
        """Hands a file to a file input, given as JavaScript."""
        found = self.send("Runtime.evaluate", expression=element)["result"]["objectId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], objectId=found)

    def watch(self, element):
        """From now on keeps in `window.seen` each text that an element, given as JavaScript, shows."""
        self.js(
            f"window.seen = []; new MutationObserver(() => {{ const text = ({element})?.innerText || '';"
            "if (text && seen.at(-1) !== text) seen.push(text) })"
            ".observe(document.body, {subtree: true, childList: true, characterData: true})"
        )

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


def button(name):
    return f"[...document.querySelectorAll('button')].find(e => e.innerText.trim() === '{name}')"


def field(label):
    """The field under a label of Gradio's."""
    return (
        f"[...document.querySelectorAll('[data-testid=block-info]')].find(e => e.innerText.trim() === '{label}' && "
        "e.offsetParent).closest('.block').querySelector('input, textarea')"
    )


@contextmanager
def chromium(folder):
    """A tab of a browser without a window."""
    options = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--remote-debugging-port=0"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    browser = subprocess.Popen([CHROMIUM, *options, f"--user-data-dir={folder}", "about:blank"], **silent)
    try:
        port = folder / "DevToolsActivePort"
        while not (port.exists() and port.read_text().count("\n")):
            assert browser.poll() is None
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port.read_text().split()[0]}/json/new"
        tab = httpx.put(url, trust_env=False).json()["webSocketDebuggerUrl"]
        with connect(tab, max_size=None, proxy=None) as socket:
            yield Page(socket)
    finally:
        browser.terminate()
        browser.wait()


@pytest.fixture
def page(tmp_path):
    """A tab; what it shows at the end is kept as a picture in the test's folder."""
    with chromium(tmp_path / "profile") as page:
        yield page
        page.picture(tmp_path / "page.png")


@pytest.fixture
def newcomer(demo):
    """The demo's folder without what LLaMA-Factory's pages keep there."""
    shutil.rmtree(demo[0] / "llamaboard_cache", ignore_errors=True)
    return demo[0]


def test_webchat_streams_an_ad(newcomer, page):
    query = "document.querySelector('textarea[placeholder=\"输入...\"]')"
    bot = "document.querySelector('[data-testid=bot]')"
    with serve(newcomer, "webchat") as url:
        page.open(url)
        page.replace(field("温度系数"), "0.01")
        # The stand-in writes so fast that the page may show an ad all at once.
        for _ in range(20):
            page.type(query, PRODUCT)
            page.watch(bot)
            page.click(button("提交"))
            page.wait(f"{bot}.innerText.endsWith('。')")
            seen = page.js("seen")
            page.click(button("清空历史"))
            page.wait(f"!{bot}")
            if len(seen) > 1:
                break
        assert len(seen) > 1 and "口红" in seen[-1]
        assert all(after.startswith(before) for before, after in pairwise(seen))
        page.type(query, "<img src=x onerror=document.title=1>")
        page.click(button("提交"))
        page.wait(f"{bot}.innerText")
        assert "<img" in page.js("document.querySelector('[data-testid=user]').innerText")


def test_llamaboard_lists_data_and_adapters_and_loads_the_preset(newcomer, page):
    command = [BIN / "llamafactory-cli", "webui"]
    with serve(newcomer, "webui", command=command, GRADIO_SERVER_NAME="127.0.0.1") as url:
        page.open(url)
        page.wait(f"{field('Model name')}.offsetParent")

        # The adapter of the demo, under the stand-in's model name.
        page.type(field("Model name"), "Custom")
        page.choose(field("Model name"), "Custom")
        page.choose(field("Checkpoint path"), "sample_qlora")

        # The data sets of the registry, and the rows of one.
        registry = json.loads((newcomer / "dataset_info/dataset_info.json").read_text())
        page.click(field("Dataset"))
        page.wait(f"{OPTIONS}.length === {len(registry)}")
        assert set(page.js(f"{OPTIONS}.map(e => e.innerText.trim().split('\\n').pop())")) == set(registry)
        page.choose(field("Dataset"), "sample_train")
        page.click(button("Preview dataset"))
        page.wait("document.body.innerText.includes('summary')")
        first = json.loads((newcomer / "data/sample/train.jsonl").read_text(encoding="utf-8").split("\n")[0])
        assert first["content"] in page.text()
        page.click(button("Close"))

        # The preset fills the form.
        page.choose(field("Config path"), "llama3_8b_sft_qlora.yaml")
        page.click(button("Load arguments"))
        page.wait(f"{field('Learning rate')}.value === '2.0e-4'")
        page.wait(f"{field('Model path')}.value === 'meta-llama/Meta-Llama-3-8B-Instruct'")
        shown = {label: page.js(f"{field(label)}.value") for label in ("Model name", "Quantization bit", "Booster")}
        assert shown == {"Model name": "Llama-3-8B-Instruct", "Quantization bit": "4", "Booster": "liger_kernel"}
        page.click(button("Preview command"))
        page.wait("document.body.innerText.includes('llamafactory-cli train')")
        text = page.text()
        for words in ("--dataset adgen_train", "--learning_rate 0.0002", "--lora_rank 8", "--lora_alpha 16"):
            assert words in text
        for words in ("--lora_target q_proj,v_proj", "--neat_packing True", "--quantization_bit 4"):
            assert words in text
        assert "--trust_remote_code" not in text and "--template" not in text


@pytest.fixture(scope="module")
def desk(demo):
    """The URL of the desk, which has started a server of its own."""
    with serve(demo[0], "desk") as url:
        yield url


CONTENT = field("属性串（可以直接粘贴）")
CARDS = """[...document.querySelectorAll('.ad')].map(card => {
    const words = (selector, start) => [...card.querySelectorAll(selector)].map(e => e.innerText.slice(start));
    return {ad: card.querySelector('p').innerText, copy: card.querySelector('button').dataset.ad,
        covered: words('span.covered', 2), missing: words('span.missing', 2),
        invented: words('span.invented', 2), marks: words('mark', 0)} })"""


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_desk_writes_ads_and_marks_their_attributes(desk, page, width, height):
    page.open(desk, width, height)
    page.choose(field("类型"), "口红")
    page.wait(f"{CONTENT}.value === '类型#口红'")
    page.choose(field("属性"), "质地")
    page.choose(field("值（选了就加上）"), "丝绒")
    page.wait(f"{CONTENT}.value === '类型#口红*质地#丝绒'")
    # No ad of the data names this value.
    page.type(CONTENT, "*功效#显白*香味#柑橘")
    page.replace(field("每个商品写几条"), "8")
    page.watch("document.querySelector('.ad').parentElement")
    page.click(button("写文案"))
    page.wait("document.querySelector('.ad button')")
    assert len(page.js("seen")) > 1
    cards = page.js(CARDS)
    assert 1 <= len(cards) <= 8
    for card in cards:
        assert card["ad"] == card["copy"]
        assert set(card["covered"]) | set(card["missing"]) == {"口红", "丝绒", "显白", "柑橘"}
        assert all(value in card["ad"] for value in card["covered"] + card["invented"])
        assert not any(value in card["ad"] for value in card["missing"])
        assert set(card["marks"]) == set(card["covered"] + card["invented"])
    assert sum(map(len, (card["covered"] for card in cards))) > len(cards)
    colour = "getComputedStyle(document.querySelector('span.{}')).backgroundColor"
    assert page.js(colour.format("covered")) == "rgb(187, 247, 208)"
    assert page.js(colour.format("missing")) == "rgb(229, 231, 235)"
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
    # Copy with one click, then paste.
    page.click("document.querySelector('.ad button')")
    page.wait("document.querySelector('.ad button').innerText === '已复制'")
    page.replace(CONTENT, "")
    page.send("Input.dispatchKeyEvent", type="keyDown", commands=["paste"])
    page.wait(f"{CONTENT}.value === {json.dumps(cards[0]['ad'])}")


def test_desk_says_what_is_wrong(desk, page):
    page.open(desk)
    for words in ("一条裙子", "颜色#白*" * 200):
        page.replace(CONTENT, words)
        page.click(button("写文案"))
        page.wait("document.body.innerText.includes('请填写属性')")
        assert not page.js("document.querySelector('.ad')")
        page.click("document.querySelector('.toast-close')")
        page.wait("!document.body.innerText.includes('请填写属性')")


def test_desk_takes_what_is_typed_as_text(desk, page):
    page.open(desk)
    page.replace(CONTENT, "类型#<img src=x onerror=document.title=1>*颜色#\"'><b id=bold>&amp;")
    page.click(button("写文案"))
    page.wait("document.querySelector('.ad button')")
    shown = page.js("[...document.querySelectorAll('.ad span')].map(e => e.innerText.slice(2))")
    assert "<img src=x onerror=document.title=1>" in shown and "\"'><b id=bold>&amp;" in shown
    assert page.js("document.title") == "文案台" and not page.js("!!document.querySelector('#bold, .ad img')")


def test_desk_writes_the_ads_of_a_table(desk, demo, page):
    page.open(desk)
    page.wait(f"{CONTENT}.offsetParent")
    page.click("[...document.querySelectorAll('[role=tab]')].find(e => e.innerText === '一张商品表' && e.offsetParent)")
    page.wait("document.querySelector('input[type=file]')")
    page.upload("document.querySelector('input[type=file]')", demo[0] / "examples/products.csv")
    page.wait("document.querySelector('.file-preview')")
    page.click(button("写整张表"))
    link = "[...document.querySelectorAll('a[download]')].find(e => e.download === 'products_ads.csv')"
    page.wait(link)
    table = httpx.get(page.js(f"({link}).href"), trust_env=False).content
    assert table.startswith(codecs.BOM_UTF8)
    rows = list(csv.DictReader(io.StringIO(table.decode("utf-8-sig"))))
    with (demo[0] / "examples/products.csv").open(encoding="utf-8-sig") as file:
        products = list(csv.DictReader(file))
    assert [row | product for row, product in zip(rows, products, strict=True)] == rows
    assert all(row["ad"] for row in rows)
