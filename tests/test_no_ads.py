"""What a server answers that is no ad: `make generate` ranks it below every ad, and says why a product has none."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from generating import read_ads, run
from lib.candidates import known_products
from lib.marking import show
from lib.metrics import vocabulary

PRODUCT = "类型#裙*颜色#白色*材质#雪纺*图案#碎花"
AD = "穿上这条裙子去郊游，整个人都温柔了起来，怎么搭配都好看，出门不用再纠结。"
FULL = "这条白色的碎花裙选用轻盈的雪纺面料，走动起来裙摆飘逸，怎么搭都好看。"
# Each names all values, and the one ad beside them none. The last one was cut behind a full stop.
NO_ADS = {
    "a copy of the product": (PRODUCT, "stop"),
    "reasoning or talk about the task": (f"<think>裙，白色。</think>{FULL}", "stop"),
    "a loop": ("白色雪纺碎花裙，真的好看。" * 12, "stop"),
    "Markdown, JSON or HTML": (f"**标语**\n{FULL}", "stop"),
    "special tokens or <UNK>": (f"{FULL}<|eot_id|>", "stop"),
    "broken characters": (f"{FULL}\ufffd。", "stop"),
    "cut off or without an end": (FULL, "length"),
}


class Server(BaseHTTPRequestHandler):
    """Answers with its server's choices, (text, finish_reason), as many as are asked for."""

    def do_GET(self):
        self.send({"data": [{"id": "model"}]})

    def do_POST(self):
        count = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["n"]
        self.send(
            {
                "choices": [
                    {"message": {"role": "assistant", "content": words}, "finish_reason": reason}
                    for words, reason in self.server.choices[:count]
                ]
            }
        )

    def send(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def generate(server, folder, choices):
    """The row that generate.py writes for one product when the server answers with these choices, and its result."""
    server.choices = choices
    (folder / "in.jsonl").write_text(json.dumps({"content": PRODUCT}) + "\n", encoding="utf-8")
    url = f"http://127.0.0.1:{server.server_port}"
    result = run(folder / "in.jsonl", folder / "out.csv", "--server", url, "--n", len(choices))
    assert "Traceback" not in result.stderr
    return read_ads(folder / "out.csv")[0], result


def test_an_ad_ranks_above_what_is_none(server, tmp_path):
    row, result = generate(server, tmp_path, [*NO_ADS.values(), (AD, "stop")])
    assert result.returncode == 0 and (row["ad"], row["runner_up_1"], row["reason"]) == (AD, "", "")


def test_a_product_with_nothing_else_has_no_ad_and_a_reason(server, tmp_path):
    row, result = generate(server, tmp_path, [*NO_ADS.values(), *list(NO_ADS.values())[:1]])
    assert row["ad"] == row["runner_up_1"] == ""
    first, *others = NO_ADS
    assert row["reason"] == f"no answer is an ad: {first} (2), " + ", ".join(f"{words} (1)" for words in others)
    assert result.returncode == 1
    assert f"no row has an ad; the reason for the first row: {row['reason']}" in result.stderr


def test_the_desk_says_what_is_no_ad():
    values = vocabulary(known_products())
    assert "不是文案：照抄属性" in show(PRODUCT, PRODUCT, values)
    assert "不是文案" not in show(PRODUCT, FULL, values)
