"""What the documents and the heads of the recipes name exists, and what exists is named there."""

import re

import pytest
from adgen import ROOT

READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
DOCUMENTS = [*READMES, ROOT / "data/README.md", *sorted((ROOT / "examples").glob("*.md"))]
RECIPES = sorted((ROOT / "configs").glob("*/*.yaml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
# Written by runs, or at home elsewhere.
MADE = ("saves/", "exports/", "results/llama3_8b", "data/adgen_", "data/raw", ".venv")
FOLDERS = ("configs", "data", "dataset_info", "docs", "examples", "llamaboard_config", "results", "scripts", "tests")


def code(path):
    """The text of a recipe's head, or of a document's code, in blocks and in lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return "\n".join(line for line in text.split("\n") if line.startswith("# "))
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fence.findall(text) if language != "mermaid"]
    return "\n".join(blocks + re.findall(r"`([^`\n]+)`", fence.sub("", text)))


@pytest.fixture(params=[*DOCUMENTS, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    return request.param


def test_paths_exist(document):
    text = document.read_text(encoding="utf-8") if document.suffix == ".md" else code(document)
    # A published result's source stands in another repository.
    text = re.sub(r"<!-- results:begin published.*?results:end", "", text, flags=re.DOTALL)
    named = set(re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", text))
    links = set(re.findall(r"\]\((?!http)([^)#]+)\)", text)) if document.suffix == ".md" else set()
    missing = [path for path in named if not path.startswith(MADE) and not (ROOT / path).exists()]
    missing += [path for path in links if not path.startswith(MADE) and not (document.parent / path).exists()]
    assert not missing


def test_targets_and_variables_exist(document):
    text = re.sub(r'"[^"\n]*"|<[^>\n]*>', "x", code(document))
    for command in re.findall(r"\bmake((?: +[A-Z_]+=[^\s`]*| +[a-z]+)+)", text):
        assert {word for word in command.split() if "=" not in word} <= TARGETS, command
    named = re.findall(r"\$\(([A-Z_]+)\)|^(?:[a-z ]+: )?(?:export )?([A-Z_]+) +\?=", MAKEFILE, re.M)
    known = {name for pair in named for name in pair}
    assert set(re.findall(r"\b([A-Z][A-Z_]+)=", text)) <= known | ENVIRONMENT


# Variables that LLaMA-Factory, torch and the hubs' libraries document.
ENVIRONMENT = {"GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "API_HOST", "API_PORT", "API_KEY", "API_MODEL_NAME"}
ENVIRONMENT |= {
    "NAME",
    "USE_MODELSCOPE_HUB",
    "MAX_CONCURRENT",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "OPENAI_BASE_URL",
    "CUDA_VISIBLE_DEVICES",
    "FORCE_TORCHRUN",
    "NPROC_PER_NODE",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RDZV_ID",
    "MAX_RESTARTS",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_target_recipe_and_model_is_named(readme):
    text = code(readme)
    named = set(re.findall(r"\b[a-z]+\b", text))
    assert TARGETS - {"help"} <= named
    assert {recipe.name for recipe in RECIPES} <= set(re.findall(r"\w+\.yaml", text))
    assert {recipe.parent.name for recipe in RECIPES} <= set(re.findall(r"configs/(\w+)", text))


def test_both_readmes_say_the_same():
    """The same sections, commands, tables and pictures in the same order."""

    def shape(path):
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        commands = [re.sub(r" *#.*|<[^>]*>", "", line) for block in blocks for line in block.split("\n")]
        heads = [
            len(head) for head in re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M), re.M)
        ]
        marks = re.findall(r"<!-- results:begin (\S+) -->", text)
        return heads, commands, marks, re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)

    first, second = map(shape, READMES)
    assert first == second
