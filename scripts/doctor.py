"""Looks before a run whether it can work, and says in one line what is missing and what to do about it.

`make` calls it before every train, eval, export and server: `python scripts/doctor.py VERB [RECIPE] [key=value …]`.
It then speaks only of what is wrong (exit status 1) and of what may go wrong. `make doctor` lists what it looked at.
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
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import run
from adgen import ROOT, fail, installed_versions, read_recipe

# Servers → the variables of their address, and the port by default.
PAGE = ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", 7860)
SERVERS = {"api": ("API_HOST", "API_PORT", 8000), "webchat": PAGE, "webui": PAGE, "desk": PAGE}
VERBS = ("train", "export", "chat", *SERVERS)
DEMO = "`make demo` runs everything on a CPU"


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


class Unmade(SystemExit):
    """What is missing and made by `make` itself before a run: an error for the run, a warning in the list."""


def check_versions() -> str:
    """The packages are those of requirements.lock; others may do, and some that not every verb needs may be missing."""
    pinned: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE):
        pinned.setdefault(name, set()).add(version)
    installed = installed_versions(pinned)
    asked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    missing = [name for name in asked if name not in installed]
    if needed := [name for name in missing if name in run.LIBRARIES]:
        fail(f"{', '.join(needed)} not installed in {sys.prefix}: pip install -r requirements.lock there")
    # A wheel of PyTorch's own index is 2.10.0+cu126.
    others = [f"{name} {version}" for name, version in installed.items() if version.split("+")[0] not in pinned[name]]
    others += [f"no {name}" for name in missing]
    if others:
        raise Warning(f"tested with other versions than {', '.join(others)}: pip install -r requirements.lock")
    return f"Python {sys.version.split()[0]}, {len(installed)} packages as in requirements.lock"


def ask_cards(query: str) -> str:
    """What nvidia-smi, the driver's own program, answers of the cards in use; empty where there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or not shutil.which("nvidia-smi"):
        return ""
    chosen = ["-i", visible] if re.fullmatch(r"\d+(,\d+)*", visible or "") else []
    answer = subprocess.run(["nvidia-smi", *query.split(), *chosen], capture_output=True, text=True)
    return "" if answer.returncode else answer.stdout.strip()


def measured_peak(recipe: Path) -> float | None:
    """GiB of GPU memory that a recipe took at most on any measured card, as it stands.

    Where it ran with little of a card left, what it took there: with more, loading sets aside half of the bf16 weights.
    """
    files = [*ROOT.glob("results/bench/*.json"), ROOT / "results/distributed.json"]
    runs = [entry for path in files if path.exists() for entry in json.loads(path.read_text()).get("runs", [])]
    name = str(recipe.resolve().relative_to(ROOT)) if recipe.resolve().is_relative_to(ROOT) else str(recipe)
    own = [one for one in runs if one.get("recipe") == name and not one.get("overrides")]
    tight = [one["peak_gib_per_process"] for one in own if one.get("left_gib") and one["cards"] == 1]
    return max(tight or [one["peak_gib"] for one in own if "peak_gib" in one], default=None)


def check_gpu(header: str, settings: dict | None = None, recipe: Path | None = None) -> str:
    """The card that the recipe's header asks for is there, PyTorch and bf16 run on it, and enough memory is free."""
    need = re.search(r"^# Needs: one (\d+) GB GPU", header, re.MULTILINE)
    if not need:
        return "none needed"
    cards = ask_cards("--query-gpu=name,driver_version,memory.free,compute_cap --format=csv,noheader,nounits")
    if not cards:
        fail(f"this recipe needs a CUDA GPU with {need[1]} GB, and none was found (nvidia-smi lists none); {DEMO}")
    name, driver, _, capability = (field.strip() for field in cards.split("\n")[0].rsplit(",", 3))
    torch = Path(importlib.util.find_spec("torch").origin).with_name("version.py").read_text()
    built, able = re.search(r"^cuda\b.*= '([\d.]+)'", torch, re.M), re.search(r"CUDA[\w ]*: *([\d.]+)", ask_cards(""))
    if not built:
        fail("PyTorch is built without CUDA here: pip install -r requirements.lock")
    if able and int(able[1].split(".")[0]) < int(built[1].split(".")[0]):
        fail(f"driver {driver} runs CUDA {able[1]} and PyTorch is built for {built[1]}: install a newer driver")
    if (settings or {}).get("bf16") and float(capability) < 8:
        fail(f'{name} (compute capability {capability}) has no bf16: ARGS="bf16=false fp16=true"')
    # A card that shares the machine's memory tells none of its own.
    sizes = [float(size) / 1024 for size in re.findall(r", (\d+), [\d.]+ *$", cards, re.MULTILINE)]
    # What cards share out, each needs less of.
    shared = {"fsdp", "deepspeed"} & set(settings or {})
    free, peak = min(sizes, default=float("inf")), None if shared else measured_peak(recipe or Path())
    said = f"{name}, driver {driver}, {free:.1f} GiB free; "
    if peak and free < peak:
        raise Warning(f"{said}this recipe took {peak:.1f}: end what else is on the card (nvidia-smi), or METHOD=qlora")
    return said + (f"this recipe took {peak:.1f}" if peak else "what this recipe takes was not measured")


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


