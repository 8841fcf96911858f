"""The API: it answers as OpenAI's does, stands what people send it, and lets nobody in without the key."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml
from common import KEY
from served import PRODUCT, serve


def request(content, values):
    """A request for one ad, greedy unless the values say otherwise."""
    return {"model": "ads", "messages": [{"role": "user", "content": content}], "temperature": 0} | values


def ask(api, content=PRODUCT, **values):
    return api.post("/v1/chat/completions", json=request(content, values))


def written(answer):
    return answer.json()["choices"][0]["message"]["content"]


def stream(api, content=PRODUCT, **values):
    """The pieces of a streamed ad."""
    with api.stream("POST", "/v1/chat/completions", json=request(content, values | {"stream": True})) as answer:
        assert answer.status_code == 200
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    return [delta["content"] for delta in deltas if delta.get("content")]


def assert_answers(api):
    """The server writes an ad, at once and as a stream."""
    assert "口红" in written(ask(api))
    pieces = stream(api)
    assert len(pieces) > 3 and "口红" in "".join(pieces)


def client(url):
    # LLaMA-Factory closes the connection after an error, so none is used twice.
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120, limits=limits)


@pytest.fixture
def asking(api):
    """A client of the API server, which must still answer after every test."""
    with client(api) as asking:
        yield asking
        assert_answers(asking)


def test_the_recipe_brings_the_system_prompt(asking, demo):
    ad = written(ask(asking))
    assert 20 < len(ad) < 200 and ad.endswith("。") and "丝绒" in ad
    system = yaml.safe_load((demo[0] / "configs/tiny/chat.yaml").read_text(encoding="utf-8"))["default_system"]
    messages = [{"role": "system", "content": system}, {"role": "user", "content": PRODUCT}]
    assert written(ask(asking, messages=messages)) == ad == "".join(stream(asking))
    messages[0]["content"] = "Hello."
    assert ask(asking, messages=messages).json()["usage"] != ask(asking).json()["usage"]


def test_the_model_is_listed_by_its_name(asking):
    assert [model["id"] for model in asking.get("/v1/models").json()["data"]] == ["tiny"]


def test_key(api):
    for headers in ({}, {"Authorization": "Bearer other"}):
        with httpx.Client(base_url=api, headers=headers) as stranger:
            assert stranger.get("/v1/models").status_code == 401
            assert ask(stranger).status_code == 401


def special_tokens(folder):
    tokenizer = json.loads((folder / "exports/tiny/tokenizer.json").read_text(encoding="utf-8"))
    tokens = [token["content"] for token in tokenizer["added_tokens"]]
    assert len(tokens) == 256
    return tokens


@pytest.mark.parametrize(
    "content",
    [
        f"{PRODUCT}<|eom_id|>",
        f"{PRODUCT}<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n",
        "",
        " \n",
        "\0",
        "*#*##**",
        "قميص أبيض من القطن 👗👩‍👩‍👧 Weiße Bluse ⠃⠇⠥",
        "<image><video><audio>",
        "<think></think>{{content}}{% raw %}${HOME}",
    ],
)
def test_odd_prompts(asking, content):
    assert ask(asking, content).status_code == 200
    stream(asking, content)


def test_all_special_tokens(asking, demo):
    tokens = special_tokens(demo[0])
    for content in (*tokens[:12], "".join(tokens), PRODUCT + "".join(reversed(tokens))):
        assert ask(asking, content, max_tokens=8).status_code == 200
    stream(asking, "".join(tokens), max_tokens=8)


def test_prompt_longer_than_the_context(asking):
    content = "*".join([PRODUCT] * 400)
    answer = ask(asking, content, max_tokens=8).json()
    # The stand-in's context is 2,048 tokens.
    assert answer["usage"]["prompt_tokens"] > 3000
    stream(asking, content, max_tokens=8)


def test_fifty_at_once(asking):
    def one(number):
        return "".join(stream(asking)) if number % 2 else written(ask(asking))

    with ThreadPoolExecutor(50) as pool:
        ads = list(pool.map(one, range(50)))
    assert all("口红" in ad for ad in ads)


def test_clients_that_leave_in_mid_stream(asking):
    for _ in range(20):
        with asking.stream("POST", "/v1/chat/completions", json=request(PRODUCT, {"stream": True})) as answer:
            next(answer.iter_lines())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"\xff\xfe", 422),
        (b"[" * 100_000, 400),
        (b'{"model": "ads"}', 422),
        (b'{"model": "ads", "messages": []}', 400),
        (b'{"model": "ads", "messages": [{"role": "nobody", "content": "x"}]}', 422),
        (b'{"model": "ads", "messages": [{"role": "assistant", "content": "x"}]}', 400),
        (b'{"model": "ads", "messages": [{"role": "user", "content": null}]}', 500),
        (b'{"model": "ads", "messages": [{"role": "user", "content": "\\ud800"}]}', 500),
    ],
)
def test_malformed_requests(asking, body, status):
    answer = asking.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"temperature": 0}, 200),
        ({"temperature": 100}, 200),
        ({"temperature": -1}, 500),
        ({"temperature": "hot"}, 422),
        ({"top_p": 0}, 200),
        ({"top_p": 2}, 200),
        ({"max_tokens": 0}, 200),
        ({"max_tokens": 10**7}, 200),
        ({"max_tokens": -1}, 500),
        ({"n": -1}, 500),
        ({"n": 20}, 200),
        ({"presence_penalty": 0}, 500),
        ({"stop": "。"}, 200),
    ],
)
def test_sampling_values(asking, values, status):
    assert ask(asking, **values).status_code == status


def test_streaming_with_values_that_are_refused_at_once(asking):
    for values in ({"max_tokens": -1}, {"n": 2}):
        with pytest.raises(httpx.RemoteProtocolError):
            stream(asking, **values)


def test_known_limit_streaming_with_values_that_generation_refuses(demo):
    """The stream never ends, and everybody waits until its client leaves: docs/serving.md says so."""
    with serve(demo[0], "api", "EXPORTED=1", stops=False, API_KEY=KEY) as url, client(url) as api:
        for values in ({"presence_penalty": 0}, {"temperature": -1}):
            api.timeout = 3
            with pytest.raises(httpx.ReadTimeout):
                stream(api, **values)
            api.timeout = 120
            assert_answers(api)
