"""Whether files of weights are whole. Only their first and last bytes are read, and torch is not needed."""

import json
import zipfile
from pathlib import Path


def is_whole(path: Path) -> bool:
    """Whether a .safetensors, .json or torch file has its end."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                tensors = json.loads(file.read(min(length, 10**8)))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
            return path.stat().st_size == 8 + length + max(ends)
        if path.suffix == ".json":
            return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        # torch.save writes a zip archive. Its list of contents comes last.
        zipfile.ZipFile(path).close()
        return True
    except (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile):
        return False


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


def weights_size(model: str) -> int:
    """Bytes of a model's safetensors in its folder or in the hub's cache; 0 if they are not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    config = Path(model) / "config.json"
    if not config.exists():
        config = try_to_load_from_cache(model, "config.json") if model.count("/") == 1 else None
    return sum(path.stat().st_size for path in Path(config).parent.glob("*.safetensors")) if config else 0
