"""An adapter runs on its own base model and with its own prompt only; a base model has a template that can be read."""

import json
import os
import struct
import subprocess
import sys
from itertools import pairwise

import pytest
from common import one_error
from lib.chat_templates import template_fault
from lib.files import ROOT
from lib.recipes import read_recipe
from lib.weights import fingerprint

PLAIN = "{% for one in messages %}<{{ one.role }}>{{ one.content }}{% endfor %}<end>"
# As Gemma 3 does it: the system prompt is put before the first words of the user, and is lost without them.
GEMMA = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set rest = messages[1:] %}{% else %}"
    "{% set first = '' %}{% set rest = messages %}{% endif %}{% for one in rest %}<{{ one.role }}>"
    "{{ first if loop.first else '' }}{{ one.content }}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
USER_FIRST = "{% if messages[0].role == 'assistant' %}{{ raise_exception('user first') }}{% endif %}" + PLAIN
NO_ANSWER = "{% for one in messages if one.role != 'assistant' %}<{{ one.role }}>{{ one.content }}{% endfor %}"
NO_PRODUCT = "{% for one in messages if one.role != 'user' %}<{{ one.role }}>{{ one.content }}{% endfor %}"
# A word of transformers' own, which Jinja does not know.
OWN_WORD = "{% for one in messages %}<{{ one.role }}>{% generation %}{{ one.content }}{% endgeneration %}{% endfor %}"
LAYER = "model.layers.{}.self_attn.q_proj"
PROMPT = {"stage": "sft", "default_system": read_recipe(ROOT / "configs/tiny/chat.yaml")["default_system"]}


def write_weights(path, shapes, fill=0):
    ends = [0]
    for shape in shapes.values():
        ends.append(ends[-1] + 4 * shape[0] * shape[1])
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        for (name, shape), offsets in zip(shapes.items(), pairwise(ends), strict=True)
    }
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes([fill]) * ends[-1])


def write_base(folder, width=64, fill=0, template=PLAIN, **config):
    folder.mkdir(parents=True)
    write_weights(folder / "model.safetensors", {f"{LAYER.format(0)}.weight": [width, width]}, fill)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / "tokenizer.json").write_text("{}")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template)
    elif template:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def write_adapter(folder, named, base=None, recipe=None, layer=0, **config):
    folder.mkdir(parents=True)
    name = f"base_model.model.{LAYER.format(layer)}"
    shapes = {f"base_model.model.{LAYER.format(0)}.lora_A.weight": [8, 64], f"{name}.lora_B.weight": [64, 8]}
    write_weights(folder / "adapter_model.safetensors", shapes)
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "base_model_name_or_path": str(named)}
    (folder / "adapter_config.json").write_text(json.dumps(lora | config))
    if base or recipe:
        noted = {"recipe": PROMPT | (recipe or {}), "base": fingerprint(base), "finished": True}
        (folder / "run.json").write_text(json.dumps(noted))
    return folder


@pytest.fixture
def look(clone):
    """A function that runs the doctor on a base model and an adapter: check → (status, text)."""

    def run(base, *adapters, words=(), **variables):
        loaded = [f"adapter_name_or_path={','.join(map(str, adapters))}"] if adapters else []
        command = [
            sys.executable,
            "scripts/launch.py",
            "doctor",
            "--json",
            f"model_name_or_path={base}",
            *loaded,
            *words,
        ]
        tiny = {"MODEL": "tiny", "METHOD": "lora", "DATA": "sample", "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(
            [*command, *loaded, *words], cwd=clone, env=os.environ | tiny | variables, capture_output=True, text=True
        )
        assert "Traceback" not in result.stderr, result.stderr
        lines = json.loads(result.stdout)
        assert all("\n" not in line["text"] for line in lines)
        return {line["check"]: (line["status"], line["text"]) for line in reversed(lines)}

    return run


@pytest.mark.parametrize(
    ("named", "loaded", "fits"),
    [
        ("saves/Custom/full/pretrain", "saves/Custom/init", False),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "models/Meta-Llama-3-8B-Instruct", True),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "models/meta-llama-3-8b-instruct", True),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "models/Meta-Llama-3-8B", False),
        ("Qwen/Qwen3-8B", "hub/models--Qwen--Qwen3-8B/snapshots/0a1b", True),
        ("Qwen/Qwen3-8B", "hub/models--Qwen--Qwen3-8B-Base/snapshots/0a1b", False),
        ("Qwen/Qwen2.5-7B", "modelscope/hub/models/Qwen/Qwen2___5-7B", True),
        ("/home/another/models/Qwen3-8B", "models/Qwen3-8B", True),
        ("/home/another/models/Qwen3-8B", "models/gemma", False),
    ],
)
def test_names_of_base_models(look, tmp_path, named, loaded, fits):
    """An adapter that plain llamafactory-cli trained names its base model, and says no more of it."""
    base, adapter = write_base(tmp_path / loaded), write_adapter(tmp_path / "adapter", named)
    status, text = look(base, adapter)["match"]
    assert status == ("ok" if fits else "wrong"), text
    assert fits or (named in text and str(base) in text and "RESUME=1" in text)
    assert look(base, adapter, RESUME="1")["match"][0] == "ok"