def check_base(model: str, recipe: Path) -> str:
    """A local folder must be whole; a hub model must be in the cache or reachable with this login."""
    folder = Path(model)
    if folder.is_dir():
        for pattern in ("config.json", "*.safetensors", "tokenizer*.json"):
            if not any(folder.glob(pattern)):
                fail(f"the base model's folder {model} holds no {pattern}; download it again")
        if fault := run.weights_fault(folder):
            fail(f"the model in {model} is not whole ({fault}); download, export or train it again")
        return f"{model} is whole"
    if model.startswith((".", "/", "~", "saves/", "exports/")) or model.count("/") != 1:
        builder = recipe.with_name("pretrain.yaml")
        hint = "check the path"
        if builder.exists() and model == read_recipe(builder)["output_dir"]:
            raise Unmade(f"error: {model} does not exist; `make base MODEL={recipe.parent.name}` builds it")
        elif model.startswith(("saves/", "exports/")):
            verb = "train" if model.startswith("saves/") else "export"
            hint = f"run `make {verb} MODEL={recipe.parent.name}` first"
        fail(f"the base model's folder {model} does not exist; {hint}")
    if os.environ.get("USE_MODELSCOPE_HUB") in ("1", "true"):
        check_modelscope(model)
    else:
        check_hugging_face(model)
    return f"{model} is in the cache or can be fetched"


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


def check_datasets(settings: dict) -> str:
    """Every data set that the recipe names is registered, there, not empty, and as `make data` wrote it."""
    folder = Path(settings.get("dataset_dir", "data"))
    try:
        files = run.data_files(settings)
    except KeyError as error:
        registry = json.loads((folder / "dataset_info.json").read_text(encoding="ascii"))
        fail(f'"{error.args[0]}" is not registered in {folder / "dataset_info.json"}: {", ".join(registry)}')
    for name, path in files.items():
        if path and not (path.is_file() and path.stat().st_size):
            raise Unmade(
                f"error: the data set {name} is missing ({path}): run `make data`, or `make data RAW=<folder>`"
            )
        card = ROOT / "data/adgen_card.json"
        if path and path.name.startswith("adgen_") and path.resolve().parent == card.parent:
            if not run.is_whole(card):
                fail(f"{path} is of a preparation that was cut off (there is no {card.name}): run `make data` again")
            written = dict(json.loads(card.read_text(encoding="utf-8")).get("output", {})).get(path.name)
            if written and written["sha256"] != run.sha256(path):
                fail(f"{path} is not what `make data` wrote (see {card.name}): run it again, or register your own file")
    return f"{', '.join(files)}: there and unchanged"


def check_adapter(folder: str, recipe: Path) -> str:
    """The adapter to predict, export or chat with has been trained."""
    again = f"run `make train MODEL={recipe.parent.name}`"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(folder) / name).is_file():
            fail(f"no adapter in {folder} ({name} is missing): {again} first")
    if fault := run.weights_fault(Path(folder)):
        fail(f"the adapter in {folder} is not whole ({fault}): {again} again")
    return f"{folder} is whole"


def check_output(settings: dict, listing: bool) -> str:
    """A finished run is not trained again, nor one continued whose recipe or data have changed."""
    folder = Path(settings["output_dir"])
    if listing and (process := run.lock_holder(run.lock_path(folder))):
        return f"{folder} is being written by process {process}"
    state = run.look(settings)
    if state.kind == "changed" or (state.kind == "finished" and not listing):
        fail(state.text)
    # The run itself says what it sets aside.
    if listing and (state.broken or state.kind == "broken"):
        raise Warning(state.text)
    return state.text


