"""Measures an OpenAI-compatible server: ads per second, and how long clients wait, by the number of clients.

  make bench BENCH=serving                                   `make api` on random weights
  make bench BENCH=serving BACKEND=vllm                      the same by vLLM (EXPORTED=1: as with the merged model)
  make bench BENCH=serving ARGS=http://127.0.0.1:8000        a server that runs

Each client asks for streamed ads of the sample's dev products, one after another. Random weights never end an ad before
it has the most tokens. key=value are overrides of the recipe. The results go to results/bench/server-<gpu>.json and
.md, named after the GPU of this machine. What other servers of the same model gave stays in them.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path

from lib.chat_client import client_options, find_model
from lib.choices import read_choices
from lib.files import ROOT, fail, read_json_lines
from lib.supervision import DEFAULTS, WRITING
from lib.tables import align, markdown
from measuring import add_results, ask_card, card_file, cell, shown, tidy, write_results
from own_server import engine, prepare, started


async def ask(post, model: str, product: str, tokens: int) -> tuple[float, float]:
    """Seconds to the first words and to the end of one streamed ad; RuntimeError if the server refuses the request.

    `post`: posts to the server with aiohttp. httpx takes longer to read a piece than vLLM to write one. `product`: an
    attribute string. `tokens`: the most tokens of the ad.
    """
    body = {"model": model, "messages": [{"role": "user", "content": product}], "stream": True, "max_tokens": tokens}
    start, first = time.perf_counter(), None
    async with post(json=body) as answer:
        if not answer.ok:
            raise RuntimeError(f"the server answers {answer.status}")
        async for line in answer.content:
            if first is None and line.startswith(b"data: {"):
                choices = json.loads(line.removeprefix(b"data: "))["choices"]
                if choices and choices[0]["delta"].get("content"):
                    first = time.perf_counter() - start
    if first is None:
        raise RuntimeError("the model wrote nothing")
    return first, time.perf_counter() - start


async def measure(options: argparse.Namespace, url: str, model: str, products: list[str], clients: int) -> dict:
    """What `clients` clients get that ask at the same time, each for `options.requests` ads one after another."""
    import aiohttp

    async def work(number: int) -> list[tuple[float, float]]:
        mine = [products[(number * options.requests + turn) % len(products)] for turn in range(options.requests)]
        return [await ask(post, model, product, options.tokens) for product in mine]

    server = client_options(url)
    limits = {"timeout": aiohttp.ClientTimeout(options.timeout), "connector": aiohttp.TCPConnector(limit=0)}
    async with aiohttp.ClientSession(headers=server["headers"], **limits) as client:
        post = partial(client.post, f"{server['base_url']}chat/completions")
        # The first answer of a server takes longer than others.
        await ask(post, model, products[0], options.tokens)
        start = time.perf_counter()
        answers = [pair for pairs in await asyncio.gather(*map(work, range(clients))) for pair in pairs]
        seconds = time.perf_counter() - start
    firsts, ends = zip(*answers, strict=True)
    found = {"clients": clients, "requests": len(answers), "requests_per_s": len(answers) / seconds}
    for name, waits in (("first_words_s", firsts), ("whole_ad_s", ends)):
        found[name] = {"median": statistics.median(waits), "longest": max(waits)}
    return tidy(found)


def result_lines(results: dict) -> list[list[str]]:
    """The results of a server as the cells of a table, the head first."""
    lines = [["server", "clients at a time", "ads per second", "first words after (s, median)", "longest"]]
    lines[0] += ["whole ad after (s, median)", "longest"]
    for run in results["served"]:
        waits = [run[name][part] for name in ("first_words_s", "whole_ad_s") for part in ("median", "longest")]
        lines.append([run["server"], str(run["clients"]), *map(cell, [run["requests_per_s"], *waits])])
    return lines


def format_results(results: dict) -> str:
    """The results of a server as Markdown."""
    each = sorted({str(run["requests"] // run["clients"]) for run in results["served"]})
    return (
        f"# What a server gives its clients: {results['gpu']}\n\nModel {results['model']}. Ads are streamed. Ads for "
        f"each client, one after another: {' or '.join(each)}. Most tokens of an ad: {results['max_tokens']}.\n\n"
        f"{markdown(result_lines(results))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="URL", help="base URL of a server, or overrides of the recipe")
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 8, 32), help="numbers of clients (1 8 32)")
    parser.add_argument("--requests", type=int, default=2, help="ads for each client (default: 2)")
    parser.add_argument("--tokens", type=int, default=128, help="the most tokens of an ad (default: 128)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds to wait for an answer (default: 600)")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench", help="folder for the results")
    options = parser.parse_intermixed_args()
    if min(*options.clients, options.requests, options.tokens) < 1:
        parser.error("--clients, --requests and --tokens are at least 1")
    [url] = [word for word in options.words if "://" in word] or [""]
    if url:
        return serve(options, url, url, Path(find_model(url)).name)
    choices = read_choices()
    base, words = prepare(choices)
    with started([*words, *options.words]) as (url, _):
        serve(options, url, engine(choices), shown(base))


def serve(options: argparse.Namespace, url: str, name: str, model: str) -> None:
    """Measures the server at a URL, and writes what it gives. name, model: what the table calls them."""
    products = [row["content"] for row in read_json_lines(ROOT / "data/sample/dev.jsonl")]
    card = (ask_card("name") or ["CPU"])[0]
    results, path = {"gpu": card, "model": model, "max_tokens": options.tokens}, card_file(options.out, card, "server-")
    for clients in options.clients:
        print(f"Clients at a time: {clients}", flush=True)
        try:
            run = asyncio.run(measure(options, url, find_model(url), products, clients))
        except Exception as error:
            reason = str(error) or type(error).__name__
            fail(f"{name} failed at --clients {clients} ({reason}): look at the server's log, or ask for fewer")
        found = add_results(path, results | {"served": [{"server": name} | run]}, "served", ("server", "clients"))
        write_results(path, found, format_results(found))
    print(align(result_lines(found)))


if __name__ == "__main__":
    os.environ.update(DEFAULTS | WRITING | os.environ)
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
