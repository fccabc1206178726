"""The scripts that measure native kernels: what they count, compare and write, without a clock."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def compiled(*inner):
    model = keras.Sequential([keras.Input((6, 6, 3)), *inner])
    model.compile(keras.optimizers.Adam(), "mse", jit_compile=False)
    return model, (np.ones((2, 6, 6, 3), "float32"), np.ones((2, 4), "float32"))


def test_the_products_of_a_step_run_alone_each_of_them_and_nothing_else(script):
    dense = layers.Dense(4)
    model, batch = compiled(layers.Conv2D(5, 3), layers.DepthwiseConv2D(3, padding="same"), layers.Flatten(), dense)
    numbers = script("bench_kernels").products_alone(model, batch)()
    # Forward three and the dense one; the gradients of their kernels, and of the inputs of all but the first.
    assert len(numbers) == 3 + 3 + 2
    assert all(number.shape == () for number in numbers)


def test_loops_are_not_measured_alone(script):
    model, batch = compiled(layers.Reshape((6, 18)), layers.LSTM(4))
    assert script("bench_kernels").products_alone(model, batch) is None


def test_the_table_is_written_between_its_marks_and_nowhere_else(script, tmp_path):
    bench, page = script("bench_kernels"), tmp_path / "page.md"
    begins, ends = bench.MARKS
    page.write_text(f"before\n{begins}old\n{ends}after\n")
    text = bench.table({"vit": {"milliseconds": 12.4, "step, `native`": 0.785}})
    bench.write(page, text)
    assert page.read_text() == f"before\n{begins}{text}{ends}after\n"
    assert "| a small ViT, 16 images of 64 patches | 12 |  | 0.79 |  |  |  |  |  |" in text.replace("0.785", "0.79")
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="has no lines"):
        bench.write(page, text)


def test_kernels_are_added_up_by_their_purpose(script):
    profile = script("profile_step")
    kinds = {
        "_MklNativeConv2D": (2, 0.25),
        "_MklNativeFusedConv2D": (1, 0.125),
        "_MklNativeDepthwiseConv2dNativeBackpropFilter": (1, 0.25),
        "Mul": (4, 0.25),
        "Relu": (1, 0.125),
    }
    assert profile.by_purpose({"kernels": 9, "kinds": kinds}) == {
        "kernels": 9,
        "kinds": {
            "convolution, forward": (3, 0.375),
            "depthwise, gradient of the kernel": (1, 0.25),
            profile.ELEMENTWISE: (5, 0.375),
        },
    }


@pytest.mark.parametrize(
    ("native", "is_noise"),
    [((0.90, 0.91, 0.92), True), ((0.91, 0.90, 0.925), True), ((0.95, 0.96, 0.97), False), ((0.80, 0.81, 0.82), False)],
)
def test_scores_differ_by_noise_or_by_more(script, native, is_noise):
    comparison = script("compare_kernels").Comparison("digits", "accuracy", (0.90, 0.91, 0.92), native)
    assert comparison.is_noise is is_noise
