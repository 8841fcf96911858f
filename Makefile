# The verbs of this project. `make` lists them; scripts/launch.py turns the variables below into recipe and overrides.
# A folder under configs/, and the method in one of its recipes: sft_<method>.yaml, dpo.yaml or kto.yaml.
export MODEL  ?= llama3_8b
export METHOD ?= qlora
# The rows: `adgen` is what `make data` writes, `sample` is embedded. RAW names local files of AdGen.
export DATA   ?= adgen
export RAW    ?=
# Cards of this machine, how they share a training (ddp, zero2, zero3, fsdp), and machines.
export GPUS     ?= 1
export NNODES   ?= 1
export STRATEGY ?=
# FRESH=1 trains anew, RESUME=1 goes on although the recipe or the base differs, EXPORTED=1 serves the export,
# BACKEND=vllm writes and serves with vLLM (once: make setup VLLM=1).
export FRESH    ?=
export RESUME   ?=
export EXPORTED ?=
export BACKEND  ?=
# The folder for scores and pictures. ARGS="num_train_epochs=2 --flag": overrides of the recipe, and flags of the program.
export RESULTS  ?= results/$(MODEL)
ARGS ?=

# `make generate`: the catalogue, the ads, candidates for each product. SERVER: the URL of a running server.
# WORDS: your own forbidden words. LABEL=1 marks each ad as written by AI. FEEDBACK: an editor's decisions, for pairs.
INPUT  ?= examples/products.csv
OUTPUT ?= ads.csv
N      ?= 4
export SERVER   ?=
export WORDS    ?=
export LABEL    ?=
export FEEDBACK ?=

# The environment: .venv, made from requirements.lock (VLLM=1: with vLLM), or the bin folder of your own (conda, container).
export VLLM ?=
BIN   ?= .venv/bin
PY    := $(BIN)/python
BENCH ?= training

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help setup doctor demo base data train eval export chat webchat api webui desk generate pairs bench test test-quick lint clean

help: ## list the verbs
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 14

setup: ## make the environment .venv from requirements.lock (VLLM=1: with vLLM; BIN=<folder>: your own)
	@scripts/setup.sh $(BIN)

doctor base train eval export chat webchat api webui: setup
	@exec $(PY) scripts/launch.py $@ $(ARGS)
doctor: ## list what a training needs and what is wrong (ARGS=--json)
base: ## make the base model of a stand-in (MODEL=tiny)
train: ## fine-tune, or resume after a kill (METHOD=, GPUS=, STRATEGY=, FRESH=1, RESUME=1)
eval: ## write ads for the dev rows before and after fine-tuning, and score both (RESULTS=<folder>)
export: ## merge the adapter into the base model: safetensors and an Ollama Modelfile
chat: ## write ads in the terminal (EXPORTED=1: with the exported model; also webchat, api, desk, generate)
webchat: ## write ads on LLaMA-Factory's page: http://127.0.0.1:7860
api: ## serve ads over an OpenAI-style API: http://127.0.0.1:8000 (BACKEND=vllm)
webui: ## LlamaBoard, LLaMA-Factory's own page: http://127.0.0.1:7860

demo: setup ## the whole path on a CPU, with the embedded sample: train, evaluate, export, write three ads
	@exec $(PY) scripts/demo.py

data: setup ## prepare AdGen from the hub, or from local files (RAW=<path>, ARGS="--unk cut")
	@exec $(PY) scripts/prepare_data.py $(RAW) $(ARGS)

pairs: setup ## make preference pairs of the tuned model's own ads, or of an editor's decisions (FEEDBACK=<jsonl>)
	@exec $(PY) scripts/pairs.py $(ARGS)

desk: setup ## a page for copywriters, with the attributes marked: http://127.0.0.1:7860 (SERVER=<URL>)
	@exec $(PY) scripts/desk.py $(ARGS)

generate: setup ## write ads for a catalogue (INPUT=<csv, xlsx, jsonl> OUTPUT=<csv, xlsx, jsonl> N=4 SERVER=<URL>)
	@exec $(PY) scripts/generate.py "$(INPUT)" "$(OUTPUT)" --n $(N) $(ARGS)

bench: setup ## measure speed and memory (BENCH=training, serving, bulk, ties, sizes, features, editor or rows; ARGS="sft_qlora --repeat 2")
	@PYTHONPATH=scripts exec $(PY) benchmarks/$(BENCH).py $(ARGS)

test: setup ## run all tests
	@exec $(PY) -m pytest -rs -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-quick: setup ## run the tests that are not long, in a minute and a half
	@exec $(PY) -m pytest -rs -n 3 --dist loadfile --no-loadscope-reorder -m "not long" $(ARGS)

lint: setup ## check the style of the code
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean: ## remove what runs wrote (saves/, exports/) and the prepared rows; .venv stays
	rm -rf saves exports llamaboard_cache data/adgen_* data/*_pairs* data/*_verdicts*
