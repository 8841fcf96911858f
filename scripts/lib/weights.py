"""Files of weights: whether they are whole, and which model's they are. Only their beginning and end are read."""

import hashlib
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path


def is_whole(path: Path) -> bool:
    """Whether a .safetensors, .json or torch file has its end."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            # The library compares the header with the size of the file.
            safe_open(path, "numpy")
            return True
        if path.suffix == ".json":
            return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        # torch.save writes a zip archive. Its list of contents comes last.
        zipfile.ZipFile(path).close()
        return True
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False


def read_json(path: Path | None) -> dict:
    """The object in a JSON file of a model or a run; an empty one if there is none that can be read."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def weights_fault(folder: Path) -> str:
    """What is wrong with the safetensors in a folder: one is cut off, or the index names one that is missing."""
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]):
        if not is_whole(path):
            return f"{path.name} is cut off"
    for index in folder.glob("*.safetensors.index.json"):
        for name in sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())):
            if not (folder / name).is_file():
                return f"{name} is missing"
    return ""


def local_folder(model: str) -> Path | None:
    """The folder of a model on this machine: its own, or its snapshot in the hub's cache; None if there is none."""
    if Path(model).is_dir() or model.count("/") != 1:
        return Path(model) if Path(model).is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):
        config = try_to_load_from_cache(model, "config.json")
        return Path(config).parent if isinstance(config, str) else None
    return None


def weights_size(model: str) -> int:
    """Bytes of a model's safetensors in its folder or in the hub's cache; 0 if they are not on this machine."""
    folder = local_folder(model)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else 0


def fingerprint(folder: Path | None) -> dict[str, str]:
    """What tells a model's weights from others: each file's size, and a checksum of its last mebibyte."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")) if folder else []:
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, 2**20), os.SEEK_END)
            found[path.name] = f"{path.stat().st_size} bytes, ends in {hashlib.sha256(file.read()).hexdigest()}"
    return found
