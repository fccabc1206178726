"""Adam by fewer operations: with the bits of Keras' own, on every path and for numbers of every kind."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.fused import adam
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.fast.fast_loop import FastLoop

Adam, AdamW = keras.optimizers.Adam, keras.optimizers.AdamW
SHAPE = (24, 8)
SPECIAL = [0.0, -0.0, 1e-38, -1e-41, 1e-30, 3e38, np.inf, -np.inf, np.nan]


@pytest.fixture(params=["one pass", "kernels"], autouse=True)
def path(request, monkeypatch):
    """Both ways to update a variable that is alone, whatever its size."""
    monkeypatch.setattr(adam, "ONE_PASS_FROM", 0 if request.param == "one pass" else 2**60)
    return request.param


def start(special=False):
    values = np.random.default_rng(0).standard_normal(SHAPE).astype("f4")
    values[:, :3] *= np.float32(10.0) ** np.arange(-12, 12)[:, None]
    if special:
        values[0, :] = 0.0
    return tf.Variable(values, name="w")


def gradients(steps, sparse=False, special=False):
    """Of all sizes; the sparse ones have the same row several times."""
    for step in range(steps):
        rng = np.random.default_rng([1, step])
        values = rng.standard_normal(SHAPE).astype("f4") * np.float32(10.0) ** rng.integers(-20, 12, SHAPE)
        if special and step in (1, 3):
            values.flat[: len(SPECIAL)] = SPECIAL
        values = tf.constant(values, tf.float32)
        if sparse:
            rows = tf.constant(rng.integers(0, 12, SHAPE[0]), tf.int64)
            yield tf.IndexedSlices(values, rows, tf.constant(SHAPE, tf.int64))
        else:
            yield values


def results(optimizer, wanted, given, *, special=False, jit_compile=None):
    """Returns the bits of the weights after some steps, and of the slots."""
    variable = start(special)
    made = GroupedOptimizer([(optimizer, variable)]) if wanted == "ours" else optimizer
    made.build([variable])
    apply = lambda gradient: made.apply([gradient], [variable])  # noqa: E731
    apply = apply if jit_compile is None else tf.function(apply, jit_compile=jit_compile)
    for gradient in given:
        apply(gradient)
    slots = [optimizer._momentums[0], optimizer._velocities[0]]
    return [np.asarray(one.numpy()).view("i4") for one in (variable, *slots)]


def assert_equal(make, *, sparse=False, special=False, jit_compile=None, steps=6):
    given = list(gradients(steps, sparse, special))
    ours = results(make(), "ours", given, special=special, jit_compile=jit_compile)
    theirs = results(make(), "keras", given, special=special, jit_compile=jit_compile)
    for what, one, other in zip(("weights", "m", "v"), ours, theirs, strict=True):
        nan = np.isnan(one.view("f4")) & np.isnan(other.view("f4"))  # which NaN it is tells nothing
        assert np.count_nonzero((one != other) & ~nan) == 0, what


MAKERS = {
    "adam": lambda: Adam(1e-2),
    "other constants": lambda: Adam(0.3, beta_1=0.7, beta_2=0.95, epsilon=1e-3),
    "decay": lambda: AdamW(1e-2, weight_decay=0.1),
    "schedule": lambda: Adam(keras.optimizers.schedules.ExponentialDecay(1e-1, 2, 0.5, staircase=True)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("compiled", [pytest.param(None, marks=pytest.mark.slow), False], ids=["eager", "compiled"])
def test_steps_have_the_bits_of_keras(make, sparse, compiled):
    assert_equal(make, sparse=sparse, jit_compile=compiled)


def test_numbers_that_are_none_or_hardly_any_are_those_of_keras():
    assert_equal(MAKERS["adam"], special=True, jit_compile=False)


@pytest.mark.parametrize("number", [0, 1, 2, 7, 8])
def test_a_sparse_gradient_may_have_any_number_of_rows(number):
    rng = np.random.default_rng(number)
    rows = tf.constant(rng.integers(0, SHAPE[0], number), tf.int32)
    values = tf.constant(rng.standard_normal((number, SHAPE[1])), tf.float32)
    given = [*gradients(1), tf.IndexedSlices(values, rows, tf.constant(SHAPE))]
    ours, theirs = (results(Adam(1e-2), wanted, given) for wanted in ("ours", "keras"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_step_that_xla_compiles_has_the_rounding_that_xla_gives_keras(sparse):
    given = list(gradients(6, sparse))
    ours, theirs = (results(Adam(1e-2), wanted, given, jit_compile=True) for wanted in ("ours", "keras"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_variables_of_one_shape_share_what_xla_compiles(path):
    before = adam._one_pass.experimental_get_tracing_count()
    variables = [tf.Variable(tf.ones((3, 5)), name=f"v{i}") for i in range(3)]
    optimizer = GroupedOptimizer([(Adam(0.1 * (i + 1)), v) for i, v in enumerate(variables)], fused="off")
    optimizer.build(variables)
    tf.function(lambda: optimizer.apply([tf.ones((3, 5))] * 3, variables))()
    assert adam._one_pass.experimental_get_tracing_count() - before == (path == "one pass")
    assert [round(float(1 - v[0, 0]), 4) for v in variables] == [0.1, 0.2, 0.3]


def test_whether_xla_compiles_what_is_traced_is_known_in_all_that_is_inside():
    told = {}

    def note(name):
        told[name] = adam.is_compiled_by_xla()
        return tf.constant(1)

    def step(x):
        note("step")
        tf.cond(x > 0, lambda: note("branch"), lambda: x)
        tf.while_loop(lambda i: i < 2, lambda i: i + note("loop"), [x])
        tf.function(lambda: note("function"), autograph=False)()
        return x

    for xla in (False, True):
        tf.function(step, jit_compile=xla, autograph=False)(tf.constant(1))
        assert told == dict.fromkeys(("step", "branch", "loop", "function"), xla)
    assert not adam.is_compiled_by_xla()


@pytest.mark.parametrize("path", ["kernels"], indirect=True)
def test_variables_of_another_type_are_left_to_the_rule_of_keras(path):
    variables = [tf.Variable(tf.ones(3, dtype)) for dtype in ("float64", "float32")]
    optimizer = Adam(0.1)
    optimizer.build(variables)
    gradients_left, variables_left = adam.update_adam(optimizer, [tf.ones(3, v.dtype) for v in variables], variables)
    assert [v is variables[0] for v in variables_left] == [True]
    assert [g.dtype for g in gradients_left] == [tf.float64]
    assert [round(float(v[0]), 3) for v in variables] == [1.0, 0.9]


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD(0.1), Adam(0.1, amsgrad=True)], ids=["SGD", "AMSGrad"])
def test_another_rule_than_plain_adam_is_left_to_keras(optimizer):
    variable = tf.Variable(tf.ones(3))
    optimizer.build([variable])
    gradients_left, variables_left = adam.update_adam(optimizer, [tf.ones(3)], [variable])
    assert (len(gradients_left), len(variables_left), float(variable[0])) == (1, 1, 1.0)


@pytest.mark.parametrize("path", ["kernels"], indirect=True)
def test_the_change_of_weights_that_lie_apart_is_what_the_kernel_subtracts(path):
    rng = np.random.default_rng(0)
    w, m, v = (tf.Variable(np.abs(rng.standard_normal((2, 50))).astype("f4")) for _ in range(3))
    alpha = tf.constant([[0.1], [0.3]])
    expected = w.numpy() - adam.weight_change(Adam(), m, v, alpha).numpy()
    adam.update_weights(Adam(), w, m, v, alpha)
    np.testing.assert_array_equal(w.numpy(), expected)


# -- In fit -----------------------------------------------------------------------------------------------------------


def small_text_model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(50, 6), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4,), dtype="int32"), *layers])


def fitted(make, *, steps=1, callbacks=(), policy="float32"):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = small_text_model()
        model.compile(make(model), "mse", steps_per_execution=steps)
    finally:
        keras.config.set_dtype_policy(before)
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 20, (60, 4)), rng.standard_normal((60, 3)).astype("f4")
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model.get_weights()


@pytest.mark.sample(3)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_fit_has_the_bits_of_keras_with_several_steps_in_a_call_and_a_scaled_loss(steps, policy):
    theirs = fitted(lambda model: Adam(1e-2), policy=policy)
    ours = fitted(
        lambda model: GroupedOptimizer([(Adam(1e-2), model)]), steps=steps, callbacks=[FastLoop()], policy=policy
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("path", ["one pass"], indirect=True)
def test_without_xla_the_kernels_do_it(monkeypatch, path):
    def broken(*arguments, **more):
        raise tf.errors.UnimplementedError(None, None, "no XLA here")

    calls = []
    monkeypatch.setattr(adam, "update_in_one_pass", lambda *arguments: calls.append(arguments))
    results(Adam(), "ours", list(gradients(1)))
    assert len(calls) == 1
    adam.has_xla.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(adam.tf, "function", broken)
        assert not adam.has_xla()
    assert_equal(MAKERS["adam"], steps=2)
    assert len(calls) == 1
    adam.has_xla.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["one pass"], indirect=True)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_large_variables_take_one_pass_in_several_threads_with_the_bits_of_keras(sparse, monkeypatch, path):
    monkeypatch.undo()
    rng = np.random.default_rng(5)
    shape = (700, 400)
    assert shape[0] * shape[1] >= adam.ONE_PASS_FROM
    values = tf.constant(rng.standard_normal(shape) * 10.0 ** rng.integers(-42, 12, shape), tf.float32)
    given: list = [values, values[::-1]]
    if sparse:  # more rows than the variable has
        rows = tf.constant(rng.integers(0, 600, 1400))
        given = [tf.IndexedSlices(tf.concat([one, one], 0), rows, tf.constant(shape)) for one in given]
    trained = []
    for wanted in ("ours", "keras"):
        variable = tf.Variable(tf.ones(shape))
        optimizer = GroupedOptimizer([(Adam(1e-2), variable)]) if wanted == "ours" else Adam(1e-2)
        optimizer.build([variable])
        step = tf.function(lambda: [optimizer.apply([g], [variable]) for g in given] and None, autograph=False)  # noqa: B023
        step()
        step()
        trained.append(variable.numpy())
    np.testing.assert_array_equal(*trained)


# -- What the kernels compute -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, [[0.1], [0.5], [2.0]]], ids=["one rate", "a rate for each row"])
def test_weights_move_by_the_first_moment_over_the_root_of_the_second(alpha):
    rng = np.random.default_rng(0)
    w, m, v = (tf.Variable(rng.uniform(1, 2, (3, 4)).astype("f4")) for _ in range(3))
    optimizer = Adam(epsilon=0.25)
    change = np.asarray(alpha, "f4") * m.numpy() / (np.sqrt(v.numpy()) + np.float32(0.25))
    np.testing.assert_allclose(adam.weight_change(optimizer, m, v, tf.constant(alpha)), change, rtol=1e-6)
    expected = w.numpy() - change
    adam.update_weights(optimizer, w, m, v, tf.constant(alpha))
    np.testing.assert_allclose(w.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("make", [lambda: Adam(0.1, amsgrad=True), lambda: Adam(0.1)], ids=["amsgrad", "float64"])
def test_what_the_kernels_do_not_compute_is_left_to_keras(make):
    dtype = "float32" if make().amsgrad else "float64"
    trained = []
    for wrapped in (True, False):
        variable = tf.Variable(np.ones(SHAPE, dtype))
        optimizer = GroupedOptimizer([(make(), variable)]) if wrapped else make()
        for step in range(4):
            optimizer.apply([tf.constant(np.full(SHAPE, 4.0 - step, dtype))], [variable])
        trained.append(variable.numpy())
    np.testing.assert_array_equal(*trained)


@pytest.mark.parametrize(
    ("optimizer", "is_plain"),
    [(Adam(), True), (AdamW(), True), (Adam(amsgrad=True), False), (keras.optimizers.Nadam(), False)],
    ids=["adam", "adamw", "amsgrad", "nadam"],
)
def test_only_adam_and_adamw_without_amsgrad_have_the_rule_that_is_here(optimizer, is_plain):
    assert adam.is_plain_adam(optimizer) is is_plain
    assert not adam.is_plain_adam(type("Own", (Adam,), {})())
