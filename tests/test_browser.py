"""LLaMA-Factory's own pages, WebChat and LlamaBoard, in a real browser: what people see and click there."""

import json
from itertools import pairwise

import httpx
import pytest
from common import BIN, link_trained
from lib.files import ROOT
from served import PRODUCT, choose, field, needs_browser, serve, watch


@pytest.fixture
def newcomer(copy_project, demo):
    """A copy of the project with the demo's models, and without what LLaMA-Factory's pages keep."""
    folder = copy_project()
    link_trained(folder, demo[0])
    return folder


@needs_browser
def test_webchat_of_the_exported_model_streams_an_ad(newcomer, page):
    with serve(newcomer, "webchat", "EXPORTED=1") as url:
        assert url.startswith("http://127.0.0.1:")
        page.goto(url)
        query, bot = page.get_by_placeholder("输入..."), page.get_by_test_id("bot")
        field(page, "温度系数").fill("0.01")
        # The stand-in writes so fast that the page may show an ad all at once.
        for _ in range(20):
            query.fill(PRODUCT)
            watch(page, "[data-testid=bot]")
            page.get_by_role("button", name="提交").click()
            bot.filter(has_text="。").first.wait_for()
            page.wait_for_function("document.querySelector('[data-testid=bot]').innerText.trim().endsWith('。')")
            seen = page.evaluate("seen")
            page.get_by_role("button", name="清空历史").click()
            bot.first.wait_for(state="detached")
            if len(seen) > 1:
                break
        assert len(seen) > 1 and "口红" in seen[-1]
        assert all(after.startswith(before) for before, after in pairwise(seen))
        query.fill("<img src=x onerror=document.title=1>")
        page.get_by_role("button", name="提交").click()
        bot.first.wait_for()
        assert "<img" in page.get_by_test_id("user").inner_text()


def test_plain_llamaboard(newcomer, request):
    """It starts without `make`. With a browser: it lists data and adapters, and loads the preset."""
    command = [BIN / "llamafactory-cli", "webui"]
    with serve(newcomer, "webui", command=command, GRADIO_SERVER_NAME="127.0.0.1") as url:
        assert "gradio" in httpx.get(url, trust_env=False).text
        if needs_browser.args[0]:
            return
        page = request.getfixturevalue("page")
        page.goto(url)
        look_at_data_and_adapters(page)
        load_the_preset(page)


def look_at_data_and_adapters(page):
    from playwright.sync_api import expect

    # The adapter of the demo, under the stand-in's model name.
    field(page, "Model name").fill("Custom")
    choose(page, "Model name", "Custom")
    choose(page, "Checkpoint path", "sample_qlora")
    # The data sets of the registry for fine-tuning, and the rows of one.
    registry = json.loads((ROOT / "dataset_info/dataset_info.json").read_text())
    registry = {name for name, entry in registry.items() if not entry.get("ranking")}
    field(page, "Dataset").click()
    options = page.locator("ul.options li")
    expect(options).to_have_count(len(registry), timeout=60_000)
    assert {words.split("\n")[-1].strip() for words in options.all_inner_texts()} == set(registry)
    options.filter(has_text="sample_train").click()
    page.get_by_role("button", name="Preview dataset").locator("visible=true").click()
    first = json.loads((ROOT / "data/sample/train.jsonl").read_text(encoding="utf-8").split("\n")[0])
    page.get_by_text(first["content"]).first.wait_for()
    page.locator("button:not(.toast-close)", has_text="Close").click()


def load_the_preset(page):
    from playwright.sync_api import expect

    choose(page, "Config path", "llama3_8b_sft_qlora.yaml")
    page.get_by_role("button", name="Load arguments").locator("visible=true").click()
    expect(field(page, "Learning rate")).to_have_value("2.0e-4", timeout=60_000)
    expect(field(page, "Model path")).to_have_value("meta-llama/Meta-Llama-3-8B-Instruct", timeout=60_000)
    shown = {label: field(page, label).input_value() for label in ("Model name", "Quantization bit", "Booster")}
    assert shown == {"Model name": "Llama-3-8B-Instruct", "Quantization bit": "4", "Booster": "liger_kernel"}
    page.get_by_role("button", name="Preview command").locator("visible=true").click()
    page.get_by_text("llamafactory-cli train").first.wait_for()
    text = page.inner_text("body")
    for words in ("--dataset adgen_train", "--learning_rate 0.0002", "--lora_rank 8", "--lora_alpha 16"):
        assert words in text
    for words in ("--lora_target q_proj,v_proj", "--neat_packing True", "--quantization_bit 4"):
        assert words in text
    assert "--trust_remote_code" not in text and "--template" not in text
