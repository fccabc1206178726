"""The rules of the house that no tool of the field checks: where things are, what they are called, what is documented."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "finetune"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))
# A word that stands for a picture instead of the thing; the field has a noun for each (DESIGN, section 8).
METAPHORS = r"(?i)\b(piles?|slabs?|rosters?|dials?|mend(s|ed|ing)?|borne|leav(e|es|ing) away|heeds?)\b"


def trees():
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in MODULES]


def public_functions(body, owner=""):
    """Yields every public function and method with its full name."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not is_setter(node):
            yield f"{owner}{node.name}", node


def is_setter(node):
    """Whether a function writes a property; its docstring is the property's."""
    return any(isinstance(by, ast.Attribute) and by.attr == "setter" for by in node.decorator_list)


def overrides(name):
    """Whether a method is one that Keras calls and documents: a callback's event, a layer's `call`."""
    method = name.rpartition(".")[2]
    return "." in name and (method.startswith("on_") or method in ("call", "build", "get_config", "from_config"))


def test_every_module_has_a_test_file_of_its_name_in_the_same_folder():
    missing = [
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if not (ROOT / "tests" / path.relative_to(PACKAGE).parent / f"test_{path.name}").is_file()
    ]
    assert not missing


def test_a_file_name_is_used_twice_only_where_one_key_of_a_recipe_is_read_built_and_run():
    folders = defaultdict(set)
    for path in MODULES:
        folders[path.name].add(path.relative_to(PACKAGE).parent.as_posix())
    of_a_key = {"recipe", "build", "commands", "planning", "pretrained"}
    assert {name: places for name, places in folders.items() if len(places) > 1 and not places <= of_a_key} == {}


def test_no_two_classes_share_a_name():
    places = defaultdict(list)
    for path, tree in trees():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.name)
    assert len(places) > 50
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_no_module_is_taken_for_a_test():
    assert [path.name for path in MODULES if path.name.startswith("test_") or path.stem.endswith("_test")] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_public_functions_of_a_module_are_documented(path):
    wrong = []
    for name, node in public_functions(ast.parse(path.read_text(encoding="utf-8")).body):
        documented, arguments = (
            ast.get_docstring(node) or "",
            node.args.posonlyargs + node.args.args + node.args.kwonlyargs,
        )
        parameters = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
        if not documented and not overrides(name):
            wrong.append(f"{name} has no docstring")
        explains_itself = path.parent.name == "cli"  # every option has a help text of its own there
        if documented and len(parameters) >= 3 and "Args:" not in documented and not explains_itself:
            wrong.append(f"{name} has {len(parameters)} parameters and no `Args`")
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_speaks_in_the_terms_of_the_field(path):
    text = path.read_text(encoding="utf-8").replace("_", " ")
    assert [found[0] for found in re.finditer(METAPHORS, text)] == []
