"""Whatever a journal holds and a server answers, `make generate` writes ads or says in one line what is wrong."""

import asyncio
import csv
import json
import os
import tempfile
import threading
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from corpus import MANY, MIB, SMALL, THOROUGH, attempt, json_values, run_program
from hypothesis import example, given
from hypothesis import strategies as st
from lib.chat_client import Stopped, find_model, write_ads
from lib.journal import open_journal

# The cell of a giant row is copied to the table of ads.
csv.field_size_limit(2**30)
MODELS = (200, b'{"data": [{"id": "model"}]}')
AD = (200, '{"choices": [{"message": {"content": "白色的裙，很好看。"}}]}'.encode())


entries = json_values | st.fixed_dictionaries(
    {}, optional={"settings": json_values, "product": json_values, "copy": json_values, "ads": json_values}
)


@given(st.lists(entries))
@example([{"settings": {"n": 1}}, {"product": "类型#裙", "copy": 0, "ads": ["好。", None]}])
@example([{"settings": [1]}, {"product": "类型#裙", "copy": 0, "ads": ["好。"]}])
def test_any_journal_is_continued_or_refused(entries):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "ads.csv.journal")
        data = "".join(json.dumps(entry) + "\n" for entry in entries) + '{"torn'
        path.write_bytes(data.encode("utf-8", "surrogatepass"))
        opened = attempt(open_journal, path, {"n": 1})
        if opened:
            opened[0].close()
            assert all(isinstance(ad, str) for ads in opened[1].values() for ad in ads)


class Server(BaseHTTPRequestHandler):
    """Answers every request for an ad, or with `odd_models` every request, with its server's `reply`: status, body."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self.server.reply if self.command == "POST" or self.server.odd_models else MODELS
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    """A server of this machine that answers as it is told."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.reply, server.odd_models = AD, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


replies = st.one_of(
    st.binary(max_size=60),
    json_values.map(json.dumps).map(str.encode),
    json_values.map(lambda value: json.dumps({"choices": value, "data": value}).encode()),
    json_values.map(
        lambda value: json.dumps({"choices": [{"message": {"content": value}}], "data": [{"id": value}]}).encode()
    ),
)


@given(st.sampled_from([200, 200, 200, 201, 204, 302, 400, 404, 422]), replies)
@example(200, b"[" * 100_000)
def test_any_answer_of_a_server_is_an_ad_or_a_reason(server, status, body):
    server.reply, server.odd_models = (status, b"" if status == 204 else body), True
    found = {}
    try:
        model = attempt(find_model, server.url)
        assert model is None or isinstance(model, str)
        todo = {("类型#裙", 0): 1}
        write = write_ads(server.url, {"messages": []}, 1, todo, lambda key, ads: found.update({key: ads}), id)
        with suppress(Stopped):
            reasons = asyncio.run(write)
            assert bool(found) != bool(reasons)
    finally:
        server.reply, server.odd_models = AD, False
    assert all(isinstance(ad, str) and ad for ads in found.values() for ad in ads)


@pytest.mark.long
def test_odd_files_through_the_program(tmp_path, server):
    """File names that are no Unicode, a giant row, lone surrogates: each row gets an ad or a reason."""
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\n\x1b[2J"))
    odd.mkdir()
    rows = [{"attributes": words} for words in (MANY[: 2 * MIB], "类型#裙", "", "类型#裙\ud800")]
    (odd / "products.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--server", server.url, "--n", "1")
    for encoding in ("utf-8", "ascii") if THOROUGH else ("ascii",):
        run = partial(run_program, tmp_path, "generate.py", peak=4 * SMALL, MODEL="tiny", PYTHONIOENCODING=encoding)
        assert run(odd / "products.jsonl", odd / "ads.csv", *words)[0] == 0
        with (odd / "ads.csv").open(encoding="utf-8-sig", newline="") as file:
            ads = list(csv.DictReader(file))
        assert [bool(row["ad"]) for row in ads] == [False, True, False, True]
        assert all(row["ad"] or row["reason"] for row in ads)
        assert run(odd / "nowhere.csv", odd / "y.csv", *words)[0] == 1
        assert run(odd / "products.jsonl", odd / "products.jsonl/y.csv", *words)[0] == 1
    assert {path.name for path in odd.iterdir()} == {"products.jsonl", "ads.csv"}
