# The front door. `make` lists the targets; each sets up what it needs.
#   MODEL=<folder under configs/>   METHOD=<sft_<method>.yaml in it>   ARGS="key=value …" overrides keys of the recipe
MODEL  ?= llama3_8b
METHOD ?= qlora
ARGS   ?=

# `make train` and `make eval`: cards of this machine. To train: how they share the work: ddp, zero2, zero3 or fsdp. Several
# machines: torchrun's NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT; restarts after a crash: RDZV_ID, MAX_RESTARTS; Ray instead:
# USE_RAY=1 and MASTER_ADDR, a node of its cluster.
GPUS     ?= 1
NNODES   ?= 1
STRATEGY ?=

# The environment: .venv, made from requirements.lock, or the bin folder of one of your own (conda, container).
BIN ?= .venv/bin
PY  := $(BIN)/python
CLI := $(BIN)/llamafactory-cli

# The rows: `adgen` is what `make data` writes, `sample` what is embedded. RAW: local AdGen files for `make data`.
DATA ?= adgen
RAW  ?=

# `make generate`: the catalogue, the file for its ads, candidates for each product, a server other than its own.
INPUT  ?= examples/products.csv
OUTPUT ?= ads.csv
N      ?= 4
SERVER ?=

# Servers answer this machine only, unless you say otherwise. LLaMA-Factory's log lines hide the progress bars.
export GRADIO_SERVER_NAME ?= 127.0.0.1
export API_HOST ?= 127.0.0.1
export API_MODEL_NAME ?= $(MODEL)
export LLAMAFACTORY_VERBOSITY ?= WARN
# Less of the GPU's memory is lost to gaps: the recipes' needs are measured so.
export PYTORCH_ALLOC_CONF ?= expandable_segments:True
# On an H100 or H200, torch takes cuDNN's attention first. It plans anew for each length: good to train with, slow to write with.
eval chat webchat api generate desk: export TORCH_CUDNN_SDPA_DEPRIORITIZED ?= 1

