"""Looks before a run whether it can work, and says in one line what is missing and what to do about it.

`make` calls it before every train, eval, export and server: `python scripts/doctor.py VERB [RECIPE] [key=value …]`.
"""

import argparse
import ast
import importlib.util
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from adgen import ROOT, fail

# Servers → the variables of their address, and the port by default.
PAGE = ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", 7860)
SERVERS = {"api": ("API_HOST", "API_PORT", 8000), "webchat": PAGE, "webui": PAGE, "desk": PAGE}
VERBS = ("train", "export", "chat", *SERVERS)
DEMO = "`make demo` runs everything on a CPU"


def read_recipe(path: Path) -> dict:
    """The keys of a recipe, merged with nothing."""
    import yaml

    if not path.is_file():
        known = sorted(str(recipe.relative_to(ROOT)) for recipe in ROOT.glob("configs/*/*.yaml"))
        fail(f"there is no recipe {path}; there are: {', '.join(known)}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def fields(source: Path) -> set[str]:
    """The names of the dataclass fields in a Python file. Read, not imported: that would take eight seconds."""
    classes = (node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    lines = (line for node in classes for line in node.body if isinstance(line, ast.AnnAssign))
    return {line.target.id for line in lines if "init=False" not in ast.unparse(line)}


def known_keys(verb: str) -> set[str]:
    """The keys that LLaMA-Factory accepts in a recipe for `verb`."""
    hparams = Path(importlib.util.find_spec("llamafactory").origin).parent / "hparams"
    sources = [hparams / f"{name}_args.py" for name in ("model", "data", "finetuning", "generating")]
    if verb == "train":
        transformers = Path(importlib.util.find_spec("transformers").origin).parent
        sources += [hparams / "training_args.py", transformers / "training_args.py"]
        sources.append(transformers / "training_args_seq2seq.py")
    return set().union(*(fields(source) for source in sources))


def read_overrides(words: list[str], verb: str) -> dict[str, str]:
    """`key=value` words as a dict; ends the program at one that LLaMA-Factory would not understand."""
    keys = known_keys(verb) if words else set()
    overrides = {}
    for word in words:
        key, mark, value = word.partition("=")
        if not mark:
            fail(f'the override "{word}" is not of the form key=value, as in ARGS="num_train_epochs=1"')
        if key not in keys:
            fail(f'LLaMA-Factory knows no key "{key}" for {verb}; its keys: docs of LLaMA-Factory 0.9.5 or the recipes')
        overrides[key] = value
    return overrides


def check_gpu(header: str) -> None:
    """The recipe's header says what it needs; CUDA GPUs are seen as the driver's own program sees them."""
    need = re.search(r"^# Needs: one (\d+) GB GPU", header, re.MULTILINE)
    if not need:
        return
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listing = subprocess.run(command, capture_output=True, text=True) if shutil.which(command[0]) else None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or listing is None or listing.returncode or not listing.stdout.strip():
        fail(f"this recipe needs a CUDA GPU with {need[1]} GB, and none was found (nvidia-smi lists none); {DEMO}")


def check_server(verb: str) -> tuple[str, int]:
    """Host and port of a server to start: the port is free, and other machines get in by API_KEY or not at all."""
    host_name, port_name, default = SERVERS[verb]
    host, port = os.environ.get(host_name, "127.0.0.1").strip("[]"), os.environ.get(port_name) or str(default)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        fail(f"{port_name}={port} is no port; one is a number from 1 to 65535")
    opened = "" if host == "localhost" or is_loopback(host) else f"{host_name}={host}"
    if verb in ("webchat", "webui") and os.environ.get("GRADIO_SHARE", "").lower() in ("1", "y", "true"):
        opened = "GRADIO_SHARE"
    if opened and verb in ("webchat", "webui"):
        fail(f"{opened} opens a page without login to others; leave it out and let them in by `make desk` or ssh -L")
    if opened and not os.environ.get("API_KEY"):
        fail(f"{opened} lets other machines in: set API_KEY=<a secret> too, or leave it out")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except OSError as error:
        fail(f"port {port} of {host} cannot be used ({error.strerror}): end what runs there, or set {port_name}")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether an IP address is this machine's own; host names are none."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_base(model: str, recipe: Path) -> None:
    """A local folder must be whole; a hub model must be in the cache or reachable with this login."""
    folder = Path(model)
    if folder.is_dir():
        for pattern in ("config.json", "*.safetensors", "tokenizer*.json"):
            if not any(folder.glob(pattern)):
                fail(f"the base model's folder {model} holds no {pattern}; download it again")
        return
    if model.startswith((".", "/", "~", "saves/", "exports/")) or model.count("/") != 1:
        builder = recipe.with_name("pretrain.yaml")
        hint = "check the path"
        if builder.exists() and model == read_recipe(builder)["output_dir"]:
            hint = f"`make base MODEL={recipe.parent.name}` builds it"
        elif model.startswith(("saves/", "exports/")):
            verb = "train" if model.startswith("saves/") else "export"
            hint = f"run `make {verb} MODEL={recipe.parent.name}` first"
        fail(f"the base model's folder {model} does not exist; {hint}")
    if os.environ.get("USE_MODELSCOPE_HUB") in ("1", "true"):
        check_modelscope(model)
    else:
        check_hugging_face(model)


def check_hugging_face(model: str) -> None:
    """Ends the program when the hub's `model` is not cached and cannot be fetched."""
    from huggingface_hub import auth_check, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    local = "or name a local copy: ARGS=model_name_or_path=<folder>"
    if constants.HF_HUB_OFFLINE:
        fail(f"{model} is not in the cache and HF_HUB_OFFLINE is set; unset it, {local}")
    try:
        auth_check(model)
    except (GatedRepoError, RepositoryNotFoundError):
        fail(
            f"no access to {model}: ask for it on its page at the Hugging Face hub, then `hf auth login`; "
            f"USE_MODELSCOPE_HUB=1 fetches it from ModelScope instead, {local}"
        )
    except Exception as error:
        fail(f"{model} cannot be reached at {constants.ENDPOINT} ({type(error).__name__}): check the network, {local}")


def check_modelscope(model: str) -> None:
    """Ends the program when ModelScope does not show `model`."""
    from modelscope.hub.api import HubApi

    try:
        found = HubApi().repo_exists(model)
    except Exception as error:
        fail(f"{model} cannot be reached at ModelScope ({type(error).__name__}): check the network")
    if not found:
        fail(f"ModelScope has no model {model}; name another with ARGS=model_name_or_path=<id or folder>")


def check_datasets(settings: dict) -> None:
    """Every data set that the recipe names is registered and, if it is a file, there and not empty."""
    folder = Path(settings.get("dataset_dir", "data"))
    registry = json.loads((folder / "dataset_info.json").read_text(encoding="ascii"))
    for key in ("dataset", "eval_dataset"):
        for name in filter(None, str(settings.get(key) or "").split(",")):
            if name not in registry:
                fail(f'{key}: "{name}" is not registered in {folder / "dataset_info.json"}: {", ".join(registry)}')
            file = registry[name].get("file_name")
            path = Path(os.path.normpath(folder / file)) if file else None
            if path and not (path.is_file() and path.stat().st_size):
                fail(f"the data set {name} is missing ({path}): run `make data`, or `make data RAW=<folder>`")


def check_adapter(folder: str, recipe: Path) -> None:
    """The adapter to predict, export or chat with has been trained."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(folder) / name).is_file():
            fail(f"no adapter in {folder} ({name} is missing): run `make train MODEL={recipe.parent.name}` first")


def check_output(settings: dict) -> None:
    """A finished run is not trained again: LLaMA-Factory would resume it and overwrite its results with nothing."""
    folder = Path(settings["output_dir"])
    if settings.get("do_train") and (folder / "train_results.json").exists():
        fail(f"{folder} holds a finished run: `make eval` scores it, FRESH=1 sets it aside and trains anew")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=VERBS, help="the verb of llamafactory-cli that is to run")
    parser.add_argument("recipe", type=Path, nargs="?", help="webui needs none")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options, flags = parser.parse_known_args()
    if options.verb in SERVERS:
        check_server(options.verb)
    if options.recipe is None:
        return None if options.verb == "webui" else parser.error(f"{options.verb} needs a recipe")
    recipe: Path = options.recipe
    settings = read_recipe(recipe) | read_overrides(options.overrides + flags, options.verb)
    check_gpu(recipe.read_text(encoding="utf-8"))
    if options.verb == "train":
        check_datasets(settings)
        check_output(settings)
    check_base(settings["model_name_or_path"], recipe)
    if settings.get("adapter_name_or_path") not in (None, "null"):
        check_adapter(settings["adapter_name_or_path"], recipe)


if __name__ == "__main__":
    main()
