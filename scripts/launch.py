"""Starts LLaMA-Factory for a verb, with the recipe, the overrides and the environment that the variables ask for.

`make` calls it: `MODEL=tiny DATA=sample python scripts/launch.py train num_train_epochs=2`. Before a run it checks
whether the run can work, and makes what is missing: the prepared rows, or the base model of a stand-in. doctor only
lists the checks. eval predicts with the base model and the tuned model and scores both.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from lib import vllm
from lib.adapters import check_named
from lib.cards import check_cards, check_variables, predict_environment, share_overrides, train_environment
from lib.checks import Unmade, list_checks, run_checks
from lib.choices import (
    Choices,
    fine_tuned,
    hub_overrides,
    merged,
    predictions,
    prompt_overrides,
    read_choices,
    rows_of,
    served_overrides,
    stages,
    train_overrides,
    trained,
    tuned_overrides,
)
from lib.files import ROOT, fail, whole_file
from lib.recipes import check_overrides, read_recipe
from lib.registry import data_files
from lib.runs import run_export, run_training
from lib.supervision import DEFAULTS, WRITING, find_cli


def look(choices: Choices, verb: str, recipe: Path | None, settings: dict) -> None:
    """Runs the checks before a run: makes what is missing, prints warnings, ends the program if the run cannot work."""
    makers = {"data": make_rows, "base": make_base}
    for name, check in list_checks(verb, recipe, settings, every=False):
        try:
            try:
                check()
            except Unmade:
                makers[name](choices)
                check()
        except Warning as warning:
            print(f"warning: {warning}", file=sys.stderr)


def make_rows(_: Choices) -> None:
    """Prepares AdGen: from the files that RAW names, else from the hub."""
    raw = [os.environ["RAW"]] if os.environ.get("RAW") else []
    check_call([sys.executable, "scripts/prepare_data.py", *raw])


def make_base(choices: Choices) -> None:
    """Makes the base model of a run: a stand-in, or for a preference method the merged tuned model."""
    if choices.goes_on:
        first = fine_tuned(choices)
        return write_export(first, [*tuned_overrides(first), f"export_dir={merged(choices)}"])
    make_stand_in(choices)


def make_stand_in(choices: Choices) -> None:
    """Makes a stand-in: random weights, then pretraining on the rows that its recipe names."""
    recipe = choices.recipe("pretrain")
    settings = read_recipe(recipe)
    look(choices, "train", None, settings)
    [corpus] = data_files(settings).values()
    if not corpus.exists():
        make_rows(choices)
    random_weights = settings["model_name_or_path"]
    for folder in (random_weights, settings["output_dir"]):
        shutil.rmtree(folder, ignore_errors=True)
    build = ["scripts/stand_in.py", "--size", choices.model, "--corpus", str(corpus), random_weights]
    check_call([sys.executable, *build])
    run_training(recipe, [], train_environment(choices))


def take_base(choices: Choices, options: argparse.Namespace) -> Choices:
    """The choices with the base model that the overrides name: it lies below the fine-tuned model, not in its place."""
    named = [word for word in options.words if word.startswith("model_name_or_path=")]
    base = named[-1].partition("=")[2].strip('"') if named else ""
    # Bulk writing names the merged model or the export, as it does for every method.
    if not base or choices.exported or base == str(merged(choices)):
        return choices
    options.words = [word for word in options.words if word not in named]
    check_named(trained(stages(choices)[0]), base)
    return choices._replace(base=base)


def check_call(command: list[str]) -> None:
    """Runs one of our programs; ends this one with the same exit status if it fails."""
    if status := subprocess.run(command).returncode:
        raise SystemExit(status)


def show_plan(verb: str, recipe: Path | None, words: list[str], environment: dict[str, str]) -> None:
    """Prints a command as a shell would take it."""
    variables = [f"{name}={value}" for name, value in environment.items() if name != "PATH"]
    print(shlex.join([*variables, "llamafactory-cli", verb, *([str(recipe)] if recipe else []), *words]))


def doctor(choices: Choices, options: argparse.Namespace) -> None:
    """Lists what a training needs, and what is wrong with it."""
    recipe = choices.recipe(choices.training)
    settings = read_recipe(recipe, [*train_overrides(choices), *options.words])
    lines = run_checks(list_checks("train", recipe, settings, every=True))
    if options.json:
        print(json.dumps(lines, ensure_ascii=False, indent=1))
    else:
        print("\n".join("{status:<8} {check:<9} {text}".format(**line) for line in lines))
    if any(line["status"] == "wrong" for line in lines):
        raise SystemExit(1)


def base(choices: Choices, options: argparse.Namespace) -> None:
    """Makes the base model of a stand-in, or the merged model that a method goes on from, if it is missing or older."""
    if choices.goes_on or choices.recipe("pretrain").exists():
        own = {"model_name_or_path": str(merged(choices))} if choices.goes_on else {}
        settings = choices.settings("chat") | {"adapter_name_or_path": None} | own
        look(choices, "chat", choices.recipe("chat"), settings)


def train(choices: Choices, options: argparse.Namespace) -> None:
    """Fine-tunes, or resumes after a kill."""
    check_variables(choices)
    if not options.dry_run:
        check_cards(choices)
    recipe = choices.recipe(choices.training)
    shared = share_overrides(choices, read_recipe(recipe, options.words))
    words, environment = [*train_overrides(choices), *shared, *options.words], train_environment(choices)
    if options.dry_run:
        return show_plan("train", recipe, words, environment)
    look(choices, "train", recipe, read_recipe(recipe, words))
    run_training(recipe, words, environment)


def predict(choices: Choices, options: argparse.Namespace) -> None:
    """Writes ads with the tuned model, for the rows and into the folder that the overrides name."""
    recipe, environment = choices.recipe("predict"), WRITING | predict_environment(choices)
    words = [*hub_overrides(choices), *tuned_overrides(choices), *options.words]
    if options.dry_run:
        return show_plan("train", recipe, words, environment)
    check_cards(choices)
    look(choices, "train", recipe, read_recipe(recipe, words))
    run_training(recipe, words, environment)


def evaluate(choices: Choices, options: argparse.Namespace) -> None:
    """Writes ads for the dev rows with the base model and the tuned model, and scores both."""
    base_folder, tuned_folder = predictions(choices)
    dev, write = rows_of(choices, "dev"), run_training
    if vllm.is_wanted():
        # The key of LLaMA-Factory tells the report, too, what wrote the ads.
        write, options.words = vllm.predict, [*options.words, "infer_backend=vllm"]
    words = [f"eval_dataset={choices.data}_dev", *hub_overrides(choices), *prompt_overrides(choices)]
    environment = WRITING | predict_environment(choices)
    base_words = [*words, f"output_dir={base_folder}", *options.words]
    tuned_words = [*words, *tuned_overrides(choices), f"output_dir={tuned_folder}", *options.words]
    before, after = choices.recipe("predict_base"), choices.recipe("predict")
    if options.dry_run:
        show_plan("train", before, base_words, environment)
        return show_plan("train", after, tuned_words, environment)
    check_cards(choices)
    look(choices, "train", after, read_recipe(after, tuned_words))
    made = Path(read_recipe(before)["model_name_or_path"], "train_results.json")
    files = [path.read_bytes() for path in (before, dev, made) if path.exists()]
    inputs = hashlib.sha256(b"\0".join([*files, *map(str.encode, base_words)])).hexdigest()
    # The base model's ads are written again only if what they depend on has changed.
    noted = base_folder / "inputs.txt"
    if not noted.exists() or noted.read_text().strip() != inputs:
        noted.unlink(missing_ok=True)
        write(before, base_words, environment)
        with whole_file(noted) as file:
            file.write(inputs + "\n")
    write(after, tuned_words, environment)
    # Between the two stand the models that the tuned one goes on from, if they have written ads.
    between = {one.method if one.goes_on else "fine-tuned": predictions(one)[1] for one in stages(choices)[:-1]}
    written = {name: folder for name, folder in between.items() if (folder / "generated_predictions.jsonl").exists()}
    names = {"base": base_folder, **written, "tuned": tuned_folder}
    ads = [f"{name}={folder}/generated_predictions.jsonl" for name, folder in names.items()]
    rows = ["--data", str(dev), "--train", str(rows_of(choices, "train"))]
    how = ["--decoding", str(after), *options.words]
    out = os.environ.get("RESULTS") or f"results/{choices.model}"
    check_call([sys.executable, "scripts/score.py", *ads, *rows, *how, "--out", out])
    if (drawn := trained(choices) / "training_loss.png").exists():
        shutil.copyfile(drawn, Path(out, "train_loss.png"))


def export(choices: Choices, options: argparse.Namespace) -> None:
    """Merges the adapter into its base model, and writes its model card."""
    words = [*tuned_overrides(choices), *options.words]
    if options.dry_run:
        return show_plan("export", choices.recipe("export"), words, {})
    write_export(choices, words, with_card=True)


def write_export(choices: Choices, words: list[str], with_card: bool = False) -> None:
    """Looks whether an export can work, and writes it."""
    recipe = choices.recipe("export")
    settings = read_recipe(recipe, words)
    look(choices, "export", recipe, settings)
    card = ""
    if with_card:
        from lib.model_card import model_card

        card = model_card(choices, settings)
    run_export(recipe, words, card)


def chat(choices: Choices, options: argparse.Namespace) -> None:
    """Writes ads in the terminal."""
    recipe, words = choices.recipe("chat"), [*served_overrides(choices), *options.words]
    if options.dry_run:
        return show_plan("chat", recipe, words, WRITING)
    look(choices, "chat", recipe, read_recipe(recipe, words))
    os.environ.update(WRITING | os.environ)
    sys.argv = [find_cli(), "chat", str(recipe), *words]
    from llamafactory.cli import main as llamafactory

    # LLaMA-Factory answers Ctrl-C and Ctrl-D with a traceback, and its writing thread can abort Python's own end.
    try:
        llamafactory()
    except (KeyboardInterrupt, EOFError):
        print()
    sys.stdout.flush()
    os._exit(0)


def serve(choices: Choices, options: argparse.Namespace) -> None:
    """Starts a server (webchat, api or webui) in the place of this process."""
    verb = options.verb
    # LlamaBoard (webui) takes no recipe: people load models in its form.
    recipe = None if verb == "webui" else choices.recipe("chat")
    words = [*served_overrides(choices), *options.words] if recipe else []
    settings = read_recipe(recipe, words) if recipe else {}
    if vllm.is_wanted():
        return vllm.serve(choices, settings, None if options.dry_run else partial(look, choices, verb, recipe))
    if options.dry_run:
        return show_plan(verb, recipe, words, WRITING)
    look(choices, verb, recipe, settings)
    if verb == "webchat":
        choose_language()
    command = [find_cli(), verb, *([str(recipe), *words] if recipe else [])]
    os.execve(command[0], command, WRITING | {"API_MODEL_NAME": choices.model} | os.environ)


def choose_language() -> None:
    """Chooses Chinese for LLaMA-Factory's pages: without a language, WebChat shows no labels (LLaMA-Factory #5668)."""
    path = Path("llamaboard_cache/user_config.yaml")
    if not path.exists():
        with whole_file(path) as file:
            file.write("lang: zh\nhub_name: null\nlast_model: null\npath_dict: {}\ncache_dir: null\n")


VERBS = {
    "doctor": doctor,
    "base": base,
    "train": train,
    "predict": predict,
    "eval": evaluate,
    "export": export,
    "chat": chat,
}
VERBS |= dict.fromkeys(("webchat", "api", "webui"), serve)
# Verbs for which LLaMA-Factory takes other keys than those of a training.
OTHERS = ("export", "chat", "webchat", "api")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides of the recipe's keys")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that would run, and start nothing")
    parser.add_argument("--json", action="store_true", help="for doctor: the list as JSON")
    options, others = parser.parse_known_args()
    os.chdir(ROOT)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    choices = read_choices()
    if options.verb in ("chat", "webchat", "webui") and vllm.is_wanted():
        fail(f"{options.verb} is LLaMA-Factory's; BACKEND=vllm is for api, desk, generate, pairs and eval")
    options.words = check_overrides(options.words + others, options.verb if options.verb in OTHERS else "train")
    if choices.goes_on:
        choices = take_base(choices, options)
    VERBS[options.verb](choices, options)


if __name__ == "__main__":
    main()
