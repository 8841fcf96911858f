"""What is looked at before a run, so that a run that cannot work ends at once, with one line that says what to do."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lib.adapters import check_adapters, check_match
from lib.chat_templates import check_template
from lib.files import ROOT, fail, installed_versions, sha256
from lib.gpu import check_gpu
from lib.hubs import check_hub
from lib.recipes import read_recipe
from lib.registry import check_sets, data_files, files_in
from lib.run_folder import LIBRARIES, lock_holder, lock_path, read_state
from lib.servers import SERVERS, check_server
from lib.weights import is_whole, local_folder, read_json, weights_fault, weights_size
from packaging.version import Version

Check = tuple[str, Callable[[], str | None]]
# What `make pairs` writes for a model → how.
MADE = {"pairs": "`make pairs`", "verdicts": "`make pairs FEEDBACK=<file>`"}


class Unmade(SystemExit):
    """Something is missing that this project makes by itself: the prepared rows, or the base model of a stand-in."""


def list_checks(verb: str, recipe: Path | None, settings: dict, every: bool) -> Iterator[Check]:
    """The names and functions of the checks for a verb, in order.

    A check returns what it found. It raises SystemExit if the run cannot work, and Warning if the run may fail.
    `every`: also what only `make doctor` looks at.
    """
    yield "packages", check_packages
    if verb in SERVERS:
        yield "server", lambda: "{}, port {}".format(*check_server(verb))
    if recipe is None:
        return
    header = (ROOT / recipe).read_text(encoding="utf-8")
    yield "gpu", lambda: check_gpu(header, settings, recipe)
    if verb == "train":
        yield "data", lambda: check_rows(settings)
    if settings.get("do_train"):
        yield "output", lambda: check_output(settings, every)
    # A base model is not made or fetched for an adapter that is not there.
    if settings.get("adapter_name_or_path"):
        yield "adapter", lambda: check_adapters(settings, recipe)
    yield "base", lambda: check_base(settings["model_name_or_path"], recipe)
    if settings.get("adapter_name_or_path") or not settings.get("do_train"):
        yield "match", lambda: check_match(settings)
    yield "template", lambda: check_template(settings)
    if settings.get("do_train") or verb == "export":
        yield "disk", lambda: check_disk(settings, header)
    export = recipe.with_name("export.yaml")
    if every and (ROOT / export).exists():
        merged = read_recipe(ROOT / export) | {"model_name_or_path": settings["model_name_or_path"]}
        yield "disk", lambda: check_disk(merged, (ROOT / export).read_text(encoding="utf-8"))


def check_packages() -> str:
    """The packages are those of requirements.txt. Other versions may work, and not every verb needs every package."""
    asked = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", asked, re.MULTILINE))
    installed = installed_versions([*pinned, "kernels"])
    if "kernels" in installed and Version(installed.get("transformers", "9")) < Version("5.3"):
        fail(
            "the package kernels lets a model's config.json run code in this transformers (CVE-2026-4372): "
            f"{sys.executable} -m pip uninstall kernels"
        )
    if needed := [name for name in LIBRARIES if name not in installed]:
        fail(f"{', '.join(needed)} not installed in {sys.prefix}: pip install -r requirements.lock there")
    # A wheel of PyTorch's own index is called 2.10.0+cu126.
    found = {name: installed.get(name, "is missing").split("+")[0] for name in pinned}
    if others := [f"{name} {found[name]}" for name in pinned if found[name] != pinned[name]]:
        raise Warning(f"other packages than those tested ({', '.join(others)}): pip install -r requirements.lock")
    return f"Python {sys.version.split()[0]}, {len(pinned)} packages as in requirements.txt"


def check_rows(settings: dict) -> str:
    """Every data set that the recipe names is registered, there, as `make data` wrote it, and fit to be trained on."""
    files = data_files(settings)
    local = {name: path for name, path in files.items() if path}
    splits = [ROOT / f"data/adgen_{split}.jsonl" for split in ("train", "val", "dev")]
    prepared = {name for name, path in local.items() if path.resolve() in splits}
    makers = {
        ROOT / f"data/{one.name}_{kind}.jsonl": how for one in ROOT.glob("configs/*") for kind, how in MADE.items()
    }
    for name, path in local.items():
        if not any(file.is_file() and file.stat().st_size for file in files_in(path)):
            how = makers.get(path.resolve(), "`make data`, or `make data RAW=<folder>`")
            problem = f"error: the data set {name} is missing ({path}): run {how}"
            raise Unmade(problem) if name in prepared else SystemExit(problem)
        if name in prepared:
            check_card(path)
        elif path.resolve() in makers:
            check_pairs(path, Path(settings["model_name_or_path"]))
    # The rows of the sample and those of `make generate` are ours, too. saves may be a link to another disk.
    folders = [(ROOT / name).resolve() for name in ("data/sample", "saves/parts")]
    ours = {name for name, path in local.items() if any(path.resolve().is_relative_to(folder) for folder in folders)}
    made = {name for name, path in local.items() if path.resolve() in makers}
    check_sets(settings, local.keys() - prepared - ours - made)
    return f"{', '.join(files)}: there and unchanged"


def check_card(path: Path) -> None:
    """Ends the program if a prepared file is not the one that data/adgen_card.json describes."""
    card = ROOT / "data/adgen_card.json"
    if not is_whole(card):
        fail(f"{path} is of a preparation that was cut off (there is no {card.name}): run `make data` again")
    written = dict(json.loads(card.read_text(encoding="utf-8")).get("output", {})).get(path.name)
    if written and written["sha256"] != sha256(path):
        fail(f"{path} is not what `make data` wrote (see {card.name}): run it again, or register your own file")


def check_pairs(path: Path, start: Path) -> None:
    """Ends the program if pairs or verdicts are not as `make pairs` wrote them, or not of the model to go on from.

    `start`: the folder of that model, merged. What an editor said of a model's ads is good for all of its runs.
    """
    card = read_json(path.with_name(f"{path.stem}_card.json"))
    if card.get("sha256") != sha256(path):
        fail(f"{path} is not what `make pairs` wrote (see its card): run it again, or register your own file")
    of, model = f"{card.get('model')} {card.get('run', start.name)}", path.stem.rpartition("_")[0]
    if of != f"{model} {start.name}":
        fail(f"{path} holds ads of {of}, and this training goes on from {model} {start.name}: run `make pairs`")


def check_base(model: str, recipe: Path) -> str:
    """A local folder must be whole. A hub's model must be in the cache, or within reach with this login."""
    check_stand_in(model, recipe)
    check_merged(model)
    check_config(model)
    folder = Path(model)
    if folder.is_dir():
        for pattern in ("config.json", "*.safetensors", "tokenizer*.json"):
            if not any(folder.glob(pattern)):
                fail(f"the base model's folder {model} holds no {pattern}; download it again")
        if fault := weights_fault(folder):
            fail(f"the model in {model} is not whole ({fault}); download, export or train it again")
        return f"{model} is whole"
    if model.startswith((".", "/", "~", "saves/", "exports/")) or model.count("/") != 1:
        hint = "check the path"
        if model.startswith(("saves/", "exports/")):
            verb = "train" if model.startswith("saves/") else "export"
            hint = f"run `make {verb} MODEL={recipe.parent.name}` first"
        fail(f"the base model's folder {model} does not exist; {hint}")
    check_hub(model)
    return f"{model} is in the cache or can be fetched"


