"""The client's side of OpenAI-compatible servers: ours, vLLM, SGLang, Ollama; and ours for the time of one run."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adgen import ROOT, fail
from catalogue import text

# Seconds: between the tries of one request, and for one answer, which may wait behind others.
PAUSES = (0.5, 1, 2, 4, 8)
TIMEOUT = 600
# A product's attribute string, and how many equal ones stand before it.
Key = tuple[str, int]


class Refused(Exception):
    """The server does not write the ads of this product."""


class Stopped(Exception):
    """The server does not write any more ads."""


def client_options(server: str) -> dict:
    """The arguments of an httpx client for a server's base URL, with or without /v1."""
    import httpx

    url = httpx.URL(server.rstrip("/").removesuffix("/v1") + "/v1/")
    key = os.environ.get("API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # A proxy of the environment does not reach this machine.
    return {"base_url": url, "headers": headers, "trust_env": url.host not in ("127.0.0.1", "localhost", "::1")}


def find_model(server: str) -> str:
    """The name of the server's only model; ends the program when there is no such server, or not one model."""
    import httpx

    try:
        with httpx.Client(**client_options(server), timeout=10) as client:
            answer = client.get("models")
        if answer.status_code in (401, 403):
            fail(f"{server} wants another key in the environment variable API_KEY (it answers {answer.status_code})")
        models = [text(entry["id"]) for entry in answer.raise_for_status().json()["data"]]
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        fail(f"{server} is no base URL; one looks like http://127.0.0.1:8000")
    except httpx.HTTPError as error:
        problem = str(error).partition("\n")[0] or type(error).__name__
        fail(f"no OpenAI-compatible server answers at {server} ({problem}); is it up?")
    except (ValueError, LookupError, TypeError, RecursionError):
        fail(f"{server} does not answer like an OpenAI-compatible server")
    if len(models) != 1:
        fail(f"{server} has {len(models)} models; name one with --model: {', '.join(models)}")
    return models[0]


async def ask(client, body: dict) -> list[str]:
    """The ads of one answer, after as many tries as PAUSES allows; raises Refused or Stopped."""
    import httpx

    for pause in (*PAUSES, None):
        try:
            answer = await client.post("chat/completions", json=body)
            if answer.is_success:
                return [text(choice["message"]["content"]).strip() for choice in answer.json()["choices"]]
            problem = f"the server answers {answer.status_code}: {' '.join(answer.text.split())[:200]}"
            if answer.status_code in (401, 403, 404):
                raise Stopped(problem)
            if answer.status_code < 500 and answer.status_code != 429:
                raise Refused(problem)
        except httpx.RequestError as error:
            problem = f"the server does not answer ({type(error).__name__})"
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Refused("the server's answer is no chat completion") from None
        if pause:
            await asyncio.sleep(pause * random.uniform(0.5, 1))
    try:
        await client.get("models", timeout=10)
    except httpx.RequestError:
        raise Stopped(problem) from None
    raise Refused(problem)


async def write_ads(
    server: str, body: dict, todo: dict[Key, int], in_flight: int, done: Callable[[Key, list[str]], None]
) -> dict[Key, str]:
    """Asks for as many ads of each product as `todo` says; gives the reasons of those that the server refused."""
    import httpx

    reasons = {}
    queue = iter(todo.items())

    async def work(client: httpx.AsyncClient) -> None:
        for key, wanted in queue:
            messages = [*body["messages"], {"role": "user", "content": key[0]}]
            try:
                # A server that does not know `n` gives one ad at a time.
                while wanted:
                    ads = list(filter(None, await ask(client, body | {"messages": messages, "n": wanted})))[:wanted]
                    if not ads:
                        raise Refused("the model wrote nothing")
                    done(key, ads)
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


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def own_server(recipe: Path, overrides: list[str]) -> Iterator[str]:
    """The base URL of a `llamafactory-cli api` on a free port of this machine, which runs as long as the block."""
    import ctypes

    import httpx

    recipe = recipe.resolve()
    look = subprocess.run([sys.executable, ROOT / "scripts/doctor.py", "chat", recipe, *overrides], cwd=ROOT)
    if look.returncode:
        raise SystemExit(look.returncode)
    port = free_port()
    libc = ctypes.CDLL(None)
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        server = subprocess.Popen(
            [Path(sys.executable).with_name("llamafactory-cli"), "api", recipe, *overrides],
            cwd=ROOT,
            env=os.environ | {"API_HOST": "127.0.0.1", "API_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Linux's PR_SET_PDEATHSIG: the server ends with this process, however that ends.
            preexec_fn=(lambda: libc.prctl(1, signal.SIGKILL)) if sys.platform == "linux" else None,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            print("Starting a server for this run", file=sys.stderr)
            while server.poll() is None:
                with suppress(httpx.RequestError):
                    httpx.get(url, trust_env=False)
                    break
                time.sleep(0.3)
            else:
                log.seek(0)
                last = log.read().strip().split("\n")[-1]
                fail(f"the server did not start: {last}")
            yield url
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