# A killed training goes on by itself. FRESH=1 sets it aside and begins anew, RESUME=1 goes on though the recipe has changed.
export FRESH  ?=
export RESUME ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# What the recipes say, read from them.
CONFIG := configs/$(MODEL)
SFT    := $(CONFIG)/sft_$(METHOD).yaml
ifeq ($(wildcard $(CONFIG)/sft_*.yaml),)
$(error there is no model "$(MODEL)"; MODEL is one of: $(notdir $(patsubst %/,%,$(dir $(wildcard configs/*/chat.yaml)))))
endif
ifeq ($(wildcard $(SFT)),)
$(error there is no method "$(METHOD)" for $(MODEL); METHOD is one of: $(patsubst sft_%.yaml,%,$(notdir $(wildcard $(CONFIG)/sft_*.yaml))))
endif
key     = $(shell sed -n 's/^$(1): *//p' $(CONFIG)/$(2).yaml)
BASE   := $(call key,model_name_or_path,chat)
SAVES  := $(patsubst %/predict/base,%,$(call key,output_dir,predict_base))

# A run is named after its recipe; runs on the embedded sample stand apart.
RUN     := $(if $(filter sample,$(DATA)),sample,sft)_$(METHOD)
FULL    := $(shell sed -n 's/^finetuning_type: //p' $(SFT))
TRAINED := $(SAVES)/$(or $(FULL),lora)/$(RUN)
BASE_PREDICTIONS := $(SAVES)/predict/$(if $(filter sample,$(DATA)),sample_)base
PREDICTIONS      := $(SAVES)/predict/$(RUN)
RESULTS ?= results/$(MODEL)
DEMO_RESULTS ?= saves/Custom/report

# Overrides that carry the choices above into the recipes; ModelScope has Meta's models under another owner.
MODEL_ID  := $(if $(filter 1 true,$(USE_MODELSCOPE_HUB)),$(patsubst meta-llama/%,model_name_or_path=LLM-Research/%,$(filter meta-llama/%,$(BASE))))
TRAIN_ON  := dataset=$(DATA)_train eval_dataset=$(DATA)_val output_dir=$(TRAINED) $(MODEL_ID)
PREDICT_ON := eval_dataset=$(DATA)_dev $(MODEL_ID)
TUNED     := $(if $(FULL),model_name_or_path=$(TRAINED) adapter_name_or_path=null,adapter_name_or_path=$(TRAINED) $(MODEL_ID))
# EXPORTED=1 serves what `make export` wrote.
EXPORT    := model_name_or_path=$(call key,export_dir,export) adapter_name_or_path=null
SERVED    := $(if $(filter 1,$(EXPORTED)),$(EXPORT),$(TUNED))

# More than one card: the global batch stays the recipe's, accumulation is divided. One card is one, though there be more.
SHARED_      :=
SHARED_ddp   :=
SHARED_zero2 := deepspeed=configs/distributed/zero2.json
SHARED_zero3 := deepspeed=configs/distributed/zero3.json
SHARED_fsdp  := fsdp=[full_shard,auto_wrap] fsdp_config=configs/distributed/fsdp.json
ifeq ($(origin SHARED_$(STRATEGY)),undefined)
$(error there is no strategy "$(STRATEGY)"; STRATEGY is one of: ddp zero2 zero3 fsdp)
endif
CARDS      := $(shell [[ "$(GPUS) $(NNODES)" =~ ^[1-9][0-9]*\ [1-9][0-9]*$$ ]] && echo $$(($(GPUS) * $(NNODES))))
ifeq ($(CARDS),)
$(error GPUS="$(GPUS)" NNODES="$(NNODES)": each is a whole number, at least 1)
endif
ACCUMULATE := $(or $(call key,gradient_accumulation_steps,sft_$(METHOD)),1)
EACH       := $(shell echo $$((($(ACCUMULATE) + $(CARDS) - 1) / $(CARDS))))
ifneq ($(NNODES),1)
$(foreach name,$(if $(RDZV_ID),,NODE_RANK) MASTER_ADDR MASTER_PORT,$(if $($(name)),,$(error NNODES=$(NNODES) needs $(name), too)))
endif
RAY        := $(filter 1 true,$(USE_RAY))
ifneq ($(RAY),)
# Without one LLaMA-Factory asks Ray's dashboard, which is not in our lock.
$(if $(MASTER_ADDR),,$(error USE_RAY=1 needs MASTER_ADDR, the address of a node that `ray start` joined to the cluster))
endif
FIRST_CARD := CUDA_VISIBLE_DEVICES=$(if $(filter undefined,$(origin CUDA_VISIBLE_DEVICES)),0,$$(cut -d, -f1 <<< "$$CUDA_VISIBLE_DEVICES"))
# LLaMA-Factory calls torchrun by its name. Restarted workers would be told the addresses of those that died (pytorch#135712).
# torchrun gives a process one thread, and for FSDP each quantises the whole base on the CPU.
THREADS    := $(or $(OMP_NUM_THREADS),$(shell echo $$((($$(nproc) + $(GPUS) - 1) / $(GPUS)))))
TORCHRUN   := PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=$(THREADS) FORCE_TORCHRUN=1 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \
NNODES=$(NNODES)
SHARED     := $(filter-out 1,$(CARDS))$(STRATEGY)
LAUNCH     := $(if $(RAY),,$(if $(SHARED),$(TORCHRUN) NPROC_PER_NODE=$(GPUS),$(FIRST_CARD)))
SHARE_ON   := $(if $(SHARED),gradient_accumulation_steps=$(EACH) $(SHARED_$(STRATEGY))) $(if $(RAY),ray_num_workers=$(CARDS) master_addr=$(MASTER_ADDR))
# A machine without a GPU runs as many processes as it is told to, for recipes that need none.
ENOUGH     := $(if $(filter 1,$(GPUS)),,cards=$$({ if [ -v CUDA_VISIBLE_DEVICES ]; then tr , '\n' <<< "$$CUDA_VISIBLE_DEVICES"; else nvidia-smi -L; fi; } 2> /dev/null | grep -c '^[^-]' || true); \
[ $$cards = 0 ] || [ $(GPUS) -le $$cards ] || { echo "error: GPUS=$(GPUS), and this machine shows $$cards (nvidia-smi -L, CUDA_VISIBLE_DEVICES)" >&2; exit 1; })
# To predict, each card has the whole model and writes its share of the rows.
PREDICT    := $(if $(filter 1,$(GPUS)),$(FIRST_CARD),$(TORCHRUN) NPROC_PER_NODE=$(GPUS)) $(PY) scripts/run.py

# Files that targets wait for.
READY := $(if $(filter .venv/bin,$(BIN)),.venv/.ready)
ROWS  := $(if $(filter adgen,$(DATA)),data/adgen_card.json)
DEV   := $(if $(filter adgen,$(DATA)),data/adgen_dev.jsonl,data/sample/dev.jsonl)
TRAIN := $(if $(filter adgen,$(DATA)),data/adgen_train.jsonl,data/sample/train.jsonl)
# A model folder with a pretrain recipe makes its base model itself, from the rows that the recipe learns from.
STAND_IN := $(if $(wildcard $(CONFIG)/pretrain.yaml),$(BASE)/train_results.json)
CORPUS   := $(if $(findstring adgen,$(if $(STAND_IN),$(call key,dataset,pretrain))),data/adgen_train.jsonl,data/sample/train.jsonl)

.PHONY: help setup doctor demo base data train eval export chat webchat webui api desk generate bench soak test lint clean

help: ## list the targets
	@echo 'make <target> [MODEL=$(MODEL)] [METHOD=$(METHOD)] [ARGS="key=value …"]'
	@sed -nE 's/^([a-z]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 12

setup: $(READY) ## make the environment .venv from requirements.lock (BIN=<folder> uses your own)
	@$(if $(READY),,test -x $(CLI) || { echo "error: there is no llamafactory-cli in $(BIN); pip install -r requirements.lock there" >&2; exit 1; })

doctor: $(READY) ## look at all that a training needs, and say what is wrong and how to mend it (ARGS=--json)
	@$(PY) scripts/doctor.py train $(SFT) --list $(TRAIN_ON) $(ARGS)

.venv/.ready: requirements.lock
	@for python in python3.12 python3.11 python3.13 python3; do \
	if "$$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; python=; done; \
	test "$$python" || { echo "error: Python 3.11 or newer is needed; install it, or name an environment: BIN=<folder>" >&2; exit 1; }; \
	echo "Setting up .venv with $$($$python --version): about 8 GB, some minutes"; \
	$$python -m venv --clear .venv; .venv/bin/pip install --quiet --require-hashes -r requirements.lock; touch $@

demo: $(READY) ## the whole path on this machine's CPU, on the embedded sample: train, evaluate, export, ads
	@rm -rf saves/Custom/lora/sample_$(METHOD)
	@$(MAKE) train eval export MODEL=tiny DATA=sample RESULTS=$(DEMO_RESULTS)
	@echo; echo "Three ads by the exported model, for products that were not in training:"
	@$(PY) -c 'print("\nclear\n".join(open("examples/attributes.txt").read().split()) + "\nexit")' \
	| $(PY) -c "$$CHAT" chat configs/tiny/chat.yaml model_name_or_path=exports/tiny adapter_name_or_path=null do_sample=false 2> saves/Custom/chat.log \
	| sed -n 's/^User: Assistant: //p' | paste -d '\n' examples/attributes.txt -
	@echo; echo "Loss picture: $(DEMO_RESULTS)/train_loss.png"

base: $(READY) $(STAND_IN) ## make the base model, for a MODEL whose base is a stand-in (tiny, small)

$(BASE)/train_results.json: $(CONFIG)/pretrain.yaml scripts/build_stand_in.py $(CORPUS) | $(READY)
	@init=$(call key,model_name_or_path,pretrain); rm -rf $$init $(BASE); \
	$(PY) scripts/build_stand_in.py --size $(MODEL) --corpus $(CORPUS) $$init; \
	$(PY) scripts/doctor.py train $<; exec $(PY) scripts/run.py train $<

data: $(READY) ## prepare AdGen from the hub (USE_MODELSCOPE_HUB=1: ModelScope) or from local files (RAW=<path> [ARGS="--unk cut"])
	@$(PY) scripts/prepare_data.py $(RAW) $(ARGS)

data/adgen_card.json data/adgen_train.jsonl: | $(READY)
	@$(PY) scripts/prepare_data.py $(RAW)

train: $(READY) $(ROWS) $(STAND_IN) ## fine-tune, or go on after a kill (FRESH=1: anew; GPUS=<n> STRATEGY=<ddp, zero2, zero3, fsdp>)
	@$(ENOUGH)
	@$(if $(RAY),nvidia-smi -L > /dev/null 2>&1 || { echo "error: USE_RAY=1 needs a GPU; LLaMA-Factory would wait for ever" >&2; exit 1; })
	@$(PY) scripts/doctor.py train $(SFT) $(TRAIN_ON) $(SHARE_ON) $(ARGS)
	@test $$(($(EACH) * $(CARDS))) = $(ACCUMULATE) || test -z "$(SHARED)" || echo "note: $(CARDS) cards do not divide the recipe's" \
	"gradient_accumulation_steps: $(ACCUMULATE); a step takes $$(($(EACH) * $(CARDS))) batches instead of $(ACCUMULATE)"
	@exec env $(LAUNCH) $(PY) scripts/run.py train $(SFT) $(TRAIN_ON) $(SHARE_ON) $(ARGS)

eval: $(READY) $(ROWS) $(STAND_IN) ## score the untuned and the tuned model on the dev rows (GPUS=<n> shares them out)
	@$(ENOUGH)
	@$(PY) scripts/doctor.py train $(CONFIG)/predict.yaml $(PREDICT_ON) $(TUNED) $(ARGS)
	@inputs="$$(cat $(CONFIG)/predict_base.yaml $(DEV) $(wildcard $(STAND_IN)) | cksum) $(PREDICT_ON) $(ARGS)"; \
	if [ "$$inputs" != "$$(cat $(BASE_PREDICTIONS)/inputs.txt 2>/dev/null)" ]; then \
	rm -f $(BASE_PREDICTIONS)/inputs.txt; \
	env $(PREDICT) train $(CONFIG)/predict_base.yaml $(PREDICT_ON) output_dir=$(BASE_PREDICTIONS) $(ARGS); \
	echo "$$inputs" > $(BASE_PREDICTIONS)/inputs.txt; fi
	@exec env $(PREDICT) train $(CONFIG)/predict.yaml $(PREDICT_ON) $(TUNED) output_dir=$(PREDICTIONS) $(ARGS)
	@$(PY) scripts/report.py base=$(BASE_PREDICTIONS)/generated_predictions.jsonl tuned=$(PREDICTIONS)/generated_predictions.jsonl \
	--data $(DEV) --train $(TRAIN) --decoding $(CONFIG)/predict.yaml --trainer-log $(TRAINED)/trainer_log.jsonl --out $(RESULTS)

export: $(READY) $(STAND_IN) ## merge the adapter into the base model: safetensors and an Ollama Modelfile
	@$(PY) scripts/doctor.py export $(CONFIG)/export.yaml $(TUNED) $(ARGS)
	@exec $(PY) scripts/run.py export $(CONFIG)/export.yaml $(TUNED) $(ARGS)

# LLaMA-Factory's chat answers Ctrl-C and Ctrl-D by a traceback, and its thread that writes can abort Python's own end.
define CHAT
import os, sys
from llamafactory.cli import main
try:
    main()
except (KeyboardInterrupt, EOFError):
    print()
sys.stdout.flush()
os._exit(0)
endef
export CHAT

chat: $(READY) $(STAND_IN) ## write ads in the terminal (EXPORTED=1: by the exported model; also webchat, api, desk)
	@$(PY) scripts/doctor.py chat $(CONFIG)/chat.yaml $(SERVED) $(ARGS)
	@$(PY) -c "$$CHAT" chat $(CONFIG)/chat.yaml $(SERVED) $(ARGS)

webchat api: $(READY) $(STAND_IN)
	@$(PY) scripts/doctor.py $@ $(CONFIG)/chat.yaml $(SERVED) $(ARGS)
	@$(if $(filter webchat,$@),$(MAKE) llamaboard_cache/user_config.yaml)
	@$(CLI) $@ $(CONFIG)/chat.yaml $(SERVED) $(ARGS)
webchat: ## write ads on a web page (http://127.0.0.1:7860)
api: ## serve ads over an OpenAI-style API (http://127.0.0.1:8000/docs)

# Where no language has been chosen, LLaMA-Factory's WebChat shows no labels (hiyouga/LlamaFactory#5668).
llamaboard_cache/user_config.yaml:
	@mkdir -p $(@D); printf '%s\n' 'lang: zh' 'hub_name: null' 'last_model: null' 'path_dict: {}' 'cache_dir: null' > $@

generate: $(READY) $(if $(SERVER),,$(STAND_IN)) ## ads for a catalogue: INPUT=<csv, xlsx, jsonl> OUTPUT=<csv, jsonl> [N=4] [SERVER=<base URL>]
	@$(PY) scripts/generate.py "$(INPUT)" "$(OUTPUT)" --n $(N) --recipe $(CONFIG)/chat.yaml \
	$(if $(SERVER),--server "$(SERVER)",$(SERVED)) $(ARGS)

desk: $(READY) $(if $(SERVER),,$(STAND_IN)) ## a page for copywriters: ads with their attributes marked [SERVER=<base URL>] (http://127.0.0.1:7860)
	@$(if $(SERVER),,$(PY) scripts/doctor.py desk $(CONFIG)/chat.yaml $(SERVED) $(ARGS))
	@$(PY) scripts/desk.py --recipe $(CONFIG)/chat.yaml $(if $(SERVER),--server "$(SERVER)",$(SERVED)) $(ARGS)

webui: $(READY) ## LlamaBoard, LLaMA-Factory's own page, with our data sets and adapters (http://127.0.0.1:7860)
	@$(PY) scripts/doctor.py webui
	@$(CLI) webui

bench: $(READY) $(STAND_IN) ## measure the recipes: speed and memory (ARGS="plain sft_qlora --repeat 2"; results/bench)
	@$(PY) scripts/bench.py --model $(CONFIG) $(if $(filter sample,$(DATA)),--data sample) $(ARGS)

soak: $(READY) ## kill a tiny training 24 times; feed bad input by the thousand (a quarter of an hour; results/soak.json, fuzz.json)
	@$(PY) scripts/soak.py --out results/soak.json $(ARGS)
	@FUZZ=1000 $(PY) -m pytest tests/test_fuzz.py --hypothesis-seed=$$RANDOM

test: $(READY) ## run the tests
	@$(PY) -m pytest -rs $(ARGS)

lint: $(READY) ## check the style of the code
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean: ## remove what runs wrote (saves/, exports/) and prepared data; .venv stays
	rm -rf saves exports llamaboard_cache data/adgen_*
