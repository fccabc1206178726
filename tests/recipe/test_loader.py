import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.recipe.loader import (
    check_code_allowed,
    dump_recipe,
    load_recipe,
    place_of,
    resolve_path,
)
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.schema import Recipe
from finetune.recipe.text import dump

TEXT = """\
model: {builder: "finetune.examples.digits:small_cnn"}
data: {npz: data/digits.npz}
restore:
  from: weights.h5
  exclude: [head]
groups:
  - {name: stem, prefixes: [conv1], frozen: true}
  - name: head
    rest: true
    optimizer: adamw
    learning_rate: 1e-4
train:
  epochs: 10
  loss: mse
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text=TEXT, path="recipe.yaml"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return path


def said(*overrides, path="recipe.yaml"):
    """The lines that loading complains with."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=overrides)
    return str(caught.value).splitlines()


# -- Problems and their places ----------------------------------------------------------------------------------------


def test_a_good_recipe_is_read():
    recipe = load_recipe(write())
    assert recipe.train.epochs == 10
    assert recipe.groups[1].learning_rate == 1e-4
    assert recipe.seed == 0


def test_all_problems_are_reported_at_once_in_the_order_of_the_file():
    write(TEXT.replace("epochs: 10", "epochs: ten").replace("adamw", "adamm").replace("conv1]", "conv1], regex: '('"))
    assert said() == [
        "recipe.yaml:7:44: `groups.stem.regex` is not a regular expression: "
        'missing ), unterminated subpattern at position 0. Received: `"("`.',
        'recipe.yaml:10:16: `groups.head.optimizer` is not a known value. Received: `"adamm"`. '
        "Did you mean `adam` or `nadam` or `adamw`?",
        'recipe.yaml:13:11: `train.epochs` must be a whole number. Received: `"ten"`.',
    ]


def test_five_problems_are_shown_and_the_rest_counted():
    write(TEXT + "".join(f"  x{index}: 1\n" for index in range(8)))
    lines = said()
    assert [line.split(":")[1] for line in lines[:5]] == ["15", "16", "17", "18", "19"]
    assert lines[5:] == ["and 3 more"]


def test_duplicate_keys_and_wrong_values_are_reported_together():
    write(TEXT.replace("  epochs: 10", "  epochs: 0\n  epochs: 3"))
    assert said() == [
        "recipe.yaml:13:11: `train.epochs` must be 1 or more. Received: `0`.",
        "recipe.yaml:14:3: the key `epochs` was used before, at recipe.yaml:13:3. Keep one of the two.",
    ]


def test_the_place_of_a_value_can_be_asked_for_later():
    recipe = load_recipe(write(), overrides=["train.loss=mae"])
    assert place_of(recipe, "groups", 0, "prefixes") == "recipe.yaml:7:28"
    assert place_of(recipe, "groups", 1, "prefixes") == "recipe.yaml:8:5"
    assert place_of(recipe, "train", "loss") == "--set train.loss"
    assert place_of(Recipe.model_validate(recipe.model_dump(by_alias=True)), "train") == ""


# -- Paths ------------------------------------------------------------------------------------------------------------


def test_a_path_is_relative_to_the_file_that_wrote_it(tmp_path):
    write(path="base/recipe.yaml")
    write("extends: ../base/recipe.yaml\nrestore: {from: ./mine.h5}", "runs/child.yaml")
    recipe = load_recipe("runs/child.yaml", overrides=["data.npz=other.npz"])
    assert recipe.restore.source == "./mine.h5"
    assert resolve_path(recipe, recipe.restore.source) == tmp_path / "runs/mine.h5"
    assert resolve_path(recipe, recipe.data.npz) == tmp_path / "other.npz"
    inherited = load_recipe("runs/child.yaml")
    assert resolve_path(inherited, inherited.data.npz).resolve() == tmp_path / "base/data/digits.npz"
    assert resolve_path(inherited, "extra.txt") == tmp_path / "runs/extra.txt"
    assert resolve_path(inherited, "/a/b") == Path("/a/b")
    assert resolve_path(inherited, "~/b") == Path.home() / "b"


def test_going_elsewhere_after_loading_changes_no_path(tmp_path, monkeypatch):
    recipe = load_recipe(write())
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert resolve_path(recipe, recipe.restore.source) == tmp_path / "weights.h5"


