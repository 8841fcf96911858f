"""A client of OpenAI-compatible chat servers: that of `make api`, vLLM, SGLang or Ollama."""

import asyncio
import os
import random
from collections.abc import Callable

from lib.files import fail
from lib.form import without_end
from lib.journal import Done, Key, Stopped
from lib.sheets import text

# Seconds between the tries of one request.
PAUSES = (0.5, 1, 2, 4, 8)
# Seconds for one answer. It may have to wait until the server has answered others.
TIMEOUT = 600


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
    return {"base_url": url, "headers": headers, "trust_env": url.host not in ("127.0.0.1", "localhost", "::1")}


def request_of(recipe: dict, model: str) -> dict:
    """What all requests have in common: the model's name, and the system prompt and the sampling of a recipe."""
    system = recipe.get("default_system")
    return {
        "model": model,
        "messages": [{"role": "system", "content": system}] if system else [],
        "temperature": recipe.get("temperature", 1.0),
        "top_p": recipe.get("top_p", 1.0),
        "max_tokens": recipe.get("max_new_tokens", 256),
    }


def find_model(server: str) -> str:
    """The name of the server's only model.

    Ends the program if no OpenAI-compatible server answers at the URL, or if it has not exactly one model.
    """
    import httpx

    try:
        with httpx.Client(**client_options(server), timeout=10) as client:
            answer = client.get("models")
        if answer.status_code in (401, 403):
            fail(f"{server} refuses the key in the environment variable API_KEY (it answers {answer.status_code})")
        models = [text(entry["id"]) for entry in answer.raise_for_status().json()["data"]]
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        fail(f"{server} is not a base URL; one looks like http://127.0.0.1:8000")
    except httpx.HTTPError as error:
        problem = str(error).partition("\n")[0] or type(error).__name__
        fail(f"no OpenAI-compatible server answers at {server} ({problem}); is it running?")
    except (ValueError, LookupError, TypeError, RecursionError):
        fail(f"{server} does not answer like an OpenAI-compatible server")
    if len(models) != 1:
        fail(f"{server} has {len(models)} models; name one with --model: {', '.join(models)}")
    return models[0]


async def ask(client, body: dict) -> list[str]:
    """The ads in the answer to one request. Errors that may pass are tried again after each of PAUSES.

    Raises Refused if the server refuses this request only, Stopped if it would refuse every other one.
    """
    import httpx

    for pause in (*PAUSES, None):
        try:
            answer = await client.post("chat/completions", json=body)
            if answer.is_success:
                return [read_choice(choice) for choice in answer.json()["choices"]]
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
) -> dict[Key, str]:
    """Asks the server for as many ads of each product as `todo` says, at most `in_flight` requests at a time.

    body: what the requests have in common, see `request_of`. done and progress: see `lib.journal.Writer`. Returns the
    reason for each product that the server refused; raises Stopped if the server is gone.
    """
    import httpx

    reasons = {}
    queue = iter(todo.items())

    async def work(client: httpx.AsyncClient) -> None:
        for key, wanted in queue:
            messages = [*body["messages"], {"role": "user", "content": key[0]}]
            try:
                # A server that ignores `n` writes one ad per request.
                while wanted:
                    ads = list(filter(None, await ask(client, body | {"messages": messages, "n": wanted})))[:wanted]
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
