"""Reads weights that Keras saved in HDF5: the layout of Keras 3 (`.weights.h5`, inside `.keras`) and the legacy one.

**Keras 3** saves a tree of objects. The path of a group is made of attribute names; members of a list are filed under
their class in snake case and a number, `layers/dense_1`. Weights are numbered: `layers/dense_1/vars/0`. The layer's
real name is the attribute `name` of its group `vars` (early versions of Keras 3 did not write it); the weight's own
name is not in the file.

**Keras 2**, and `.h5` of Keras 3, save one group for each of the model's own layers, named like it, whose attribute
`weight_names` lists the weights in order, each by name: `conv` holds `conv/kernel:0`. A model inside the model is one
such layer, and its weights are listed below it.
"""

import io
import itertools
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from finetune.files.hdf5_check import check_hdf5
from finetune.files.size_limits import check_zip
from finetune.files.zip_archives import zip_archive
from finetune.pretrained.automatic_names import is_automatic_name, without_number
from finetune.pretrained.formats.detect import is_zip, zip_members
from finetune.pretrained.formats.tensor_roles import OTHER, SLOT, STATE, WEIGHT, role_of_path
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile

LEGACY_ROOT = "top_level_model_weights"  # the group for weights of the model itself, outside of its layers
_WEIGHTS_IN_ZIP = "model.weights.h5"

_Open = Callable[[], h5py.File]


def is_keras_archive(path: Path) -> bool:
    """Whether the file is a `.keras` archive; a damaged zip archive counts by its name."""
    if not is_zip(path):
        return False
    try:
        return _WEIGHTS_IN_ZIP in zip_members(path)
    except zipfile.BadZipFile:
        return path.suffix == ".keras"


def read_keras_archive(path: Path) -> WeightFile:
    """Reads the weights of a `.keras` file. They stay in memory as long as the result exists.

    The configuration in the file is not read: the network in it may hold code.

    Raises:
        FinetuneError: As `finetune.files.hdf5_check.check_hdf5` does, or it unpacks to too much.
    """
    check_zip(path)
    check_hdf5(path, _WEIGHTS_IN_ZIP)
    with zip_archive(path) as archive:
        content = archive.read(_WEIGHTS_IN_ZIP)
    return WeightFile(str(path), "keras", *_keras3_tensors(lambda: h5py.File(io.BytesIO(content))))


def read_hdf5(path: Path) -> WeightFile:
    """Reads Keras weights from HDF5 in either of the two layouts.

    Raises:
        FinetuneError: As `finetune.files.hdf5_check.check_hdf5` does.
        ValueError: The file is damaged in a way that crashes the HDF5 library.
    """
    check_hdf5(path)
    open_file = partial(h5py.File, path)
    with open_file() as file:
        root = "model_weights" if "model_weights" in file else "/"  # a whole model, or its weights alone
        is_legacy = any(key.startswith("layer_names") for key in file[root].attrs)
    if is_legacy:
        return WeightFile(str(path), "keras-legacy-h5", *_legacy_tensors(open_file, root))
    return WeightFile(str(path), "keras-weights", *_keras3_tensors(open_file))


def read_keras_shards(index: Path, files: Sequence[Path]) -> WeightFile:
    """Reads Keras weights that were saved to several files, with a `max_shard_size`.

    Raises:
        ValueError: A file is damaged in a way that crashes the HDF5 library.
    """
    for path in files:
        check_hdf5(path)
    open_files = [partial(h5py.File, path) for path in files]
    return WeightFile(str(index), "keras-weights", *_keras3_tensors(*open_files))


def _read_dataset(open_file: _Open, key: str) -> np.ndarray:
    with open_file() as file:
        dataset: Any = file[key]
        if _dtype(dataset) == "bfloat16":
            return np.array(dataset, dtype=ml_dtypes.bfloat16)
        return np.array(dataset)


def _dtype(dataset: Any) -> str:
    # HDF5 has no bfloat16, so Keras notes it as an attribute; any other attribute of this name says nothing.
    return "bfloat16" if str(dataset.attrs.get("dtype")) == "bfloat16" else dataset.dtype.name


def _tensor(open_file: _Open, dataset: Any, name: str, **known: Any) -> StoredTensor:
    read = partial(_read_dataset, open_file, dataset.name)
    return StoredTensor(name, tuple(dataset.shape), _dtype(dataset), read, **known)


def _datasets(file: h5py.File, root: str = "/") -> dict[str, Any]:
    """Returns every dataset below `root` by its path there. `visititems` does not follow links to other files."""
    datasets: dict[str, Any] = {}
    group: Any = file[root]
    group.visititems(lambda path, item: datasets.update({path: item}) if isinstance(item, h5py.Dataset) else None)
    return datasets


# Keras 3