def test_a_dump_with_absolute_paths_loads_from_anywhere(tmp_path):
    recipe = load_recipe(write(path="here/recipe.yaml"))
    write(dump_recipe(recipe, absolute_paths=True), "there/recipe.yaml")
    moved = load_recipe("there/recipe.yaml")
    assert moved.restore.source == str(tmp_path / "here/weights.h5")
    assert resolve_path(moved, moved.data.npz) == tmp_path / "here/data/digits.npz"


# -- --set ------------------------------------------------------------------------------------------------------------


def test_an_override_changes_one_value():
    write()
    overrides = ["groups.head.learning_rate=1e-3", "groups.0.name=root", "restore.exclude=[a, b]", "seed=3"]
    recipe = load_recipe("recipe.yaml", overrides=overrides)
    assert recipe.groups[1].learning_rate == 1e-3
    assert recipe.groups[0].name == "root"
    assert recipe.restore.exclude == ("a", "b")
    assert recipe.seed == 3


def test_later_overrides_see_what_earlier_ones_did():
    write()
    overrides = ["groups.head.optimizer={name: sgd, momentum: 0.9}", "groups.head.optimizer.momentum=0.5"]
    assert load_recipe("recipe.yaml", overrides=overrides).groups[1].optimizer.arguments == {"momentum": 0.5}


def test_an_override_may_bring_in_keys_that_the_recipe_does_not_have():
    write(TEXT.replace("restore:\n  from: weights.h5\n  exclude: [head]\n", ""))
    recipe = load_recipe("recipe.yaml", overrides=["restore.from=a.h5", "train.global_clipnorm=1"])
    assert (recipe.restore.source, recipe.train.global_clipnorm) == ("a.h5", 1.0)


def test_an_override_of_null_or_nothing_takes_a_key_away():
    write()
    assert load_recipe("recipe.yaml", overrides=["restore=null"]).restore is None
    assert load_recipe("recipe.yaml", overrides=["restore="]).restore is None
    freeze = ["groups.stem.frozen=false", "groups.stem.optimizer=sgd", "groups.stem.learning_rate=1"]
    freeze += ["groups.head.frozen=true", "groups.head.optimizer=null", "groups.head.learning_rate=null"]
    assert [group.frozen for group in load_recipe("recipe.yaml", overrides=freeze).groups] == [False, True]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (",", ","),
        ("|", "|"),
        (";", ";"),
        ("*.csv", "*.csv"),
        ("@last", "@last"),
        ("%1", "%1"),
        ("~", None),
        ("'|'", "|"),
        ("a,b", "a,b"),
        ("40:", "40:"),
        ("-2:", "-2:"),
        ("0:40", "0:40"),
        ("a:", {"a": None}),
    ],
)
def test_what_yaml_takes_for_a_mark_is_text_in_an_override(text, value):
    write()
    recipe = load_recipe("recipe.yaml", overrides=[f"model.arguments.mark={text}"])
    assert recipe.model.arguments["mark"] == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "groups.hed.learning_rate=1",
            "--set groups.hed.learning_rate: `groups` has 2 entries, counted from 0: `stem`, `head`. Received: `hed`. "
            "Did you mean `head`?",
        ),
        (
            "groups.2.frozen=true",
            "--set groups.2.frozen: `groups` has 2 entries, counted from 0: `stem`, `head`. Received: `2`.",
        ),
        ("train.epoch=3", "--set train.epoch: `train.epoch` is not a known key. Did you mean `epochs`?"),
        (
            "groups.head.lr=1",
            "--set groups.head.lr: `groups.head.lr` is not a known key. It is called `learning_rate`.",
        ),
        (
            "epochs=3",
            "--set epochs: `epochs` is not a known key here: it is one of `train`. Write `train.epochs`.",
        ),
        (
            "checkpoint_exclude_scopes=head",
            "--set checkpoint_exclude_scopes: `checkpoint_exclude_scopes` is not a known key here: it is called "
            "`exclude` and is one of `restore`. Write `restore.exclude`.",
        ),
        (
            "train.weight_decay=1e-4",
            "--set train.weight_decay: `train.weight_decay` is not a known key here: it is one of "
            "`groups.<name>.optimizer`. Write `groups.<name>.optimizer.weight_decay`.",
        ),
        ("trane.epochs=3", "--set trane.epochs: `trane` is not a known key. Did you mean `train`?"),
        ("train.epochs=no", '--set train.epochs: `train.epochs` must be a whole number. Received: `"no"`.'),
        (
            "train.epochs.x=3",
            "--set train.epochs.x: `train.epochs` is `10`, not a mapping, so it has no `x`. Set it as a whole.",
        ),
        ("train.epochs", "--set train.epochs: must read `path.to.key=value`. Received: `train.epochs`."),
        ("train..epochs=3", "--set train..epochs: must read `path.to.key=value`. Received: `train..epochs=3`."),
        ("=3", "--set : must read `path.to.key=value`. Received: `=3`."),
        ("extends=a", "--set extends: `extends` is for files and cannot be set. Write it into the recipe."),
        (
            "train.metrics=[a",
            "--set train.metrics: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got "
            "'<stream end>'. Check the indentation, quotes and brackets.",
        ),
        (
            "groups.head.learning_rate=0",
            "--set groups.head.learning_rate: `groups.head.learning_rate` must be greater than 0. Received: `0`. "
            "To keep layers unchanged, set `frozen: true`.",
        ),
    ],
)
def test_an_error_in_an_override_has_the_name_of_the_override_as_its_place(override, message):
    write()
    assert said(override) == [message]


