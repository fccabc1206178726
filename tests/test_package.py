import ast
import subprocess
import sys
from pathlib import Path

import pytest

import finetune

ROOT = Path(__file__).resolve().parent.parent


def in_a_new_process(code):
    command = [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_importing_the_package_loads_neither_tensorflow_nor_keras_nor_numpy():
    done = in_a_new_process("import finetune; print({'tensorflow', 'keras', 'numpy', 'pydantic'} & set(sys.modules))")
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_name_of_an_error_can_be_had_without_tensorflow():
    done = in_a_new_process("import finetune; finetune.FinetuneError; print('tensorflow' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_package_hands_out_these_names_and_no_others():
    assert finetune.__all__ == [
        *(
            "Checkpoint",
            "Examples",
            "FastLoop",
            "FineTuner",
            "FinetuneError",
            "FiniteWeights",
            "FrozenProof",
            "GroupMonitor",
            "GroupedOptimizer",
            "HubLayer",
            "LearningRateLogger",
            "Momentum",
        ),
        *(
            "NonFiniteGradients",
            "Phase",
            "Plateau",
            "Selector",
            "TF1RMSprop",
            "Transform",
            "Until",
            "discriminative_rates",
        ),
        *(
            "exponential_decay",
            "export_hub",
            "freeze",
            "grouped_train_step",
            "layer_tree",
            "load",
            "lr_range_test",
            "make_schedule",
            "plan",
        ),
        *("resolve_groups", "restore", "run", "spread_rates", "train_phases", "warmup_stable_decay"),
    ]
    assert all(callable(getattr(finetune, name)) for name in finetune.__all__)
    assert set(finetune.__all__) <= set(dir(finetune))


def test_type_checkers_see_each_name_where_it_is_imported_from():
    tree = ast.parse(Path(finetune.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {node.names[0].asname: str(node.module).removeprefix("finetune.") for node in imports} == finetune._MODULES


def test_what_is_handed_out_has_a_docstring_and_comes_from_the_package():
    for name in finetune.__all__:
        thing = getattr(finetune, name)
        assert thing.__doc__, name
        assert thing.__module__.startswith("finetune."), name
        assert thing.__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module `finetune` has no attribute `runn`"):
        finetune.runn  # noqa: B018
    assert not hasattr(finetune, "nothing")


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        pytest.param("finetune.run", marks=pytest.mark.grid),
        pytest.param("finetune.plan", marks=pytest.mark.grid),
        "import finetune.commands.run, finetune.commands.plan",
    ],
)
def test_run_and_plan_are_functions_whatever_was_imported_first(first):
    done = in_a_new_process(f"import finetune; {first}; print(finetune.run.__name__, finetune.plan.__name__)")
    assert done.stdout == "run plan\n"


def test_the_package_is_typed():
    assert (ROOT / "finetune" / "py.typed").is_file()


def test_the_floors_are_listed_from_the_command_down_to_the_errors():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = next(c["layers"] for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    listed = {name.strip("()") for layer in layers for name in layer.split(" | ")}
    rooms = {path.stem for path in (ROOT / "finetune").glob("*.py")} | {
        path.parent.name for path in (ROOT / "finetune").glob("*/__init__.py")
    }
    assert rooms - {"__init__", "examples"} == listed
