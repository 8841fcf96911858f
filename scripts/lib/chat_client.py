"""A client of OpenAI-compatible chat servers: that of `make api`, vLLM, SGLang or Ollama."""

import asyncio
import os
import random
from collections.abc import Callable
from typing import NamedTuple

from lib.files import fail
from lib.form import without_end
from lib.journal import Done, Key, Stopped
from lib.sheets import text

# Seconds between the tries of one request.
PAUSES = (0.5, 1, 2, 4, 8)
# Seconds for one answer. It may have to wait until the server has answered others.
TIMEOUT = 600
# Requests under way at a time. Servers that call themselves so batch them; others answer one or a few at a time.
IN_FLIGHT, BATCHED = 8, {"vllm": 256, "sglang": 256}


class Refused(Exception):
    """The server refused to write the ads of one product."""


def client_options(server: str) -> dict:
    """The arguments of an httpx client for a server's base URL, which may end in /v1. API_KEY is the server's key."""
    import httpx

    url = httpx.URL(server.rstrip("/").removesuffix("/v1") + "/v1/")
    key = os.environ.get("API_KEY", "")
    if not key.isascii():
        fail("API_KEY holds characters that are not ASCII, which an HTTP header cannot carry: choose another key")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # A proxy that the environment names cannot reach this machine's own addresses.
    trust = url.host not in ("127.0.0.1", "localhost", "::1")
    return {"base_url": url, "headers": headers, "trust_env": trust, "limits": httpx.Limits(max_connections=None)}


def request_of(recipe: dict, model: str) -> dict:
    """What all requests have in common: the model's name, and the system prompt and the sampling of a recipe."""
    system = recipe.get("default_system")
    return {
        "model": model,
        "messages": [{"role": "system", "content": system}] if system else [],
        "temperature": recipe.get("temperature", 1.0) if recipe.get("do_sample", True) else 0,
        "top_p": recipe.get("top_p", 1.0),
        # vLLM and SGLang read these two. LLaMA-Factory takes them from its recipe.
        "top_k": recipe.get("top_k", 50),
        "repetition_penalty": recipe.get("repetition_penalty", 1.0),
        "max_tokens": recipe.get("max_new_tokens", 256),
    }


class Model(NamedTuple):
    """A model that a server offers: its name, what serves it, and the model that it is an adapter of, if it is one."""

    name: str
    owner: str
    parent: str


def read_models(server: str) -> list[Model]:
    """The models of a server; ends the program if no OpenAI-compatible server answers at the URL."""
    import httpx

    try:
        with httpx.Client(**client_options(server), timeout=10) as client:
            answer = client.get("models")
        if answer.status_code in (401, 403):
            fail(f"{server} refuses the key in the environment variable API_KEY (it answers {answer.status_code})")
        entries = [dict(entry) for entry in answer.raise_for_status().json()["data"]]
        return [Model(*(text(entry.get(name) or "") for name in ("id", "owned_by", "parent"))) for entry in entries]
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        fail(f"{server} is not a base URL; one looks like http://127.0.0.1:8000")
    except httpx.HTTPError as error:
        problem = str(error).partition("\n")[0] or type(error).__name__
        fail(f"no OpenAI-compatible server answers at {server} ({problem}); is it running?")
    except (ValueError, LookupError, TypeError, RecursionError):
        fail(f"{server} does not answer like an OpenAI-compatible server")


def find_model(server: str) -> str:
    """The name of the server's only model, or of its only adapter; ends the program if it has none or several."""
    models = read_models(server)
    names = [model.name for model in models if model.parent] or [model.name for model in models]
    if len(names) != 1 or not names[0]:
        fail(f"{server} has {len(names)} models; name one with --model: {', '.join(names)}")
    return names[0]


def in_flight(server: str) -> int:
    """How many requests to have under way at a server."""
    return max((BATCHED.get(model.owner, IN_FLIGHT) for model in read_models(server)), default=IN_FLIGHT)


async def ask(client, body: dict, read: Callable[[dict], str]) -> list[str]:
    """The ads in the answer to one request. Errors that may pass are tried again after each of PAUSES.

    read: makes an ad of a choice in the answer. Raises Refused if the server refuses this request only, Stopped if it
    would refuse every other one.
    """
    import httpx

    for pause in (*PAUSES, None):
        try:
            answer = await client.post("chat/completions", json=body)
            if answer.is_success:
                return [read(choice) for choice in answer.json()["choices"]]
            problem = f"the server answers {answer.status_code}: {' '.join(answer.text.split())[:200]}"
            if answer.status_code in (401, 403, 404):
                raise Stopped(problem)
            if answer.status_code < 500 and answer.status_code != 429:
                raise Refused(problem)
        except httpx.RequestError as error:
            problem = f"the server does not answer ({type(error).__name__})"
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Refused("the server's answer is not a chat completion") from None
        if pause:
            await asyncio.sleep(pause * random.uniform(0.5, 1))
    try:
        await client.get("models", timeout=10)
    except httpx.RequestError:
        raise Stopped(problem) from None
    raise Refused(problem)


def read_choice(choice: dict) -> str:
    """The ad in a choice of a server's answer. One that ran into max_tokens gets no end, by which it is known."""
    ad = text(choice["message"]["content"]).strip()
    return without_end(ad) if choice.get("finish_reason") == "length" else ad


async def write_ads(
    server: str,
    body: dict,
    in_flight: int,
    todo: dict[Key, int],
    done: Done,
    progress: Callable[[int], object],
    *_,
    read: Callable[[dict], str] = read_choice,
) -> dict[Key, str]:
    """Asks the server for as many ads of each product as `todo` says, at most `in_flight` requests at a time.

    body: what the requests have in common, see `request_of`. done and progress: see `lib.journal.Writer`. read: see
    `ask`. Returns the reason for each product that the server refused; raises Stopped if the server is gone.
    """
    import httpx

    reasons = {}
    queue = iter(todo.items())

    async def work(client: httpx.AsyncClient) -> None:
        for key, wanted in queue:
            asked = body | {"messages": [*body["messages"], {"role": "user", "content": key[0]}]}
            try:
                # A server that ignores `n` writes one ad per request.
                while wanted:
                    ads = list(filter(None, await ask(client, asked | {"n": wanted}, read)))[:wanted]
                    if not ads:
                        raise Refused("the model wrote nothing")
                    done(key, ads)
                    progress(len(ads))
                    wanted -= len(ads)
            except Refused as error:
                reasons[key] = str(error)

    async with httpx.AsyncClient(**client_options(server), timeout=httpx.Timeout(TIMEOUT, connect=10)) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(work(client))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    return reasons
