"""The independent judge: its marks in the report, answers that hold none, and a judge that goes away."""

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

import pytest
import score
from lib.attributes import parse_attributes
from lib.files import ROOT, read_json_lines, write_json_lines
from lib.judge import PROMPT, read_mark

DEV = ROOT / "data/sample/dev.jsonl"
ROWS = read_json_lines(DEV)[:12]


class Judge(BaseHTTPRequestHandler):
    """A judge that can be checked by hand: 5 for an ad that holds all values of its product, else 2."""

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: dict):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.answer(200, {"data": [{"id": "judge-1"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        if len(self.server.asked) > self.server.most:
            return self.answer(401, {})
        [message] = request["messages"]
        pattern = re.escape(PROMPT).replace(r"\{product\}", "(.+)").replace(r"\{ad\}", "(.+)")
        product, ad = re.fullmatch(pattern, message["content"]).groups()
        mark = self.server.says or (5 if all(value in ad for _, value in parse_attributes(product)) else 2)
        self.answer(200, {"choices": [{"message": {"content": f"<think>也许 3 分。</think>{mark}"}}]})


@pytest.fixture
def judge(monkeypatch):
    """The judge as a server: `most` is how many requests it answers, `says` what it answers to all of them."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.asked, server.most, server.says = [], 1000, ""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JUDGE", f"http://127.0.0.1:{server.server_port}/v1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that scores the ads of two systems as a user does; it returns eval_results.json."""
    values = ["，".join(value for _, value in parse_attributes(row["content"])) + "。" for row in ROWS]
    for name, ads in (("base", ["很好看。", "", *values[2:]]), ("tuned", values)):
        rows = zip(ROWS, ads, strict=True)
        write_json_lines(tmp_path / f"{name}.jsonl", ({"predict": ad, "label": row["summary"]} for row, ad in rows))
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    write_json_lines(data, ROWS)

    def score_both():
        files = [f"{name}={tmp_path / name}.jsonl" for name in ("base", "tuned")]
        with patch.object(sys, "argv", ["score.py", *files, "--data", str(data), "--out", str(out)]):
            score.main()
        return json.loads((out / "eval_results.json").read_text(encoding="utf-8"))

    return score_both


def test_marks_stand_in_the_report(judge, run, tmp_path):
    results = run()
    marks = {name: row["judge"]["value"] for name, row in results["systems"].items() if "judge" in row}
    # An ad that says nothing gets the lowest mark, and the judge is not asked about it.
    assert marks["tuned"] == 5 and marks["base"] == pytest.approx((2 + 1 + 10 * 5) / 12, abs=1e-6)
    assert list(marks) == ["base", "tuned", "reference"] and 2 <= marks["reference"] <= 5
    assert results["tuned - base"]["judge"]["value"] == pytest.approx(5 - marks["base"], abs=2e-6)
    # Equal ads of one product are asked about once.
    assert results["judge"] == {"model": "judge-1", "prompt": PROMPT, "ads": len(judge.asked), "ads without a mark": 0}
    assert len(judge.asked) == 1 + 12 + 12
    # A service refuses keys that it does not know.
    assert all(set(request) == {"model", "messages", "temperature", "n"} for request in judge.asked)
    assert all(request["temperature"] == 0 for request in judge.asked)
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "judge, 1 to 5" in table and "judge-1" in table
    assert not (tmp_path / "out/judge.journal").exists()


def test_no_answer_is_paid_for_twice(judge, run):
    judge.most = 10
    with pytest.raises(SystemExit, match=r"answers 401.* of 25 ads are in .*judge\.journal"):
        run()
    judge.asked.clear()
    judge.most = 1000
    run()
    # What was under way when the judge went away may be asked again.
    assert 15 <= len(judge.asked) < 25


def test_a_judge_that_gives_no_marks_is_refused(judge, run, tmp_path):
    judge.says = "很好"
    with pytest.raises(SystemExit, match="judge-1 gave no ad a mark from 1 to 5"):
        run()
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("answer", "mark"), [("4", 4), ("4分。", 4), ("评分：4/5", 4), ("6", 0), ("3.5", 0), ("2 或 3", 0), ("", 0)]
)
def test_marks_are_read(answer, mark):
    assert read_mark(answer) == mark