def test_weights_tell_more_than_names(look, tmp_path):
    base = write_base(tmp_path / "one/model")
    adapter = write_adapter(tmp_path / "adapter", base, base)
    copy = write_base(tmp_path / "elsewhere/copied")
    (tmp_path / "link").symlink_to(base)
    for same in (base, copy, tmp_path / "link"):
        assert look(same, adapter)["match"][0] == "ok"
    other = write_base(tmp_path / "two/model", fill=1)
    assert look(other, adapter)["match"][0] == "wrong"
    # Without notes, the named folder is compared, as long as it is there.
    assert look(other, write_adapter(tmp_path / "plain", base))["match"][0] == "wrong"
    # A fine-tuned model may carry its base model's name.
    tuned = write_base(tmp_path / "tuned", fill=2, _name_or_path=str(base))
    assert look(tuned, adapter)["match"][0] == "wrong"
    write_weights(base / "model.safetensors", {f"{LAYER.format(0)}.weight": [64, 64]}, fill=3)
    status, text = look(base, adapter)["match"]
    assert status == "wrong" and "changed since" in text
    # The second of two adapters was trained on something else.
    assert look(copy, adapter, write_adapter(tmp_path / "second", "another/model"))["match"][0] == "wrong"


@pytest.mark.parametrize(
    ("width", "config", "layer", "said"),
    [
        (128, {}, 0, "[128, 128]"),
        (64, {"r": 16}, 0, "its rank is 8"),
        (64, {}, 7, "no model.layers.7"),
        (64, {"r": 16, "rank_pattern": {"q_proj": 8}}, 0, ""),
        (128, {"fan_in_fan_out": True}, 0, ""),
    ],
)
def test_shapes_that_do_not_fit_are_refused_even_if_asked(look, tmp_path, width, config, layer, said):
    base = write_base(tmp_path / "base", width)
    adapter = write_adapter(tmp_path / "adapter", base, layer=layer, **config)
    for variables in ({}, {"RESUME": "1"}):
        status, text = look(base, adapter, **variables)["match"]
        assert status == ("wrong" if said else "ok") and said in text, text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "adapter_config.json is missing"),
        ("empty", "adapter_config.json is missing"),
        ("model", "adapter_name_or_path=null"),
        ("prompt", "PROMPT_TUNING"),
        ("classifier", "SEQ_CLS"),
        ("object", "of no LoRA"),
        ("no JSON", "of no LoRA"),
        ("cut", "cut off"),
    ],
)
def test_folders_that_hold_no_adapter(look, tmp_path, kind, said):
    base = write_base(tmp_path / "base")
    adapter = tmp_path / "adapter"
    if kind == "empty":
        adapter.mkdir()
    elif kind == "model":
        write_base(adapter)
    elif kind != "missing":
        write_adapter(adapter, base)
        config = adapter / "adapter_config.json"
        kinds = {"prompt": {"peft_type": "PROMPT_TUNING"}, "classifier": {"task_type": "SEQ_CLS"}}
        config.write_text(json.dumps(json.loads(config.read_text()) | kinds.get(kind, {})))
        config.write_text({"object": "{}", "no JSON": "{"}.get(kind, config.read_text()))
    if kind == "cut":
        (adapter / "adapter_model.safetensors").write_bytes(b"12345")
    status, text = look(base, adapter)["adapter"]
    assert status == "wrong" and said in text and str(adapter) in text, text


