"""A page for copywriters: put a product together, read several ads for it, copy one; or upload a table of products.

  python scripts/desk.py --server http://127.0.0.1:8000

In each ad the attributes that it names are green, those that it misses grey, known ones that the product does not have
red. The best ad comes first, by the rule of generate.py, which also writes the ads of a table. GRADIO_SERVER_NAME and
GRADIO_SERVER_PORT are the page's address; other machines than this one log in as `desk` with the password API_KEY.
"""

import argparse
import asyncio
import html
import json
import os
import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from adgen import ROOT, parse_attributes
from chat_server import client_options, own_server
from doctor import check_server, is_loopback
from generate import judge, known_products, read_settings
from prepare_data import tidy

# Characters of an attribute string; AdGen's are all shorter.
LONGEST = 500
SIGNS = {"covered": "✓", "missing": "缺", "invented": "多"}


def known_values(products: list[str]) -> dict[str, dict[str, list[str]]]:
    """Type → key → the values that such products have, the most frequent first; the type "" is any."""
    counts = defaultdict(lambda: defaultdict(Counter))
    for pairs in map(parse_attributes, products):
        for kind in {dict(pairs).get("类型", ""), ""}:
            for key, value in pairs:
                counts[kind][key][value] += 1
    tops = {kind: {key: values.most_common(300) for key, values in keys.items()} for kind, keys in counts.items()}
    return {kind: {key: [value for value, _ in top] for key, top in keys.items()} for kind, keys in tops.items()}


def show(product: str, ad: str, values: dict, whole: bool = False) -> str:
    """An ad as HTML, its attributes marked, a whole one with a button that copies it; `values`: scores.vocabulary's."""
    found = judge(product, ad, values)
    kinds = {value: "covered" for _, value in parse_attributes(product)}
    kinds |= dict.fromkeys(found.missing, "missing") | dict.fromkeys(found.invented, "invented")
    marked = sorted((value for value in kinds if value in ad), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, marked))})", ad) if marked else [ad]
    text = "".join(
        f'<mark class="{kinds[piece]}">{html.escape(piece)}</mark>' if piece in kinds else html.escape(piece)
        for piece in pieces
    )
    spans = [f'<span class="{kind}">{SIGNS[kind]} {html.escape(value)}</span>' for value, kind in kinds.items()]
    copy = f'<button data-ad="{html.escape(ad)}" onclick="copyAd(this)">复制</button>' if whole else ""
    return f'<div class="ad">{copy}<p>{text or "…"}</p>{"".join(spans)}</div>'


async def write(server: str, request: dict, values: dict, content: str, count: int):
    """Yields the HTML of `count` ads while they are being written, and at the end without doubles, the best first."""
    import gradio as gr
    import httpx

    product, ads = tidy(content or ""), [""] * count
    if not parse_attributes(product) or len(product) > LONGEST:
        raise gr.Error(f"请填写属性，形如 类型#裙*颜色#白色，不超过 {LONGEST} 字", print_exception=False)
    body = request | {"messages": [*request["messages"], {"role": "user", "content": product}], "stream": True}

    async def fill(number: int) -> None:
        async with client.stream("POST", "chat/completions", json=body) as answer:
            async for line in answer.raise_for_status().aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line.removeprefix("data: "))["choices"]:
                        ads[number] += choice["delta"].get("content") or ""

    async with httpx.AsyncClient(**client_options(server), timeout=600) as client:
        tasks = [asyncio.create_task(fill(number)) for number in range(count)]
        try:
            while (await asyncio.wait(tasks, timeout=0.1))[1]:
                yield "".join(show(product, ad, values) for ad in ads)
            await asyncio.gather(*tasks)
        except (httpx.HTTPError, ValueError, LookupError) as error:
            raise gr.Error(f"服务器没有写完：{error or type(error).__name__}", print_exception=False) from None
        finally:
            for task in tasks:
                task.cancel()
    best = sorted(dict.fromkeys(map(str.strip, ads)), key=lambda ad: judge(product, ad, values).rank)
    yield "".join(show(product, ad, values, whole=True) for ad in best)