def check_config(model: str) -> None:
    """Ends the program if a model's config.json names what transformers would fetch and run (CVE-2026-4372)."""
    for path in (local_folder(model) or Path(model)).glob("config*.json"):
        # The key may stand in a part of the model, such as text_config.
        if "_attn_implementation_internal" in json.dumps(read_json(path)):
            fail(
                f"{path} names an _attn_implementation_internal, which can run foreign code (CVE-2026-4372): "
                "remove that key, or do not use this model"
            )


def check_stand_in(model: str, recipe: Path) -> None:
    """Raises Unmade if the model is a stand-in that `make base` has not made since its recipe or its rows changed."""
    builder = recipe.with_name("pretrain.yaml")
    if not (ROOT / builder).exists():
        return
    settings = read_recipe(ROOT / builder)
    if model != settings["output_dir"]:
        return
    made = Path(model) / "train_results.json"
    sources = [ROOT / builder, *filter(None, data_files(settings).values())]
    if not made.exists() or any(path.exists() and path.stat().st_mtime > made.stat().st_mtime for path in sources):
        raise Unmade(f"error: {model} is not made yet; `make base MODEL={recipe.parent.name}` makes it")


def check_merged(model: str) -> None:
    """Raises Unmade if a fine-tuned model is not merged yet, or was trained again since."""
    folder = Path(model)
    if folder.parent.name != "merged" or folder.is_absolute():
        return
    adapter = folder.parents[1] / "lora" / folder.name / "adapter_model.safetensors"
    made = folder / "config.json"
    if not adapter.is_file():
        fail(f"there is no adapter in {adapter.parent} to go on from: run `make train` with its method first")
    if not made.exists() or adapter.stat().st_mtime > made.stat().st_mtime:
        raise Unmade(f"error: {model} is not merged yet; a training with METHOD=dpo or kto merges it")


def check_output(settings: dict, every: bool) -> str:
    """A finished run is not trained again, and a run whose recipe or data have changed is not resumed."""
    folder = Path(settings["output_dir"])
    if every and (process := lock_holder(lock_path(folder))):
        return f"{folder} is being written by process {process}"
    state = read_state(settings)
    if state.kind == "changed" or (state.kind == "finished" and not every):
        fail(state.text)
    # The run itself says what it sets aside.
    if every and (state.broken or state.kind == "broken"):
        raise Warning(state.text)
    return state.text


def check_disk(settings: dict, header: str) -> str:
    """There is room for what the recipe writes: checkpoints, or the merged model."""
    size, key = weights_size(settings["model_name_or_path"]), "export_dir" if "export_dir" in settings else "output_dir"
    told = re.search(r"^# Needs:.* (\d+) GB of disk", header, re.MULTILINE)
    need = size or (int(told[1]) * 10**9 if told else 0)
    if key == "output_dir":
        # An adapter with its optimizer takes 50 MB. A checkpoint of all weights has two more floats for each weight.
        none_kept = str(settings.get("save_strategy")) in ("no", "False")
        kept = 1 if none_kept else 1 + int(settings.get("save_total_limit") or 3)
        need = (1 + kept) * (5 * size if settings.get("finetuning_type") in ("full", "freeze") else 10**8)
    folder = Path(settings[key]).absolute()
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    said = f"{free / 1e9:.1f} GB free for {settings[key]}, which takes up to {need / 1e9:.1f}"
    if free < need:
        fail(f"{said}: make room, or name a folder on another disk: ARGS={key}=<folder>")
    return said


def run_checks(todo: Iterator[Check]) -> list[dict[str, str]]:
    """Runs all checks; returns check, status ("ok", "warning" or "wrong") and text of each."""
    lines = []
    for name, check in todo:
        status = "ok"
        try:
            text = check()
        except Warning as warning:
            status, text = "warning", str(warning)
        except SystemExit as error:
            status, text = "warning" if isinstance(error, Unmade) else "wrong", str(error).removeprefix("error: ")
        lines.append({"check": name, "status": status, "text": text})
    return lines