def weights_size(model: str) -> int:
    """Bytes of a model's safetensors, in its folder or in the hub's cache; 0 when they are not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    config = Path(model) / "config.json"
    if not config.exists():
        config = try_to_load_from_cache(model, "config.json") if model.count("/") == 1 else None
    return sum(path.stat().st_size for path in Path(config).parent.glob("*.safetensors")) if config else 0


def check_disk(settings: dict, header: str) -> str:
    """There is room for what the recipe writes: checkpoints, or the merged model."""
    size, key = weights_size(settings["model_name_or_path"]), "export_dir" if "export_dir" in settings else "output_dir"
    told = re.search(r"^# Needs:.* (\d+) GB of disk", header, re.MULTILINE)
    need = size or (int(told[1]) * 10**9 if told else 0)
    if key == "output_dir":
        # An adapter with its optimizer takes some 50 MB; of all weights, a checkpoint has two more floats for each.
        kept = (
            1
            if str(settings.get("save_strategy")) in ("no", "False")
            else 1 + int(settings.get("save_total_limit") or 3)
        )
        need = (1 + kept) * (5 * size if settings.get("finetuning_type") in ("full", "freeze") else 10**8)
    folder = Path(settings[key]).absolute()
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    said = f"{free / 1e9:.1f} GB free for {settings[key]}, which takes up to {need / 1e9:.1f}"
    if free < need:
        fail(f"{said}: make room, or name a folder on another disk: ARGS={key}=<folder>")
    return said


def check_export(settings: dict, recipe: Path) -> str:
    """What an earlier export left can be served."""
    folder = Path(settings["export_dir"])
    return check_base(str(folder), recipe) if folder.exists() else f"{folder} is new"


Check = tuple[str, Callable[[], str | None]]


def checks(verb: str, recipe: Path, settings: dict, listing: bool) -> Iterator[Check]:
    """What is looked at for a verb, in order."""
    header = recipe.read_text(encoding="utf-8")
    yield "gpu", lambda: check_gpu(header, settings, recipe)
    if verb == "train":
        yield "data", lambda: check_datasets(settings)
    if settings.get("do_train"):
        yield "output", lambda: check_output(settings, listing)
    yield "base", lambda: check_base(settings["model_name_or_path"], recipe)
    if settings.get("adapter_name_or_path") not in (None, "null"):
        yield "adapter", lambda: check_adapter(settings["adapter_name_or_path"], recipe)
    if settings.get("do_train") or verb == "export":
        yield "disk", lambda: check_disk(settings, header)
    export = recipe.with_name("export.yaml")
    if listing and export.exists():
        merged = read_recipe(export) | {"model_name_or_path": settings["model_name_or_path"]}
        yield "export", lambda: check_export(merged, export)
        yield "disk", lambda: check_disk(merged, export.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=VERBS, help="the verb of llamafactory-cli that is to run")
    parser.add_argument("recipe", type=Path, nargs="?", help="webui needs none")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--list", action="store_true", help="look at everything, and print a line for each")
    parser.add_argument("--json", action="store_true", help="the list as JSON")
    options, flags = parser.parse_known_args()
    if options.recipe is None and options.verb != "webui":
        parser.error(f"{options.verb} needs a recipe")
    listing = options.list or options.json
    todo: list[Check] = [("packages", check_versions)]
    if options.verb in SERVERS:
        todo.append(("server", lambda: "{}, port {}".format(*check_server(options.verb))))
    if options.recipe:
        settings = read_recipe(options.recipe, read_overrides(options.overrides + flags, options.verb))
        todo += checks(options.verb, options.recipe, settings, listing)
    lines = []
    for name, check in todo:
        status = "ok"
        try:
            text = check()
        except Warning as warning:
            status, text = "warning", str(warning)
        except SystemExit as error:
            if not listing:
                raise
            status, text = "warning" if isinstance(error, Unmade) else "wrong", str(error).removeprefix("error: ")
        lines.append({"check": name, "status": status, "text": text})
        if not listing and status == "warning":
            print(f"warning: {text}", file=sys.stderr)
    if options.json:
        print(json.dumps(lines, ensure_ascii=False, indent=1))
    elif listing:
        print("\n".join("{status:<8} {check:<9} {text}".format(**line) for line in lines))
    if any(line["status"] == "wrong" for line in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
