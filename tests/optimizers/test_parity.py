"""The promises of a grouped step, held against the plain Keras optimizer, Keras' own MultiOptimizer and ours.

"Ours" updates variables of one shape together, whatever their group; "alone" updates every variable by itself, and must
keep the same promises. The plain optimizer is the oracle. What MultiOptimizer gets wrong is a strict xfail with its reason: when Keras mends it,
the test says so.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.tf1_momentum import Momentum

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
tf1 = tf.compat.v1
optimizers, schedules = keras.optimizers, keras.optimizers.schedules

NUM_STEPS = 4
SHAPES = {"body/kernel": (4, 4), "body/bias": (4,), "head/kernel": (4, 4), "head/bias": (4,)}
START = {
    name: np.random.default_rng([0, i]).standard_normal(shape).astype("f4")
    for i, (name, shape) in enumerate(SHAPES.items())
}
GRADIENTS = [
    [np.random.default_rng([step, i]).standard_normal(shape).astype("f4") for i, shape in enumerate(SHAPES.values())]
    for step in range(1, NUM_STEPS + 1)
]
X = np.random.default_rng(0).standard_normal((16, 4)).astype("f4")
Y = np.random.default_rng(1).standard_normal((16, 2)).astype("f4")


def over(*kinds, **defects):
    """Runs a test over several implementations; `defects` says what each of them gets wrong."""
    kinds = [*kinds, *(["alone"] if "ours" in kinds else [])]
    marks = {"alone": [pytest.mark.grid]} | {
        kind: [pytest.mark.xfail(reason=reason, strict=True)] for kind, reason in defects.items()
    }
    return pytest.mark.parametrize("kind", [pytest.param(kind, marks=marks.get(kind, ())) for kind in kinds])


OURS = {"ours": "on", "alone": "off"}
ALONE_TOO = [pytest.param("ours"), pytest.param("alone", marks=pytest.mark.grid)]


def make_variables():
    made = []
    for path, value in START.items():
        scope, name = path.split("/")
        with keras.name_scope(scope):
            made.append(keras.Variable(value, name=name))
    return made


def two_groups(kind, body, head, variables, **whole):
    """One optimizer of two groups; `whole` are settings over both."""
    if kind in OURS:
        whole = {"fused": OURS[kind]} | whole
        return GroupedOptimizer({"body": (body, variables[:-2]), "head": (head, variables[-2:])}, **whole)
    body_paths = {f"{v.path.split('/')[0]}/.*" for v in variables[:-2]}
    return optimizers.MultiOptimizer(optimizers.OptimizerMap(head, dict.fromkeys(body_paths, body)), **whole)


def equal_groups(kind, make, variables, **whole):
    """One optimizer whose groups have equal settings, each implementation told in its own way."""
    if kind == "plain":
        return make(**whole)
    if kind in OURS:
        return two_groups(kind, make(), make(), variables, **whole)
    outside = {"loss_scale_factor": whole.pop("loss_scale_factor")} if "loss_scale_factor" in whole else {}
    return two_groups(kind, make(**whole), make(**whole), variables, **outside)


def children_of(optimizer):
    """The optimizers of the groups; none for a plain optimizer."""
    if isinstance(optimizer, GroupedOptimizer):
        return list(optimizer.group_optimizers.values())
    return getattr(optimizer, "optimizers", [])


def drive(optimizer, variables, gradients=GRADIENTS):
    for step in gradients:
        optimizer.apply([tf.constant(gradient) for gradient in step], variables)
    return [variable.numpy() for variable in variables]


def assert_identical(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


def halving(rate):
    return schedules.ExponentialDecay(rate, 2, 0.5, staircase=True)


# -- Equal groups are one optimizer -----------------------------------------------------------------------------------

RULES = {
    "sgd": lambda **settings: optimizers.SGD(0.1, **settings),
    "nesterov": lambda **settings: optimizers.SGD(0.1, momentum=0.9, nesterov=True, **settings),
    "tf1_momentum": lambda **settings: Momentum(0.1, **settings),
    "adam": lambda **settings: optimizers.Adam(0.1, **settings),
    "amsgrad": lambda **settings: optimizers.Adam(0.1, amsgrad=True, **settings),
    "adamw": lambda **settings: optimizers.AdamW(0.1, **settings),
    "rmsprop": lambda **settings: optimizers.RMSprop(0.1, momentum=0.9, centered=True, **settings),
    "adagrad": lambda **settings: optimizers.Adagrad(0.1, **settings),
    "adadelta": lambda **settings: optimizers.Adadelta(0.1, **settings),
    "adamax": lambda **settings: optimizers.Adamax(0.1, **settings),
    "nadam": lambda **settings: optimizers.Nadam(0.1, **settings),
    "ftrl": lambda **settings: optimizers.Ftrl(0.1, **settings),
    "lion": lambda **settings: optimizers.Lion(0.1, **settings),
    "lamb": lambda **settings: optimizers.Lamb(0.1, **settings),
    "muon": lambda **settings: optimizers.Muon(0.1, **settings),
    "adafactor": lambda **settings: optimizers.Adafactor(0.1, **settings),
    "schedule_free": lambda **settings: optimizers.ScheduleFreeAdamW(0.1, **settings),
    "tf1_nesterov": lambda **settings: Momentum(0.1, nesterov=True, **settings),
    "scheduled": lambda **settings: optimizers.Adam(halving(0.1), **settings),
    "callable": lambda **settings: optimizers.Adam(lambda: 0.1, **settings),
}


@functools.cache
def driven_by_one(rule):
    variables = make_variables()
    return drive(RULES[rule](), variables)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("ours", rule) for rule in RULES]
    + [pytest.param("alone", rule, marks=pytest.mark.grid) for rule in RULES]
    + [("multi", rule) for rule in ("sgd", "adam", "scheduled")],
)
def test_equal_groups_are_bit_identical_to_one_optimizer(kind, rule):
    variables = make_variables()
    assert_identical(drive(equal_groups(kind, RULES[rule], variables), variables), driven_by_one(rule))


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("ours", "adam"), ("ours", "nesterov"), ("multi", "nesterov")]
    + [pytest.param("alone", rule, marks=pytest.mark.grid) for rule in ("adam", "nesterov")],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"clipnorm": 0.5},
        {"clipvalue": 0.2},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 3, "clipnorm": 0.1},
        {"use_ema": True, "ema_momentum": 0.9},
        {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
        {"use_ema": True, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2},
        {"loss_scale_factor": 8.0},
    ],
    ids=str,
)
def test_settings_over_all_groups_are_bit_identical_to_one_optimizer(kind, rule, settings):
    ours, theirs = make_variables(), make_variables()
    one = RULES[rule](**settings)
    expected = drive(one, theirs)
    grouped = equal_groups(kind, RULES[rule], ours, **settings)
    assert_identical(drive(grouped, ours), expected)
    one.finalize_variable_values(theirs)
    grouped.finalize_variable_values(ours)
    assert_identical([v.numpy() for v in ours], [v.numpy() for v in theirs])


@over("multi", "ours", multi="clips each child alone")
@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_global_norm_clips_as_in_one_optimizer(kind, settings):
    ours, theirs = make_variables(), make_variables()
    expected = drive(RULES["adam"](global_clipnorm=0.1, **settings), theirs)
    assert_identical(drive(equal_groups(kind, RULES["adam"], ours, global_clipnorm=0.1, **settings), ours), expected)


@over("multi", "ours")
@pytest.mark.parametrize("rule", ["adamw", "nesterov"])
def test_weight_decay_with_exclusions_is_bit_identical_to_one_optimizer(kind, rule):
    def make(**settings):
        made = RULES[rule](weight_decay=0.1, **settings)
        made.exclude_from_weight_decay(var_names=["bias"])
        return made

    ours, theirs = make_variables(), make_variables()
    expected = drive(make(), theirs)
    assert_identical(drive(equal_groups(kind, make, ours), ours), expected)


@over("multi", "ours")
def test_constraints_of_variables_hold_in_every_group(kind):
    variables = make_variables()
    variables[0].constraint = keras.constraints.NonNeg()
    values = drive(equal_groups(kind, RULES["sgd"], variables), variables)
    assert values[0].min() == 0
    assert values[2].min() < 0


# -- Two groups are two optimizers ------------------------------------------------------------------------------------

PAIRS = {
    "sgd, adam": (RULES["nesterov"], RULES["adam"]),
    "schedules": (lambda: optimizers.SGD(halving(0.1)), lambda: optimizers.RMSprop(halving(0.01))),
    "decays": (lambda: optimizers.AdamW(0.01, weight_decay=0.1), lambda: optimizers.Lion(0.001, weight_decay=0.2)),
    "muon, adafactor": (RULES["muon"], RULES["adafactor"]),
}


@over("multi", "ours")
@pytest.mark.parametrize("pair", PAIRS)
def test_two_groups_are_bit_identical_to_two_optimizers_driven_by_hand(kind, pair):
    ours, theirs = make_variables(), make_variables()
    body, head = (make() for make in PAIRS[pair])
    for step in GRADIENTS:
        body.apply([tf.constant(g) for g in step[:2]], theirs[:2])
        head.apply([tf.constant(g) for g in step[2:]], theirs[2:])
    grouped = two_groups(kind, *(make() for make in PAIRS[pair]), ours)
    assert_identical(drive(grouped, ours), [v.numpy() for v in theirs])


@over("multi", "ours", multi="goes by `variable.path`, which a bare variable has not")
def test_bare_tensorflow_variables_train_as_those_of_keras(kind):
    bare, theirs = [tf.Variable(value, name=name) for name, value in START.items()], make_variables()
    if kind in OURS:
        optimizer = two_groups(kind, RULES["adam"](), RULES["nesterov"](), bare)
    else:
        optimizer = optimizers.MultiOptimizer(
            optimizers.OptimizerMap(RULES["nesterov"](), {"body/.*": RULES["adam"]()})
        )
    expected = drive(two_groups("ours", RULES["adam"](), RULES["nesterov"](), theirs), theirs)
    assert_identical(drive(optimizer, bare), expected)


def tf1_training(make_body, make_head):
    """Weights after `tf.group(minimize, minimize)` in a TF1 session; the rates decay by a staircase."""
    as_written = tf1.ConfigProto()  # graph rewriting changes last bits, in a TF1 session as in a `tf.function`
    as_written.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.Graph().as_default(), tf1.Session(config=as_written) as session:
        weights = [tf1.get_variable(name.replace("/", "_"), initializer=value) for name, value in START.items()]
        step = tf1.train.get_or_create_global_step()
        rates = [tf1.train.exponential_decay(rate, step, 5, 0.96, staircase=True) for rate in (0.01, 0.1)]
        loss = squared_error(weights)
        train = tf.group(
            make_body(rates[0]).minimize(loss, var_list=weights[:2]),
            make_head(rates[1]).minimize(loss, var_list=weights[2:]),
        )
        with tf.control_dependencies([train]):
            train = step.assign_add(1).op
        session.run(tf1.global_variables_initializer())
        for _ in range(20):
            session.run(train)
        return session.run(weights)


def squared_error(weights):
    kernel_1, bias_1, kernel_2, bias_2 = weights
    return tf.reduce_mean(
        (tf.tanh(tf.constant(X) @ kernel_1 + bias_1) @ kernel_2 + bias_2 - tf.constant(Y[:, :1])) ** 2
    )


def training(kind, make_body, make_head):
    variables = make_variables()
    rates = [schedules.ExponentialDecay(rate, 5, 0.96, staircase=True) for rate in (0.01, 0.1)]
    optimizer = two_groups(kind, make_body(rates[0]), make_head(rates[1]), variables)
    native = [v.value for v in variables]
    for _ in range(20):
        with tf.GradientTape() as tape:
            loss = squared_error(native)
        optimizer.apply(tape.gradient(loss, native), variables)
    return [v.numpy() for v in variables]


@over("multi", "ours")
def test_gradient_descent_follows_a_tf1_group_of_minimize_exactly(kind):
    expected = tf1_training(tf1.train.GradientDescentOptimizer, tf1.train.GradientDescentOptimizer)
    assert_identical(training(kind, optimizers.SGD, optimizers.SGD), expected)


@over("multi", "ours")
def test_momentum_follows_a_tf1_group_of_minimize_exactly(kind):
    expected = tf1_training(lambda r: tf1.train.MomentumOptimizer(r, 0.9), tf1.train.GradientDescentOptimizer)
    assert_identical(training(kind, lambda r: Momentum(r, 0.9), optimizers.SGD), expected)


# -- Over all groups: clipping, accumulation, moving average ----------------------------------------------------------


@over("plain", "multi", "ours", multi="clips each child alone: 0.141 where 0.100 was asked")
def test_the_update_has_the_norm_that_was_asked_for(kind):
    variables = make_variables()
    optimizer = equal_groups(kind, lambda **settings: optimizers.SGD(1.0, **settings), variables, global_clipnorm=0.1)
    after = drive(optimizer, variables, GRADIENTS[:1])
    moved = np.concatenate([(a - b).ravel() for a, b in zip(after, START.values(), strict=True)])
    assert np.linalg.norm(moved) == pytest.approx(0.1, rel=1e-5)


@over("plain", "multi", "ours", multi="its own counter counts batches, the children's updates")
def test_eight_batches_accumulated_by_two_are_four_updates_in_all_groups(kind):
    variables = make_variables()
    optimizer = equal_groups(kind, RULES["adam"], variables, gradient_accumulation_steps=2)
    drive(optimizer, variables, GRADIENTS + GRADIENTS)
    counts = [int(one.iterations) for one in [optimizer, *children_of(optimizer)]]
    assert set(counts) == {4}


@over("plain", "ours")
def test_an_average_overwrites_the_variables_as_often_as_asked(kind):
    variables = make_variables()
    optimizer = equal_groups(kind, RULES["sgd"], variables, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    drive(optimizer, variables, GRADIENTS[:3])
    averages = dict(
        zip(map(id, optimizer._trainable_variables), optimizer._model_variables_moving_average, strict=True)
    )
    assert_identical([v.numpy() for v in variables], [averages[id(v)].numpy() for v in variables])
    drive(optimizer, variables, GRADIENTS[3:4])
    assert not np.array_equal(variables[0].numpy(), averages[id(variables[0])].numpy())


@over("plain", "multi", "ours", plain="pairs averages with the wrong variables")
def test_finalizing_with_a_frozen_part_gives_every_variable_its_own_average(kind):
    variables = make_variables()
    optimizer = equal_groups(kind, RULES["sgd"], variables, use_ema=True, ema_momentum=0.5)
    drive(optimizer, variables)
    other, others = equal_groups(kind, RULES["sgd"], same := make_variables(), use_ema=True, ema_momentum=0.5), same
    drive(other, others)
    other.finalize_variable_values(others)
    optimizer.finalize_variable_values(variables[2:])
    assert_identical([v.numpy() for v in variables[2:]], [v.numpy() for v in others[2:]])


# -- Sparse gradients -------------------------------------------------------------------------------------------------


def sparse_step(repeats=True):
    rows = [1, 1, 3] if repeats else [1, 2, 3]
    values = tf.constant([[3.0, 4.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    embedding = tf.IndexedSlices(values, tf.constant(rows), dense_shape=tf.constant([4, 4]))
    return [embedding, *map(tf.constant, GRADIENTS[0][1:])]


def drive_sparse(optimizer, variables, *, dense=False, repeats=True, jit_compile=None):
    optimizer.build(variables)

    def step():
        gradients = sparse_step(repeats)
        optimizer.apply([tf.convert_to_tensor(g) if dense else g for g in gradients], variables)

    step = step if jit_compile is None else tf.function(step, jit_compile=jit_compile)
    for _ in range(4):
        step()
    return [v.numpy() for v in variables]


@over("multi", "ours")
@pytest.mark.parametrize("rule", ["sgd", "adam", "adagrad"])
def test_sparse_gradients_are_bit_identical_to_one_optimizer(kind, rule):
    ours, theirs = make_variables(), make_variables()
    expected = drive_sparse(RULES[rule](), theirs)
    assert_identical(drive_sparse(equal_groups(kind, RULES[rule], ours), ours), expected)


CLIPS = [{"clipnorm": 0.5}, {"clipvalue": 0.5}, {"global_clipnorm": 0.5}]


@over("plain", "multi", "ours")
@pytest.mark.parametrize("clip", CLIPS[:2], ids=str)
def test_clipping_a_sparse_gradient_is_bit_identical_to_one_optimizer(kind, clip):
    ours, theirs = make_variables(), make_variables()
    expected = drive_sparse(RULES["adam"](**clip), theirs)
    assert_identical(drive_sparse(equal_groups(kind, RULES["adam"], ours, **clip), ours), expected)


@over("ours")
@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_with_merged_rows_a_sparse_gradient_is_clipped_as_a_dense_one(kind, clip):
    sparse, dense = make_variables(), make_variables()
    trained = drive_sparse(equal_groups(kind, RULES["adam"], sparse, merge_rows=True, **clip), sparse)
    expected = drive_sparse(equal_groups("plain", RULES["adam"], dense, **clip), dense, dense=True)
    for value, other in zip(trained, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=2e-6)


@over("plain", "multi", "ours")
def test_accumulation_adds_up_sparse_gradients(kind):
    sparse, dense = make_variables(), make_variables()
    found = drive_sparse(equal_groups(kind, RULES["adam"], sparse, gradient_accumulation_steps=2), sparse)
    expected = drive_sparse(RULES["adam"](gradient_accumulation_steps=2), dense, dense=True)
    assert_identical(found, expected)


DIVIDES = "divides sparse gradients by a float: TypeError"


@over("plain", "multi", "ours", plain=DIVIDES, multi=DIVIDES)
def test_a_loss_scale_factor_goes_with_sparse_gradients(kind):
    ours, theirs = make_variables(), make_variables()
    trained = drive_sparse(equal_groups(kind, RULES["adam"], ours, loss_scale_factor=1.0), ours)
    assert_identical(trained, drive_sparse(RULES["adam"](), theirs))


@over("ours")
def test_with_merged_rows_a_sparse_gradient_is_unscaled_as_a_dense_one(kind):
    sparse, dense = make_variables(), make_variables()
    trained = drive_sparse(equal_groups(kind, RULES["sgd"], sparse, loss_scale_factor=4.0, merge_rows=True), sparse)
    assert_identical(trained, drive_sparse(RULES["sgd"](loss_scale_factor=4.0), dense, dense=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALONE_TOO)
@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.5}], ids=str)
def test_sparse_gradients_compile_with_xla(clip, kind):
    compiled, eager = make_variables(), make_variables()
    found = drive_sparse(equal_groups(kind, RULES["adam"], compiled, **clip), compiled, jit_compile=True)
    expected = drive_sparse(equal_groups(kind, RULES["adam"], eager, **clip), eager)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


# -- Compiled steps and mixed precision -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "jit_compile"),
    [("ours", False), ("ours", True), ("multi", False)]
    + [pytest.param("alone", xla, marks=pytest.mark.grid) for xla in (False, True)],
)
def test_a_compiled_step_of_equal_groups_is_bit_identical_to_one_optimizer(kind, jit_compile):
    def run(optimizer, variables):
        optimizer.build(variables)
        step = tf.function(lambda *gradients: optimizer.apply(list(gradients), variables), jit_compile=jit_compile)
        for gradients in GRADIENTS:
            step(*map(tf.constant, gradients))
        return [v.numpy() for v in variables]

    ours, theirs = make_variables(), make_variables()
    expected = run(RULES["scheduled"](), theirs)
    assert_identical(run(equal_groups(kind, RULES["scheduled"], ours), ours), expected)


@over("plain", "multi", "ours")
def test_an_overflow_skips_all_groups_and_no_counter_moves(kind):
    variables = make_variables()
    inner = equal_groups(kind, RULES["adam"], variables)
    optimizer = optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    drive(optimizer, variables, GRADIENTS[:2])
    before = [v.numpy() for v in [*variables, *inner.variables]]
    drive(optimizer, variables, [[*GRADIENTS[0][:3], np.array([1, 1, 1, np.inf], "f4")]])
    assert_identical([v.numpy() for v in [*variables, *inner.variables]], before)
    assert float(optimizer.dynamic_scale) == 4
    assert {int(one.iterations) for one in [optimizer, inner, *children_of(inner)]} == {2}


def flat_model(**last):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu", name="body"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="head", **last),
        ]
    )


def fit(kind, make=flat_model, rule="adam", epochs=2, **compile_arguments):
    model = make()
    model.compile(equal_groups(kind, RULES[rule], model.trainable_variables), loss="mse", **compile_arguments)
    model.optimizer.build(model.trainable_variables)  # otherwise Keras traces its step twice
    history = model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return [v.numpy() for v in model.variables], history.history["loss"]


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


@pytest.mark.sample(2)
@pytest.mark.slow
@over("multi", "ours")
@pytest.mark.parametrize("mixed", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_fits_as_with_one_optimizer(kind, mixed, policy):
    policy(mixed)

    def make():
        return flat_model(dtype="float32")

    assert_identical(fit(kind, make)[0], fit("plain", make)[0])


@pytest.mark.sample(3)
@pytest.mark.slow
@over("multi", "ours")
@pytest.mark.parametrize(
    "arguments", [{"jit_compile": True}, {"jit_compile": False}, {"steps_per_execution": 3}], ids=str
)
def test_fit_is_bit_identical_to_one_optimizer(kind, arguments):
    arguments = {"jit_compile": False} | arguments
    ours, theirs = fit(kind, rule="scheduled", **arguments), fit("plain", rule="scheduled", **arguments)
    if kind == "ours" and arguments["jit_compile"]:  # XLA fuses multiplications with additions as it sees fit
        for one, other in zip(ours[0], theirs[0], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
        return
    assert_identical(ours[0], theirs[0])
    assert ours[1] == theirs[1]


@pytest.mark.slow
@over("multi", "ours")
def test_an_embedding_fits_as_with_one_optimizer(kind):
    def make():
        keras.utils.set_random_seed(3)
        layers = [keras.layers.Embedding(5, 4, name="body"), keras.layers.Flatten(), keras.layers.Dense(2, name="head")]
        return keras.Sequential([keras.Input((3,), dtype="int32"), *layers])

    def run(kind):
        model = make()
        model.compile(equal_groups(kind, RULES["adam"], model.trainable_variables), loss="mse", jit_compile=False)
        model.fit(np.arange(48).reshape(16, 3) % 4, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        return [v.numpy() for v in model.variables]

    assert_identical(run(kind), run("plain"))


# -- Freezing ---------------------------------------------------------------------------------------------------------


def train(model, steps=2):
    """Trains without the cost of compiling `fit`."""
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((model(X, training=True) - Y) ** 2)
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def compiled(kind, model, make=RULES["adam"], variables=None, **settings):
    optimizer = equal_groups(kind, make, variables or model.trainable_variables, **settings)
    model.compile(optimizer, loss="mse")
    return model


@over("plain", "multi", "ours", multi="takes as many gradients as it was built for")
def test_freezing_and_unfreezing_with_the_same_optimizer_keeps_every_slot(kind):
    model = compiled(kind, flat_model())
    train(model)
    optimizer, body = model.optimizer, model.get_layer("body")
    frozen = [v.numpy() for v in body.weights]
    slots = {v.path: v.numpy() for v in optimizer.variables if "body" in v.path.split("/")[-1]}
    body.trainable = False
    model.compile(optimizer, loss="mse")
    train(model)
    assert_identical([v.numpy() for v in body.weights], frozen)
    assert {v.path: v.numpy().tobytes() for v in optimizer.variables if v.path in slots} == {
        path: value.tobytes() for path, value in slots.items()
    }
    body.trainable = True
    model.compile(optimizer, loss="mse")
    train(model)
    assert int(optimizer.iterations) == 6
    assert not np.array_equal(body.kernel.numpy(), frozen[0])


UNKNOWN = "knows only the variables of its first step: Unknown variable"


@over("plain", "multi", "ours", plain=UNKNOWN, multi=UNKNOWN)
def test_a_part_frozen_from_the_first_step_on_can_be_unfrozen_later(kind):
    model = flat_model()
    everything = model.trainable_variables
    model.get_layer("body").trainable = False
    compiled(kind, model, variables=everything)
    train(model)
    before = model.get_layer("body").kernel.numpy()
    model.get_layer("body").trainable = True
    model.compile(model.optimizer, loss="mse")
    train(model)
    assert not np.array_equal(model.get_layer("body").kernel.numpy(), before)


@over("multi", "ours", multi="a child all of whose gradients are None raises")
def test_a_group_without_gradients_stands_still_and_its_clock_ticks(kind):
    variables = make_variables()
    optimizer = two_groups(kind, RULES["adam"](), RULES["adam"](), variables)
    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        optimizer.apply([None, None, *map(tf.constant, GRADIENTS[0][2:])], variables)
    assert_identical([v.numpy() for v in variables[:2]], list(START.values())[:2])
    assert not np.array_equal(variables[2].numpy(), START["head/kernel"])
    assert [int(one.iterations) for one in (optimizer, *children_of(optimizer))] == [1, 1, 1]


# -- Saving and loading -----------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("parity")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(6, activation="relu")  # not named: Keras numbers it anew when it is loaded
        self.second = keras.layers.Dense(6)
        self.head = keras.layers.Dense(2)

    def call(self, inputs):
        return self.head(self.second(self.first(inputs)))


def subclassed():
    keras.utils.set_random_seed(3)
    model = Subclassed()
    model(X[:1])
    return model


def functional(name):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(4, activation="relu", name="conv1")(inputs), name=name)


def nested_functional():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    left, right = functional("left")(inputs), functional("right")(inputs)  # both own a path `conv1/kernel`
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.Concatenate()([left, right])))


def nested_sequential():
    keras.utils.set_random_seed(3)
    backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="a")], name="bb")
    return keras.Sequential([keras.Input((4,)), backbone, keras.layers.Dense(2, name="head")])


MODELS = {
    "flat": flat_model,
    "nested functional": nested_functional,
    "nested sequential": nested_sequential,
    "subclassed": subclassed,
}


def state(model):
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def assert_goes_on_alike(model, loaded):
    """The loaded model holds the same values, as many, and trains on to the same weights."""
    assert_identical(state(loaded), state(model))
    train(model)
    train(loaded)
    assert_identical(state(loaded), state(model))


PATHS = "finds its variables by paths, which change when the model is loaded"


@pytest.mark.sample(4)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [("ours", name) for name in MODELS]
    + [pytest.param("alone", name, marks=pytest.mark.grid) for name in MODELS]
    + [("plain", "flat"), ("multi", "nested functional")]
    + [
        pytest.param("multi", name, marks=pytest.mark.xfail(strict=True, reason=PATHS))
        for name in ("flat", "nested sequential", "subclassed")
    ],
)
def test_a_loaded_keras_file_goes_on_bit_identically(kind, name, tmp_path):
    model = compiled(kind, MODELS[name](), RULES["scheduled"])
    train(model)
    model.save(tmp_path / "model.keras")
    assert_goes_on_alike(model, keras.models.load_model(tmp_path / "model.keras"))


@pytest.mark.slow
@over(
    "plain", "multi", "ours", plain="reads no state of a frozen part", multi="a frozen part makes its gradients too few"
)
@pytest.mark.parametrize("name", ["flat", "nested functional"])
def test_saved_with_a_part_frozen_and_loaded_it_can_be_unfrozen(kind, name, tmp_path):
    def freeze(model, frozen):
        next(layer for layer in model.layers if layer.trainable_weights or not layer.trainable).trainable = not frozen
        model.compile(model.optimizer, loss="mse")

    model = compiled(kind, MODELS[name](), RULES["scheduled"])
    train(model)
    freeze(model, True)
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_goes_on_alike(model, loaded)
    freeze(model, False)
    freeze(loaded, False)
    assert_goes_on_alike(model, loaded)


@pytest.mark.slow
@over("plain", "multi", "ours", plain="does not keep it in its config", multi="does not keep it in its config")
def test_what_is_excluded_from_weight_decay_stays_so_in_a_loaded_file(kind, tmp_path):
    def make(**settings):
        made = optimizers.AdamW(0.1, weight_decay=0.5, **settings)
        made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return made

    model = compiled(kind, nested_functional(), make)
    train(model)
    model.save(tmp_path / "model.keras")
    assert_goes_on_alike(model, keras.models.load_model(tmp_path / "model.keras"))


@pytest.mark.slow
@over("plain", "multi", "ours")
def test_loaded_weights_and_optimizer_state_go_on_bit_identically(kind, tmp_path):
    model, fresh = (compiled(kind, flat_model(), RULES["scheduled"]) for _ in range(2))
    train(model)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_goes_on_alike(model, fresh)


NOT_BUILT = "skips the state of an optimizer that was not built yet"


@pytest.mark.slow
@over("plain", "multi", "ours", plain=NOT_BUILT, multi=NOT_BUILT)
def test_loading_weights_into_an_optimizer_not_built_yet_brings_its_state(kind, tmp_path):
    model, fresh = (compiled(kind, flat_model(), RULES["scheduled"]) for _ in range(2))
    train(model)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_goes_on_alike(model, fresh)


@pytest.mark.sample(3)
@pytest.mark.slow
@over("plain", "multi", "ours", multi="saves none of the children's slots")
@pytest.mark.parametrize("built", [True, False], ids=["built", "not built"])
def test_a_tensorflow_checkpoint_brings_every_slot_and_goes_on_bit_identically(kind, built, tmp_path):
    model, fresh = (compiled(kind, flat_model(), RULES["scheduled"], use_ema=True) for _ in range(2))
    train(model)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    if built:
        fresh.optimizer.build(fresh.trainable_variables)
    status = tf.train.Checkpoint(model=fresh, optimizer=fresh.optimizer).restore(path)
    fresh.optimizer.build(fresh.trainable_variables)
    status.assert_consumed()
    assert_goes_on_alike(model, fresh)


class InterruptAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.slow
@over("plain", "multi", "ours")
def test_an_interrupted_fit_with_a_backup_ends_as_an_uninterrupted_one(kind, tmp_path):
    def fit(model, *callbacks):
        model.fit(X, Y, batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=list(callbacks))

    straight, interrupted, resumed = (compiled(kind, flat_model(), RULES["scheduled"]) for _ in range(3))
    fit(straight)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, keras.callbacks.BackupAndRestore(tmp_path), InterruptAt(2))
    fit(resumed, keras.callbacks.BackupAndRestore(tmp_path), keras.callbacks.LambdaCallback())
    assert_identical(state(resumed), state(straight))


# -- Callbacks --------------------------------------------------------------------------------------------------------


CALLBACKS = {  # and how many times the last group's rate is the untouched one in the end: as a number, and scheduled
    "scheduler(epoch)": (lambda _: keras.callbacks.LearningRateScheduler(lambda epoch: 0.4 / (epoch + 1)), 2, 4),
    "scheduler(epoch, rate)": (
        lambda _: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        0.25,
        0.25,
    ),
    "plateau": (lambda _: keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=9), 0.5, 0.5),
    "tensorboard": (keras.callbacks.TensorBoard, 1, 1),
}


def multi_defect(name, make_rate, wrap):
    if name == "tensorboard":
        return None
    if wrap:
        return "has no rate inside a LossScaleOptimizer"
    if make_rate is halving:
        return "cannot write a rate that comes from a schedule: TypeError"
    return "gives every child the same rate" if name == "scheduler(epoch)" else None


def callback_cases():
    for name in CALLBACKS:
        for make_rate in (float, halving):
            for wrap in (False, True):
                defect = multi_defect(name, make_rate, wrap)
                marks = [pytest.mark.xfail(reason=defect, strict=True)] if defect else []
                case = f"{name}-{make_rate.__name__}-{'loss scale' if wrap else 'bare'}"
                yield pytest.param("ours", name, make_rate, wrap, id=f"{case}-ours")
                yield pytest.param("alone", name, make_rate, wrap, id=f"{case}-alone", marks=pytest.mark.slow)
                if name == "scheduler(epoch)" or (make_rate is float and not wrap):  # else more of the same
                    yield pytest.param("multi", name, make_rate, wrap, id=f"{case}-multi", marks=marks)


@pytest.mark.sample(14)
@pytest.mark.parametrize(("kind", "name", "make_rate", "wrap"), list(callback_cases()))
def test_callbacks_keep_the_ratio_between_the_groups(kind, name, make_rate, wrap, tmp_path):
    variables = make_variables()
    grouped = two_groups(kind, optimizers.SGD(make_rate(0.01)), optimizers.SGD(make_rate(0.1)), variables)
    model = keras.Sequential()
    model.compile(optimizers.LossScaleOptimizer(grouped) if wrap else grouped, loss="mse")
    make_callback, *times = CALLBACKS[name]
    callback = make_callback(tmp_path)
    callback.set_model(model)
    callback.on_train_begin()
    untouched = optimizers.SGD(make_rate(0.1))
    for epoch in range(2):
        callback.on_epoch_begin(epoch)
        drive(model.optimizer, variables, GRADIENTS[:3])
        untouched.iterations.assign_add(3)
        callback.on_epoch_end(epoch, {"loss": 1.0})
    callback.on_train_end()
    body, head = (float(child.learning_rate) for child in children_of(grouped))
    assert body / head == pytest.approx(0.1)
    assert head / float(untouched.learning_rate) == pytest.approx(times[make_rate is halving])


@over("plain", "ours")
@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "loss scale"])
def test_swapping_in_the_average_for_evaluation_works_as_with_one_optimizer(kind, wrap):
    variables = make_variables()
    inner = equal_groups(kind, RULES["sgd"], variables, use_ema=True, ema_momentum=0.5)
    model = keras.Sequential()
    model.compile(optimizers.LossScaleOptimizer(inner) if wrap else inner, loss="mse")
    trained = drive(model.optimizer, variables)
    averages = dict(zip(map(id, inner._trainable_variables), inner._model_variables_moving_average, strict=True))
    expected = [averages[id(v)].numpy() for v in variables]
    callback = keras.callbacks.SwapEMAWeights()
    callback.set_model(model)
    callback.on_test_begin()
    for variable, average in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), average, rtol=1e-5)
    callback.on_test_end()
    for variable, value in zip(variables, trained, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5)