def test_problems_of_the_file_and_of_overrides_are_reported_together():
    write(TEXT.replace("10", "ten"))
    assert [line.split(": ")[0] for line in said("groups.x.frozen=true", "seed=a")] == [
        "recipe.yaml:13:11",
        "--set groups.x.frozen",
        "--set seed",
    ]


# -- Code -------------------------------------------------------------------------------------------------------------


def with_builders(model, data):
    recipe = load_recipe(write()).model_dump(by_alias=True)
    return Recipe.model_validate({**recipe, "model": {"builder": model}, "data": {"builder": data}})


def test_code_of_others_runs_only_when_it_is_allowed():
    recipe = with_builders("my_package.models:build", "os:system")
    with pytest.raises(RecipeError) as caught:
        check_code_allowed(recipe, ["my"])
    assert str(caught.value).splitlines()[0] == (
        "`model.builder: my_package.models:build` names code that is not part of finetune, and a recipe may come from "
        "anywhere. Run with `--allow-code my_package` if you trust it."
    )
    assert "`data.builder: os:system`" in str(caught.value)
    check_code_allowed(recipe, ["my_package", "os"])
    check_code_allowed(recipe, ["my_package.models", "os"])
    with pytest.raises(RecipeError, match="my_package"):
        check_code_allowed(recipe, ["my_package.model", "os"])


def test_loading_checks_the_code_where_it_is_said_what_is_allowed():
    path = write()
    assert load_recipe(path, overrides=["model={builder: my_package.models:build}"]).model.builder
    with pytest.raises(RecipeError, match="--allow-code my_package"):
        load_recipe(path, overrides=["model={builder: my_package.models:build}"], allow_code=[])


def test_examples_and_the_networks_and_data_of_keras_need_no_permission():
    recipe = with_builders("keras.applications:ResNet50", "finetune.examples.digits:uci_digits")
    check_code_allowed(recipe, [])


def test_the_rest_of_keras_needs_permission_because_it_can_run_code():
    recipe = with_builders("keras.saving:load_model", "keras.datasets.mnist:load_data")
    with pytest.raises(RecipeError, match=r"--allow-code keras"):
        check_code_allowed(recipe, [])


def test_a_share_to_test_that_older_runs_wrote_out_beside_a_column_of_parts_is_taken_away_and_refused_elsewhere():
    split = "data={table: rows.csv, inputs: [a], target: y, split: {test: 0.2, validation: 0.0, column: part}}"
    write()
    assert "`data.split.test` has nothing to do: `column` without `by` says which rows test." in said(split)[0]
    text = load_recipe("recipe.yaml", overrides=[split.replace("test: 0.2, ", "")])
    Path("run").mkdir()
    Path("run/plan.txt").touch()
    Path("run/recipe.yaml").write_text(dump_recipe(text).replace("column: part", "column: part\n    test: 0.2"))
    assert load_recipe("run/recipe.yaml").data.split.test is None


