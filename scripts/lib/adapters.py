"""Whether an adapter fits what a run loads: the base model below it, and the prompt that it was trained with."""

import os
from pathlib import Path

from lib.chat_templates import read_template
from lib.files import fail
from lib.run_folder import read_notes
from lib.weights import fingerprint, local_folder, read_json, weights_fault

# The keys that shape a prompt. A model that was trained with one prompt writes worse with another.
PROMPT = ("template", "default_system", "enable_thinking")


def adapters(settings: dict) -> list[Path]:
    """The adapter folders that a recipe loads. LLaMA-Factory separates several by commas."""
    return [Path(folder.strip()) for folder in str(settings.get("adapter_name_or_path") or "").split(",") if folder]


def check_adapters(settings: dict, recipe: Path) -> str:
    """Each adapter has been trained, and is whole."""
    again = f"run `make train MODEL={recipe.parent.name}`"
    for folder in adapters(settings):
        if (folder / "config.json").is_file() and not (folder / "adapter_config.json").exists():
            fail(f'{folder} is a whole model, no adapter: ARGS="model_name_or_path={folder} adapter_name_or_path=null"')
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / name).is_file():
                fail(f"no adapter in {folder} ({name} is missing): {again} first")
        if fault := weights_fault(folder):
            fail(f"the adapter in {folder} is not whole ({fault}): {again} again")
    return f"{', '.join(map(str, adapters(settings)))}: whole"


def check_match(settings: dict) -> str:
    """The adapters were trained on this base model, and with this prompt; or RESUME=1 lets others pass."""
    model = settings["model_name_or_path"]
    if os.environ.get("RESUME") == "1":
        return f"{model} is taken as it is (RESUME=1)"
    for folder in adapters(settings):
        check_named(folder, model)
        check_saved_template(folder, settings)
    for folder in [*adapters(settings), Path(model)]:
        check_prompt(folder, settings)
    return f"{model} and its prompt are those of the training"


def check_named(folder: Path, model: str) -> None:
    """Ends the program if an adapter was trained on another base model than the one that is loaded."""
    named = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or ""
    before, now = read_notes(folder).get("base") or fingerprint(local_folder(named)), fingerprint(local_folder(model))
    same = before == now if before and now else bool(names(named) & names(model))
    if same or not named or os.environ.get("RESUME") == "1":
        return
    known = f"{named}, whose weights have changed since" if Path(named).resolve() == Path(model).resolve() else named
    fail(
        f"the adapter in {folder} was trained on {known}, and this run loads {model}: "
        f"name its own with ARGS=model_name_or_path=<folder or id>, or RESUME=1 if {model} is a copy of it"
    )


def names(model: str) -> set[str]:
    """The names that tell a model without its weights: the last part of its id, its folder or its place in a cache.

    `_name_or_path` of a config.json is none: a fine-tuned model may still carry its base model's name there.
    """
    cached = [part.split("--")[-1] for part in Path(model).parts if part.startswith("models--")]
    found = [Path(model).name, Path(model).resolve().name, *cached]
    # ModelScope's cache writes a dot as three underscores.
    return {name.lower().replace("___", ".") for name in found if name}


def check_prompt(folder: Path, settings: dict) -> None:
    """Ends the program if the run that wrote a folder trained with another prompt than the one of these settings."""
    noted = read_notes(folder).get("recipe")
    if not noted or noted.get("stage") == "pt":
        return
    for key in PROMPT:
        before, now = (str(one.get(key) if one.get(key) is not None else "none") for one in (noted, settings))
        if before != now:
            fail(f"{folder} was trained with {key} {before}, this run has {now}: leave it as it was, or RESUME=1")


def check_saved_template(folder: Path, settings: dict) -> None:
    """Ends the program if the tokenizer beside an adapter has another chat template than the base model.

    LLaMA-Factory writes the template of the training there, so it tells what a run without notes was trained with.
    """
    base = local_folder(settings["model_name_or_path"])
    own, saved = (read_template(one) if one and not settings.get("template") else "" for one in (base, folder))
    if own and saved and own != saved:
        fail(f"{folder} was trained with another chat template than {base} has: ARGS=template=<its name>, or RESUME=1")
