"""Variables updated together: what may be, what it costs, and that nobody can tell from outside."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers.clocks import Clocks
from finetune.optimizers.fused.fusion import Fusion, NoFusion, make_fusion
from finetune.optimizers.fused.stacks import LARGEST_STACK
from finetune.optimizers.group import Group
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.tf1_momentum import Momentum

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SGD, Adam, AdamW = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.AdamW


def make_variables(number, shape=(3,)):
    return [
        tf.Variable(np.random.default_rng(i).standard_normal(shape).astype("f4"), name=f"v{i}") for i in range(number)
    ]


def groups_of_one(variables, make=Adam, **settings):
    return GroupedOptimizer([(make(0.1 / (i + 1)), v) for i, v in enumerate(variables)], **settings)


def gradients(variables, seed=0):
    return [
        tf.constant(np.random.default_rng([seed, i]).standard_normal(v.shape), "float32")
        for i, v in enumerate(variables)
    ]


def train(optimizer, variables, steps=3, only=None):
    for step in range(steps):
        pairs = list(zip(gradients(variables, step), variables, strict=True))
        optimizer.apply_gradients(pairs if only is None else [pairs[i] for i in only])
    return [v.numpy() for v in variables]


def assert_identical(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        (lambda: [(Adam(0.1), tf.Variable(tf.ones(7), name="x"))], "no other variable has its shape and kind of optimizer"),
        (lambda: [(SGD(0.1), tf.Variable(tf.ones(3), name="x"))], "no other variable has its shape and kind of optimizer"),
        (lambda: [(Adam(0.1, beta_1=0.5), tf.Variable(tf.ones(3), name="x"))], "no other variable has its shape and kind"),
        (
            lambda: [(Adam(0.1), tf.Variable(tf.ones(LARGEST_STACK // 2 + 1), name="x"))],
            "it is large, so that its update does not wait for others",
        ),
        (
            lambda: [(keras.optimizers.Muon(0.1), tf.Variable(tf.ones(3), name="x"))],
            "`Muon` has an update rule that is not elementwise, or not known here",
        ),
    ],
    ids=["shape", "kind", "constants", "size", "rule"],
)  # fmt: skip
def test_what_is_updated_alone_says_why(others, reason):
    variables = make_variables(2)
    optimizer = GroupedOptimizer([(Adam(0.1), variables), *others()])
    assert list(optimizer.not_fused) == ["x:0"]
    assert optimizer.not_fused["x:0"].startswith(reason)


def test_fusing_can_be_switched_off():
    variables = make_variables(2)
    optimizer = groups_of_one(variables, fused="off")
    assert optimizer.not_fused == {"v0:0": "`fused` is off", "v1:0": "`fused` is off"}


@pytest.mark.parametrize("value", ["yes", True, None])
def test_another_value_of_fused_is_an_error(value):
    with pytest.raises(GroupError, match=re.escape(
        f"`fused` must be one of `auto`, `on`, `off`. Received `{value!r}`. Write `auto`, or remove `fused`."
    )):  # fmt: skip
        groups_of_one(make_variables(1), fused=value)


def test_fused_chooses_between_the_two_classes_of_one_interface():
    assert isinstance(make_fusion("off", id), NoFusion)
    assert isinstance(make_fusion("auto", id), Fusion)
    public = [{name for name in dir(kind) if not name.startswith("_")} for kind in (Fusion, NoFusion)]
    assert public[0] == public[1]


@pytest.mark.parametrize(("fused", "remaining"), [("off", 3), ("auto", 1), ("on", 0)])
def test_what_remains_to_be_updated_alone_are_the_variables_in_no_stack(fused, remaining):
    variables = make_variables(2) + make_variables(1, (2, 2))
    optimizer = GroupedOptimizer([(AdamW(0.1), variables)], fused=fused)
    optimizer.build(variables)
    fusion, before = optimizer._fusion, [v.numpy() for v in variables]
    assert [v is variables[-1] for v in fusion.decay(variables)][-1:] == [True] * (remaining > 0)
    left, variables_left = fusion.update(gradients(variables), variables)
    assert len(left) == len(variables_left) == remaining
    untouched = [np.array_equal(v.numpy(), value) for v, value in zip(variables, before, strict=True)]
    assert untouched == [False] * (3 - remaining) + [True] * remaining


@pytest.mark.parametrize("fused", ["auto", "off"])
def test_a_loop_may_move_the_stacks_that_it_trains_as_a_whole(fused):
    layers = keras.Sequential([keras.Input((3,)), *(keras.layers.Dense(3) for _ in range(3))])
    variables = layers.trainable_variables
    optimizer = GroupedOptimizer([(Adam(0.1), layers)], fused=fused)
    assert len(optimizer.buffers(variables)) == (2 if fused == "auto" else 0)  # kernels, biases
    assert len(optimizer.buffers(variables[1:])) == (1 if fused == "auto" else 0)
    variables[1].constraint = keras.constraints.NonNeg()
    assert len(optimizer.buffers(variables)) == (1 if fused == "auto" else 0)


def test_a_loop_moves_no_variables_of_tensorflow_and_none_with_a_moving_average():
    bare = make_variables(3)
    assert len(groups_of_one(bare).buffers(bare)) == 0
    own = [keras.Variable(v.numpy()) for v in bare]
    assert len(groups_of_one(own).buffers(own)) == 1
    own = [keras.Variable(v.numpy()) for v in bare]
    assert len(groups_of_one(own, use_ema=True).buffers(own)) == 0


def test_a_subclass_of_a_known_optimizer_keeps_its_own_rule():
    class Still(Adam):
        def update_step(self, gradient, variable, learning_rate):
            pass

    variables = make_variables(2)
    before = [v.numpy() for v in variables]
    assert_identical(train(groups_of_one(variables, Still), variables), before)


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, lambda rate: Momentum(rate, 0.9, nesterov=True)])
def test_many_groups_are_bit_identical_to_groups_that_are_updated_alone(make):
    ours, theirs = make_variables(5), make_variables(5)
    together, alone = groups_of_one(ours, make), groups_of_one(theirs, make, fused="off")
    assert_identical(train(together, ours), train(alone, theirs))
    assert [v.path.split("/")[-1] for v in together.variables] == [v.path.split("/")[-1] for v in alone.variables]
    assert_identical([v.numpy() for v in together.variables], [v.numpy() for v in alone.variables])


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [Adam, AdamW, lambda rate: Momentum(rate, 0.9), lambda rate: SGD(rate, 0.9)])
def test_a_stack_that_is_frozen_in_part_leaves_the_frozen_part_and_its_slots_alone(make, compiled):
    def run(fused):
        variables = make_variables(4)
        optimizer = groups_of_one(variables, make, fused=fused)
        optimizer.build(variables)
        for only in ([0, 1, 2, 3], [1, 3], [2], [0, 1, 2, 3]):
            step = lambda only=only: train(optimizer, variables, 1, only)  # noqa: E731
            if compiled:
                step = tf.function(
                    lambda only=only: optimizer.apply_gradients([(gradients(variables)[i], variables[i]) for i in only])
                )
            step()
        return [v.numpy() for v in [*variables, *optimizer.variables]]

    assert_identical(run("auto"), run("off"))


@pytest.mark.parametrize("make", [Adam, lambda rate: Momentum(rate, 0.9), keras.optimizers.Adagrad])
def test_a_stack_with_a_sparse_gradient_is_updated_variable_by_variable(make):
    def run(fused):
        variables = make_variables(3, (4, 2))
        optimizer = groups_of_one(variables, make, fused=fused)
        rows = tf.IndexedSlices(tf.ones((3, 2)), tf.constant([1, 1, 3]), tf.constant([4, 2]))
        for _ in range(3):
            optimizer.apply([rows, *gradients(variables)[1:]], variables)
        return [v.numpy() for v in [*variables, *optimizer.variables]]

    assert_identical(run("auto"), run("off"))


def test_a_constant_that_is_changed_later_counts_from_then_on():
    def run(fused):
        variables = make_variables(2)
        optimizer = groups_of_one(variables, fused=fused)
        train(optimizer, variables, 1)
        optimizer.group_optimizers["group_0"].beta_1 = 0.5
        return train(optimizer, variables)

    assert_identical(run("auto"), run("off"))


def test_groups_of_a_stack_may_decay_their_weights_differently():
    def run(fused, decays):
        variables = make_variables(3)
        children = [AdamW(0.1) for _ in variables]
        for child, decay in zip(children, decays, strict=True):
            child.weight_decay = decay
        children[1].exclude_from_weight_decay(var_names=["v1"] if None in decays else ["other"])
        return train(GroupedOptimizer(list(zip(children, variables, strict=True)), fused=fused), variables)

    for decays in ([0.1, 0.2, 0.3], [0.1, 0.2, None]):
        assert_identical(run("auto", decays), run("off", decays))


def model(units=3, layers=3):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((units,)), *(keras.layers.Dense(units, name=f"d{i}") for i in range(layers))])


def compiled(fused):
    made = model()
    made.compile(
        GroupedOptimizer({d.name: (Adam(0.1 / (i + 1)), d) for i, d in enumerate(made.layers)}, fused=fused), loss="mse"
    )
    return made


def teach(model):
    train(model.optimizer, model.trainable_variables)


def state(model):
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "loaded"), [("on", "off"), ("off", "on")])
def test_files_of_either_way_load_into_the_other_and_go_on_alike(saved, loaded, tmp_path):
    old, new, third = compiled(saved), compiled(loaded), compiled(loaded)
    teach(old)
    old.save_weights(tmp_path / "model.weights.h5")
    path = tf.train.Checkpoint(model=old, optimizer=old.optimizer).save(str(tmp_path / "checkpoint"))
    new.load_weights(tmp_path / "model.weights.h5")
    status = tf.train.Checkpoint(model=third, optimizer=third.optimizer).restore(path)
    third.optimizer.build(third.trainable_variables)
    status.assert_consumed()
    for other in (new, third):
        assert_identical(state(other), state(old))
    teach(old)
    for other in (new, third):
        teach(other)
        assert_identical(state(other), state(old))


@pytest.mark.slow
def test_an_asynchronous_checkpoint_brings_every_slot_and_rate(tmp_path):
    old, new = compiled("on"), compiled("off")
    teach(old)
    old.optimizer.learning_rate = 0.2
    checkpoint = tf.train.Checkpoint(model=old, optimizer=old.optimizer)
    path = checkpoint.save(
        str(tmp_path / "checkpoint"), tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)
    )
    checkpoint.sync()
    new.optimizer.build(new.trainable_variables)
    tf.train.Checkpoint(model=new, optimizer=new.optimizer).restore(path).assert_consumed()
    assert_identical(state(new), state(old))


@pytest.mark.slow
def test_a_compiled_model_can_be_saved_as_a_saved_model(tmp_path):
    made = compiled("on")
    teach(made)
    tf.saved_model.save(made, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(
        loaded.signatures["serving_default"](tf.ones((1, 3)))["output_0"], made(np.ones((1, 3)))
    )


def test_a_config_remembers_whether_variables_are_updated_together_and_one_without_it_says_auto():
    config = compiled("off").optimizer.get_config()
    assert GroupedOptimizer.from_config(config).fused == "off"
    del config["fused"]
    assert GroupedOptimizer.from_config(config).fused == "auto"


def test_a_summary_counts_the_slots(capsys):
    made = compiled("on")
    teach(made)
    made.summary(print_fn=print)
    assert "Optimizer params: 79" in capsys.readouterr().out  # two slots for 36 weights, 3 rates, 3 starts, a counter


def operations(optimizer, variables):
    optimizer.build(variables)
    step = tf.function(lambda *gradients: optimizer.apply(gradients, variables))
    graph = step.get_concrete_function(*gradients(variables)).graph
    return len(graph.get_operations()), len(graph.captures)


@pytest.mark.slow
def test_a_step_of_many_small_variables_has_a_fifth_of_the_operations_of_keras():
    """Counts, not times: they are the same on every machine, and on small layers they are what a step costs."""
    variables = make_variables(20, (2, 2)) + make_variables(20, (2,))
    together = operations(GroupedOptimizer([(Adam(0.1), variables)]), variables)
    alone = operations(Adam(0.1), variables)
    assert together[0] < alone[0] / 5  # 0.12 of it: two for every variable, a gradient and its part of the update
    assert together[1] < alone[1] * 0.4  # a slot is captured once for all


@pytest.mark.slow
def test_a_step_of_sixty_groups_costs_hardly_an_operation_more_than_one_of_one():
    variables = make_variables(60, (2, 2)) + make_variables(60, (2,))
    one = operations(GroupedOptimizer([(Adam(0.1), variables)]), variables)
    pairs = [(Adam(0.1 / i), [variables[i - 1], variables[i + 59]]) for i in range(1, 61)]
    sixty = operations(GroupedOptimizer(pairs), variables)
    assert sixty[0] - one[0] <= 30
    assert sixty[1] - one[1] <= 2


def test_a_variable_that_is_updated_alone_gets_the_slots_that_keras_makes_for_it():
    alone, make = (
        tf.Variable(tf.ones(7), name="x"),
        lambda: keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.5),
    )
    trained = [*make_variables(2), alone]
    optimizer, plain = GroupedOptimizer([(make(), trained)]), make()
    optimizer.build(trained)
    plain.build([alone])
    (slot,) = [v for v in optimizer.group_optimizers["group_0"].variables if v.shape == (7,)]
    np.testing.assert_array_equal(slot.numpy(), plain.variables[-1].numpy())
    assert slot.path.rpartition("/")[2] == plain.variables[-1].path.rpartition("/")[2]


def test_a_stack_goes_on_with_the_variable_that_takes_the_place_of_another():
    members = make_variables(2)
    groups = [Group("all", SGD(1.0), members, members)]
    fusion = Fusion(id, all_sizes=False)
    fusion.build(groups, Clocks(groups, keras.Variable(0, dtype="int64")), None)
    before, other = [v.numpy() for v in members], tf.Variable(tf.zeros(3))
    fusion.replace({id(members[0]): other, "unknown": tf.Variable(tf.zeros(3))})
    assert fusion.update([tf.ones(3)] * 2, [other, members[1]]) == ([], [])
    assert_identical([other.numpy(), *(v.numpy() for v in members)], [-np.ones(3), before[0], before[1] - 1])
