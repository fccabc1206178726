"""Weights that Keras keeps in HDF5: the layout of Keras 3, alone or inside `.keras`, and the legacy one."""

import io
import itertools
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from finetune.errors import RestoreError
from finetune.pretrained.formats.detect import is_zip, zip_members
from finetune.pretrained.formats.crash_probe import survives
from finetune.pretrained.formats.weight_file import Tensor, WeightFile
from finetune.pretrained.automatic_names import is_automatic, stem

LEGACY_ROOT = "top_level_model_weights"
_WEIGHTS_IN_ZIP = "model.weights.h5"
_NOT_WEIGHTS = {"optimizer", "metrics", "seed_generator", "_random_generator"}

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
    """Reads the weights of a `.keras` file; they stay in memory as long as the result is kept."""
    with zipfile.ZipFile(path) as archive:
        content = archive.read(_WEIGHTS_IN_ZIP)
    return WeightFile(str(path), "keras", _keras3_tensors(lambda: h5py.File(io.BytesIO(content))))


def read_hdf5(path: Path) -> WeightFile:
    """Reads Keras weights from HDF5, whichever of Keras' two layouts the file has."""
    return _without_crash(partial(_read_hdf5, path))


def _without_crash(read: Callable[[], WeightFile]) -> WeightFile:
    if not survives(read):  # nothing in HDF5 itself tells of damage
        raise ValueError("the HDF5 library crashes over it")
    return read()


def _read_hdf5(path: Path) -> WeightFile:
    open_file = partial(h5py.File, path)
    with open_file() as file:
        root = "model_weights" if "model_weights" in file else "/"
        legacy = any(key.startswith("layer_names") for key in file[root].attrs)
    if legacy:
        return WeightFile(str(path), "keras-legacy-h5", _legacy_tensors(open_file, root))
    return WeightFile(str(path), "keras-weights", _keras3_tensors(open_file))


def read_keras_shards(index: Path, files: Sequence[Path]) -> WeightFile:
    """Reads Keras weights that were saved with a `max_shard_size`."""
    opened = [partial(h5py.File, path) for path in files]
    return _without_crash(lambda: WeightFile(str(index), "keras-weights", _keras3_tensors(*opened)))


def _read_dataset(open_file: _Open, key: str) -> np.ndarray:
    with open_file() as file:
        dataset: Any = file[key]
        if _dtype(dataset) == "bfloat16":
            return np.array(dataset, dtype=ml_dtypes.bfloat16)
        return np.array(dataset)


def _dtype(dataset: Any) -> str:
    return str(dataset.attrs.get("dtype", dataset.dtype.name))


def _tensor(open_file: _Open, dataset: Any, name: str, **known: Any) -> Tensor:
    if dataset.external or dataset.is_virtual:
        raise RestoreError(
            f"A weight file must hold its own values. `{dataset.name}` points to another file. Save the weights anew."
        )
    read = partial(_read_dataset, open_file, dataset.name)
    return Tensor(name, tuple(dataset.shape), _dtype(dataset), read, **known)


def _datasets(file: h5py.File, root: str = "/") -> dict[str, Any]:
    """Every dataset below `root` by its path there; links to other files are not followed."""
    found: dict[str, Any] = {}
    group: Any = file[root]
    group.visititems(lambda path, item: found.update({path: item}) if isinstance(item, h5py.Dataset) else None)
    return found


# Keras 3: a tree of objects; names of layers are attributes, weights are numbers


def _keras3_tensors(*open_files: _Open) -> tuple[Tensor, ...]:
    with ExitStack() as stack:
        files = [(open_file, stack.enter_context(open_file())) for open_file in open_files]
        names = {path: name for _, file in files for path, name in _object_names(file).items()}
        every = ((opened, item) for opened, file in files for item in _datasets(file).items())
        found = [(path, opened, data) for opened, (path, data) in every if _is_weight(path)]
        counts = Counter(path.rpartition("/")[0] for path, _, _ in found)
        return tuple(
            _keras3_tensor(opened, data, path, counts[path.rpartition("/")[0]], names)
            for path, opened, data in sorted(found, key=lambda item: _natural(item[0]))
        )


