"""The model card of an export: what the model is, whose licences bind it, how it was trained, and what it scored."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import ModelCardData
from lib.adapters import names
from lib.choices import Choices, predictions, stages, trained
from lib.files import ROOT, sha256
from lib.metrics import MAIN, OVERLAP, SCORES
from lib.run_folder import read_notes
from lib.tables import markdown, show
from lib.weights import read_json


class Licence(NamedTuple):
    """A base model's licence: which names it belongs to, its id at the hubs, and what it asks of a tuned model."""

    pattern: str
    id: str
    duties: str


META = "licensed under the {} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
LICENCES = (
    Licence(
        r"llama-?3\.(\d)",
        r"llama3.\1",
        r"**Built with Llama.** Llama 3.\1 is " + META.format(r"Llama 3.\1") + " Whoever passes this model on adds a "
        "copy of that licence, shows these two sentences, and gives it a name that begins with “Llama”.",
    ),
    Licence(
        r"llama-?3",
        "llama3",
        "**Built with Meta Llama 3.** Meta Llama 3 is " + META.format("Meta Llama 3") + " Whoever passes this model on "
        "adds a copy of that licence, shows these two sentences, and gives it a name that begins with “Llama 3”.",
    ),
    Licence(
        "gemma",
        "gemma",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. Whoever "
        "passes this model on hands on these terms with their prohibited uses, shows this notice, and says that the "
        "model was changed.",
    ),
    Licence(
        "qwen3",
        "apache-2.0",
        "Qwen3 is licensed under the Apache License 2.0. Whoever passes this model on adds a copy of that licence, "
        "keeps its notices, and says that the model was changed.",
    ),
)
UNKNOWN = Licence(
    "", "other", "The licence of the base model is not known here: look it up before you pass this model on."
)
STAND_IN = Licence("", "apache-2.0", "The base model is this project's stand-in, under the Apache License 2.0.")

TEXT = """---
{data}
---

# {title}

This model writes a Chinese ad from a product's attributes, given as `类型#裙*颜色#白色*材质#雪纺`. `make export` wrote
this card from the files of the training. The next export writes it anew.

## Licences

{duties}

{rows_licence}

## Training

{training}
## Scores

{scores}
## What it is not for

- It misses attributes and invents others. A person reads each ad before it is published.
- It knows the products that its training rows describe. Ads for other kinds of products were not scored.
- It is not for medicines, food supplements, finance, or any product where an invented claim does harm.
- It was not taught advertising law, and some places want AI-written text to be labelled.
"""


def model_card(choices: Choices, settings: dict) -> str:
    """The README.md of an exported model, with the metadata that hubs read, from the notes of its training.

    `settings`: the export recipe's, with the overrides.
    """
    run = Path(settings.get("adapter_name_or_path") or settings["model_name_or_path"])
    runs = [*map(trained, stages(choices)[:-1]), run]
    base = find_base(choices, runs[0])
    licence = find_licence(choices, base)
    hub = read_json(ROOT / "dataset_info/dataset_info.json").get("adgen_hub_train", {}).get("hf_hub_url")
    data = ModelCardData(
        language="zh",
        license=licence.id,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base or None,
        datasets=[hub] if hub and choices.data == "adgen" else None,
        tags=["llama-factory", "advertising", "product-descriptions"],
    )
    name = base.split("/")[-1].removeprefix("Meta-").replace("-", " ") or f"The stand-in {choices.model}"
    rows_licence = "The training rows are those of the project's own sample."
    if choices.data != "sample":
        rows_licence = (
            f"The training rows are `{choices.data}`. Look up their licence at their source before you use this model "
            "for more than research."
        )
    return TEXT.format(
        data=data.to_yaml(),
        title=f"{name} for Chinese ad copy",
        duties=licence.duties,
        rows_licence=rows_licence,
        training="".join(map(describe_run, runs)),
        scores=describe_scores(choices, run),
    )


def find_base(choices: Choices, run: Path) -> str:
    """The hub id of the base model that a run was trained on; empty if it is none that a hub has."""
    named = read_json(run / "adapter_config.json").get("base_model_name_or_path")
    named = str(named or read_notes(run).get("recipe", {}).get("model_name_or_path") or "")
    recipes = choices.settings("chat")["model_name_or_path"]
    # A local copy of the recipes' model has its name, and a path that nobody else knows.
    found = recipes if names(named) & names(recipes) else named
    return found if re.fullmatch(r"[\w.-]+/[\w.-]+", found) and not Path(found).exists() else ""


def find_licence(choices: Choices, base: str) -> Licence:
    """The licence of a base model, by its name."""
    for licence in LICENCES:
        if found := re.search(licence.pattern, base, re.IGNORECASE):
            return Licence("", found.expand(licence.id), found.expand(licence.duties))
    return STAND_IN if choices.recipe("pretrain").exists() and not base else UNKNOWN


def describe_run(run: Path) -> str:
    """The recipe of a run without its paths, and the rows that it learnt from."""
    noted = read_notes(run)
    if not {"recipe", "data", "versions"} <= set(noted):
        return f"`{run.name}` left no notes on its training.\n\n"
    recipe = {key: value for key, value in noted["recipe"].items() if "/" not in str(value)}
    rows = []
    for path, checksum in noted["data"].items():
        same = Path(path).is_file() and sha256(Path(path)) == checksum
        count = f"{len(Path(path).read_bytes().splitlines()):,} rows" if same else "rows that have changed since"
        rows.append(f"{count} (`{Path(path).name}`)")
    libraries = ", ".join(f"{name} {version}" for name, version in noted["versions"].items())
    text = yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False, width=100)
    return f"`{run.name}`: {', '.join(rows)}. {libraries}.\n\n```yaml\n{text}```\n\n"


def describe_scores(choices: Choices, run: Path) -> str:
    """The scores of this model as a table with 95% intervals, if they are of the ads that it wrote itself."""
    folder = Path(os.environ.get("RESULTS") or f"results/{choices.model}")
    results, ads = read_json(folder / "eval_results.json"), predictions(choices)[1] / "predict_results.json"
    if run != trained(choices) or not is_of(results, ads, run):
        return "Not scored since its training: `make eval` does, and the next export shows it.\n\n"
    systems = {name: results["systems"][name] for name in ("base", "tuned", "reference") if name in results["systems"]}
    lines = [["", *(SCORES[score].label for score in MAIN)]]
    lines += [[name, *(show(score, row.get(score)) for score in MAIN)] for name, row in systems.items()]
    split, decoding = results["split"], results.get("decoding") or {}
    how = ", ".join(f"{key} {value}" for key, value in decoding.items())
    told = f"{results['rows']['tuned']:,} of the {split['rows']:,} rows of `{split['file']}`; {how}; ± 95% intervals"
    warned = "".join(f"- {warning}\n" for warning in results["health"]["tuned"])
    return f"{told}:\n\n{markdown(lines)}\n{warned}" + "\n" * bool(warned)


def is_of(results: dict, ads: Path, run: Path) -> bool:
    """Whether scores are of the ads that a run's model wrote, and it was not trained again since.

    `ads`: LLaMA-Factory's predict_results.json, which has the same overlap scores for the same ads.
    """
    scored, own = results.get("systems", {}).get("tuned"), read_json(ads)
    trained_at = max((path.stat().st_mtime for path in run.glob("*.safetensors")), default=None)
    if not scored or not own or trained_at is None or ads.stat().st_mtime < trained_at:
        return False
    return all(abs(scored[score]["value"] - own.get(f"predict_{score}", -1)) < 1e-3 for score in OVERLAP)