# -- Quickness --------------------------------------------------------------------------------------------------------


def test_a_recipe_is_checked_without_tensorflow_and_keras():
    code = (
        "import sys; from finetune.recipe.loader import load_recipe; load_recipe(sys.argv[1]);"
        "print([name for name in ('tensorflow', 'keras', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, write()]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root})
    assert done.stdout.strip() == "[]"


# -- What must hold always --------------------------------------------------------------------------------------------

_RATES = st.floats(1e-9, 10.0)
_NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True)
_ODD = st.sampled_from(["yes", "1e-4", "4:12", "null", "a b", "é", "#", "- a", "{", "a\nb"])
_TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8) | _ODD
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXTS, inner, max_size=2),
    max_leaves=4,
)
_ARGUMENTS = st.dictionaries(_NAMES.map(lambda name: f"x_{name}"), _VALUES, max_size=2)
_STEPS = st.integers(1, 10**6)
_LENGTHS = st.tuples(st.just("steps"), _STEPS) | st.sampled_from(
    [("epochs", 1.5), ("fraction", 0.25), ("fraction", 1.0)]
)


def _spelled(stem):
    return _LENGTHS.map(lambda length: {f"{stem}_{length[0]}": length[1]})


def _joined(*parts):
    return st.tuples(*parts).map(lambda found: {key: value for part in found for key, value in part.items()})


def _schedule(name, rate, *parts):
    some = st.just({}) | _joined(_spelled("warmup"), st.just({"warmup_from": 0.5}))
    warm_up = st.just({}) if name in ("inverse_square_root", "one_cycle", "warmup_stable_decay") else some
    rates = _RATES.map(lambda value: {rate: value}) if rate else st.just({})
    return _joined(st.just({"schedule": name}), rates, *parts, warm_up)


def _schedules():
    shapes = [
        _schedule("exponential_decay", "initial", _spelled("decay"), st.just({"decay_rate": 0.9, "staircase": True})),
        _schedule("polynomial_decay", "initial", _spelled("decay"), st.sampled_from([{}, {"end": 0.0, "cycle": True}])),
        _schedule("cosine_decay_restarts", "initial", _spelled("first_decay"), st.just({"m_mul": 0.5})),
        _schedule("inverse_square_root", "peak", _spelled("warmup")),
        _schedule("slanted_triangular", "peak", st.just({}) | _spelled("total")),
        _schedule("one_cycle", "peak", st.just({"warmup_fraction": 0.3})),
        _schedule("warmup_stable_decay", "peak", _spelled("warmup"), _spelled("decay"), st.just({"shape": "1-sqrt"})),
        _schedule("piecewise_constant_decay", "", st.just({"boundaries_epochs": [1, 2.5], "values": [1.0, 0.5, 0.1]})),
    ]
    return st.one_of(shapes)


def _chains():
    pairs = st.lists(_schedules(), min_size=2, max_size=2)
    return pairs.map(lambda pair: {"schedule": "chain", "boundaries_fraction": [0.5], "schedules": pair})


_RATES_OR_SCHEDULES = _RATES | _schedules() | _chains()
_OPTIMIZERS = st.sampled_from(OPTIMIZERS) | st.fixed_dictionaries(
    {"name": st.sampled_from(OPTIMIZERS)}, optional={"weight_decay": st.floats(0, 1), "clipnorm": st.floats(0.1, 9)}
)
_TRAINED = st.fixed_dictionaries(
    {"optimizer": _OPTIMIZERS, "learning_rate": _RATES_OR_SCHEDULES}, optional={"decay_bias_and_norm": st.booleans()}
)
_SELECTORS = st.fixed_dictionaries(
    {"prefixes": st.lists(_TEXTS, min_size=1, max_size=2) | _TEXTS},
    optional={"variables": st.sampled_from([3, "4:12", [0, ":-1"]]), "regex": st.just("a.*")},
)


@st.composite
def _group_lists(draw):
    names = draw(st.lists(_NAMES, min_size=1, max_size=3, unique=True))
    treatments = [draw(st.just({"frozen": True}) | _TRAINED) for _ in names[1:]]
    groups = [{"name": name, **draw(_SELECTORS), **how} for name, how in zip(names[1:], treatments, strict=True)]
    return [*groups, {"name": names[0], "rest": True, **draw(_TRAINED)}]


