#!/usr/bin/env python3
"""Restores a checkpoint without some of its layers, then trains two parts of the network at two decaying rates.

A short program to copy and change. Unchanged, it fine-tunes the MNIST weights of this repository on the UCI digits:

    python scripts/restore_and_train.py
    python scripts/restore_and_train.py --checkpoint my.ckpt --exclude head --body 0:6 --head 6: --body-rate 1e-4
"""

import argparse
from pathlib import Path

from finetune.startup import start_tensorflow

start_tensorflow()  # without the messages that importing it prints otherwise

import keras  # noqa: E402 - see above

import finetune  # noqa: E402
from finetune.examples.digits import small_cnn, uci_digits  # noqa: E402

WEIGHTS = Path(__file__).resolve().parent.parent / "recipes" / "weights" / "mnist_cnn.weights.h5"


def main() -> None:
    """Restores, trains and prints the test accuracy."""
    options = parse_options()
    keras.utils.set_random_seed(options.seed)
    model, digits = small_cnn(), uci_digits(train_rows=100)

    report = finetune.restore(model, options.checkpoint, exclude=options.exclude)
    print(report.summary())

    body, head = finetune.resolve_groups(
        model,
        [
            finetune.Selector("body", variables=(options.body,)),  # slices of model.trainable_variables
            finetune.Selector("head", variables=(options.head,)),
        ],
    )
    body_rate = finetune.exponential_decay(options.body_rate, decay_steps=50, decay_rate=0.9, staircase=True)
    head_rate = finetune.exponential_decay(options.head_rate, decay_steps=50, decay_rate=0.9, staircase=True)
    optimizer = finetune.GroupedOptimizer(
        {"body": (finetune.Momentum(body_rate, momentum=0.9), body), "head": (keras.optimizers.Adam(head_rate), head)}
    )
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        digits.x_train,
        digits.y_train,
        batch_size=20,
        epochs=options.epochs,
        verbose=2,
        callbacks=[finetune.LearningRateLogger()],
    )
    metrics = model.evaluate(digits.x_test, digits.y_test, verbose=0, return_dict=True)
    print(f"test accuracy: {metrics['accuracy']:.3f}")


def parse_options() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS, help="any weight file finetune reads")
    parser.add_argument("--exclude", nargs="*", default=["head"], help="layers that keep their fresh weights")
    parser.add_argument(
        "--body", default=":-2", help="slice of the trainable variables trained slowly (default %(default)s)"
    )
    parser.add_argument(
        "--head", default="-2:", help="slice of the trainable variables trained fast (default %(default)s)"
    )
    parser.add_argument("--body-rate", type=float, default=3e-3, help="initial learning rate of the body")
    parser.add_argument("--head-rate", type=float, default=3e-3, help="initial learning rate of the head")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
