"""Asks a running server (`make api`) for an ad over its OpenAI-style API, whole and as a stream.

  python examples/client.py '类型#裙*颜色#白色*风格#甜美'

BASE_URL in the environment names another server, and API_KEY is its key. The official `openai` package works as well:
base_url="http://127.0.0.1:8000/v1", and any model name. This program uses httpx, which is installed anyway.
"""

import json
import os
import sys

import httpx

attributes = sys.argv[1] if len(sys.argv) > 1 else "类型#口红*质地#丝绒*功效#显白*场景#约会"
client = httpx.Client(
    base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000") + "/v1/",
    headers={"Authorization": f"Bearer {os.environ.get('API_KEY', '')}"},
    timeout=120,
    trust_env=False,
)
# The server adds the system prompt and the sampling of its recipe. A request may set temperature, top_p and max_tokens.
request = {
    "model": client.get("models").raise_for_status().json()["data"][0]["id"],
    "messages": [{"role": "user", "content": attributes}],
}

answer = client.post("chat/completions", json=request | {"n": 2}).raise_for_status().json()
for choice in answer["choices"]:
    print(choice["message"]["content"])

with client.stream("POST", "chat/completions", json=request | {"stream": True}) as stream:
    for line in stream.raise_for_status().iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            print(json.loads(line[6:])["choices"][0]["delta"].get("content") or "", end="", flush=True)
print()