def _keras3_tensors(*open_files: _Open) -> tuple[tuple[StoredTensor, ...], tuple[StoredTensor, ...]]:
    """Returns the weights, and the rest."""
    with ExitStack() as stack:
        files = [(open_file, stack.enter_context(open_file())) for open_file in open_files]
        # Names and counts of all shards together: a layer's weights may be spread over several files.
        names = {path: name for _, file in files for path, name in _object_names(file).items()}
        stored = [(path, *entry) for entry in files for path in _datasets(entry[1])]
        stored.sort(key=lambda entry: _by_number(entry[0]))
        roles = [_role(path, file[path]) for path, _, file in stored]
        weights = [entry for entry, role in zip(stored, roles, strict=True) if role == WEIGHT]
        counts = Counter(path.rpartition("/")[0] for path, _, _ in weights)
        return tuple(
            _keras3_tensor(open_file, file[path], path, counts[path.rpartition("/")[0]], names)
            for path, open_file, file in weights
        ), tuple(
            _tensor(open_file, file[path], path, role=role)
            for (path, open_file, file), role in zip(stored, roles, strict=True)
            if role != WEIGHT
        )


def _role(path: str, dataset: Any) -> str:
    """Returns what a dataset of a Keras 3 file is; every weight lies in a group `vars`."""
    role = role_of_path(path.split("/"), tuple(dataset.shape))
    if role == SLOT and path.endswith("/vars/document"):  # a `GroupedOptimizer`: what its rates follow, as text
        return STATE
    return OTHER if role == WEIGHT and "vars" not in path.split("/")[-2:-1] else role


def _by_number(path: str) -> list[tuple[int, str]]:
    """Sorts `dense_9/vars/0` before `dense_10/vars/0`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _object_names(file: h5py.File) -> dict[str, str]:
    """Returns the layers' real names by their path in the file; empty for files of early versions of Keras 3."""
    names: dict[str, str] = {}

    def note(path: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and path.rpartition("/")[2] == "vars" and "name" in item.attrs:
            names[path.rpartition("/")[0]] = str(item.attrs["name"])

    file.visititems(note)
    return names


def _keras3_tensor(open_file: _Open, dataset: Any, path: str, count: int, names: dict[str, str]) -> StoredTensor:
    """Describes one weight.

    Args:
        open_file: Opens the file.
        dataset: The weight's values.
        path: Path of the dataset: `layers/dense_1/vars/0`.
        count: How many weights its layer has.
        names: The layers' real names by their paths.
    """
    owner, key = path.rpartition("vars/")[0].rstrip("/"), path.rpartition("/")[2]
    name, *aliases = dict.fromkeys("/".join([*chain, key]) for chain in _layer_chains(owner, names))
    if not key.isdigit():  # a layer with its own `save_own_variables` may give its weights names
        return _tensor(open_file, dataset, name, aliases=tuple(aliases))
    location = f"keras:{location_in_keras_file(owner, names)}" if names else f"keras-path:{owner}"
    places = tuple(f"{place}#{key}/{count}" for place in (location, f"keras-again:{owner}"))
    known = {"position": (int(key), count), "locations": places}
    return _tensor(open_file, dataset, name, aliases=tuple(aliases), **known)


def location_in_keras_file(owner: str, names: Mapping[str, str]) -> str:
    """Returns where a Keras 3 file keeps an object, without what depends on the objects built before.

    Keras files the members of a list under their class and a number that counts this class in the list:
    `layers/dense_1`. A member whose name was chosen by the user is found by that name instead, `layers/head`, so that
    other members before it do not change where it is.

    Args:
        owner: Path of the object in the file: `layers/dense_1`.
        names: The objects' names by their paths in the file.
    """
    parts = owner.split("/") if owner else []
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]

    def stable(part: str, path: str, parent: str) -> str:
        is_member = bool(parent) and parent not in names  # a list has no name; the model itself is not a list
        return names[path] if is_member and path in names and not _is_numbered(names[path], part) else part

    return "/".join(map(stable, parts, paths, ["", *paths[:-1]]))


def _is_numbered(name: str, part: str) -> bool:
    """Whether Keras made the name from the class: `dense_7`, which is filed as `dense_1`."""
    return without_number(name) == without_number(part)


