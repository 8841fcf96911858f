"""A page for copywriters: describe a product, read several ads for it and copy one, or upload a table of products.

  MODEL=tiny DATA=sample python scripts/desk.py

The page marks the attributes in each ad: green if the ad names it, grey if it does not, red if the ad names a known
value that the product does not have. It marks words amber that the law or WORDS forbids or wants proved; this is no
legal advice. scripts/generate.py ranks ads in the same way, and writes the ads of a table. LABEL=1 in the environment
copies an ad with the mark 本广告由AI技术生成 at its end.

Editors work through the ads of a table, also of one that was written earlier: they choose a candidate, edit, approve or
reject. What they decide is kept in data/reviews, and in data/feedback.jsonl for a model to learn from.

MODEL, METHOD, DATA and EXPORTED in the environment choose the model, as for `make`. Without --server or SERVER, a
server with that model is started, which ends with the page. It is stopped while the ads of a table are written, because
a card may have no room for the model twice.

GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are the page's address, by default http://127.0.0.1:7860. If other machines
can reach the page, it asks for the user `desk` and the password API_KEY.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from lib import review_page, vllm
from lib.attributes import parse_attributes, tidy
from lib.candidates import judge
from lib.chat_client import client_options, find_model, request_of
from lib.choices import read_choices, served_overrides
from lib.files import ROOT
from lib.law import read_rules
from lib.marking import copy_button, show
from lib.metrics import vocabulary
from lib.recipes import check_overrides, read_recipe
from lib.servers import OwnServer, check_server, opened_by, wait_until_up

# Characters of an attribute string. AdGen's are all shorter.
LONGEST = 500
# How many values the page offers for a key of a type.
OFFERED = 300
NOTE = "文案由 AI 生成，发布前请通读并标明。黄色的词法律禁用或须有依据，点一下看条款；这只是提示，不是法律意见。"


def known_values(products: list[str]) -> dict[str, dict[str, list[str]]]:
    """Product type → key → its values in these attribute strings, the most frequent first. The type "" is any type."""
    counts = defaultdict(lambda: defaultdict(Counter))
    for pairs in map(parse_attributes, products):
        for kind in {dict(pairs).get("类型", ""), ""}:
            for key, value in pairs:
                counts[kind][key][value] += 1
    return {
        kind: {key: [value for value, _ in values.most_common(OFFERED)] for key, values in keys.items()}
        for kind, keys in counts.items()
    }


async def stream(client, body: dict, ads: list[str], number: int) -> None:
    """Asks for one ad as a stream, and adds each piece of it to `ads[number]`."""
    async with client.stream("POST", "chat/completions", json=body | {"stream": True}) as answer:
        async for line in answer.raise_for_status().aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    ads[number] += choice["delta"].get("content") or ""


async def write(server: str, request: dict, values: dict, content: str, count: int) -> AsyncIterator[str]:
    """Yields the HTML of `count` ads while the server writes them; at the end without repeated ads, the best first."""
    import httpx

    product, ads = tidy(content or ""), [""] * count
    if not parse_attributes(product) or len(product) > LONGEST:
        raise review_page.complaint(f"请填写属性，形如 类型#裙*颜色#白色，不超过 {LONGEST} 字")
    body = request | {"messages": [*request["messages"], {"role": "user", "content": product}]}
    async with httpx.AsyncClient(**client_options(server), timeout=600) as client:
        tasks = [asyncio.create_task(stream(client, body, ads, number)) for number in range(count)]
        try:
            while (await asyncio.wait(tasks, timeout=0.1))[1]:
                yield "".join(show(product, ad, values, None) for ad in ads)
            await asyncio.gather(*tasks)
        except httpx.ConnectError:
            said = "现在连不上模型：可能正在写一张商品表，或正在重新载入，请稍后再试"
            raise review_page.complaint(said) from None
        except (httpx.HTTPError, ValueError, LookupError) as error:
            raise review_page.complaint(f"服务器没有写完：{error or type(error).__name__}") from None
        finally:
            for task in tasks:
                task.cancel()
    best = sorted(dict.fromkeys(map(str.strip, ads)), key=lambda ad: judge(product, ad, values).rank)
    yield "".join(show(product, ad, values, copy_button(ad)) for ad in best)


async def write_table(
    command: list, overrides: list[str], own: OwnServer | None, path: str | None, count: int
) -> AsyncIterator[tuple]:
    """Yields what generate.py prints while it writes the ads of a table; at the end also the file with the ads.

    The ads become a list for the editors. own: the server that is stopped meanwhile.
    """
    import gradio as gr

    if not path:
        raise review_page.complaint("请先选择商品表")
    if own:
        await asyncio.to_thread(own.stop)
    printed, pipes = b"", {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, f"{Path(path).stem}_ads.csv")
        command = [*command, "--n", str(count), path, output, *overrides]
        process = await asyncio.create_subprocess_exec(*command, **pipes)
        try:
            while piece := await process.stdout.read(4096):
                printed += piece
                # The first lines stay; of the progress bar, its last state.
                text = re.sub(".*\r", "", printed.decode("utf-8", "replace")).strip()
                yield gr.Textbox(text, visible=True), gr.File(visible=False)
            await process.wait()
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
                await process.wait()
            if own:
                own.start()
        text = re.sub(".*\r", "", printed.decode("utf-8", "replace")).replace(f"{folder}/", "").strip()
        yield gr.Textbox(text, visible=True), gr.File(str(output), visible=True) if output.exists() else None
        if output.exists():
            await asyncio.to_thread(review_page.keep, output)


def build(server: str, request: dict, overrides: list[str], own: OwnServer | None):
    """The page as Gradio blocks. request: what all requests to the server have in common. own: the server, if ours."""
    import gradio as gr

    products = review_page.products()
    values, known = vocabulary(products), known_values(products)
    command = [sys.executable, ROOT / "scripts/generate.py"]
    command += [] if own else ["--server", server, "--model", request["model"]]

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
        gr.Markdown(f"# 文案台\n{NOTE}")
        with gr.Tab("一个商品"):
            kind = gr.Dropdown(list(known[""]["类型"]), value=None, label="类型", allow_custom_value=True)
            with gr.Row():
                key = gr.Dropdown([], label="属性", allow_custom_value=True, min_width=140)
                value = gr.Dropdown([], label="值（选了就加上）", allow_custom_value=True, min_width=140)
            content = gr.Textbox(label="属性串（可以直接粘贴）", placeholder="类型#裙*颜色#白色", lines=2, max_lines=6)
            count = gr.Slider(1, 8, value=4, step=1, label="写几条")
            start, cards = gr.Button("写文案", variant="primary"), gr.HTML()
        with gr.Tab("一张商品表"):
            with gr.Accordion("写一张新表，或打开写好的表") as new:
                upload = gr.File(
                    label="商品表，或写好的文案表（CSV、XLSX、JSONL）", file_types=[".csv", ".xlsx", ".jsonl"]
                )
                each = gr.Slider(1, 8, value=4, step=1, label="每个商品写几条")
                if own:
                    gr.Markdown("写整张表时，“一个商品”页要停下来等它写完；表写完后模型会重新载入。")
                start_table = gr.Button("写整张表", variant="primary")
            said, download = gr.Textbox(label="进度", visible=False), gr.File(label="下载文案", visible=False)
            seen, shown = build_reviews(new)
        kind.input(choose_kind, [kind, content], [content, key, value])
        key.input(lambda *chosen: gr.Dropdown(keys_of(chosen[0]).get(chosen[1], []), value=None), [kind, key], value)
        value.input(choose_value, [content, key, value], [content, value])
        start.click(partial(write, server, request, values), [content, count], cards)
        # Of our own tables, one at a time: each takes the whole card.
        table = partial(write_table, command, overrides, own)
        limit = 1 if own else "default"
        written = start_table.click(table, [upload, each], [said, download], concurrency_limit=limit)
        for event in (written.success, page.load):
            event(partial(review_page.choose, None), seen, shown, show_progress="hidden")
        upload.upload(review_page.bring, [upload, seen], shown, show_progress="hidden")
    return page.queue(default_concurrency_limit=8)


def build_reviews(new):
    """The part on which editors work through a list. new: the part for new tables, which closes when a list opens.

    Returns the component that holds what an editor sees, and what `review_page.choose` fills.
    """
    import gradio as gr

    names = gr.Dropdown([], label="文案表")
    with gr.Column(elem_id="review"):
        seen, pick = gr.JSON(visible=False), gr.Textbox(elem_id="pick", show_label=False)
        choices = [(word, key) for key, word in review_page.WORDS.items()]
        only = gr.Radio(choices, value="open", show_label=False, container=False, elem_id="only")
        top, text, rest = gr.HTML(), gr.Textbox(label="修改文案", lines=4, max_lines=12, elem_id="text"), gr.HTML()
        with gr.Column(elem_id="bar"):
            with gr.Column(elem_id="reasons"):
                with gr.Row():
                    reasons = [gr.Button(reason) for reason in review_page.REASONS]
                with gr.Row():
                    hint = "其他原因，可以不填"
                    reason = gr.Textbox(placeholder=hint, show_label=False, container=False, elem_id="reason", scale=3)
                    send = gr.Button("退回", elem_id="send")
            with gr.Row():
                back, _ = gr.Button("‹", elem_id="back"), gr.Button("退回", elem_id="reject")
                _, approve = gr.Button("修改", elem_id="edit"), gr.Button("通过", variant="primary", elem_id="approve")
                forth = gr.Button("›", elem_id="forth")
        gr.Markdown("键盘：A 通过，R 退回，E 修改，U 撤回，J 下一条，K 上一条，数字键选用候选。", elem_id="keys")
        with gr.Row():
            undo, download = gr.Button("撤回为待定", elem_id="undo"), gr.Button("导出通过的文案")
        files = gr.File(visible=False, label="通过的文案")
    shown, quick = [seen, only, top, text, reason, rest, pick], {"show_progress": "hidden", "concurrency_limit": None}
    names.input(review_page.begin, [names, seen], shown, **quick)
    only.input(partial(review_page.move, 0), [seen, only], shown, **quick)
    back.click(partial(review_page.move, -1), [seen, only], shown, **quick)
    forth.click(partial(review_page.move, 1), [seen, only], shown, **quick)
    approve.click(review_page.approve, [seen, only, text], shown, **quick)
    send.click(review_page.reject, [seen, only, text, reason], shown, **quick)
    for button in reasons:
        button.click(review_page.reject, [seen, only, text, button], shown, **quick)
    undo.click(review_page.reopen, [seen, only, text], shown, **quick)
    pick.input(review_page.take, [seen, only, pick], shown, **quick)
    text.input(review_page.remark, [seen, text], top, trigger_mode="always_last", **quick)
    text.blur(review_page.save, [seen, text], None, **quick)
    download.click(review_page.export, seen, files)
    return seen, [new, names, *shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the chat recipe")
    server = os.environ.get("SERVER")
    parser.add_argument("--server", metavar="URL", default=server, help="ask this OpenAI-compatible server; start none")
    parser.add_argument("--model", help="the server's name for the model (default: its only model)")
    options = parser.parse_intermixed_args()
    choices, overrides = read_choices(), check_overrides(options.overrides, "api")
    read_rules()
    recipe = read_recipe(ROOT / choices.recipe("chat"), [*served_overrides(choices), *overrides])
    host, port = check_server("desk")
    login = ("desk", os.environ["API_KEY"]) if opened_by("desk") else None
    # Gradio 5 warns of changes in Gradio 6.
    warnings.simplefilter("ignore", DeprecationWarning)
    with tempfile.TemporaryFile() as log:
        own = None if options.server else OwnServer(overrides, log)
        try:
            if own:
                print("Starting a server for this page", file=sys.stderr)
                wait_until_up(own.process, own.url, log)
            server = own.url if own else options.server
            request = request_of(recipe, options.model or find_model(server))
            # vLLM writes a table and single ads at the same time.
            page = build(server, request, overrides, None if vllm.is_wanted() else own)
            page.launch(server_name=host, server_port=port, auth=login, show_api=False, max_file_size="20mb")
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            if own:
                own.stop()


if __name__ == "__main__":
    main()
