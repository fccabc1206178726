import doctest

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers import grouped
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.callbacks import LearningRateLogger

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
ONES = np.ones((1, 2), "f4")


def variable(name="kernel", shape=(2, 2), scope=None, value=1.0):
    with keras.name_scope(scope or "layer"):
        return keras.Variable(np.full(shape, value, "f4"), name=name)


def make_model(*names, units=2):
    """Layers of equal shape, so that only their names and places tell their variables apart."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(units, name=name) for name in names)])


def step(model):
    with tf.GradientTape() as tape:
        loss = keras.ops.mean((model(ONES) - 3.0) ** 2)
    model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def moved_by(optimizer, variables):
    """How far a gradient of ones moves each variable."""
    before = [np.array(v) for v in variables]
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    return [float((old - np.array(v)).max()) for old, v in zip(before, variables, strict=True)]


def test_the_docstring_tells_the_truth():
    assert doctest.testmod(grouped).failed == 0


# -- What a group may hold --------------------------------------------------------------------------------------------


def test_each_group_moves_by_its_own_rate():
    body, head = make_model("body"), tf.Variable(tf.ones((2, 2)))
    optimizer = GroupedOptimizer([(SGD(0.25), body), (SGD(0.5), head)])
    assert moved_by(optimizer, [*body.trainable_variables, head]) == [0.25, 0.25, 0.5]
    assert optimizer.group_names == ("group_0", "group_1")
    assert [child.name for child in optimizer.group_optimizers.values()] == ["group_0", "group_1"]


def test_apply_gradients_returns_the_step():
    v = tf.Variable([1.0])
    optimizer = GroupedOptimizer({"all": (SGD(0.1), v)})
    assert int(optimizer.apply_gradients([(tf.ones(1), v)])) == 1
    assert int(optimizer.apply_gradients(zip([tf.ones(1)], [v], strict=True))) == 2


def test_layers_may_be_built_after_the_optimizer():
    body, head = keras.layers.Dense(3), keras.layers.Dense(2)
    model = keras.Sequential([body, keras.layers.Dropout(0.1), head])
    model.compile(GroupedOptimizer({"body": (SGD(0.1), model.layers[:2]), "head": (SGD(0.1), head)}), loss="mse")
    assert model.optimizer.learning_rates == pytest.approx({"body": 0.1, "head": 0.1})
    model(ONES)
    step(model)
    assert model.optimizer.group_optimizers["body"].built
    assert int(model.optimizer.iterations) == 1


@pytest.mark.slow
def test_a_model_that_is_not_built_fits():
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile(GroupedOptimizer([(SGD(0.1), model.layers[0]), (Adam(0.1), model.layers[1])]), loss="mse")
    model.fit(ONES, ONES, verbose=0)
    assert int(model.optimizer.iterations) == 1


def test_the_first_step_may_be_traced():
    v = tf.Variable([1.0])
    optimizer = GroupedOptimizer({"all": (Adam(0.5), v)}, use_ema=True)
    train = tf.function(lambda: optimizer.apply([tf.ones(1)], [v]))
    train()
    train()
    assert int(optimizer.iterations) == 2
    assert float(v[0]) == pytest.approx(0.0, abs=1e-4)


def test_a_compiled_step_has_as_many_operations_for_twenty_groups_as_for_one():
    def operations(num_groups):
        variables = [tf.Variable([1.0]) for _ in range(20)]
        parts = np.array_split(np.arange(20), num_groups)
        optimizer = GroupedOptimizer([(SGD(0.1), [variables[i] for i in part]) for part in parts], global_clipnorm=1.0)
        optimizer.build(variables)
        train = tf.function(lambda: optimizer.apply([tf.ones(1)] * 20, variables))
        return len(train.get_concrete_function().graph.get_operations())

    one, twenty = operations(1), operations(20)
    assert twenty - one <= 2 * 19 + 3  # one more rate is read, and they are put into a column


# -- Errors -----------------------------------------------------------------------------------------------------------


def message(make):
    with pytest.raises(GroupError) as error:
        make()
    return str(error.value)


def test_a_group_that_fails_leaves_the_optimizers_of_the_others_unused():
    good = SGD(0.1)
    message(lambda: GroupedOptimizer({"good": (good, variable()), "bad": (SGD(0.0), variable())}))
    message(lambda: GroupedOptimizer({"good": (good, variable()), "bad": (SGD(0.1), [])}))
    GroupedOptimizer({"good": (good, variable())})


@pytest.mark.parametrize("given", [True, False])
def test_gradients_and_variables_that_do_not_pair_up_are_an_error(given):
    variables = [variable("a"), variable("b")]
    optimizer = GroupedOptimizer({"a": (SGD(0.1), variables)})
    text = message(lambda: optimizer.apply([tf.ones((2, 2))], variables if given else None))
    rest = "" if given else " of the groups. Pass the variables as well"
    assert text == f"Gradients and variables come in pairs. Received 1 gradients for 2 variables{rest}."


def test_no_gradient_at_all_is_an_error_as_in_keras():
    v = variable()
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        GroupedOptimizer({"a": (SGD(0.1), v)}).apply([None], [v])


# -- Rates and Keras' callbacks ---------------------------------------------------------------------------------------


def scalars(folder):
    """The values of every scalar in the event files below a folder, by its name."""
    values = {}
    for file in sorted(folder.rglob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            values |= {value.tag: float(tf.make_ndarray(value.tensor)) for value in event.summary.value}
    return values


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "loss scale"])
def test_tensorboard_records_the_rate_of_every_group_behind_the_logger(wrap, tmp_path):
    model = make_model("body", "head")
    optimizer = GroupedOptimizer({"body": (SGD(0.1), model.layers[0]), "head": (SGD(0.2), model.layers[1])})
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if wrap else optimizer, loss="mse")
    tensorboard = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    model.fit(ONES, ONES, verbose=0, callbacks=[LearningRateLogger(), tensorboard])
    rates = {name: value for name, value in scalars(tmp_path).items() if "learning_rate" in name}
    assert rates == pytest.approx(
        {"epoch_learning_rate/body": 0.1, "epoch_learning_rate/head": 0.2, "epoch_learning_rate": 0.2}
    )


def test_keras_finds_no_list_of_optimizers_whose_rates_it_would_write_one_by_one():
    optimizer = GroupedOptimizer({"body": (SGD(0.1), variable()), "head": (SGD(0.2), variable())})
    assert not hasattr(optimizer, "optimizers")


def test_the_rate_of_one_group_is_written_by_its_name():
    optimizer = GroupedOptimizer({"body": (SGD(0.1), variable()), "head": (SGD(0.2), variable())})
    assert list(optimizer.group_optimizers) == ["body", "head"]
    optimizer.group_optimizers["body"].learning_rate = 0.05
    assert optimizer.learning_rates == pytest.approx({"body": 0.05, "head": 0.2})
    with pytest.raises(TypeError):
        optimizer.group_optimizers["body"] = SGD(0.1)


def test_a_keras_file_holds_every_slot_once(tmp_path):
    model = make_model("body", "head")
    optimizer = GroupedOptimizer({"body": (Adam(0.1), model.layers[0]), "head": (Adam(0.2), model.layers[1])})
    model.compile(optimizer, loss="mse")
    step(model)
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    assert sum(name.startswith("optimizer/") for name in names) == len(optimizer.variables) + 1  # and the document


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "loss scale"])
def test_assigning_to_the_rate_scales_all_groups_as_writing_it_does(wrap):
    optimizer = GroupedOptimizer([(SGD(0.1), variable()), (SGD(0.2), variable())])
    outer = keras.optimizers.LossScaleOptimizer(optimizer) if wrap else optimizer
    outer.learning_rate.assign(outer.learning_rate * 2)
    assert list(optimizer.learning_rates.values()) == pytest.approx([0.2, 0.4])
    outer.learning_rate.assign(np.float64(0.1))
    assert list(optimizer.learning_rates.values()) == pytest.approx([0.05, 0.1])


def test_a_rate_in_a_traced_function_is_a_tensor_that_cannot_be_assigned_to():
    optimizer = GroupedOptimizer([(SGD(0.1), variable())])
    assert float(tf.function(lambda: optimizer.learning_rate + 1.0)()) == pytest.approx(1.1)
    with pytest.raises(AttributeError, match="assign"):
        tf.function(lambda: optimizer.learning_rate.assign(0.5))()


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_reading_the_rates_gives_no_warning_of_numpy():
    optimizer = GroupedOptimizer([(SGD(0.1), variable()), (SGD(0.2), variable())])
    optimizer.learning_rate = 0.1
    assert list(optimizer.learning_rates.values()) == pytest.approx([0.05, 0.1])


def test_a_smaller_rate_makes_smaller_steps_also_of_adam():
    a, b = variable("a"), variable("b")
    optimizer = GroupedOptimizer([(Adam(0.01), a), (Adam(0.1), b)])
    first = moved_by(optimizer, [a, b])
    optimizer.learning_rate = 0.05
    second = moved_by(optimizer, [a, b])
    assert first[1] / first[0] == pytest.approx(10, rel=1e-3)
    assert np.divide(second, first) == pytest.approx([0.5, 0.5], rel=1e-3)


def test_a_group_may_clip_its_own_gradients():
    a, b = variable("a"), variable("b")
    optimizer = GroupedOptimizer([(SGD(1.0, clipvalue=0.25), a), (SGD(1.0, clipnorm=1.0), b)])
    assert moved_by(optimizer, [a, b]) == [0.25, 0.5]


def test_a_variable_that_its_gradient_replaces_as_the_scales_of_float8_is_replaced_as_in_keras():
    def train(make):
        scale, kernel = variable("scale"), variable("kernel")
        scale.overwrite_with_gradient = True
        optimizer = make(scale, kernel)
        optimizer.build([scale, kernel])
        for number in (5.0, 6.0, 7.0):
            optimizer.apply([tf.fill((2, 2), number)] * 2, [scale, kernel])
        return [scale.numpy(), kernel.numpy()]

    settings = {"gradient_accumulation_steps": 2, "use_ema": True, "global_clipnorm": 1.0}
    for options in ({}, settings):
        expected = train(lambda scale, kernel, options=options: Adam(0.1, **options))
        groups = lambda scale, kernel, options=options: GroupedOptimizer(  # noqa: E731
            [(Adam(0.1), scale), (Adam(0.1), kernel)], **options
        )
        np.testing.assert_array_equal(train(groups), expected)
        assert options or expected[0][0, 0] == 7.0


def test_weight_decay_is_that_of_the_group_at_the_rate_of_the_group():
    a, b = variable("a"), variable("b")
    optimizer = GroupedOptimizer([(SGD(0.5, weight_decay=0.5), a), (SGD(0.25), b)])
    optimizer.apply([tf.zeros((2, 2))] * 2, [a, b])
    assert (float(a[0, 0]), float(b[0, 0])) == (0.75, 1.0)


def test_weight_decay_can_be_switched_off_for_variables_of_all_groups():
    a, b, bias = variable("a"), variable("b"), variable("bias")
    optimizer = GroupedOptimizer([(SGD(0.5, weight_decay=0.5), [a, bias]), (SGD(0.5, weight_decay=0.5), b)])
    optimizer.exclude_from_weight_decay(var_list=[b], var_names=["bias"])
    optimizer.apply([tf.zeros((2, 2))] * 3, [a, b, bias])
    assert [float(v[0, 0]) for v in (a, b, bias)] == [0.75, 1.0, 1.0]


# -- Freezing ---------------------------------------------------------------------------------------------------------


def test_what_is_accumulated_when_a_part_is_frozen_is_not_kept_for_later():
    v, other = tf.Variable([0.0]), tf.Variable([0.0])
    optimizer = GroupedOptimizer([(SGD(1.0), v), (SGD(1.0), other)], gradient_accumulation_steps=2)
    for variables in ([v, other], [other], [v, other], [v, other]):
        optimizer.apply([tf.ones(1)] * len(variables), variables)
    assert (float(v[0]), float(other[0])) == (-1, -2)


def test_the_name_is_that_of_the_groups_optimizers_where_all_have_the_same():
    # TensorFlow adds up gradients in an order that depends on names: so the same bits as the plain optimizer.
    def name(*optimizers, **settings):
        return GroupedOptimizer([(each, keras.Variable([1.0])) for each in optimizers], **settings).name

    adam, sgd = keras.optimizers.Adam, keras.optimizers.SGD
    assert name(adam(1e-3), adam(1e-3)) == "adam"
    assert adam(1e-3).name.startswith("adam")
    assert name(adam(1e-3), sgd(1e-3)) == "grouped_optimizer"
    assert name(adam(1e-3), name="mine") == "mine"


# -- Phases: rates and slots of a group are written while the others go on ---------------------------------------------


def two_groups(make=SGD, **settings):
    """A group `body` at 0.1 and a group `head` at 0.2, of a variable each; returns the optimizer and the variables."""
    a, b = variable("a"), variable("b")
    return GroupedOptimizer({"body": (make(0.1), a), "head": (make(0.2), b)}, **settings), [a, b]


def test_the_rate_of_a_group_is_replaced_and_comes_back():
    optimizer, variables = two_groups()
    optimizer.reschedule("head", 0.5)
    assert moved_by(optimizer, variables) == pytest.approx([0.1, 0.5])
    optimizer.reschedule("head")
    assert moved_by(optimizer, variables) == pytest.approx([0.1, 0.2])
    with pytest.raises(GroupError, match=r"^There is no group `tail`\. The groups are `body`, `head`\."):
        optimizer.reschedule("tail", 0.5)


@pytest.mark.parametrize(("from_now", "rates"), [(False, [0.2, 0.1]), (True, [0.4, 0.2])])
def test_a_schedule_counts_from_the_first_step_or_from_now(from_now, rates):
    optimizer, variables = two_groups()
    moved_by(optimizer, variables)
    optimizer.reschedule("head", keras.optimizers.schedules.ExponentialDecay(0.4, 1, 0.5), from_now=from_now)
    assert [moved_by(optimizer, variables)[1] for _ in rates] == pytest.approx(rates, rel=1e-5)


def test_a_rate_warms_up_from_now_on():
    optimizer, variables = two_groups()
    moved_by(optimizer, variables)
    optimizer.reschedule("head", 0.4, warmup_steps=4)
    moved = [moved_by(optimizer, variables) for _ in range(5)]
    assert [head for _, head in moved] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=1e-6)
    assert [body for body, _ in moved] == pytest.approx([0.1] * 5)


def test_a_share_is_of_the_rate_of_its_group_alone_and_a_reset_undoes_what_was_written():
    optimizer, variables = two_groups()
    optimizer.share_rate("body", 0.25)
    assert moved_by(optimizer, variables) == pytest.approx([0.025, 0.2])
    optimizer.learning_rate = 0.1  # as ReduceLROnPlateau writes it: the ratio stays
    assert moved_by(optimizer, variables)[1] == pytest.approx(0.1)
    optimizer.reset_rates()
    assert moved_by(optimizer, variables)[1] == pytest.approx(0.2)


@pytest.mark.parametrize("fused", ["on", "off"])
def test_a_group_that_restarts_steps_as_at_first_and_the_others_go_on(fused):
    optimizer, variables = two_groups(lambda rate: SGD(rate, momentum=0.5), fused=fused)
    moved_by(optimizer, variables)
    optimizer.restart(["head"])
    assert moved_by(optimizer, variables) == pytest.approx([0.1 * 1.5, 0.2])


def test_what_a_group_accumulated_is_dropped_when_it_restarts():
    optimizer, variables = two_groups(gradient_accumulation_steps=2)
    moved_by(optimizer, variables)
    optimizer.restart("head")
    assert moved_by(optimizer, variables) == pytest.approx([0.1, 0.1])  # the head: half of a single gradient


def test_a_restart_before_the_first_step_is_as_none():
    optimizer, variables = two_groups(Adam)
    optimizer.restart("head")
    assert moved_by(optimizer, variables) == pytest.approx([0.1, 0.2], rel=1e-4)


def test_a_loop_of_several_steps_may_keep_variables_in_buffers_unless_they_are_averaged():
    plain, variables = two_groups(fused="on")
    assert len(plain.buffers(variables)) == 1
    assert plain.buffers(variables).variables == variables
    averaged, variables = two_groups(fused="on", use_ema=True)
    assert len(averaged.buffers(variables)) == 0


# -- Building and state -----------------------------------------------------------------------------------------------


def test_a_variable_of_no_group_is_an_error_when_the_optimizer_is_built():
    optimizer, variables = two_groups()
    optimizer.build(variables)
    with pytest.raises(GroupError, match="`layer/stranger`"):
        optimizer.build([*variables, variable("stranger")])


def test_the_variables_of_layers_that_are_built_later_are_among_those_of_the_groups():
    layer = keras.layers.Dense(2, name="late")
    optimizer = GroupedOptimizer({"all": (SGD(0.1), layer)})
    layer.build((1, 2))
    assert [v.path for v in optimizer.group_variables] == ["late/kernel", "late/bias"]


def test_a_schedule_that_replaced_a_rate_behind_the_optimizer_is_an_error_before_any_rate_is_written():
    optimizer, _ = two_groups()
    optimizer.group_optimizers["body"].learning_rate = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    with pytest.raises(GroupError, match="Received another schedule afterwards for `body`"):
        optimizer.learning_rate = 0.1
    assert float(optimizer.learning_rate) == pytest.approx(0.2)


SETTINGS = [
    {"clipnorm": 0.5},
    {"clipvalue": 0.25},
    {"global_clipnorm": 1.5, "gradient_accumulation_steps": 3, "merge_rows": True, "name": "mine"},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 7, "loss_scale_factor": 8.0, "fused": "off"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_every_setting_is_in_the_config_and_comes_back_from_it(settings):
    config = two_groups(**settings)[0].get_config()
    assert {name: config[name] for name in settings} == settings
    again = GroupedOptimizer.from_config(config)
    assert {name: getattr(again, name) for name in settings} == settings
    assert len({*config} - {"groups", "frozen"}) == 11


def test_the_step_at_which_a_group_began_is_among_the_variables_and_in_a_checkpoint(tmp_path):
    optimizer, variables = two_groups(Adam)
    moved_by(optimizer, variables)
    optimizer.restart("head")
    assert optimizer.variables[-1].numpy().tolist() == [0, 1]
    path = tf.train.Checkpoint(optimizer=optimizer).save(str(tmp_path / "state"))
    assert any("starts" in name for name, _ in tf.train.list_variables(path))
    again, others = two_groups(Adam)
    again.build(others)
    tf.train.Checkpoint(optimizer=again).restore(path)
    assert again.variables[-1].numpy().tolist() == [0, 1]


def test_weights_of_an_optimizer_are_set_before_its_first_step():
    optimizer, variables = two_groups(Adam)
    moved_by(optimizer, variables)
    optimizer.restart("head")
    moved_by(optimizer, variables)
    again, others = two_groups(Adam)
    again.set_weights([np.array(v) for v in optimizer.variables])
    for one, other in zip(again.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.array(one), np.array(other))
    assert moved_by(again, others) == pytest.approx(moved_by(optimizer, variables), rel=1e-6)


@pytest.mark.parametrize("use_ema", [False, True])
def test_an_optimizer_of_a_config_updates_the_variables_of_the_model_that_it_is_built_on(use_ema):
    first, second = make_model("body", "head"), make_model("body", "head")
    body, head = first.layers
    optimizer = GroupedOptimizer({"body": (SGD(0.1), body), "head": (SGD(0.2), head)}, fused="on", use_ema=use_ema)
    again = GroupedOptimizer.from_config(optimizer.get_config())
    optimizer.build(first.trainable_variables)
    again.set_weights([np.array(v) for v in optimizer.variables])  # before it has met the variables: as in a file
    weights = [np.array(v) for v in second.trainable_variables]
    assert moved_by(again, second.trainable_variables) == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert len(again.buffers(second.trainable_variables)) == (0 if use_ema else 2)  # kernels and biases, together
    averages = again._model_variables_moving_average if use_ema else ()
    for weight, variable_, average in zip(weights, second.trainable_variables, averages, strict=False):
        assert not np.array_equal(weight, np.array(variable_))
        np.testing.assert_allclose(np.array(average), np.array(variable_), rtol=1e-6)


def test_the_average_of_a_model_whose_optimizer_came_from_a_config_starts_at_its_weights():
    first, second = make_model("body"), make_model("body")
    optimizer = GroupedOptimizer({"body": (SGD(0.1), first.layers[0])}, use_ema=True, ema_momentum=0.5)
    again = GroupedOptimizer.from_config(optimizer.get_config())
    again._build_all()  # as when Keras reads the state before the model is called
    again.iterations.assign(3)
    again.build(second.trainable_variables)
    for average, weight in zip(again._model_variables_moving_average, second.trainable_variables, strict=True):
        np.testing.assert_array_equal(np.array(average), np.array(weight))
