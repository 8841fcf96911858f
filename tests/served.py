"""Servers and pages for the tests: one API server that all tests ask, a relay in front of it, and a browser."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from common import BIN, KEY
from lib.servers import free_port
from processes import wait_for

PRODUCT = "类型#口红*质地#丝绒*功效#显白*场景#约会"
# What servers print when they are up. Between its two lines, Gradio still asks itself for the page.
UP = re.compile(r"(?:Uvicorn running on|Running on local URL:) +(\S+)(?: \(Press|\n\* To create)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome: apt-get install chromium")
DESKTOP, PHONE = ({"viewport": {"width": width, "height": height}} for width, height in ((1280, 900), (390, 844)))
PHONE["is_mobile"] = True
# What a browser otherwise asks the network for, or a GPU.
QUIET = ["gpu", "quic", "background-networking", "component-update", "sync"]


@contextmanager
def serve(folder, verb, *words, command=None, stops=True, **variables):
    """Starts a server as a user does, yields the URL that it prints when it is up, and ends it with Ctrl-C.

    command: what to run instead of `make` and the verb. stops: whether the server is expected to end on Ctrl-C.
    """
    variables = {"API_PORT": str(free_port()), "GRADIO_SERVER_PORT": str(free_port())} | variables
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        server = subprocess.Popen(
            command or ["make", f"BIN={BIN}", verb, "MODEL=tiny", "DATA=sample", *words],
            cwd=folder,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(lambda: UP.search(printed(log)) or server.poll() is not None, seconds=300)
            assert server.poll() is None, printed(log)
            yield UP.search(printed(log))[1]
            if stops:
                # A page is announced a moment before its launch has ended.
                time.sleep(1)
                before = len(printed(log))
                os.killpg(server.pid, signal.SIGINT)
                server.wait(60)
                assert "Traceback" not in printed(log)[before:]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def printed(log) -> str:
    """The text in a log file without colours."""
    return re.sub("\033\\[[0-9;]*m", "", Path(log.name).read_text(errors="replace"))


@pytest.fixture(scope="session")
def api(demo):
    """The URL of the one API server, which tests only ask."""
    with serve(demo[0], "api", API_KEY=KEY) as url:
        yield url


class Relay(BaseHTTPRequestHandler):
    """Passes requests on to the real server, except those for which its server's `fault` returns something else.

    A fault is the status of an error, "close" (no answer), "cut" (half an answer) or "hold" (none until released).
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = json.loads(body) if body else {}
        fault = self.note(request) if request else None
        if fault == "hold":
            self.server.released.wait()
            fault = "close"
        if fault == "close":
            self.close_connection = True
        elif fault == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            self.close_connection = True
        elif fault:
            self.answer(fault, b'{"detail": "a fault\\nof the relay"}')
        else:
            self.pass_on(json.dumps(self.calm(request)).encode() if request else body)

    def calm(self, request: dict) -> dict:
        """The request with a low temperature: a small model that samples freely writes what is no ad now and then."""
        number = 1 if self.server.ignores_n else request["n"]
        return request | {"temperature": min(request["temperature"], 0.1), "n": number}

    def note(self, request: dict):
        """Notes the product and the count of ads that were asked for; returns the fault, if any."""
        with self.server.lock:
            self.server.asked.append((request["messages"][-1]["content"], request["n"]))
            return self.server.fault(len(self.server.asked), request) if self.server.fault else None

    def pass_on(self, body: bytes):
        headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        got = self.server.client.request(self.command, self.server.target + self.path, content=body, headers=headers)
        self.answer(got.status_code, got.content)

    do_GET = do_POST = handle_request


@pytest.fixture
def relay(api):
    """A server in front of the API server that notes what is asked, and fails as a test tells it to."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    server.daemon_threads = True
    server.target, server.client = api, httpx.Client(timeout=120, trust_env=False)
    server.lock, server.released = threading.Lock(), threading.Event()
    server.asked, server.fault, server.ignores_n = [], None, False
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    words = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, tmp_path, request):
    """A tab, as on a desktop or as the parameter says. What it shows at the end is kept in the test's folder."""
    page = browser.new_page(**getattr(request, "param", DESKTOP))
    page.set_default_timeout(60_000)
    yield page
    page.screenshot(path=tmp_path / "page.png")
    page.close()


def field(page, label: str):
    """The field of a Gradio page with this label."""
    name = page.get_by_test_id("block-info").filter(has_text=re.compile(rf"^\s*{re.escape(label)}\s*$"), visible=True)
    block = name.first.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' block ')][1]")
    return block.locator("input, textarea").first


def choose(page, label: str, option: str) -> None:
    """Opens a dropdown and clicks an option."""
    field(page, label).click()
    ends = re.compile(rf"{re.escape(option)}\s*$")
    page.locator("ul.options li").filter(has_text=ends, visible=True).first.click()


def watch(page, selector: str) -> None:
    """From now on keeps in `window.seen` each text that the element shows."""
    page.evaluate(
        """selector => { window.seen = []; new MutationObserver(() => {
            const text = document.querySelector(selector)?.innerText || '';
            if (text && seen.at(-1) !== text) seen.push(text) })
            .observe(document.body, {subtree: true, childList: true, characterData: true}) }""",
        selector,
    )
