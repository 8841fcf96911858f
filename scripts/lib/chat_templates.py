"""The chat template with which LLaMA-Factory makes a prompt: the one that a recipe names, or the base model's own.

LLaMA-Factory reads the base model's own from three short chats. If there is none, it trains without marks between
prompt and ad, and says nothing. If the chats show no system prompt, it ends in an error.
"""

import importlib.util
import re
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from lib.files import fail
from lib.weights import local_folder, read_json

MARK = "{{content}}"
SYSTEM, USER, ASSISTANT = ({"role": role, "content": MARK} for role in ("system", "user", "assistant"))


def check_template(settings: dict) -> str:
    """LLaMA-Factory can build the prompts of a run: with the named template, or with the base model's own."""
    name, model = settings.get("template"), settings["model_name_or_path"]
    if settings.get("stage") == "pt":
        return "none is needed"
    known = template_names()
    if name:
        near = ", ".join(get_close_matches(str(name), known)) or "alpaca, llama3, qwen3, gemma and others"
        return name if name in known else fail(f'LLaMA-Factory has no template "{name}"; it has {near}')
    folder = local_folder(model)
    if not folder:
        return f"that of {model}, which is not on this machine yet"
    own = read_template(folder)
    if not own:
        fail(f"{model} has no chat template, or several: name one of LLaMA-Factory's, such as ARGS=template=alpaca")
    if fault := template_fault(own, folder):
        kind = re.match("[a-z]*", str(read_json(folder / "config.json").get("model_type")))[0]
        akin = " or ".join(other for other in known if kind and other.startswith(kind)) or "alpaca"
        hint = f"name one of LLaMA-Factory's own, ARGS=template={akin}"
        fail(f"LLaMA-Factory cannot read the chat template of {model} ({fault}): {hint}")
    return f"that of {model}"


def template_names() -> list[str]:
    """The names of LLaMA-Factory's templates. Its file is read, not imported: an import takes eight seconds."""
    source = Path(importlib.util.find_spec("llamafactory").origin).with_name("data") / "template.py"
    return re.findall(r'^    name="(.+)",$', source.read_text(encoding="utf-8"), re.MULTILINE)


def read_template(folder: Path) -> str:
    """A model's chat template, as its tokenizer has it; empty if it has none, or several with names."""
    if any(folder.glob("additional_chat_templates/*.jinja")):
        return ""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    own = read_json(folder / "tokenizer_config.json").get("chat_template")
    return own if isinstance(own, str) else ""


def template_fault(template: str, folder: Path) -> str:
    """Why LLaMA-Factory's `parse_template` cannot read a chat template; empty if it can, or if that cannot be seen."""
    from jinja2 import TemplateSyntaxError

    tokens = read_json(folder / "tokenizer_config.json")
    tokens = {name: tokens.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokens = {name: value.get("content") if isinstance(value, dict) else value or "" for name, value in tokens.items()}
    # LLaMA-Factory cuts off what the tokenizer puts before every text, whether or not the template begins with it.
    start = len(tokenizer_prefix(folder))
    try:
        system = render(template, [SYSTEM], **tokens)[start:]
        user = render(template, [USER], add_generation_prompt=True, **tokens)
        answer = render(template, [USER, ASSISTANT], **tokens)[len(user) :]
    except TemplateSyntaxError:
        # transformers knows more of the language.
        return ""
    except Exception as error:
        return " ".join(str(error).split())
    slots = {"system prompt": system, "user's words": user[start:], "answer": answer}
    return next((f"the {what} is not in it" for what, slot in slots.items() if MARK not in slot), "")


def tokenizer_prefix(folder: Path) -> str:
    """What a tokenizer puts before every text, such as `<|begin_of_text|>`; empty if that cannot be seen."""
    from tokenizers import Tokenizer

    # The library raises nothing narrower.
    with suppress(Exception):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return tokenizer.decode(tokenizer.encode("").ids, skip_special_tokens=False)
    return ""


def render(template: str, messages: list[dict], **variables) -> str:
    """A chat as the template writes it, in the sandbox and with the settings that transformers uses."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    jinja.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    return jinja.from_string(template).render(messages=messages, tools=None, documents=None, **variables)
