"""Documents name only what exists, name all of it, say the same in both languages, and are short."""

import re
import shlex
from pathlib import Path

import pytest
from lib.files import ROOT, read_json_lines
from lib.recipes import known_keys

READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
PAGES = sorted((ROOT / "docs").glob("*.md"))
PAIRS = [READMES, *([ROOT / f"docs/{page}.md", ROOT / f"docs/{page}_zh.md"] for page in ("catalogue", "safety"))]
DOCUMENTS = [*READMES, ROOT / "CONTRIBUTING.md", *PAGES, ROOT / "data/README.md", *sorted(ROOT.glob("examples/*.md"))]
RECIPES = sorted((ROOT / "configs").glob("*/*.yaml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
PROGRAMS = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("scripts", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
)
FOLDERS = ["configs", "data", "dataset_info", "docs", "examples", "llamaboard_config", "results", "scripts"]
FOLDERS += ["benchmarks", "tests"]
# Written by runs, or named as an example.
MADE = ("saves/", "exports/", "results/llama3_8b", "results/mine", "data/adgen_", "data/feedback", "data/raw", ".venv")
# Variables of LLaMA-Factory, torch and the hubs' libraries that our programs do not read themselves.
THEIRS = {"MAX_CONCURRENT", "HF_ENDPOINT", "MAX_RESTARTS", "OPENAI_BASE_URL", "API_MODEL_NAME", "FUZZ"}
LENGTH = 150


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[str]:
    """The shell blocks of a document."""
    return re.findall(r"^```(?:sh|bash)\n(.*?)^```", read(path), re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", read(path), flags=re.DOTALL | re.MULTILINE)


def code(path: Path) -> str:
    """The code of a document, in blocks and in lines; of a recipe, its comments."""
    if path.suffix == ".yaml":
        return "\n".join(line for line in read(path).split("\n") if line.startswith("# "))
    return "\n".join(
        blocks(path) + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", read(path), flags=re.S | re.M))
    )


@pytest.fixture(params=[*DOCUMENTS, *RECIPES], ids=name)
def document(request):
    return request.param


@pytest.fixture(params=DOCUMENTS, ids=name)
def page(request):
    return request.param


# --- what documents name ---


def test_paths_exist(document):
    text = read(document) if document.suffix == ".md" else code(document)
    named = re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./*-]*\w)", text)
    assert not [path for path in named if not path.startswith(MADE) and not any(ROOT.glob(path))]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", read(page)):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_targets_and_variables_exist(document):
    text = re.sub(r'"[^"\n]*"|<[^>\n]*>', "x", code(document))
    for command in re.findall(r"\bmake((?: +[A-Z_]+=[^\s`]*| +[a-z-]+)+)", text):
        assert {word for word in command.split() if "=" not in word} <= TARGETS, command
    known = set(re.findall(r"^(?:export )?([A-Z_]+) +\?=", MAKEFILE, re.MULTILINE))
    known |= set(re.findall(r'"([A-Z][A-Z_]+)"', PROGRAMS)) | THEIRS
    assert set(re.findall(r"\b([A-Z][A-Z_]+)=", text)) <= known


def words_of(command: str) -> list[str]:
    """The words of a `make` or `python scripts/…` command, those in ARGS among them."""
    words = shlex.split(re.sub(r"<[^>\n]*>", "x", command), comments=True)
    return [part for word in words for part in shlex.split(word.removeprefix("ARGS="))]


KEYS = {*known_keys("train"), *known_keys("api")}


def test_flags_and_keys_exist(page):
    flags = set(re.findall(r'"(--[a-z-]+)"', PROGRAMS))
    lines = [line for block in blocks(page) for line in block.split("\n")] + re.findall(r"`(make [^`]*)`", read(page))
    for line in lines:
        if line.startswith(("make ", "python scripts/")):
            words = words_of(line)
            assert {word.split("=")[0] for word in words if word.startswith("--")} <= flags, line
            keys = {word.split("=")[0] for word in words if re.match("[a-z_]+=", word)}
            if line.startswith("make "):
                assert keys <= KEYS, line


def test_every_target_recipe_and_model_is_named():
    text = "\n".join(map(code, [*READMES, *PAGES]))
    assert TARGETS - {"help"} <= set(re.findall(r"(?<![\w-])[a-z][a-z-]*(?![\w-])", text))
    assert {recipe.name for recipe in RECIPES} <= set(re.findall(r"\w+\.yaml", text))
    assert {recipe.parent.name for recipe in RECIPES} <= set(re.findall(r"configs/(\w+)", text))


def test_every_page_is_linked_from_the_readmes():
    # Where there are two, each README links to the page in its own language.
    others = [{page.name for page in pair} for pair in zip(*PAIRS[1:], strict=True)]
    for readme, other in zip(READMES, reversed(others), strict=True):
        linked = set(re.findall(r"\]\(docs/([\w.]+\.md)\)", read(readme)))
        assert {page.name for page in PAGES} - other == linked
        assert "](CONTRIBUTING.md)" in read(readme)


# --- the same in both languages, and short ---


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].stem)
def test_both_languages_say_the_same(pair):
    """The same sections, commands, tables and pictures in the same order."""

    def shape(path):
        text = read(path)
        commands = [re.sub(r" *#.*|<[^>]*>", "", line) for block in blocks(path) for line in block.split("\n")]
        heads = re.findall(r"^(#+) ", prose(path), re.MULTILINE)
        cells = re.findall(r"^\|[-:|]+\|$", text, re.MULTILINE)
        return heads, commands, cells, re.findall(r"!\[[^]]*\]\(([^)]+)\)", text), text.count("\n- ")

    first, second = map(shape, pair)
    assert first == second


@pytest.mark.parametrize("path", [*READMES, ROOT / "CONTRIBUTING.md", *PAGES], ids=name)
def test_documents_are_short(path):
    assert read(path).count("\n") <= LENGTH


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_the_ad_on_the_first_screen_is_one_without_inventions(readme):
    [(product, ad)] = re.findall(r"^\| `([^`]+#[^`]+)` \| (.+) \|$", read(readme), re.MULTILINE)
    rows = read_json_lines(ROOT / "results/gemma3_270m/marked_ads.jsonl")
    [marks] = [row["marks"] for row in rows if (row["product"], row["ad"]) == (product, ad)]
    assert not marks
