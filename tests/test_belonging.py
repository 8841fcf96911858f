"""An adapter runs on its own base model and with its own prompt only; a base model has a template that can be read."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from lib.adapters import check_adapters, check_match
from lib.chat_templates import check_template, template_fault
from lib.checks import run_checks
from lib.files import ROOT
from lib.recipes import read_recipe
from lib.weights import fingerprint
from safetensors.numpy import save_file

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
PROMPT = {"stage": "sft", "default_system": read_recipe(ROOT / "configs/tiny/chat.yaml")["default_system"]}


def write_weights(path, fill=0):
    save_file({"a": np.full(4, fill, np.float32)}, path)


def write_base(folder, fill=0, template=PLAIN, **config):
    folder.mkdir(parents=True)
    write_weights(folder / "model.safetensors", fill)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / "tokenizer.json").write_text("{}")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template)
    elif template:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def write_adapter(folder, named, base=None, recipe=None):
    folder.mkdir(parents=True)
    write_weights(folder / "adapter_model.safetensors")
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(named)}
    (folder / "adapter_config.json").write_text(json.dumps(lora))
    if base:
        noted = {"recipe": PROMPT | (recipe or {}), "base": fingerprint(base), "finished": True}
        (folder / "run.json").write_text(json.dumps(noted))
    return folder


def look(base, *adapters, words=()):
    """What the checks say of a base model and adapters: check → (status, text)."""
    words = [f"model_name_or_path={base}", f"adapter_name_or_path={','.join(map(str, adapters)) or 'null'}", *words]
    recipe = ROOT / "configs/tiny/sft_lora.yaml"
    settings = read_recipe(recipe, words)
    checks = {
        "adapter": lambda: check_adapters(settings, recipe),
        "match": lambda: check_match(settings),
        "template": lambda: check_template(settings),
    }
    lines = run_checks(iter(checks.items()))
    assert all("\n" not in line["text"] for line in lines)
    return {line["check"]: (line["status"], line["text"]) for line in lines}


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
def test_names_of_base_models(monkeypatch, tmp_path, named, loaded, fits):
    """An adapter that plain llamafactory-cli trained names its base model, and says no more of it."""
    base, adapter = write_base(tmp_path / loaded), write_adapter(tmp_path / "adapter", named)
    status, text = look(base, adapter)["match"]
    assert status == ("ok" if fits else "wrong"), text
    assert fits or (named in text and str(base) in text and "RESUME=1" in text)
    monkeypatch.setenv("RESUME", "1")
    assert look(base, adapter)["match"][0] == "ok"


def test_weights_tell_more_than_names(tmp_path):
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
    write_weights(base / "model.safetensors", fill=3)
    status, text = look(base, adapter)["match"]
    assert status == "wrong" and "changed since" in text
    # The second of two adapters was trained on something else.
    assert look(copy, adapter, write_adapter(tmp_path / "second", "another/model"))["match"][0] == "wrong"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "adapter_config.json is missing"),
        ("empty", "adapter_config.json is missing"),
        ("model", "adapter_name_or_path=null"),
        ("cut", "cut off"),
    ],
)
def test_folders_that_hold_no_adapter(tmp_path, kind, said):
    base, adapter = write_base(tmp_path / "base"), tmp_path / "adapter"
    if kind == "empty":
        adapter.mkdir()
    elif kind == "model":
        write_base(adapter)
    elif kind == "cut":
        write_adapter(adapter, base)
        (adapter / "adapter_model.safetensors").write_bytes(b"12345")
    status, text = look(base, adapter)["adapter"]
    assert status == "wrong" and said in text and str(adapter) in text, text


@pytest.mark.parametrize(
    ("template", "model_type", "said"),
    [
        (PLAIN, "llama", ""),
        (OWN_WORD, "llama", ""),
        (None, "llama", "ARGS=template=alpaca"),
        ([{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": PLAIN}], "llama", "or several"),
        (GEMMA, "gemma3_text", "ARGS=template=gemma "),
        (NO_SYSTEM, "unheard", "no system role"),
        ("{{ messages[5].content }}", "llama", "ARGS=template=llama"),
    ],
)
def test_chat_templates(tmp_path, template, model_type, said):
    base = write_base(tmp_path / "base", template=template, model_type=model_type)
    status, text = look(base)["template"]
    assert status == ("wrong" if said else "ok") and said in text, text
    assert look(base, words=["template=alpaca"])["template"] == ("ok", "alpaca")
    assert "alpaca" in look(base, words=["template=alpacca"])["template"][1]


def test_a_merged_model_is_prompted_by_the_template_of_its_recipe(copy_project):
    """Gemma's own template cannot be read, and its recipes name one of LLaMA-Factory's."""
    project = copy_project()
    folder, recipe = project / "saves/Gemma-3-270M", read_recipe(ROOT / "configs/gemma3_270m/chat.yaml")
    base = write_base(project / recipe["model_name_or_path"], template=GEMMA)
    write_adapter(folder / "lora/sft_lora", recipe["model_name_or_path"], base)
    write_base(folder / "merged/sft_lora", template=GEMMA)
    variables = os.environ | {"MODEL": "gemma3_270m", "METHOD": "dpo"}
    command = [sys.executable, "scripts/launch.py", "base"]
    made = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def test_template_in_the_tokenizers_settings_and_beside_others(tmp_path):
    base = write_base(tmp_path / "base", template=None)
    (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": PLAIN}))
    assert look(base)["template"][0] == "ok"
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tool_use.jinja").write_text(PLAIN)
    assert look(base)["template"][0] == "wrong"


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
def test_a_run_remembers_its_prompt(monkeypatch, tmp_path, trained, words, said):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, base, trained)
    status, text = look(base, adapter, words=words)["match"]
    assert status == ("wrong" if said else "ok") and said in text, text
    monkeypatch.setenv("RESUME", "1")
    assert look(base, adapter, words=words)["match"][0] == "ok"


def test_the_tokenizer_beside_an_adapter_tells_its_template(tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", "base")
    (adapter / "chat_template.jinja").write_text(PLAIN)
    assert look(base, adapter)["match"][0] == "ok"
    (adapter / "chat_template.jinja").write_text(PLAIN + "\n")
    assert "another chat template" in look(base, adapter)["match"][1]
    assert look(base, adapter, words=["template=alpaca"])["match"][0] == "ok"


@pytest.mark.parametrize("verb", ["eval", "export", "chat", "webchat", "api", "train", "pairs", "generate", "desk"])
def test_every_verb_refuses_another_base_model(make, demo, tmp_path, verb):
    init, new = "saves/Custom/init", tmp_path / "new"
    words = f"ARGS=model_name_or_path={init}" + f" export_dir={new}" * (verb == "export")
    words += f" adapter_name_or_path=saves/Custom/lora/sample_qlora output_dir={new}" * (verb == "train")
    result = make(demo[0], verb, "MODEL=tiny", "DATA=sample", words, f"OUTPUT={new}.csv")
    [line] = [line for line in result.stderr.split("\n") if line.startswith("error: ")]
    assert result.returncode != 0 and init in line and "saves/Custom/full/pretrain" in line
    assert not list(tmp_path.iterdir())
