"""Names of losses and metrics that users of other packages write, and what Keras calls the same."""

from collections.abc import Sequence

from finetune.errors import did_you_mean, quote

_ELSEWHERE = {
    "f1": "f1_score",
    "rmse": "root_mean_squared_error",
    "rootmse": "root_mean_squared_error",
    "r2": "r2_score",
    "rocauc": "auc",
    "aucroc": "auc",
    "prauc": "{name: auc, curve: PR}",
    "top5": "sparse_top_k_categorical_accuracy",
    "topk": "sparse_top_k_categorical_accuracy",
    "topkaccuracy": "sparse_top_k_categorical_accuracy",
    "miou": "mean_io_u",
    "jaccard": "mean_io_u",
    "pearson": "pearson_correlation",
    "crossentropyloss": "sparse_categorical_crossentropy",
    "nll": "sparse_categorical_crossentropy",
    "nllloss": "sparse_categorical_crossentropy",
    "softmaxcrossentropy": "sparse_categorical_crossentropy",
    "logloss": "binary_crossentropy",
    "bceloss": "binary_crossentropy",
    "bcewithlogits": "{name: binary_crossentropy, from_logits: true}",
    "bcewithlogitsloss": "{name: binary_crossentropy, from_logits: true}",
    "focal": "categorical_focal_crossentropy",
    "focalloss": "categorical_focal_crossentropy",
    "l1": "mean_absolute_error",
    "l1loss": "mean_absolute_error",
    "l2": "mean_squared_error",
    "mseloss": "mean_squared_error",
    "smoothl1": "huber",
    "smoothl1loss": "huber",
    "jaccardloss": "dice",
    "dicescore": "dice",
}


def offer_names(name: str, known: Sequence[str], others: Sequence[str], kind: str) -> str:
    """Returns a sentence with what may have been meant by a name that Keras does not know.

    Args:
        name: What was written.
        known: The names that are known for this use.
        others: The names that are known for another use.
        kind: What the names in `others` are, for the message: `a metric`, `a loss`.
    """
    plain = name.lower().replace("_", "")
    if plain in _ELSEWHERE:
        return f" Keras calls it `{_ELSEWHERE[plain]}`."
    if plain in {other.lower().replace("_", "") for other in others}:
        return f" It is {kind}."
    if close := did_you_mean(name, known):
        return close
    inside = [each for each in known if plain and plain in each.lower().replace("_", "")]
    return f" Those with this in their name: {quote(inside)}." if inside else ""