async def write_table(command: list, overrides: list[str], path: str | None, count: int):
    """Yields what generate.py says while it writes the ads of a table, and at the end the file with them."""
    import gradio as gr

    if not path:
        raise gr.Error("请先选择商品表", print_exception=False)
    said, pipes = b"", {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, f"{Path(path).stem}_ads.csv")
        command = [*command, "--n", str(count), path, output, *overrides]
        process = await asyncio.create_subprocess_exec(*command, **pipes)
        try:
            while piece := await process.stdout.read(4096):
                said += piece
                yield said.decode("utf-8", "replace").strip().split("\r")[-1], gr.File(visible=False)
            await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
        text = re.sub(".*\r", "", said.decode("utf-8", "replace")).replace(f"{folder}/", "").strip()
        yield text, gr.File(str(output), visible=True) if output.exists() else None


def build(server: str, options: argparse.Namespace):
    """The page, over a server's base URL."""
    import gradio as gr
    import scores

    request, products = read_settings(options)["request"], known_products()
    values, known = scores.vocabulary(products), known_values(products)
    command = [sys.executable, ROOT / "scripts/generate.py", "--server", server, "--recipe", options.recipe]
    command += ["--model", request["model"]]

    def keys_of(kind: str) -> dict[str, list[str]]:
        return known.get(kind, known[""])

    def choose_kind(kind: str, content: str):
        pairs = [("类型", kind or ""), *(pair for pair in parse_attributes(content or "") if pair[0] != "类型")]
        keys = [key for key in keys_of(kind) if key != "类型"]
        return "*".join(map("#".join, pairs)), gr.Dropdown(keys, value=None), gr.Dropdown([], value=None)

    def choose_value(content: str, key: str, value: str):
        pair = [f"{key}#{value}".replace("*", "×")] if key and value else []
        return "*".join(filter(None, [(content or "").strip("* "), *pair])), None

    theme, head = gr.themes.Default(font=["system-ui", "sans-serif"]), ROOT / "scripts/desk.html"
    with gr.Blocks(title="文案台", theme=theme, head_paths=head, analytics_enabled=False) as page:
        gr.Markdown("# 文案台")
        count = gr.Slider(1, 8, value=4, step=1, label="每个商品写几条")
        with gr.Tab("一个商品"):
            kind = gr.Dropdown(list(known[""]["类型"]), value=None, label="类型", allow_custom_value=True)
            with gr.Row():
                key = gr.Dropdown([], label="属性", allow_custom_value=True, min_width=140)
                value = gr.Dropdown([], label="值（选了就加上）", allow_custom_value=True, min_width=140)
            content = gr.Textbox(label="属性串（可以直接粘贴）", placeholder="类型#裙*颜色#白色", lines=2, max_lines=6)
            start, cards = gr.Button("写文案", variant="primary"), gr.HTML()
        with gr.Tab("一张商品表"):
            upload = gr.File(label="商品表（CSV、XLSX、JSONL）", file_types=[".csv", ".xlsx", ".jsonl"])
            start_table = gr.Button("写整张表", variant="primary")
            said, download = gr.Textbox(label="进度", lines=4), gr.File(label="下载文案", visible=False)
        kind.input(choose_kind, [kind, content], [content, key, value])
        key.input(lambda *chosen: gr.Dropdown(keys_of(chosen[0]).get(chosen[1], []), value=None), [kind, key], value)
        value.input(choose_value, [content, key, value], [content, value])
        start.click(partial(write, server, request, values), [content, count], cards)
        start_table.click(partial(write_table, command, options.overrides), [upload, count], [said, download])
    return page.queue(default_concurrency_limit=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe")
    parser.add_argument("--server", metavar="URL", help="an OpenAI-compatible server (default: one of its own)")
    parser.add_argument("--model", help="the server's name for the model (default: its only one)")
    parser.add_argument("--recipe", type=Path, default=ROOT / "configs/llama3_8b/chat.yaml", help="chat recipe")
    options = parser.parse_intermixed_args()
    host, port = check_server("desk")
    # Gradio 5 warns of Gradio 6.
    warnings.simplefilter("ignore", DeprecationWarning)
    with nullcontext(options.server) if options.server else own_server(options.recipe, options.overrides) as server:
        options.server, options.n = server, 1
        page = build(server, options)
        login = None if host == "localhost" or is_loopback(host) else ("desk", os.environ["API_KEY"])
        page.launch(server_name=host, server_port=port, auth=login, show_api=False, max_file_size="20mb")


if __name__ == "__main__":
    main()
