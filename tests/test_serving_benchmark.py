"""The serving benchmark counts what a server gives to its clients, and ends in one line when the server fails."""

import json
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from lib.files import ROOT

SERVING = runpy.run_path(str(ROOT / "benchmarks/serving.py"))


class Server(BaseHTTPRequestHandler):
    """A server that streams an ad. `asked`: the requests so far. `status`: that of its answers."""

    asked: ClassVar[list] = []
    status = 200

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "folder/tuned"}]}')

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        pieces = ({"choices": [{"delta": delta}]} for delta in ({"role": "assistant"}, {"content": "裙"}, {}))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write("".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces).encode() + b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(Server, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def measure(monkeypatch, url, out):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = [url, "--clients", "1", "3", "--requests", "2", "--tokens", "9", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["serving.py", *words])
    SERVING["main"]()


def test_every_client_gets_its_ads(monkeypatch, url, tmp_path, capsys):
    measure(monkeypatch, url, tmp_path)
    results = json.loads((tmp_path / "server-cpu.json").read_text())
    assert (results["model"], results["max_tokens"]) == ("tuned", 9)
    assert [(run["clients"], run["requests"]) for run in results["served"]] == [(1, 2), (3, 6)]
    for run in results["served"]:
        assert 0 < run["first_words_s"]["median"] <= run["whole_ad_s"]["longest"] and run["requests_per_s"] > 0
    # One before each number of clients is not counted.
    assert len(Server.asked) == 10 and all(body["stream"] and body["max_tokens"] == 9 for body in Server.asked)
    assert (tmp_path / "server-cpu.md").read_text() == SERVING["format_results"](results)
    measure(monkeypatch, url, tmp_path)
    assert len(json.loads((tmp_path / "server-cpu.json").read_text())["served"]) == 2
    assert "clients at a time" in capsys.readouterr().out


def test_a_server_that_fails_is_said_in_a_line(monkeypatch, url, tmp_path):
    monkeypatch.setattr(Server, "status", 500)
    with pytest.raises(SystemExit, match=r"error: .*--clients 1 \(the server answers 500\)"):
        measure(monkeypatch, url, tmp_path)
    assert not list(tmp_path.iterdir())
