"""How a kernel is held to its mathematics: against the same layer in float64, no worse than Keras by more than twice."""

from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from finetune.kernels.native_kernels import native_kernels, with_kernels

EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


class Computed:
    """Outputs, gradients and changed weights of a layer, by name, in float64, and whether a kernel ran."""

    def __init__(self, values: dict[str, np.ndarray], dtypes: dict[str, str], native: bool):
        self.values, self.dtypes, self.native = values, dtypes, native


def computed(
    make: Callable[[], Any],
    inputs: Any,
    kernels: Any,
    *,
    policy: str,
    training: bool | None = True,
    seed: int = 0,
    draws: int = 8,
    jit_compile: bool = False,
    shape: Any = None,
    prepare: Callable[[Any], None] = lambda layer: None,
    **more: Any,
) -> Computed:
    """Runs a layer with weights and output gradients drawn from `seed`, equal for all ways to compute it, several times."""
    reference = policy == "float64"
    rng = np.random.default_rng(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        layer = make()
    finally:
        keras.config.set_dtype_policy(before)
    compute = "float64" if reference else layer.compute_dtype
    arrays = [np.asarray(x).astype(compute) if np.asarray(x).dtype.kind in "fV" else np.asarray(x) for x in inputs]
    layer.build(*[x.shape for x in arrays]) if len(arrays) == 1 else layer(*arrays)
    weights = [
        rng.uniform(0.5, 1.5, w.shape) if "var" in w.path or "gamma" in w.path else rng.normal(size=w.shape)
        for w in layer.weights
    ]
    prepare(layer)
    specs = [tf.TensorSpec(x.shape if shape is None else shape, x.dtype) for x in arrays]

    @tf.function(jit_compile=jit_compile, autograph=False, input_signature=[*specs, tf.TensorSpec(None, tf.float64)])
    def run(*arguments: Any) -> Any:
        *x, dy = arguments
        floats = [each for each in x if each.dtype.is_floating]
        trained = [weight.value for weight in layer.trainable_weights]
        with tf.GradientTape() as tape:
            tape.watch(floats)
            y = layer(*x, training=training, **more)
            product = tf.reduce_sum(tf.cast(y, tf.float64) * dy)
        return y, tape.gradient(product, [*floats, *trained], unconnected_gradients="zero")

    # Rounded to what the layer computes in, so that nobody is blamed for it.
    output_shape = layer.compute_output_shape(*[x.shape for x in arrays]) if len(arrays) == 1 else arrays[0].shape
    values: dict[str, list[np.ndarray]] = {}
    dtypes: dict[str, str] = {}
    with with_kernels(kernels) as native:
        for _ in range(draws):
            for weight, value in zip(layer.weights, weights, strict=True):
                weight.assign(value.astype("float32"))
            dy = np.asarray(rng.normal(size=output_shape)).astype(ml_dtypes.bfloat16).astype("float64")
            y, gradients = run(*arrays, dy)
            results = {"outputs": y, **{f"gradient {n}": gradient for n, gradient in enumerate(gradients)}}
            results |= {weight.path.split("/")[-1]: weight.value for weight in layer.non_trainable_weights}
            for name, value in results.items():
                tensor = tf.convert_to_tensor(value)
                dtypes[name] = tensor.dtype.name
                values.setdefault(name, []).append(np.asarray(tf.cast(tensor, tf.float64)))
    return Computed({name: np.stack(each) for name, each in values.items()}, dtypes, bool(native.counts(layer)))


@pytest.fixture
def held_to_float64():
    """Checks that a layer goes through a kernel, whose errors against float64 are at most twice those of Keras."""

    def check(make: Callable[[], Any], *inputs: Any, policy: str = "float32", **options: Any) -> None:
        # What both compute from: rounded to the type in which the layer computes.
        compute = keras.DTypePolicy(policy).compute_dtype
        rounded = [
            np.asarray(x).astype(compute).astype("float64") if np.asarray(x).dtype.kind == "f" else x for x in inputs
        ]
        exact = computed(make, rounded, "exact", policy=policy, **options)
        native = computed(make, rounded, "native", policy=policy, **options)
        truth = computed(make, rounded, "exact", policy="float64", **options)
        assert (native.native, exact.native) == (True, False)
        assert native.dtypes == exact.dtypes
        for name, value in truth.values.items():
            size = np.sqrt(np.mean(value**2)) or 1.0
            of_keras, of_ours = (np.sqrt(np.mean((got.values[name] - value) ** 2)) / size for got in (exact, native))
            assert np.isfinite(of_ours) or not np.isfinite(of_keras), name
            assert not of_ours > 2 * of_keras + EPSILON[native.dtypes[name]], (name, of_ours, of_keras)

    return check


@pytest.fixture
def left_to_keras():
    """Checks that a layer does not go through a kernel, and has the bits of Keras."""

    def check(make: Callable[[], Any], *inputs: Any, policy: str = "float32", **options: Any) -> None:
        exact, native = (computed(make, inputs, kernels, policy=policy, **options) for kernels in ("exact", "native"))
        assert not native.native
        for name, value in exact.values.items():
            np.testing.assert_array_equal(native.values[name], value, err_msg=name)

    return check


@pytest.fixture
def inferred():
    """Checks outputs of a layer without a gradient, whose errors against float64 are at most twice those of Keras.

    Returns the graph that was traced, and which layers ran a kernel.
    """

    def check(make: Callable[[], Any], inputs: Any, spec: Any) -> tuple[Any, Any]:
        layers, before = [], keras.config.dtype_policy()
        for policy in ("float32", "float64"):
            keras.config.set_dtype_policy(policy)
            try:
                layers.append(make())
            finally:
                keras.config.set_dtype_policy(before)
            layers[-1].build(spec)
        rng = np.random.default_rng(1)
        weights = [rng.uniform(0.5, 1.5, weight.shape).astype("float32") for weight in layers[0].weights]
        for layer in layers:
            layer.set_weights(weights)
        x = inputs.astype("float32")
        of_keras, truth = layers[0](tf.constant(x)).numpy(), layers[1](tf.constant(x.astype("float64"))).numpy()
        run = tf.function(lambda x: layers[0](x), autograph=False, input_signature=[tf.TensorSpec(spec)])
        with native_kernels() as native:
            outputs = run(tf.constant(x)).numpy()
        assert outputs.shape == truth.shape
        errors = [np.sqrt(np.mean((y - truth) ** 2) / np.mean(truth**2)) for y in (of_keras, outputs)]
        assert errors[1] <= 2 * errors[0] + EPSILON["float32"]
        return run.get_concrete_function().graph, native.counts(layers[0])

    return check


def computed_function(function: Callable[..., Any], inputs: Any, dtype: str, kernels: str, shapes: Any) -> Any:
    """Returns outputs and gradients of a function, in float64, and the names of the functions that ran a kernel."""
    arrays = [np.asarray(x).astype(dtype) if np.asarray(x).dtype.kind in "fV" else np.asarray(x) for x in inputs]
    specs = [
        tf.TensorSpec(shape, x.dtype) for x, shape in zip(arrays, shapes or [x.shape for x in arrays], strict=True)
    ]

    @tf.function(autograph=False, input_signature=specs)
    def run(*x: Any) -> Any:
        floats = [each for each in x if each.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(floats)
            y = function(*x)
            # Gradients of the outputs that differ from each other, and are equal in all dtypes.
            dy = tf.cos(tf.reshape(tf.range(tf.cast(tf.size(y), tf.float64)), tf.shape(y)))
            product = tf.reduce_sum(tf.cast(y, tf.float64) * tf.cast(tf.cast(dy, tf.bfloat16), tf.float64))
        return y, tape.gradient(product, floats)

    with with_kernels(kernels) as native:
        y, gradients = run(*arrays)
    named = {"outputs": y, **{f"gradient {n}": gradient for n, gradient in enumerate(gradients)}}
    return (
        {name: np.asarray(tf.cast(value, tf.float64)) for name, value in named.items()},
        y.dtype.name,
        native.functions,
    )


@pytest.fixture
def function_held_to_float64():
    """Checks that a function goes through a kernel, whose errors against float64 are at most twice those of Keras."""

    def check(
        name: str, function: Callable[..., Any], *inputs: Any, dtype: str = "float32", shapes: Any = None
    ) -> None:
        rounded = [
            np.asarray(x).astype(dtype).astype("float64") if np.asarray(x).dtype.kind == "f" else x for x in inputs
        ]
        exact, of_exact, nothing = computed_function(function, rounded, dtype, "exact", shapes)
        native, of_native, ran = computed_function(function, rounded, dtype, "native", shapes)
        truth, _, _ = computed_function(function, rounded, "float64", "exact", shapes)
        assert (ran, nothing) == ({name}, set())
        assert of_exact == of_native
        for part, value in truth.items():
            assert native[part].shape == value.shape
            size = np.sqrt(np.mean(value**2)) or 1.0
            of_keras, of_ours = (np.sqrt(np.mean((each[part] - value) ** 2)) / size for each in (exact, native))
            assert not of_ours > 2 * of_keras + EPSILON[dtype], (part, of_ours, of_keras)

    return check


@pytest.fixture
def function_left_to_keras():
    """Checks that a function does not go through a kernel, and has the bits of Keras."""

    def check(function: Callable[..., Any], *inputs: Any, dtype: str = "float32", shapes: Any = None) -> None:
        exact, _, _ = computed_function(function, inputs, dtype, "exact", shapes)
        native, _, ran = computed_function(function, inputs, dtype, "native", shapes)
        assert ran == set()
        for part, value in exact.items():
            np.testing.assert_array_equal(native[part], value, err_msg=part)

    return check
