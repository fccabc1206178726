"""Which targets a loss of Keras takes: numbers of classes, a target for each class, labels 0 and 1, or quantities.

Keras has no such list: a loss takes whatever broadcasts, and its value for targets of another form means nothing.
"""

SPARSE, ONE_HOT, BINARY, NUMBERS, UNKNOWN = "sparse", "one_hot", "binary", "numbers", "unknown"
_SHORT = {"bce": "binarycrossentropy", "kld": "kldivergence", "kullbackleiblerdivergence": "kldivergence"}
_SHORT |= {"mse": "meansquarederror", "mae": "meanabsoluteerror", "mape": "meanabsolutepercentageerror"}
_SHORT |= {"msle": "meansquaredlogarithmicerror", "ce": "crossentropy"}
_FAMILIES = {
    SPARSE: ("sparsecategoricalcrossentropy", "circle"),
    ONE_HOT: (
        *("categoricalcrossentropy", "categoricalfocalcrossentropy", "categoricalhinge", "crossentropy"),
        *("kldivergence", "dice", "tversky", "categoricalgeneralizedcrossentropy"),
    ),
    BINARY: ("binarycrossentropy", "binaryfocalcrossentropy", "hinge", "squaredhinge"),
    NUMBERS: (
        *("meansquarederror", "meanabsoluteerror", "meanabsolutepercentageerror", "meansquaredlogarithmicerror"),
        *("huber", "logcosh", "cosinesimilarity", "poisson"),
    ),
}


def plain_name(loss: str) -> str:
    """Returns the full name of a loss in lower case without `_`, whichever of its names was written."""
    plain = loss.lower().replace("_", "")
    return _SHORT.get(plain, plain)


def family_of(loss: str) -> str:
    """Returns which targets a loss takes.

    Args:
        loss: Any of the names that Keras knows a loss by: `mse`, `MeanSquaredError`, `mean_squared_error`.

    Returns:
        `sparse`: numbers of classes; `one_hot`: a target for each class; `binary`: labels 0 and 1, for each output;
        `numbers`: quantities; `unknown`: a loss that is not on the list.
    """
    plain = plain_name(loss)
    return next((family for family, losses in _FAMILIES.items() if plain in losses), UNKNOWN)


def activation_for(loss: str, outputs: int) -> str:
    """Returns the activation in which a network for a loss ends.

    Args:
        loss: Name of the loss.
        outputs: How many values the network gives for a row, >= 1.
    """
    plain, family = plain_name(loss), family_of(loss)
    if plain == "poisson":  # a rate, whose logarithm the loss takes
        return "softplus"
    if family == NUMBERS or "hinge" in plain:
        return "linear"
    return "sigmoid" if outputs == 1 or family == BINARY else "softmax"
