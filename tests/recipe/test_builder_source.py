"""What the source of a builder says is told without importing it."""

import sys

import pytest

from finetune.recipe.builder_source import builder_problems, problem_of
from finetune.recipe.loader import load_recipe
from finetune.recipe.text import dump

SOURCE = """
raise SystemExit("this module must not be imported")
import functools
from elsewhere import imported

def build(width, *, depth=2, name):
    def inner(a): ...

def anything(**settings): ...

def optional(width=1): ...

@functools.cache
def decorated(a): ...

class Model:
    def method(self, x): ...

alias = build
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "secret_pkg" / "sub").mkdir(parents=True)
    (tmp_path / "secret_pkg" / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "secret_pkg" / "models.py").write_text(SOURCE)
    (tmp_path / "secret_pkg" / "dynamic.py").write_text("globals()['build'] = 1")
    (tmp_path / "secret_pkg" / "broken.py").write_text("x = 1\ndef build(:")
    (tmp_path / "secret_pkg" / "sub" / "deep.py").write_text("from somewhere import *")
    (tmp_path / "secret_single.py").write_text("def build(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    yield "secret_pkg"
    assert not [name for name in sys.modules if name.startswith("secret_")]


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [
        ("secret_pkg.models:build", {"width": 1, "name": "a"}),
        ("secret_pkg.models:build", {"width": 1, "name": "a", "depth": 3}),
        ("secret_pkg.models:anything", {"x": 1}),
        ("secret_pkg.models:optional", {}),
        ("secret_pkg.models:decorated", {"x": 1}),
        ("secret_pkg.models:imported", {"x": 1}),
        ("secret_pkg.models:Model", {"x": 1}),
        ("secret_pkg.models:alias", {"x": 1}),
        ("secret_pkg.dynamic:build", {}),
        ("secret_pkg.sub.deep:build", {}),
        ("secret_single:build", {}),
        ("keras.applications:ResNet50", {"weights": None}),
        ("finetune.examples.digits:small_cnn", {"num_classes": 10}),
        ("math:sqrt", {}),
        ("sys:exit", {}),
    ],
)
def test_a_builder_that_exists_or_cannot_be_known_is_no_problem(package, builder, arguments):
    assert problem_of(builder, arguments)[0] == ""


@pytest.mark.parametrize(
    ("builder", "arguments", "problem"),
    [
        ("nowhere_pkg.models:build", {}, "there is no module `nowhere_pkg` to import. Install the package, or add its folder to `PYTHONPATH`."),
        ("secret_pkg.model:build", {}, "there is no module `secret_pkg.model`. `secret_pkg` has `broken`, `dynamic`, `models`. Did you mean `models`?"),
        ("secret_pkg.models:biuld", {}, "`secret_pkg.models` has no function `biuld`; it has `build`, `anything`, `optional`, `decorated`, `inner` and 1 more. Did you mean `build`?"),
        ("secret_pkg.models:build", {"wdith": 1, "name": "a"}, "`secret_pkg.models:build` does not take `wdith`. It accepts `(width, *, depth=2, name)`. Did you mean `width` or `depth`?"),
        ("secret_pkg.models:build", {"width": 1}, "`secret_pkg.models:build` needs `name` in `arguments`. It accepts `(width, *, depth=2, name)`."),
        ("secret_pkg.broken:build", {}, "is not Python that can be imported: invalid syntax in line 2."),
    ],
)  # fmt: skip
def test_what_the_source_says_is_wrong_is_told(package, builder, arguments, problem):
    assert problem_of(builder, arguments)[0].endswith(problem)


def test_the_place_is_that_of_the_builder_or_of_its_arguments(package, valid, tmp_path):
    model = {"builder": "secret_pkg.models:biuld"}
    data = {"builder": "secret_pkg.models:optional", "arguments": {"widht": 3}}
    (tmp_path / "r.yaml").write_text(dump({**valid, "model": model, "data": data}))
    first, second = builder_problems(load_recipe(tmp_path / "r.yaml"))
    assert first.startswith(f"{tmp_path}/r.yaml:2:12: `model.builder`: `secret_pkg.models` has no function `biuld`")
    assert second.startswith(
        f"{tmp_path}/r.yaml:6:5: `data.builder`: `secret_pkg.models:optional` does not take `widht`"
    )
