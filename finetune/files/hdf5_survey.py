"""Lists what an HDF5 file asks of its reader: objects in other files, and memory. Also runs as a program of its own.

`finetune.files.hdf5_check` runs this file in a small process, which has h5py and nothing else of this package: the HDF5
library crashes on some damaged files. What the process writes is the line `ready`, then the survey in JSON, or `error`
with what h5py said.
"""

import json
import math
import os
import sys
import zipfile
from contextlib import suppress
from io import BytesIO
from typing import Any

READY = "ready"
# For the whole survey, of a small file and of a large one. Values are not read, and 20,000 objects take a second: a
# sound file of 1 MB takes well below one.
CPU_SECONDS = (4, 20)
BYTES_PER_SECOND = 2**20


def survey(file: Any) -> dict[str, Any]:
    """Walks over every link and object of an open HDF5 file, without reading values.

    Args:
        file: An `h5py.File`.

    Returns:
        `elsewhere`, the paths of what is not in the file itself, each with what it is: links to other files, datasets
        whose values are in other files, and virtual datasets, which are made of others. `bytes`, the size of all values
        in memory. `objects`, how many groups and datasets there are.
    """
    import h5py

    library: Any = h5py  # its compiled modules have no types
    elsewhere, held, seen, groups = [], 0, set(), [("", file["/"])]
    while groups:  # a loop and no recursion: groups may be nested deeper than Python's limit
        path, group = groups.pop()
        held += _attribute_bytes(group)
        for name in group:
            kind = group.id.links.get_info(name.encode() if isinstance(name, str) else name).type
            if kind == library.h5l.TYPE_SOFT:
                continue  # leads to an object of the same file, which is seen under its own path
            if kind != library.h5l.TYPE_HARD:
                elsewhere.append(f"{path}/{name} (a link to another file)")
                continue
            item = group[name]
            address = library.h5o.get_info(item.id).addr
            if address in seen:  # several links may lead to an object, and back to a group above
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                groups.append((f"{path}/{name}", item))
            elif isinstance(item, h5py.Dataset):
                held += _attribute_bytes(item) + _dataset_bytes(item)
                if item.external:
                    elsewhere.append(f"{path}/{name} (values in another file)")
                elif item.is_virtual:
                    elsewhere.append(f"{path}/{name} (a virtual dataset)")
    return {"elsewhere": elsewhere, "bytes": held, "objects": len(seen)}


def _dataset_bytes(dataset: Any) -> int:
    """Returns the memory that reading a dataset takes: that of its values, or of a chunk where that is more."""
    if dataset.shape is None:
        return 0
    if dataset.chunks is not None and math.prod(dataset.shape):
        dataset.id.get_num_chunks()  # reads the index of the chunks, which may be damaged, too
    size = max(math.prod(dataset.shape), math.prod(dataset.chunks or (0,)))
    return size * dataset.id.get_type().get_size()


def _attribute_bytes(item: Any) -> int:
    attributes = [item.attrs.get_id(name) for name in item.attrs]
    return sum(each.get_space().get_simple_extent_npoints() * each.get_type().get_size() for each in attributes)


def cpu_seconds(size: int) -> int:
    """Returns how many seconds the survey of a file of `size` bytes may compute."""
    return min(CPU_SECONDS[0] + size // BYTES_PER_SECOND, CPU_SECONDS[1])


def _size(path: str, member: str) -> int:
    if not member:
        return os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(member).file_size


def _main(folders: str, path: str, member: str = "") -> None:
    """Surveys a file, or the member of a zip archive; `folders` are where h5py and NumPy are, separated by newlines."""
    sys.path += folders.split("\n")
    import h5py

    try:
        import resource

        # A library that runs in circles is stopped by the seconds that it computes: a slow disk takes none.
        seconds = cpu_seconds(_size(path, member))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except ImportError:  # Windows
        pass
    print(READY, flush=True)
    source: Any = path
    if member:
        with zipfile.ZipFile(path) as archive:
            source = BytesIO(archive.read(member))
    try:
        with h5py.File(source, "r") as file:
            _read_attributes(file)
            with suppress(Exception):
                file.visititems(lambda path, item: _read_attributes(item))
            print(json.dumps(survey(file)), flush=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # what h5py raises over damage
        print(json.dumps({"error": str(error)}), flush=True)


def _read_attributes(item: Any) -> None:
    """Asks the library for what the readers will ask it for; where it raises for one attribute, the others count."""
    names: list[str] = []
    with suppress(Exception):
        names.extend(item.attrs)
    for name in names:
        with suppress(Exception):
            item.attrs[name]


if __name__ == "__main__":
    _main(*sys.argv[1:])
