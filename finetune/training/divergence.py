"""Whether training has diverged although every number is finite: the loss is far above what it was, or that of a guess.

An accuracy does not show it: a network whose outputs are a million times too large is right as often, and the loss of
the rows on which it is wrong is 1e17.
"""

from math import log

from finetune.data.loss_families import plain_name

_TIMES = 10  # the loss before training, or of a guess, beyond which training has diverged


def loss_of_guess(loss: str, classes: int | None) -> float | None:
    """Returns the loss of the same probability for every class; `None` for a loss that has no such value.

    Args:
        loss: Name of the loss.
        classes: How many classes the network gives probabilities for, if it does.
    """
    plain = plain_name(loss)
    if plain == "binarycrossentropy":
        return log(2)
    of_classes = plain in ("sparsecategoricalcrossentropy", "categoricalcrossentropy", "crossentropy")
    return log(classes) if of_classes and classes and classes > 1 else None


def divergence(before: float, after: float, guess: float | None = None) -> str:
    """Returns a sentence where the loss after training is far too large; else an empty text.

    Args:
        before: Loss of the test rows before training.
        after: Their loss after training.
        guess: What `loss_of_guess` says, if anything.
    """
    against = [f"was {before:.3g} before"] if 0 < _TIMES * before < after else []
    against += [f"is {guess:.3g} for a network that guesses"] if guess is not None and _TIMES * guess < after else []
    if not against:
        return ""
    return (
        f"the test loss is {after:.3g} after training, and {' and '.join(against)}: training has diverged. Lower the "
        "learning rates, or set `train.global_clipnorm: 1.0`"
    )
