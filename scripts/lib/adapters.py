"""Whether an adapter fits what a run loads: the base model below it, and the prompt that it was trained with."""

import os
import re
from pathlib import Path

from lib.chat_templates import read_template
from lib.files import fail
from lib.run_folder import read_notes
from lib.weights import fingerprint, is_whole, local_folder, read_header, read_json, weights_fault

# The keys that shape a prompt. A model that was trained with one prompt writes worse with another.
PROMPT = ("template", "default_system", "enable_thinking")
# The kinds of adapter that LLaMA-Factory trains, and can merge.
KINDS = ("LORA", "OFT")
# The user takes a run although its base model or its prompt differs.
RESUMED = os.environ.get("RESUME") == "1"
FLOATS = ("F32", "F16", "BF16")


def adapters(settings: dict) -> list[Path]:
    """The adapter folders that a recipe loads. LLaMA-Factory parts several by commas."""
    return [Path(folder.strip()) for folder in str(settings.get("adapter_name_or_path") or "").split(",") if folder]


def check_adapters(settings: dict, recipe: Path) -> str:
    """Each adapter has been trained, is whole, and is of a kind that can be merged."""
    again = f"run `make train MODEL={recipe.parent.name}`"
    for folder in adapters(settings):
        if (folder / "config.json").is_file() and not (folder / "adapter_config.json").exists():
            fail(f'{folder} is a whole model, no adapter: ARGS="model_name_or_path={folder} adapter_name_or_path=null"')
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / name).is_file():
                fail(f"no adapter in {folder} ({name} is missing): {again} first")
        config = read_json(folder / "adapter_config.json")
        if config.get("peft_type") not in KINDS or config.get("task_type") not in ("CAUSAL_LM", None):
            kind = f"{config.get('peft_type')}, {config.get('task_type')}"
            fail(f"{folder}/adapter_config.json is of no LoRA for writing text ({kind}): {again}")
        if fault := weights_fault(folder):
            fail(f"the adapter in {folder} is not whole ({fault}): {again} again")
    return f"{', '.join(map(str, adapters(settings)))}: whole"


def check_match(settings: dict) -> str:
    """The adapters were trained on this base model, and with this prompt.

    RESUME=1 lets another base model and another prompt pass, but not one whose shapes do not fit.
    """
    model = settings["model_name_or_path"]
    for folder in adapters(settings):
        if fault := shape_fault(folder, local_folder(model)):
            fail(f"the adapter in {folder} does not fit the base model {model}: {fault}")
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
    if same or not named or RESUMED:
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


def read_tensors(folder: Path | None) -> dict[str, dict]:
    """The tensors of all whole .safetensors in a folder: name → dtype, shape and data_offsets."""
    files = filter(is_whole, folder.glob("*.safetensors") if folder else [])
    return {name: entry for path in files for name, entry in read_header(path)[1].items()}


def shape_fault(folder: Path, base: Path | None) -> str:
    """Why an adapter's weights cannot be laid over a base model's; empty if they can, or if that cannot be seen."""
    config = read_json(folder / "adapter_config.json")
    layers, parts = read_tensors(base), {}
    for name, entry in read_tensors(folder).items():
        if found := re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight", name):
            parts[found[1], found[2]] = entry["shape"]
    known = [layer for layer, _ in parts if f"{layer}.weight" in layers]
    for (layer, part), shape in parts.items():
        if not config.get("rank_pattern") and config.get("r") != shape[0 if part == "A" else 1]:
            return f"its rank is {shape[0 if part == 'A' else 1]} in its weights, {config.get('r')} in its config"
        below = layers.get(f"{layer}.weight")
        if known and not below:
            return f"there is no {layer} in it"
        # Quantised weights are packed, and those of GPT-2 lie the other way round.
        if below and below["dtype"] in FLOATS and not config.get("fan_in_fan_out"):
            wanted = shape[1] if part == "A" else shape[0]
            if below["shape"][1 if part == "A" else 0] != wanted:
                return f"{layer} is {below['shape']} in it, and the adapter wants {wanted}"
    return ""


def check_prompt(folder: Path, settings: dict) -> None:
    """Ends the program if the run that wrote a folder trained with another prompt than the one of these settings."""
    noted = read_notes(folder).get("recipe")
    if not noted or noted.get("stage") == "pt" or RESUMED:
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
    if own and saved and own != saved and not RESUMED:
        fail(f"{folder} was trained with another chat template than {base} has: ARGS=template=<its name>, or RESUME=1")