def _layer_chains(owner: str, names: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """Yields the names that a model may give the layer at `owner`, the likeliest first.

    Each object on the way counts by its own name or by the attribute (and the index in its list) that holds it:
    `classifier/vars` with the name `head` may be `head` or `classifier` in the model.
    """
    parts = owner.split("/") if owner else []
    choices: list[list[str]] = []
    container = ""  # path of the lists and dicts between the last object and this part
    for i, part in enumerate(parts):
        path = "/".join(parts[: i + 1])
        held_as = f"{container}/{_member(path, names)}" if container else part
        if path in names or not names:
            choices.append(_names_of(part, names.get(path, part), container, held_as))
            container = ""
        else:
            container = held_as
    # Each level doubles the combinations; deep models would have thousands, and the likely ones come first.
    yield from itertools.islice(itertools.product(*choices), 64)


def _member(path: str, names: dict[str, str]) -> str:
    """Returns the index of a list's member, or its name in the file where the list holds several classes.

    `blocks/dense`, `blocks/dense_1` are the members 0 and 1. With a `blocks/dropout` beside them the numbers count
    each class alone, and no longer say which member it is.
    """
    parent, _, part = path.rpartition("/")
    members = {known[len(parent) + 1 :].partition("/")[0] for known in names if known.startswith(f"{parent}/")}
    number = re.search(r"_(\d+)$", part)
    return part if len({without_number(member) for member in members}) > 1 else (number[1] if number else "0")


def _names_of(part: str, name: str, container: str, held_as: str) -> list[str]:
    if container == "layers":  # of a functional or Sequential model, whose layers always count by their names
        return [name]
    is_automatic = _is_numbered(name, part) if container else is_automatic_name(name)
    return list(dict.fromkeys([held_as, name] if is_automatic else [name, held_as]))


# Legacy HDF5


def _legacy_tensors(open_file: _Open, root: str) -> tuple[tuple[StoredTensor, ...], tuple[StoredTensor, ...]]:
    """Returns the weights, and the rest."""
    with open_file() as file:
        datasets = _datasets(file, root)
        top: Any = file[root]
        # `layer_names` has the model's order, which HDF5 groups do not have; layers without weights have empty lists.
        groups = [name for name in (*_list_attribute(top, "layer_names"), LEGACY_ROOT) if name in top]
        weight_names = {group: names for group in groups if (names := _list_attribute(top[group], "weight_names"))}
        layers = [group for group in weight_names if group != LEGACY_ROOT]
        order = {name: f"{i}/{len(layers)}" for i, name in enumerate(layers)}
        weights = tuple(
            tensor
            for group, names in weight_names.items()
            for tensor in _legacy_layer(open_file, group, order.get(group, ""), names, datasets)
        )
        listed = {datasets[f"{group}/{name}"].name for group, names in weight_names.items() for name in names}
        # `optimizer_weights` beside `model_weights`, and what no list names.
        others = tuple(
            _tensor(
                open_file, dataset, path, role=OTHER if (role := role_of_path(parts, dataset.shape)) == WEIGHT else role
            )
            for path, dataset in _datasets(file).items()
            if dataset.name not in listed and (parts := path.split("/"))
        )
        return weights, others


def _legacy_layer(
    open_file: _Open, group: str, order: str, weight_names: list[str], datasets: dict[str, Any]
) -> Iterator[StoredTensor]:
    names = [_legacy_name(group, name) for name in weight_names]
    layers = [name.rpartition("/")[0] for name in names]
    for i, (name, layer) in enumerate(zip(names, layers, strict=True)):
        name_in_file = weight_names[i].removesuffix(":0")
        # The layer's name may be automatic or chosen: the file does not say which, so both are offered.
        layer_names = dict.fromkeys([group, without_number(group)])
        yield _tensor(
            open_file,
            datasets[f"{group}/{weight_names[i]}"],
            name,
            position=(layers[:i].count(layer), layers.count(layer)),
            aliases=tuple(alias for alias in (name_in_file, f"*/{name_in_file}") if alias != name),
            locations=tuple(legacy_location(known, order, f"{i}/{len(names)}", name) for known in layer_names),
        )


def legacy_location(layer: str, order: str, weight: str, name: str) -> str:
    """Returns where a legacy file keeps a weight: its layer among those with weights, its number in this layer.

    Args:
        layer: The layer's name, without its number if Keras made it.
        order: `2/7`, the third layer of seven; empty for weights of the model itself.
        weight: `0/4`, the first weight of four.
        name: The weight's name, of which the last part counts.
    """
    return f"legacy:{layer}:{order}:{weight}|{without_number(name.rpartition('/')[2])}"


def _legacy_name(group: str, weight_name: str) -> str:
    """Returns the name below the model: group `bb`, `d1/kernel:0` -> `bb/d1/kernel`; `head`, `model/head/kernel:0` ->
    `head/kernel`. Names of layers in Keras 2 may hold slashes: `conv1/conv`, `conv1/conv/kernel:0` ->
    `conv1/conv/kernel`."""
    name = weight_name.removesuffix(":0")
    if group == LEGACY_ROOT:
        return name
    _, separator, below = f"/{name}".partition(f"/{group}/")
    return f"{group}/{below if separator else name}"


def _list_attribute(group: Any, name: str) -> list[str]:
    """Reads a list that Keras splits over `name0`, `name1` and so on: an HDF5 attribute has at most 64 kB."""
    chunks = [group.attrs[name]] if name in group.attrs else []
    for i in itertools.count():
        if f"{name}{i}" not in group.attrs:
            break
        chunks.append(group.attrs[f"{name}{i}"])
    return [item.decode() if isinstance(item, bytes) else str(item) for chunk in chunks for item in chunk]