def _object_names(file: h5py.File) -> dict[str, str]:
    """The layers' real names by their path in the file; empty for files of Keras before it wrote them."""
    names: dict[str, str] = {}

    def note(path: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and path.rpartition("/")[2] == "vars" and "name" in item.attrs:
            names[path.rpartition("/")[0]] = str(item.attrs["name"])

    file.visititems(note)
    return names


def _is_weight(path: str) -> bool:
    parts = path.split("/")
    return "vars" in parts[-2:-1] and not _NOT_WEIGHTS.intersection(parts[:-2])


def _keras3_tensor(open_file: _Open, data: Any, path: str, count: int, names: dict[str, str]) -> Tensor:
    owner, key = path.rpartition("vars/")[0].rstrip("/"), path.rpartition("/")[2]
    name, *aliases = dict.fromkeys("/".join([*chain, key]) for chain in _layer_chains(owner, names))
    if not key.isdigit():  # a layer with a `save_own_variables` of its own may choose its words
        return _tensor(open_file, data, name, aliases=tuple(aliases))
    place = f"keras:{address(owner, names)}" if names else f"keras-path:{owner}"
    known = {"position": (int(key), count), "places": (f"{place}#{key}/{count}",)}
    return _tensor(open_file, data, name, aliases=tuple(aliases), **known)


def address(owner: str, names: dict[str, str]) -> str:
    """Returns where an object stands in a Keras 3 file, independent of what Keras numbers by itself.

    Keras files the members of a list under their class, `layers/dense_1`. A member with a name of its own is found by
    that name instead: `layers/head`.

    Args:
        owner: Path of the object in the file.
        names: The objects' names by their path in the file.
    """
    parts = owner.split("/") if owner else []
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    held = zip(parts, paths, [""] + paths, strict=False)
    return "/".join(
        names[path] if _in_container(parent, names) and path in names and not _numbered(names[path], part) else part
        for part, path, parent in held
    )


def _in_container(parent: str, names: dict[str, str]) -> bool:
    return bool(parent) and parent not in names


def _numbered(name: str, part: str) -> bool:
    """Whether Keras made the name from the class: `dense_7`, filed as `dense_1`."""
    return stem(name) == stem(part)


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _layer_chains(owner: str, names: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """The ways a model may name the layer at `owner`: each object by its own name or by what holds it."""
    parts = owner.split("/") if owner else []
    choices: list[list[str]] = []
    container = ""
    for i, part in enumerate(parts):
        path = "/".join(parts[: i + 1])
        held_as = f"{container}/{_member(path, names)}" if container else part
        if path in names or not names:
            choices.append(_names_of(part, names.get(path, part), container, held_as))
            container = ""
        else:
            container = held_as
    yield from itertools.islice(itertools.product(*choices), 64)


def _member(path: str, names: dict[str, str]) -> str:
    """The index of a list's member, or its name in the file where the list holds several classes."""
    parent, _, part = path.rpartition("/")
    members = {known[len(parent) + 1 :].partition("/")[0] for known in names if known.startswith(f"{parent}/")}
    number = re.search(r"_(\d+)$", part)
    return part if len({stem(member) for member in members}) > 1 else (number[1] if number else "0")


def _names_of(part: str, name: str, container: str, held_as: str) -> list[str]:
    if container == "layers":
        return [name]
    counted = _numbered(name, part) if container else is_automatic(name)
    return list(dict.fromkeys([held_as, name] if counted else [name, held_as]))


# Legacy HDF5: one group for each of the model's own layers, weights by name


def _legacy_tensors(open_file: _Open, root: str) -> tuple[Tensor, ...]:
    with open_file() as file:
        datasets = _datasets(file, root)
        top: Any = file[root]
        groups = [name for name in (*_list_attribute(top, "layer_names"), LEGACY_ROOT) if name in top]
        kept = {name: names for name in groups if (names := _list_attribute(top[name], "weight_names"))}
        layers = [name for name in kept if name != LEGACY_ROOT]
        order = {name: f"{i}/{len(layers)}" for i, name in enumerate(layers)}
        return tuple(
            tensor
            for name, names in kept.items()
            for tensor in _legacy_layer(open_file, name, order.get(name, ""), names, datasets)
        )


def _legacy_layer(
    open_file: _Open, group: str, place: str, kept: list[str], datasets: dict[str, Any]
) -> Iterator[Tensor]:
    names = [_legacy_name(group, name) for name in kept]
    layers = [name.rpartition("/")[0] for name in names]
    for i, (name, layer) in enumerate(zip(names, layers, strict=True)):
        kept_name = kept[i].removesuffix(":0")
        yield _tensor(
            open_file,
            datasets[f"{group}/{kept[i]}"],
            name,
            position=(layers[:i].count(layer), layers.count(layer)),
            aliases=tuple(alias for alias in (kept_name, f"*/{kept_name}") if alias != name),
            places=tuple(
                legacy_place(known, place, f"{i}/{len(kept)}", name) for known in dict.fromkeys([group, stem(group)])
            ),
        )


def legacy_place(layer: str, place: str, weight: str, name: str) -> str:
    """Returns where a legacy file keeps a weight: the layer among those with weights, the weight among its own.

    Args:
        layer: The layer's name, without its number when Keras made it.
        place: `2/7`, the third of seven; empty for the model's own weights.
        weight: `0/4`, the first of four.
        name: The weight's name, of which the last part counts.
    """
    return f"legacy:{layer}:{place}:{weight}|{stem(name.rpartition('/')[2])}"


def _legacy_name(group: str, kept: str) -> str:
    """`bb` + `d1/kernel:0` gives `bb/d1/kernel`; `head` + `model/head/kernel` gives `head/kernel`."""
    parts = kept.removesuffix(":0").split("/")
    if group == LEGACY_ROOT:
        return "/".join(parts)
    return "/".join(parts[parts.index(group) :] if group in parts[:-1] else [group, *parts])


def _list_attribute(group: Any, name: str) -> list[str]:
    """Reads a list that Keras splits over `name0`, `name1`... when it is long."""
    chunks = [group.attrs[name]] if name in group.attrs else []
    for i in itertools.count():
        if f"{name}{i}" not in group.attrs:
            break
        chunks.append(group.attrs[f"{name}{i}"])
    return [item.decode() if isinstance(item, bytes) else str(item) for chunk in chunks for item in chunk]
