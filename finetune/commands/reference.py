"""`finetune reference`: writes the outputs of a network that is known to be right, for `restore.verify`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.build.data import precision
from finetune.build.model import build_model_and_examples, build_network, with_head
from finetune.build.restore import restore_weights
from finetune.errors import FinetuneError, quote, reason
from finetune.files.checkpoint_index import check_index
from finetune.files.npy_headers import check_arrays
from finetune.machine_failures import raise_machine_failure
from finetune.models.builders import check_model, load_keras_file
from finetune.models.graph_consent import require_consent
from finetune.pretrained.reference_outputs import as_arrays, outputs_of
from finetune.pretrained.restore import RestoreReport
from finetune.recipe.loader import load_recipe
from finetune.results.new_files import check_new_file
from finetune.results.run_folder import replacing
from finetune.sequences import one_or_more

_ROWS = 8  # rows that are enough to tell networks apart


def write_reference(
    source: str | Path,
    out: str | Path,
    *,
    inputs: str | Path | None = None,
    layers: Sequence[str] = (),
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Computes outputs of a network and writes them, with the inputs, to an npz file.

    Args:
        source: The network: a whole model (`.keras` or legacy `.h5`), a SavedModel, or a recipe, whose network is
            taken with its pretrained weights and whose first test rows are the inputs.
        out: The file to write, `.npz`.
        inputs: A `.npy` file, or an `.npz` file with a single array or an array for each input of the network.
        layers: Layers whose outputs to write instead of the outputs of the network; also names of its outputs.
        overrides: Changes to the recipe such as `"restore.from=other.h5"`.
        allow_code: Packages whose code the recipe may run, and `hub:HANDLE` for the graph of a SavedModel.
        overwrite: Whether `out` may exist.

    Returns:
        The shape of each array that was written, by name.

    Raises:
        FinetuneError: The input is wrong, or an output is not a finite number; nothing is written then.
    """
    out = Path(out)
    _check_out(out, overwrite=overwrite)
    layers = one_or_more(layers)
    rows = _read_inputs(Path(inputs)) if inputs else None
    if Path(source).suffix in (".yaml", ".yml"):
        model, rows = _from_recipe(source, rows, layers, overrides, allow_code)
    else:
        model = _from_file(Path(source), one_or_more(allow_code))
    if rows is None:
        raise FinetuneError(
            f"Reference outputs need inputs, and `{source}` holds a network without example rows. Name a file of "
            "rows with `--input rows.npz`."
        )
    outputs = outputs_of(model, rows, layers)
    wrong = [f"output/{name}".rstrip("/") for name, array in outputs.items() if not np.isfinite(array).all()]
    if wrong:
        raise FinetuneError(
            f"Reference outputs must be finite numbers. Those of {quote(wrong)} are not. Use other inputs."
        )
    arrays = as_arrays(rows, outputs)
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType] - no array is called `allow_pickle`
    return {name: array.shape for name, array in arrays.items()}


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.suffix != ".npz":
        raise FinetuneError(f"Reference outputs are written to an npz file. Received: `{out}`. End its name in `.npz`.")
    check_new_file(out, overwrite=overwrite)


def _read_inputs(path: Path) -> dict[str, np.ndarray]:
    try:
        check_arrays(path)
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except FinetuneError:
        raise
    except Exception as error:  # NumPy raises many kinds of errors over a damaged file
        raise_machine_failure(error, f"Reading `{path}`")
        raise FinetuneError(
            f"Inputs are read from a `.npy` or `.npz` file of plain arrays. `{path}` cannot be read: {reason(error)}."
        ) from error
    if len(arrays) == 1:
        return {"": next(iter(arrays.values()))}
    return {"": arrays["x_test"][:_ROWS]} if "x_test" in arrays else arrays


def _from_recipe(
    path: str | Path,
    rows: dict[str, np.ndarray] | None,
    layers: Sequence[str],
    overrides: Sequence[str],
    allow_code: Sequence[str],
) -> tuple[keras.Model, dict[str, np.ndarray]]:
    recipe = load_recipe(path, overrides=overrides, allow_code=allow_code)
    with precision(recipe):
        if rows is None:
            built = build_model_and_examples(recipe)
            model, rows = built.model, _by_name(built.examples.test.first(_ROWS)[0])
        else:
            model = with_head(recipe, build_network(recipe))
        report = restore_weights(recipe, model, verify=False)  # the reference that `verify` names is yet to be written
    if report and not layers:
        _require_whole(report, model)
    return model, rows


def _by_name(x: Any) -> dict[str, np.ndarray]:
    """Returns the inputs of a network as arrays by name, a single input under an empty name."""
    by_name = x if isinstance(x, dict) else {"": x}
    return {name: np.asarray(keras.ops.convert_to_numpy(array)) for name, array in by_name.items()}


def _require_whole(report: RestoreReport, model: keras.Model) -> None:
    fresh = [*report.excluded, *report.missing]
    if fresh:
        raise FinetuneError(
            f"Reference outputs must come from pretrained weights only. {quote(fresh)} are not restored. Name the last "
            f"layer before them with `--layer`; its layers are "
            f"{quote((layer.name for layer in model.layers), limit=9)}."
        )


def _from_file(path: Path, allow_code: Sequence[str]) -> Any:
    folder = path.parent if path.name in ("saved_model.pb", "saved_model.pbtxt") else path
    if not (folder / "saved_model.pb").is_file() and not (folder / "saved_model.pbtxt").is_file():
        return check_model(load_keras_file(path), str(path))
    require_consent(folder, allow_code)
    index = folder / "variables" / "variables.index"
    try:
        if index.is_file():
            check_index(index)
        return _callable_part(tf.saved_model.load(str(folder)))
    except Exception as error:  # TensorFlow raises many kinds of errors over a damaged folder
        raise_machine_failure(error, f"Loading `{folder}`")
        raise FinetuneError(f"A SavedModel must load. `{folder}` does not: {reason(error)}. Copy it again.") from error


def _callable_part(loaded: Any) -> Any:
    """Returns the default signature where there is one: it takes and returns arrays by name."""
    signatures = getattr(loaded, "signatures", {})
    signature = signatures.get("serving_default") or next(iter(signatures.values()), None)
    if signature is None:
        return loaded
    names = sorted(signature.structured_input_signature[1])

    def call(batch: Any) -> Mapping[str, Any]:
        arrays = batch if isinstance(batch, dict) else {names[0]: batch}
        outputs = signature(**{name: tf.convert_to_tensor(array) for name, array in arrays.items()})
        return {"": next(iter(outputs.values()))} if len(outputs) == 1 else outputs

    return call
