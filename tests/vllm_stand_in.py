"""Stands in for the program `vllm`, which needs a GPU: few endpoints, few options, and ads of a product's values."""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

import jinja2
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("verb", choices=["serve"])
parser.add_argument("model")
for name in ("served-model-name", "host", "middleware", "chat-template", "generation-config", "lora-modules"):
    parser.add_argument(f"--{name}")
for name in ("port", "max-model-len", "max-lora-rank", "max-num-seqs"):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--override-generation-config", type=json.loads)
parser.add_argument("--gpu-memory-utilization", type=float)
parser.add_argument("--dtype")
parser.add_argument("--enable-lora", action="store_true")
parser.add_argument("--disable-uvicorn-access-log", action="store_true")
options = parser.parse_args()
if options.max_model_len < 1000:
    print(
        "(EngineCore pid=7) ERROR [core.py:1] ValueError: No available memory for the cache blocks.\n\nTraceback", "…"
    )
    sys.exit("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(Path(options.chat_template).read_text())
assert json.loads(Path(options.generation_config, "generation_config.json").read_text())["eos_token_id"]
adapter = options.lora_modules.partition("=") if options.enable_lora else None
app = FastAPI()


@app.middleware("http")
async def ask_for_the_key(request: Request, go_on):
    key = os.environ.get("VLLM_API_KEY")
    if key and request.url.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {key}":
        return JSONResponse({"error": "Unauthorized"}, 401)
    return await go_on(request)


@app.get("/v1/models")
def models():
    listed = [{"id": options.served_model_name, "owned_by": "vllm", "parent": None}]
    if adapter:
        listed.append({"id": adapter[0], "owned_by": "vllm", "parent": options.served_model_name})
    return {"data": listed}


@app.post("/invocations")
@app.post("/v1/chat/completions")
async def complete(request: Request):
    asked = await request.json()
    asked = options.override_generation_config | asked
    prompt = template.render(messages=asked["messages"], add_generation_prompt=True)
    with Path(os.environ["NOTES"]).open("a") as notes:
        notes.write(json.dumps({"prompt": prompt, "options": vars(options), **asked}) + "\n")
    values = [pair.split("#")[1] for pair in asked["messages"][-1]["content"].split("*")]
    message = {"role": "assistant", "content": f"这款{'的'.join(values)}，穿上它，每一天都是好心情，值得拥有。"}
    return {"choices": [{"message": message, "finish_reason": "stop"}] * asked.get("n", 1)}


module, _, middleware = options.middleware.rpartition(".")
app.add_middleware(getattr(importlib.import_module(module), middleware))
uvicorn.run(app, host=options.host, port=options.port)
