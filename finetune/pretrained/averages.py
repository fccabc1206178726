"""Takes the moving averages of a file in place of its weights, as TF1's `variables_to_restore` does.

TF1 evaluates with an average of the weights over the last steps of training, and its checkpoints hold both: the weight
`conv/kernel`, and its average, the shadow variable `conv/kernel/ExponentialMovingAverage`.
"""

from dataclasses import replace

from finetune.errors import RestoreError
from finetune.pretrained.formats.tensor_roles import AVERAGE, SLOT, WEIGHT
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile
from finetune.results.formatting import counts_text


def with_averages(weight_file: WeightFile) -> WeightFile:
    """Returns the file with averages for weights. What has no average, as moving statistics often, stays as it is.

    Args:
        weight_file: A file with averages; the weights themselves may be missing in it.

    Raises:
        RestoreError: The file has no averages.
    """
    averages = {tensor.of: tensor for tensor in weight_file.others if tensor.role == AVERAGE and tensor.of}
    if not averages:
        raise RestoreError(
            "`averages` takes the moving averages in a file in place of its weights: tensors such as "
            f"`conv/kernel/ExponentialMovingAverage`. `{weight_file.path}` ({weight_file.kind}) has none; it holds "
            f"{held(weight_file)}. {_of_keras(weight_file)}Remove `averages`."
        )
    weights = {tensor.name: tensor for tensor in weight_file.tensors}
    alone = [_average(StoredTensor(of, t.shape, t.dtype, t.read), t) for of, t in averages.items() if of not in weights]
    taken = [_average(t, averages[name]) if name in averages else t for name, t in weights.items()]
    others = tuple(tensor for tensor in weight_file.others if tensor.role != AVERAGE)
    return replace(weight_file, tensors=(*taken, *alone), others=others)


def _of_keras(weight_file: WeightFile) -> str:
    """Returns what to do where Keras' own averages (`use_ema`) may be among the slots, which have no names there."""
    if not (weight_file.kind.startswith("keras") and any(tensor.role == SLOT for tensor in weight_file.others)):
        return ""
    return (
        "The averages of Keras' `use_ema` are slots without names, and the file does not say of which weight: load the "
        "compiled model with Keras, call `model.optimizer.finalize_variable_values(model.trainable_variables)`, which "
        "makes the averages the weights, save it, and restore from that file. "
    )


def held(weight_file: WeightFile) -> str:
    """Returns how many tensors of each role a file holds: `100 weights, 200 slots, 2 counters`."""
    counts: dict[str, int] = {WEIGHT: len(weight_file.tensors)} if weight_file.tensors else {}
    for tensor in weight_file.others:
        counts[tensor.role] = counts.get(tensor.role, 0) + 1
    return counts_text(counts)


def _average(weight: StoredTensor, average: StoredTensor) -> StoredTensor:
    """Returns the average under the name of the weight, and with everything that the file knows of the weight."""
    return replace(
        weight,
        shape=average.shape,
        dtype=average.dtype,
        read=average.read,
        aliases=weight.aliases or average.aliases,
        origin=(average.name,),
        steps=("average",),
    )
