"""`finetune env`: versions, machine, devices and settings, for a bug report and for `environment.json` of a run.

Nothing in it names a person or a place: no user, no host, no path, and of the environment only variables that change
what TensorFlow and Keras compute.
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from finetune import __version__

_PACKAGES = (
    *("tensorflow", "keras", "tensorflow-hub", "numpy", "h5py", "ml-dtypes", "safetensors", "pydantic", "typer"),
    *("rich", "pillow", "matplotlib", "tensorboard", "keras-hub", "pyarrow", "tokenizers", "tensorflow-datasets"),
    *("wandb", "mlflow-skinny"),
)
_PREFIXES = ("TF_", "KERAS_", "XLA_", "OMP_", "MKL_", "CUDA_VISIBLE", "CUDA_DEVICE", "NVIDIA_TF32", "ONEDNN_", "DNNL_")
# The variables with these prefixes that hold addresses, accounts or paths.
_PRIVATE = ("TF_CONFIG", "KERAS_HOME", "XLA_FLAGS", "TF_XLA_FLAGS", "TF_GCS", "TF_AWS", "KERAS_AUTH", "CREDENTIAL")
_PRIVATE += ("TOKEN", "PASSWORD", "SECRET", "PATH", "DIR", "KEY")


def environment() -> dict[str, Any]:
    """Returns versions, machine, devices and settings as plain data. Starts TensorFlow."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "devices": _devices(),
        "settings": _settings(),
    }


def environment_text(found: dict[str, Any]) -> str:
    """Returns an environment as lines to paste into a bug report.

    Args:
        found: What `environment` has returned.
    """
    lines = []
    for title, values in found.items():
        lines.append(title)
        width = max(map(len, values), default=0)
        lines += [f"  {name.ljust(width)}  {value}" for name, value in values.items()]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    found = {"finetune": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra that is not installed, or TensorFlow under another name
            continue
    if "tensorflow" not in found and (module := sys.modules.get("tensorflow")):
        found["tensorflow"] = str(module.__version__)
    return found


def _machine() -> dict[str, str]:
    pages, size = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{pages * size / 1e9:.1f} GB",
    }


def _devices() -> dict[str, str]:
    import tensorflow as tf

    found = {}
    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        name = details.get("device_name", "") if isinstance(details, dict) else ""
        found[device.name.removeprefix("/physical_device:")] = name or device.device_type
    return found


def _settings() -> dict[str, str]:
    import keras
    import tensorflow as tf

    settings = {
        "keras.backend": keras.backend.backend(),
        "keras.floatx": keras.backend.floatx(),
        "keras.dtype_policy": keras.config.dtype_policy().name,
        "keras.image_data_format": keras.backend.image_data_format(),
        "intra-op threads": str(tf.config.threading.get_intra_op_parallelism_threads() or "automatic"),
        "inter-op threads": str(tf.config.threading.get_inter_op_parallelism_threads() or "automatic"),
        "functions run eagerly": str(tf.config.functions_run_eagerly()),
        "soft device placement": str(tf.config.get_soft_device_placement()),
    }
    named = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)}
    return settings | {
        name: "set" if any(part in name for part in _PRIVATE) else value for name, value in named.items()
    }
