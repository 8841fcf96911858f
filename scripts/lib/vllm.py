"""vLLM as the engine: its own OpenAI-compatible server, with the recipe's prompt, stop tokens and sampling.

LLaMA-Factory's `infer_backend: vllm` takes vLLM up to 0.11.0. That one needs another PyTorch, and a model or a request
can have it run foreign code (CVE-2026-27893, CVE-2026-22778). So LLaMA-Factory makes the prompt here, and vLLM's own
server does the rest.
"""

import asyncio
import hashlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lib import chat_client
from lib.choices import YES, Choices, read_choices, served_overrides, stages
from lib.files import ROOT, fail, whole_file, write_json, write_json_lines
from lib.gpu import DEMO, ask_cards
from lib.journal import Done, Key, Stopped, numbered
from lib.predictions import read_data
from lib.recipes import known_keys, read_recipe
from lib.registry import data_files
from lib.servers import OwnServer, address, wait_until_up
from lib.supervision import find_cli
from lib.weights import read_json

# LLaMA-Factory's keys → options of `vllm serve`, with the values that we give them.
OPTIONS = {"vllm_maxlen": ("--max-model-len", 2048), "infer_dtype": ("--dtype", "bfloat16")}
# The ranks of adapters that vLLM knows.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# GiB of a recipe's card that are left to CUDA graphs, to the driver and to a screen.
LEFT = 3.25
# Unless the user has set them: no reports to vLLM's makers, and no sampler that wants a CUDA compiler (nvcc).
VARIABLES = {"VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


def is_wanted() -> bool:
    """Whether BACKEND asks for vLLM; ends the program if it names another engine."""
    backend = os.environ.get("BACKEND")
    return backend == "vllm" or (bool(backend) and fail(f'there is no engine "{backend}"; BACKEND is vllm, or empty'))


def check() -> str:
    """The path of vLLM; ends the program if it is not installed, or has no card to run on."""
    program = find_cli("vllm", "make setup VLLM=1")
    if not ask_cards("--query-gpu=name --format=csv,noheader"):
        fail(f"vLLM needs a CUDA GPU, and none was found (nvidia-smi lists none): leave BACKEND out, or {DEMO}")
    return program


def memory_share(recipe: dict, header: str) -> float:
    """The share of a card that vLLM takes: what the recipe's card has, less LEFT GiB. `header`: the recipe's text."""
    if recipe.get("vllm_gpu_util"):
        return recipe["vllm_gpu_util"]
    named = re.search(r"^# Needs:.* (\d+) GB GPU", header, re.MULTILINE)
    sizes = ask_cards("--query-gpu=memory.total --format=csv,noheader,nounits").split()
    smallest = min(map(int, sizes), default=24 * 1024) / 1024
    return round(min(0.95, (int(named[1] if named else 8) - LEFT) / smallest), 3)


def prompt_folder(recipe: dict) -> Path:
    """The folder for the prompt of a recipe, as vLLM reads it; from the project's root on."""
    return Path("saves/vllm", hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16])


def serve_words(recipe: dict, header: str, model: str, gpus: int) -> list[str]:
    """The words of `vllm` that serve what a chat recipe names, at API_HOST and API_PORT.

    model: its name for clients. An adapter gets that name; the model below it is called `base` then.
    """
    adapter, folder, (host, port) = recipe.get("adapter_name_or_path"), prompt_folder(recipe), address("api")
    asked = chat_client.request_of(recipe, model)
    sampling = {name: asked[name] for name in SAMPLING} | {"max_new_tokens": asked["max_tokens"]}
    words = ["serve", recipe["model_name_or_path"], "--served-model-name", "base" if adapter else model]
    words += ["--host", host, "--port", str(port), "--middleware", "lib.only_v1.OnlyV1", "--disable-uvicorn-access-log"]
    words += ["--chat-template", str(folder / "chat_template.jinja"), "--generation-config", str(folder)]
    words += ["--override-generation-config", json.dumps(sampling)]
    # On a large card, vLLM would set memory aside for 1,024 ads at a time.
    words += ["--gpu-memory-utilization", str(memory_share(recipe, header)), "--max-num-seqs", "256"]
    for key, (option, default) in OPTIONS.items():
        words += [option, str(recipe.get(key) or default)]
    if recipe.get("quantization_bit"):
        if recipe["quantization_bit"] != 4:
            fail("vLLM quantizes to 4 bits while it loads, and to nothing else: quantization_bit=4, or leave it out")
        words += ["--quantization", "bitsandbytes"]
    if adapter:
        rank = read_json(ROOT / adapter / "adapter_config.json").get("r", RANKS[0])
        size = next((size for size in RANKS if size >= rank), rank)
        words += ["--enable-lora", "--max-lora-rank", str(size), "--lora-modules", f"{model}={adapter}"]
    return words + (["--data-parallel-size", str(gpus)] if gpus > 1 else [])


