"""Measures a running OpenAI-style server: ads a second, and the time to an ad's first words, by clients at a time.

  python scripts/bench_server.py http://127.0.0.1:8000

Each client asks for streamed ads of the sample's dev products, one after another. Writes
results/bench/server-<gpu>.json and prints a table.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path

import tables
from adgen import ROOT, fail, read_json_lines, write_json
from chat_server import client_options, find_model
from cost import ask_card, card_file


async def ask(client, model: str, product: str, tokens: int) -> tuple[float, float]:
    """Seconds to the first words and to the end of a streamed ad; raises RuntimeError when the server refuses."""
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
    """What so many clients get who all ask at once, `options.requests` times one after another."""
    import httpx

    async def work(number: int) -> list[tuple[float, float]]:
        mine = [products[(number * options.requests + turn) % len(products)] for turn in range(options.requests)]
        return [await ask(client, model, product, options.tokens) for product in mine]

    async with httpx.AsyncClient(**client_options(options.server), timeout=options.timeout) as client:
        start = time.perf_counter()
        answers = [pair for pairs in await asyncio.gather(*map(work, range(clients))) for pair in pairs]
        seconds = time.perf_counter() - start
    firsts, ends = zip(*answers, strict=True)
    return {
        "clients": clients,
        "requests": len(answers),
        "requests_per_s": round(len(answers) / seconds, 3),
        "first_words_s": {"median": round(statistics.median(firsts), 3), "longest": round(max(firsts), 3)},
        "whole_ad_s": {"median": round(statistics.median(ends), 3), "longest": round(max(ends), 3)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", metavar="URL")
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 8, 32), help="how many at a time (1 8 32)")
    parser.add_argument("--requests", type=int, default=2, help="ads for each client (default: 2)")
    parser.add_argument("--tokens", type=int, default=128, help="the most tokens of an ad (default: 128)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds until a request counts as lost")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench", help="folder for the JSON file")
    options = parser.parse_args()
    model = find_model(options.server)
    products = [row["content"] for row in read_json_lines(ROOT / "data/sample/dev.jsonl")]
    card = (ask_card("name") or ["CPU"])[0]
    results = {"gpu": card, "model": Path(model).name, "max_tokens": options.tokens, "served": []}
    for clients in options.clients:
        print(f"{clients} at a time", flush=True)
        try:
            results["served"].append(asyncio.run(measure(options, model, products, clients)))
        except Exception as error:
            fail(f"with {clients} clients at a time: {error or type(error).__name__}")
        write_json(card_file(options.out, card, "server-"), results)
    lines = [["clients", "ads/s", "first words (s)", "longest", "whole ad (s)", "longest"]]
    for run in results["served"]:
        waits = [run[name][part] for name in ("first_words_s", "whole_ad_s") for part in ("median", "longest")]
        lines.append([str(cell) for cell in (run["clients"], run["requests_per_s"], *waits)])
    print(tables.align(lines))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
