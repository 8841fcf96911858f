"""Measures a running OpenAI-compatible server: ads per second, and how long clients wait, by the number of clients.

  make bench BENCH=serving ARGS=http://127.0.0.1:8000

Each client asks for streamed ads of the sample's dev products, one after another. The results go to
results/bench/server-<gpu>.json and .md, named after the GPU of this machine.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path

from lib.chat_client import client_options, find_model
from lib.files import ROOT, fail, read_json_lines
from lib.tables import align, markdown
from measuring import ask_card, card_file, cell, tidy, write_results


async def ask(client, model: str, product: str, tokens: int) -> tuple[float, float]:
    """Seconds to the first words and to the end of one streamed ad; RuntimeError if the server refuses the request.

    `client`: an httpx.AsyncClient of the server. `product`: an attribute string. `tokens`: the most tokens of the ad.
    """
    body = {"model": model, "messages": [{"role": "user", "content": product}], "stream": True, "max_tokens": tokens}
    start, first = time.perf_counter(), None
    async with client.stream("POST", "chat/completions", json=body) as answer:
        if not answer.is_success:
            raise RuntimeError(f"the server answers {answer.status_code}")
        async for line in answer.aiter_lines():
            if first is None and line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                if choices and choices[0]["delta"].get("content"):
                    first = time.perf_counter() - start
    if first is None:
        raise RuntimeError("the model wrote nothing")
    return first, time.perf_counter() - start


async def measure(options: argparse.Namespace, model: str, products: list[str], clients: int) -> dict:
    """What `clients` clients get that ask at the same time, each for `options.requests` ads one after another."""
    import httpx

    async def work(number: int) -> list[tuple[float, float]]:
        mine = [products[(number * options.requests + turn) % len(products)] for turn in range(options.requests)]
        return [await ask(client, model, product, options.tokens) for product in mine]

    async with httpx.AsyncClient(**client_options(options.server), timeout=options.timeout) as client:
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
    lines = [["clients at a time", "ads per second", "first words after (s, median)", "longest"]]
    lines[0] += ["whole ad after (s, median)", "longest"]
    for run in results["served"]:
        waits = [run[name][part] for name in ("first_words_s", "whole_ad_s") for part in ("median", "longest")]
        lines.append([str(run["clients"]), *map(cell, [run["requests_per_s"], *waits])])
    return lines


def format_results(results: dict) -> str:
    """The results of a server as Markdown."""
    each = results["served"][0]["requests"] // results["served"][0]["clients"]
    return (
        f"# What a server gives its clients: {results['gpu']}\n\n"
        f"Model {results['model']}. Ads are streamed. Ads for each client, one after another: {each}. Most tokens of "
        f"an ad: {results['max_tokens']}.\n\n{markdown(result_lines(results))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", metavar="URL", help="base URL of the server")
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 8, 32), help="numbers of clients (1 8 32)")
    parser.add_argument("--requests", type=int, default=2, help="ads for each client (default: 2)")
    parser.add_argument("--tokens", type=int, default=128, help="the most tokens of an ad (default: 128)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds to wait for an answer (default: 600)")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench", help="folder for the results")
    options = parser.parse_args()
    if min(*options.clients, options.requests, options.tokens) < 1:
        parser.error("--clients, --requests and --tokens are at least 1")
    model = find_model(options.server)
    products = [row["content"] for row in read_json_lines(ROOT / "data/sample/dev.jsonl")]
    card = (ask_card("name") or ["CPU"])[0]
    results = {"gpu": card, "model": Path(model).name, "max_tokens": options.tokens, "served": []}
    for clients in options.clients:
        print(f"Clients at a time: {clients}", flush=True)
        try:
            results["served"].append(asyncio.run(measure(options, model, products, clients)))
        except Exception as error:
            reason = str(error) or type(error).__name__
            fail(
                f"{options.server} failed at --clients {clients} ({reason}): look at the server's log, or ask for fewer"
            )
        write_results(card_file(options.out, card, "server-"), results, format_results(results))
    print(align(result_lines(results)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