_STRATEGIES = _joined(
    st.sampled_from([{"by": "layer", "peak": 1e-3, "decay": 2.6}, {"by": "block", "spread": [1e-6, 1e-3]}]),
    st.fixed_dictionaries(
        {"optimizer": _OPTIMIZERS},
        optional={
            "learning_rate": st.sampled_from(
                [{"schedule": "cosine_decay", "decay_fraction": 1.0}, {"schedule": "one_cycle"}]
            )
        },
    ),
)
_NAMED = _NAMES | _joined(_NAMES.map(lambda name: {"name": name}), _ARGUMENTS)
_RECIPES = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"builder": st.just("a.b:c")}, optional={"arguments": _ARGUMENTS}),
        "data": st.fixed_dictionaries({"npz": _TEXTS}),
        "groups": _group_lists() | _STRATEGIES,
        "train": st.fixed_dictionaries(
            {"epochs": _STEPS, "loss": _NAMED},
            optional={
                "metrics": st.lists(_NAMED, max_size=2),
                "clipvalue": _RATES,
                "mixed_precision": st.sampled_from([False, "bfloat16"]),
                "shuffle": st.booleans(),
                "validation_fraction": st.floats(0, 0.99),
            },
        ),
    },
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "restore": st.fixed_dictionaries(
            {"from": _TEXTS}, optional={"exclude": st.lists(_TEXTS, max_size=2), "rename": st.just({"^a/(.*)": "\\1"})}
        ),
    },
)


def refusal(path, *overrides):
    try:
        load_recipe(path, overrides=overrides)
    except RecipeError as error:
        return str(error)
    return None


def loaded_or_refused(text):
    """Loads a text; nothing but a recipe or an error in our own words may come of it."""
    said = refusal(write(text, "fuzz.yaml"))
    assert said is None or ("fuzz.yaml:" in said and "not valid: " not in said and "nput should" not in said)


@settings(deadline=None)  # shared machines pause
@given(_RECIPES)
def test_a_recipe_dumped_and_loaded_is_itself(data):
    recipe = Recipe.model_validate(data)
    dumped = dump_recipe(recipe)
    again = load_recipe(write(dumped, "again.yaml"))
    assert again == recipe
    assert dump_recipe(again) == dumped


_JUNK = st.sampled_from(
    [None, True, 0, -1, 1e-3, 10**400, math.nan, math.inf, "", "x", "4:12", "a:b", [], {}, [[]], [None], {"": None}]
    + [{1: 2}, {None: 1}, {"name": 3}, {"schedule": []}, {"schedule": "chain"}, {"by": {}}, [{"name": "a"}, 3]]
)
_KEYS = st.sampled_from(
    ["name", "schedule", "frozen", "rest", "initial", "arguments", "spread", "optimizer", "<list>", 0, True]
)


def _places(data, here=()):
    yield here
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from _places(value, (*here, key))


@settings(deadline=None)  # shared machines pause
@given(_RECIPES, st.data())
def test_a_recipe_with_junk_anywhere_in_it_is_read_or_refused(recipe, data):
    root = [copy.deepcopy(recipe)]
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = (0, *data.draw(st.sampled_from(list(_places(root[0])))))
        place = root
        for key in above:
            place = place[key]
        if isinstance(place[last], dict) and data.draw(st.booleans()):
            place[last][data.draw(_KEYS)] = copy.deepcopy(data.draw(_JUNK))  # which a later round may fill
        else:
            place[last] = copy.deepcopy(data.draw(_JUNK))
    loaded_or_refused(dump(root[0]))


@settings(deadline=None)  # shared machines pause
@given(st.data())
def test_a_text_with_characters_changed_is_read_or_refused(data):
    text = TEXT
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 10))
        text = (
            text[:start]
            + data.draw(st.text("ab:-[]{}&*!|>'\"%@`#,?~<=. \n\t10e\x00\x85", max_size=4))
            + text[start + length :]
        )
    loaded_or_refused(text)


@settings(deadline=None)  # shared machines pause
@given(st.text(max_size=30) | st.from_regex(r"(train|groups|model)(\.[a-z0-9]+){1,3}=.{0,8}", fullmatch=True))
def test_any_override_is_taken_or_refused(override):
    said = refusal(write(), override)
    assert said is None or "--set" in said
