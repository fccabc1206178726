"""From the handle of a TensorFlow Hub module to the folder of its SavedModel."""

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from finetune.errors import FinetuneError, did_you_mean, quote, reason
from finetune.models.unpacking import ENDINGS, is_archive, unpack

_REMOTE = ("http", "https", "gs")
_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")


def is_remote(handle: str) -> bool:
    """Whether the handle names something on another machine.

    >>> is_remote("https://tfhub.dev/google/nnlm-en-dim50/2"), is_remote("folder/nnlm")
    (True, False)
    """
    return urlsplit(handle).scheme in _REMOTE


def resolve_handle(handle: str | Path) -> str:
    """Returns the folder of the SavedModel that a handle names; it is fetched or unpacked first if need be.

    Args:
        handle: A local folder, a local `.tar`, `.tar.gz`, `.tgz` or `.zip` file, a `file://` address of either, or an
            address that tensorflow-hub resolves: it downloads the module once, into the folder that the environment
            variable `TFHUB_CACHE_DIR` names (by default a temporary one), and shows its progress if
            `TFHUB_DOWNLOAD_PROGRESS` is set. Archives are unpacked into the same folder.

    Raises:
        FinetuneError: If it is not there, cannot be fetched, or is no SavedModel.
    """
    text = str(handle)
    found = _download(text) if is_remote(text) else str(_local(text))
    return found if is_remote(found) else str(_saved_model_in(Path(found), text))


def _download(handle: str) -> str:
    import tensorflow_hub as hub  # not at the top: a local folder does without it

    try:
        return hub.resolve(handle)
    except Exception as error:  # urllib, tarfile and TensorFlow raise much
        raise FinetuneError(
            f"A handle of TensorFlow Hub is downloaded once. `{handle}` could not be: {_plain(error)}. Check the "
            "address and the network; or fetch it elsewhere and name the local folder or `.tar.gz` file, or point "
            "`TFHUB_CACHE_DIR` at a folder into which tensorflow-hub has downloaded it."
        ) from error


def _plain(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def _local(handle: str) -> Path:
    parts = urlsplit(handle)
    if parts.scheme == "file":
        handle = url2pathname(unquote(parts.path))
    elif len(parts.scheme) > 1 and "://" in handle:
        raise FinetuneError(
            f"A handle is a local folder or archive, or an address. `{handle}` begins with `{parts.scheme}://`. "
            f"Addresses begin with {quote(f'{scheme}://' for scheme in ('file', *_REMOTE))}."
        )
    path = Path(handle).expanduser()
    if not path.exists():
        raise FinetuneError(f"A handle names a SavedModel that exists. `{handle}` does not.{_nearest(path)}")
    if path.is_dir():
        return path
    if not is_archive(path):
        raise FinetuneError(
            f"A handle names the folder of a SavedModel, or an archive of it: {quote(ENDINGS)}. `{handle}` is another "
            f"kind of file.{_advice(path)}"
        )
    return unpack(path, cache_folder() / "unpacked")


def cache_folder() -> Path:
    """Returns the folder in which tensorflow-hub keeps what it has downloaded."""
    return Path(os.environ.get("TFHUB_CACHE_DIR") or Path(tempfile.gettempdir()) / "tfhub_modules")


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder `{path.parent}`."
    names = sorted(p.name for p in path.parent.iterdir() if p.is_dir() or is_archive(p))
    beside = f" Beside it are {quote(names)}." if names else ""
    return did_you_mean(path.name, names) or beside


def _advice(path: Path) -> str:
    if path.name in _SAVED_MODEL:
        return f" Name its folder, `{path.parent}`."
    if path.suffix in (".keras", ".h5"):
        return " A file that Keras saved is a `keras_file` in a recipe, `keras.models.load_model` in Python."
    return ""


def _saved_model_in(folder: Path, handle: str) -> Path:
    """Returns the one folder at or below `folder` that holds a SavedModel; archives often have one around it."""
    if _is_saved_model(folder):
        return folder
    found = sorted(path.parent for name in _SAVED_MODEL for path in folder.rglob(name))
    if len(found) == 1:
        return found[0]
    holds = (
        f"It holds several: {quote(path.relative_to(folder) for path in found)}. Name one" if found else _holds(folder)
    )
    raise FinetuneError(
        f"A SavedModel is a folder with `saved_model.pb` in it. `{handle}` has none at its top. {holds}."
    )


def _is_saved_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED_MODEL)


def _holds(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f"It holds {quote(names) or 'nothing'}. Save it with `tf.saved_model.save` or `finetune.export_hub`"
