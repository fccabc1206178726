import keras

from finetune.optimizers.unwrap_optimizer import unwrap


def test_the_optimizer_inside_a_loss_scale_optimizer_is_returned():
    inner = keras.optimizers.SGD(0.1)
    assert unwrap(keras.optimizers.LossScaleOptimizer(inner)) is inner


def test_an_optimizer_without_a_wrapper_is_returned_as_it_is():
    optimizer = keras.optimizers.SGD(0.1)
    assert unwrap(optimizer) is optimizer
    assert unwrap(None) is None


def test_mixed_precision_puts_on_the_wrapper_that_is_taken_off():
    optimizer = keras.optimizers.SGD(0.1)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(optimizer, "mse")
    finally:
        keras.config.set_dtype_policy(before)
    assert model.optimizer is not optimizer
    assert unwrap(model.optimizer) is optimizer
