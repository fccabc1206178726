#!/usr/bin/env python3
"""Restores a checkpoint without some of its layers, then trains two parts of the network at two decaying rates.

A short program to copy and change. Unchanged, it fine-tunes the MNIST weights of this repository on the UCI digits:

    python scripts/restore_and_train.py
    python scripts/restore_and_train.py --checkpoint my.ckpt --exclude head --body 0:6 --head 6: --body-rate 1e-4
    python scripts/restore_and_train.py --model InceptionV3 --size 96 --checkpoint inception.ckpt --averages \\
        --rename '^InceptionV3/' '' --allow-unused AuxLogits Logits --order creation --body 0:40 --head 40:
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from finetune.startup import start_tensorflow

start_tensorflow()  # without the messages that importing it prints otherwise

import keras  # noqa: E402 - see above
import numpy as np  # noqa: E402

import finetune  # noqa: E402
from finetune.errors import FinetuneError, did_you_mean, reason  # noqa: E402
from finetune.examples.digits import uci_digits  # noqa: E402
from finetune.models.applications import make_application  # noqa: E402
from finetune.models.builders import call_builder, check_model, load_keras_file  # noqa: E402
from finetune.models.heads import add_head  # noqa: E402
from finetune.recipe.model import APPLICATIONS  # noqa: E402

WEIGHTS = Path(__file__).resolve().parent.parent / "recipes" / "weights" / "mnist_cnn.weights.h5"
CLASSES = 10


def main() -> None:
    """Restores, trains and prints the test accuracy."""
    options = parse_options()
    keras.utils.set_random_seed(options.seed)
    model, digits = build_model(options.model, options.size), uci_digits(train_rows=100)
    x_train, x_test = (as_inputs(images, model, options.model) for images in (digits.x_train, digits.x_test))

    report = finetune.restore(
        model,
        options.checkpoint,
        exclude=options.exclude,
        rename=dict(options.rename),
        allow_missing=options.allow_missing,
        allow_unused=options.allow_unused,
        averages=options.averages,
    )
    print(report.summary())

    body, head = finetune.resolve_groups(
        model,
        [
            finetune.Selector("body", variables=(options.body,), order=options.order),  # of the trainable variables
            finetune.Selector("head", variables=(options.head,), order=options.order),
        ],
    )
    if body.order_note:
        print(body.order_note)
    body_rate = finetune.exponential_decay(options.body_rate, decay_steps=50, decay_rate=0.9, staircase=True)
    head_rate = finetune.exponential_decay(options.head_rate, decay_steps=50, decay_rate=0.9, staircase=True)
    optimizer = finetune.GroupedOptimizer(
        {"body": (finetune.Momentum(body_rate, momentum=0.9), body), "head": (keras.optimizers.Adam(head_rate), head)}
    )
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        x_train,
        digits.y_train,
        batch_size=20,
        epochs=options.epochs,
        verbose=2,
        callbacks=[finetune.LearningRateLogger()],
    )
    metrics = model.evaluate(x_test, digits.y_test, verbose=0, return_dict=True)
    print(f"test accuracy: {metrics['accuracy']:.3f}")


def build_model(name: str, size: int) -> keras.Model:
    """Makes the network: of a file that `model.save` wrote, of a builder, or of `keras.applications` with a new head.

    Args:
        name: `net.keras`, `package.module:function`, or a name such as `MobileNetV2`.
        size: Height and width of the images, in pixels, for a network of `keras.applications`.

    Raises:
        FinetuneError: There is no such network, or its output is not a probability for each class.
    """
    if name.endswith((".keras", ".h5", ".hdf5")):
        model: Any = check_model(load_keras_file(Path(name)), name)
    elif ":" in name:
        model = check_model(call_builder(name, {}), name)
    elif name in APPLICATIONS:
        model = add_head(make_application(name, input_shape=(size, size, 3)), classes=CLASSES)
    else:
        raise FinetuneError(
            "`--model` is a file that `model.save` wrote (`net.keras`), a builder (`package.module:function`), or a "
            f"network of `keras.applications`. Received: `{name}`.{did_you_mean(name, list(APPLICATIONS))}"
        )
    probabilities = np.asarray(model(as_inputs(np.zeros((1, 28, 28, 1), "float32"), model, name)))
    if probabilities.shape != (1, CLASSES) or not np.isclose(probabilities.sum(), 1, atol=1e-2):
        raise FinetuneError(
            f"The digits have {CLASSES} classes, and a network for them has a probability for each. The output of "
            f"`{name}` has the shape {probabilities.shape} and sums to {probabilities.sum():.3g}. End it with "
            f'`Dense({CLASSES}, activation="softmax")`.'
        )
    return model


def as_inputs(images: np.ndarray, model: Any, name: str) -> np.ndarray:
    """Enlarges digits of 28x28 pixels in 0..1 to what a network takes; those of `keras.applications` take 0..255."""
    shape = model.input_shape
    if not (isinstance(shape, tuple) and len(shape) == 4 and shape[-1]):
        raise FinetuneError(f"The network must take images, (height, width, channels). `{name}` takes `{shape}`.")
    height, width = (size or given for size, given in zip(shape[1:3], images.shape[1:3], strict=True))
    images = np.asarray(keras.ops.image.resize(images, (height, width)))
    return np.repeat(images, shape[-1], axis=-1) * (255 if name in APPLICATIONS else 1)


def parse_options() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default="finetune.examples.digits:small_cnn",
        help="a .keras file, package.module:function, or a network of keras.applications (default %(default)s)",
    )
    parser.add_argument(
        "--size", type=number(int, least=0), default=96, help="pixels of the images for keras.applications"
    )
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS, help="any weight file finetune reads")
    parser.add_argument("--exclude", nargs="*", default=["head"], help="layers that keep their fresh weights")
    parser.add_argument(
        "--rename",
        nargs=2,
        action="append",
        default=[],
        metavar=("PATTERN", "REPLACEMENT"),
        help="a regular expression over the file's names and what replaces it; may be repeated",
    )
    parser.add_argument("--allow-missing", nargs="*", default=[], help="layers that the file may lack")
    parser.add_argument("--allow-unused", nargs="*", default=[], help="prefixes in the file that the model may lack")
    parser.add_argument("--averages", action="store_true", help="take moving averages in place of the weights")
    parser.add_argument(
        "--body", default=":-2", help="slice of the trainable variables trained slowly (default %(default)s)"
    )
    parser.add_argument(
        "--head", default="-2:", help="slice of the trainable variables trained fast (default %(default)s)"
    )
    parser.add_argument(
        "--order", choices=("graph", "creation"), default="graph", help="what the slices count; TF1: creation"
    )
    parser.add_argument(
        "--body-rate", type=number(float, least=0), default=3e-3, help="initial learning rate of the body"
    )
    parser.add_argument(
        "--head-rate", type=number(float, least=0), default=3e-3, help="initial learning rate of the head"
    )
    parser.add_argument("--epochs", type=number(int, least=0), default=10)
    parser.add_argument("--seed", type=number(int, least=-1, most=2**32 - 1), default=7)
    return parser.parse_args()


def number(kind: type, *, least: float, most: float = float("inf")) -> Any:
    """Returns a reader of numbers from above `least` to `most` for `argparse`, which prints what is wrong and exits."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least < value <= most:
            raise argparse.ArgumentTypeError(f"must be a number ({kind.__name__}) above {least}. Received: `{text}`")
        return value

    return read


if __name__ == "__main__":
    try:
        main()
    except FinetuneError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except (ValueError, TypeError, OSError) as error:  # what Keras says about a network that cannot be trained so
        print(f"{type(error).__name__}: {reason(error)}", file=sys.stderr)
        raise SystemExit(2) from None
