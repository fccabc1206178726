"""The losses and metrics of Keras by name, so that a misspelt name is found without Keras.

A contract test compares these lists with the installed Keras.
"""

from collections.abc import Iterator
from typing import Any

from finetune.errors import did_you_mean, quote
from finetune.recipe.loader import TRUSTED, place_of
from finetune.recipe.optimizers import Named
from finetune.recipe.schema import Recipe

_LOSSES = """
bce binary_crossentropy binary_focal_crossentropy categorical_crossentropy categorical_focal_crossentropy
categorical_generalized_cross_entropy categorical_hinge circle cosine_similarity ctc dice hinge huber kl_divergence
kld log_cosh mae mape mean_absolute_error mean_absolute_percentage_error mean_squared_error
mean_squared_logarithmic_error mse msle poisson sparse_categorical_crossentropy squared_hinge tversky
"""
_METRICS = """
acc accuracy auc bce binary_accuracy binary_crossentropy binary_focal_crossentropy binary_io_u categorical_accuracy
categorical_crossentropy categorical_focal_crossentropy categorical_hinge ce concordance_correlation
cosine_similarity crossentropy f1_score f_beta_score false_negatives false_positives hinge huber io_u kl_divergence
log_cosh log_cosh_error mae mape mean mean_absolute_error mean_absolute_percentage_error mean_io_u
mean_squared_error mean_squared_logarithmic_error mse msle one_hot_io_u one_hot_mean_io_u pearson_correlation
poisson precision precision_at_recall r2_score recall recall_at_precision root_mean_squared_error
sensitivity_at_specificity sparse_categorical_accuracy sparse_categorical_crossentropy
sparse_top_k_categorical_accuracy specificity_at_sensitivity squared_hinge sum top_k_categorical_accuracy
true_negatives true_positives
"""
LOSSES, METRICS = tuple(_LOSSES.split()), tuple(_METRICS.split())


def plain(name: str) -> str:
    """Returns a name as it is compared: `MeanIoU`, `mean_io_u` and `mean_iou` are the same."""
    return name.lower().replace("_", "")


def unknown_names(recipe: Recipe) -> Iterator[str]:
    """Yields a sentence, with its place, for each loss and metric that Keras does not have.

    Where a builder of the user's own is named, nothing is said: its module may register more of them.
    """
    builders = [source.builder for source in (recipe.model, recipe.data) if source.builder]
    if not all(builder.startswith(tuple(f"{module}." for module in TRUSTED)) for builder in builders):
        return
    for key, known in (("loss", LOSSES), ("metrics", METRICS)):
        names = {plain(name) for name in known}
        for keys, named in _named((key,), getattr(recipe.train, key)):
            if named.name != "auto" and plain(named.name) not in names:
                place, path = place_of(recipe, "train", *keys), ".".join(map(str, ("train", *keys)))
                longer = [name for name in known if plain(name).startswith(plain(named.name))]
                offer = did_you_mean(named.name, known) or (f" Did you mean {quote(longer)}?" if longer else "")
                offer = offer or f" Known are {quote(known, limit=60)}."
                yield f"{place}{': ' if place else ''}`{path}: {named.name}` is not a name that Keras knows.{offer}"


def _named(keys: tuple[str | int, ...], value: Any) -> Iterator[tuple[tuple[str | int, ...], Named]]:
    """Yields what is named, whether alone, in a list, or for each output by its name."""
    if isinstance(value, Named):
        yield keys, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _named((*keys, name), item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _named((*keys, index), item)
