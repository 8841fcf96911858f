"""The rules of the house: where things stand, how long they may be, and who imports whom."""

import ast
import re
from graphlib import CycleError, TopologicalSorter

import pytest
from lib.files import ROOT

LIB = {f"lib.{path.stem}": path for path in (ROOT / "scripts/lib").glob("*.py")}
PROGRAMS = {path.stem: path for path in (ROOT / "scripts").glob("*.py")}
BENCHMARKS = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
FILES = LIB | PROGRAMS | BENCHMARKS
TESTS = sorted((ROOT / "tests").glob("*.py"))


def imports(path):
    """The modules of this project that a file imports, anywhere in it, and the names that it takes from each."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name: [] for name in node.names if name.name in FILES}
        elif isinstance(node, ast.ImportFrom) and node.module == "lib":
            found |= {f"lib.{name.name}": [] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            found.setdefault(node.module, []).extend(name.name for name in node.names)
    return found


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    allowed = LIB if name in LIB or name in PROGRAMS else LIB | BENCHMARKS
    assert set(imports(FILES[name])) <= set(allowed), f"{name} imports a program"


def test_no_circle_of_imports():
    try:
        list(TopologicalSorter({name: imports(path) for name, path in FILES.items()}).static_order())
    except CycleError as error:
        pytest.fail(f"circle: {error.args[1]}")


@pytest.mark.parametrize("name", FILES)
def test_names_are_imported_from_where_they_are_defined(name):
    for module, names in imports(FILES[name]).items():
        tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
        others = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        taken = {alias.asname or alias.name for node in others for alias in node.names}
        assert not taken & set(names), f"{name} takes {taken & set(names)} from {module}, which imports them itself"


@pytest.mark.parametrize("path", [*FILES.values(), *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_documents_and_makefile_are_short():
    for name, most in (("README.md", 150), ("README_zh.md", 150), ("Makefile", 90)):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most, name


def test_the_makefile_has_no_logic():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert not re.search(r"\$\((if|shell|foreach|call|eval)\b|^ifn?(eq|def)\b|^define\b| -c '", text, re.MULTILINE)
    recipes = re.findall(r"^[a-z-]+(?: [a-z -]+)?:(?!=)[^\n]*\n((?:\t[^\n]*\n)+)", text, re.MULTILINE)
    assert recipes and all(recipe.count("\n") == 1 for recipe in recipes)


@pytest.mark.parametrize("path", FILES.values(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_say_what_they_do(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "main"]
    assert [node.name for node in defined if not ast.get_docstring(node)] == [] and ast.get_docstring(tree)
