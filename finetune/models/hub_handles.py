"""From the handle of a TensorFlow Hub module to the local folder of its SavedModel."""

import getpass
import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from finetune.errors import FinetuneError, did_you_mean, quote, reason
from finetune.files.private_folder import private_folder
from finetune.machine_failures import raise_machine_failure
from finetune.models.unpacking import ENDINGS, is_archive, unpack

_REMOTE = ("http", "https", "gs")
_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")


def is_remote(handle: str) -> bool:
    """Returns whether the handle is the address of a module on another machine.

    >>> is_remote("https://tfhub.dev/google/nnlm-en-dim50/2"), is_remote("folder/nnlm")
    (True, False)
    """
    return urlsplit(handle).scheme in _REMOTE


def resolve_handle(handle: str | Path) -> str:
    """Returns the folder of the SavedModel that a handle names, and downloads or unpacks it first where needed.

    Args:
        handle: A local folder, a local `.tar`, `.tar.gz`, `.tgz` or `.zip` file, a `file://` address of either, or an
            address that tensorflow-hub resolves: it downloads the module once, into the folder that the environment
            variable `TFHUB_CACHE_DIR` names (by default a temporary folder of the user's own), and shows its progress
            if `TFHUB_DOWNLOAD_PROGRESS` is set. Archives are unpacked into the same folder.

    Raises:
        FinetuneError: If it does not exist, cannot be downloaded, or is not a SavedModel.
    """
    text = str(handle)
    resolved = _download(text) if is_remote(text) else str(_local(text))
    # tensorflow-hub returns a `gs://` address as it is: TensorFlow reads it without a copy.
    return resolved if is_remote(resolved) else str(_saved_model_in(Path(resolved), text))


def _download(handle: str) -> str:
    import tensorflow_hub as hub  # here, since a local folder does not need it

    is_set = "TFHUB_CACHE_DIR" in os.environ
    # tensorflow-hub by itself takes `/tmp/tfhub_modules`, whoever made it.
    os.environ["TFHUB_CACHE_DIR"] = str(cache_folder())
    try:
        return hub.resolve(handle)
    except Exception as error:  # urllib, tarfile and TensorFlow raise classes without a common base
        raise_machine_failure(error, f"Downloading `{handle}`")
        raise FinetuneError(
            f"A TensorFlow Hub module is downloaded once. `{handle}` cannot be downloaded: {type(error).__name__}: "
            f"{reason(error)}. Check the address and the network; or download it elsewhere and give the local folder "
            "or `.tar.gz` file, or set `TFHUB_CACHE_DIR` to a folder into which tensorflow-hub has downloaded it."
        ) from error
    finally:
        if not is_set:
            del os.environ["TFHUB_CACHE_DIR"]


def _local(handle: str) -> Path:
    """Returns the local folder of a handle that is not remote; unpacks an archive."""
    parts = urlsplit(handle)
    if parts.scheme == "file":
        handle = url2pathname(unquote(parts.path))
    elif len(parts.scheme) > 1 and "://" in handle:  # a single letter is a drive of Windows
        raise FinetuneError(
            f"A handle is a local folder or archive, or an address. `{handle}` begins with `{parts.scheme}://`. "
            f"Addresses begin with {quote(f'{scheme}://' for scheme in ('file', *_REMOTE))}."
        )
    path = Path(handle).expanduser()
    if not path.exists():
        raise FinetuneError(f"A handle names a SavedModel that exists. `{handle}` does not exist.{_nearest(path)}")
    if path.is_dir():
        return path
    if not is_archive(path):
        raise FinetuneError(
            f"A handle names the folder of a SavedModel, or an archive of it: {quote(ENDINGS)}. `{handle}` is another "
            f"kind of file.{_advice(path)}"
        )
    return unpack(path, cache_folder() / "unpacked")


def cache_folder() -> Path:
    """Returns the folder into which modules are downloaded: by default a temporary one of the user's own.

    Raises:
        FinetuneError: The default folder exists and is somebody else's.
    """
    chosen = os.environ.get("TFHUB_CACHE_DIR")
    if chosen:  # the user may share it with people whom he trusts
        return Path(chosen)
    user = os.geteuid() if hasattr(os, "geteuid") else getpass.getuser()
    return private_folder(Path(tempfile.gettempdir()) / f"finetune-{user}")


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder `{path.parent}`."
    names = sorted(p.name for p in path.parent.iterdir() if p.is_dir() or is_archive(p))
    return did_you_mean(path.name, names) or (f" In the same folder: {quote(names)}." if names else "")


def _advice(path: Path) -> str:
    if path.name in _SAVED_MODEL:
        return f" Give its folder, `{path.parent}`."
    if path.suffix in (".keras", ".h5"):
        return " For a file that Keras saved use `keras_file` in a recipe, `keras.models.load_model` in Python."
    return ""


def _saved_model_in(folder: Path, handle: str) -> Path:
    """Returns the folder at or below `folder` that is a SavedModel: archives often have a folder around it."""
    if any((folder / name).is_file() for name in _SAVED_MODEL):
        return folder
    below = sorted(path.parent for name in _SAVED_MODEL for path in folder.rglob(name))
    if len(below) == 1:
        return below[0]
    if below:
        contents = f"It has several below it: {quote(path.relative_to(folder) for path in below)}. Give one of them"
    else:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        contents = (
            f"It contains {quote(names) or 'nothing'}. Save the model with `tf.saved_model.save` or "
            "`finetune.export_hub`"
        )
    raise FinetuneError(f"A SavedModel is a folder that contains `saved_model.pb`. `{handle}` does not. {contents}.")