def write_prompt(recipe: dict) -> None:
    """Writes the prompt that LLaMA-Factory makes by a recipe as a chat template, and its stop tokens.

    Ends the program if the chat template would not give the same tokens.
    """
    from llamafactory.data.template import ReasoningTemplate, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_tokenizer

    keys, folder = known_keys("api") - {"infer_backend"}, ROOT / prompt_folder(recipe)
    model_args, data_args, *_ = get_infer_args({key: value for key, value in recipe.items() if key in keys})
    # vLLM reads the tokenizer as it lies there, LLaMA-Factory adds tokens to its own.
    plain, tokenizer = (load_tokenizer(model_args)["tokenizer"] for _ in range(2))
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    tokenizer.chat_template = None
    template.fix_jinja_template(tokenizer)
    written = tokenizer.chat_template or ""
    if isinstance(template, ReasoningTemplate) and not template.enable_thinking:
        written += "{% if add_generation_prompt %}{{ '" + template.add_thought() + "' }}{% endif %}"
    asked = [{"role": "user", "content": "类型#裙*风格#a 'b' \\n{{c}}  *颜色#白色"}]
    expected, _ = template.encode_oneturn(tokenizer, [*asked, {"role": "assistant", "content": ""}])
    if plain.apply_chat_template(asked, chat_template=written or "-", add_generation_prompt=True) != expected:
        fail(f"vLLM cannot make the prompt of {recipe['model_name_or_path']} as LLaMA-Factory does: leave BACKEND out")
    with whole_file(folder / "chat_template.jinja") as file:
        file.write(written)
    write_json(folder / "generation_config.json", {"eos_token_id": template.get_stop_token_ids(tokenizer)})


def serve(choices: Choices, recipe: dict, look: Callable[[dict], None] | None) -> None:
    """Starts vLLM's server in the place of this process.

    recipe: what the chat recipe and its overrides say. look: the checks before a start; None prints the command only.
    """
    name = os.environ.get("API_MODEL_NAME") or choices.model
    header = (ROOT / choices.recipe("chat")).read_text(encoding="utf-8")
    if not look:
        plan = [*map("=".join, VARIABLES.items()), "vllm", *serve_words(recipe, header, name, choices.gpus)]
        return print(shlex.join(plan))
    program = check()
    look(recipe)
    write_prompt(recipe)
    # It finds `lib.only_v1`. Among the words, other users could read the key.
    paths = [str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths)}
    if os.environ.get("API_KEY"):
        own["VLLM_API_KEY"] = os.environ["API_KEY"]
    if os.environ.get("USE_MODELSCOPE_HUB") in YES:
        own["VLLM_USE_MODELSCOPE"] = "true"
    os.execve(program, [program, *serve_words(recipe, header, name, choices.gpus)], VARIABLES | os.environ | own)


async def write_ads(
    overrides: list[str],
    todo: dict[Key, int],
    done: Done,
    progress: Callable[[int], object],
    *_,
    read: Callable[[dict], str] = chat_client.read_choice,
    **variables: str,
) -> dict[Key, str]:
    """Starts vLLM and has it write as many ads of each product as `todo` says, as `lib.journal.Writer` asks.

    overrides: of the chat recipe. read: see `chat_client.ask`. variables: for the server's environment.
    """
    choices = read_choices()
    recipe = read_recipe(ROOT / choices.recipe("chat"), [*served_overrides(choices), *overrides])
    with tempfile.TemporaryFile() as log:
        server = OwnServer(overrides, log, **variables)
        try:
            await asyncio.to_thread(wait_until_up, server.process, server.url, log)
            body = chat_client.request_of(recipe, chat_client.find_model(server.url))
            many = chat_client.in_flight(server.url)
            return await chat_client.write_ads(server.url, body, many, todo, done, progress, read=read)
        finally:
            server.stop()


def predict(recipe: Path, overrides: list[str], _environment: dict[str, str]) -> None:
    """Writes an ad for each row of a predict recipe, to the file that LLaMA-Factory writes: `lib.runs.run_training`."""
    from tqdm import tqdm

    settings, choices, keys = read_recipe(recipe, overrides), read_choices(), known_keys("api") - {"infer_backend"}
    [path] = data_files(settings).values()
    rows = read_data(path)
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items() if key in keys]
    variables = {}
    if not settings.get("adapter_name_or_path"):
        words.append("adapter_name_or_path=null")
        # A preference method would take the base model for that below the fine-tuned one.
        variables = {"METHOD": stages(choices)[0].method}
    products, ads = numbered(rows.contents[: settings.get("max_samples")]), {}
    # What was cut off stays as it was written, as LLaMA-Factory leaves it.
    write = partial(write_ads, words, read=lambda choice: choice["message"]["content"] or "", **variables)
    try:
        with tqdm(total=len(products), desc="Writing", unit="ad") as bar:
            refused = asyncio.run(write(dict.fromkeys(products, 1), ads.__setitem__, bar.update))
    except (Stopped, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    system = f"{settings.get('default_system') or ''}\n"
    written = (
        {"prompt": system + product[0], "predict": ads.get(product, [""])[0], "label": label}
        for product, label in zip(products, rows.references, strict=False)
    )
    write_json_lines(Path(settings["output_dir"], "generated_predictions.jsonl"), written)
    if refused:
        print(f"{len(refused)} of {len(products)} rows have no ad: {next(iter(refused.values()))}")