@pytest.mark.parametrize(
    ("template", "model_type", "said"),
    [
        (PLAIN, "llama", ""),
        (USER_FIRST, "llama", ""),
        (OWN_WORD, "llama", ""),
        (None, "llama", "ARGS=template=alpaca"),
        ([{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": PLAIN}], "llama", "or several"),
        (GEMMA, "gemma3_text", "ARGS=template=gemma "),
        (NO_SYSTEM, "gemma2", "no system role"),
        (NO_ANSWER, "mistral", "the answer is not in it"),
        (NO_PRODUCT, "unheard", "ARGS=template=alpaca"),
        ("{{ messages[5].content }}", "llama", "ARGS=template=llama"),
    ],
)
def test_chat_templates(look, tmp_path, template, model_type, said):
    base = write_base(tmp_path / "base", template=template, model_type=model_type)
    status, text = look(base)["template"]
    assert status == ("wrong" if said else "ok") and said in text, text
    assert look(base, words=["template=alpaca"])["template"] == ("ok", "alpaca")
    assert "alpaca" in look(base, words=["template=alpacca"])["template"][1]


def test_template_in_the_tokenizers_settings_and_beside_others(look, tmp_path):
    base = write_base(tmp_path / "base", template=None)
    (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": PLAIN}))
    assert look(base)["template"][0] == "ok"
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tool_use.jinja").write_text(PLAIN)
    assert look(base)["template"][0] == "wrong"
    assert "not on this machine yet" in look("Qwen/Qwen3-8B", HF_HUB_CACHE=str(tmp_path))["template"][1]


def test_llamafactory_refuses_the_same_templates(tmp_path):
    """What the doctor says of a template is what LLaMA-Factory does with it."""
    import stand_in
    from llamafactory.data.template import parse_template

    tokenizer = stand_in.build_tokenizer(stand_in.SIZES["tiny"], ROOT / "data/sample/train.jsonl")
    tokenizer.save_pretrained(tmp_path)
    faults = []
    for template in (PLAIN, USER_FIRST, GEMMA, NO_SYSTEM, NO_ANSWER, NO_PRODUCT):
        # A template that does not begin with the tokenizer's first token is cut.
        for whole in (template, "{{ bos_token }}" + template):
            tokenizer.chat_template = whole
            faults.append(template_fault(whole, tmp_path))
            if faults[-1]:
                with pytest.raises(Exception, match=r"placeholder|no system role"):
                    parse_template(tokenizer)
            else:
                parse_template(tokenizer)
    assert [bool(fault) for fault in faults[:4]] == [True, False, True, False] and all(faults[4:])


@pytest.mark.parametrize(
    ("trained", "words", "said"),
    [
        ({}, [], ""),
        ({"template": "alpaca"}, ["template=alpaca"], ""),
        ({"template": "alpaca"}, [], "template alpaca, this run has none"),
        ({}, ["template=alpaca"], "template none, this run has alpaca"),
        ({"default_system": "写诗。"}, [], "default_system 写诗。"),
        ({}, ["default_system=写诗。"], "this run has 写诗。"),
        ({"enable_thinking": False}, [], "enable_thinking False"),
        ({"stage": "pt", "default_system": None}, [], ""),
    ],
)
def test_a_run_remembers_its_prompt(look, tmp_path, trained, words, said):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, base, trained)
    status, text = look(base, adapter, words=words)["match"]
    assert status == ("wrong" if said else "ok") and said in text, text
    assert look(base, adapter, words=words, RESUME="1")["match"][0] == "ok"


def test_the_tokenizer_beside_an_adapter_tells_its_template(look, tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", "base")
    (adapter / "chat_template.jinja").write_text(PLAIN)
    assert look(base, adapter)["match"][0] == "ok"
    (adapter / "chat_template.jinja").write_text(PLAIN + "\n")
    assert "another chat template" in look(base, adapter)["match"][1]
    assert look(base, adapter, words=["template=alpaca"])["match"][0] == "ok"


@pytest.mark.parametrize("verb", ["eval", "export", "chat", "webchat", "api", "train", "pairs", "generate", "desk"])
def test_every_verb_refuses_another_base_model(make, demo, verb):
    init = "saves/Custom/init"
    words = (
        f"model_name_or_path={init}"
        + " adapter_name_or_path=saves/Custom/lora/sample_qlora output_dir=saves/new" * (verb == "train")
    )
    result = make(demo[0], verb, "MODEL=tiny", "DATA=sample", f"ARGS={words}", "OUTPUT=saves/none.csv")
    [line] = [line for line in result.stderr.split("\n") if line.startswith("error: ")]
    assert result.returncode != 0 and init in line and "saves/Custom/full/pretrain" in line
    assert not (demo[0] / "saves/new").exists() and not (demo[0] / "saves/none.csv").exists()


def test_example_of_a_wrong_merge(make, demo, tmp_path):
    words = f"ARGS=model_name_or_path=saves/Custom/init export_dir={tmp_path}/wrong"
    assert "saves/Custom/full/pretrain" in one_error(make(demo[0], "export", "MODEL=tiny", "DATA=sample", words))
    assert not list(tmp_path.iterdir())
