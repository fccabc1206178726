"""The workers of a run, found where the environment names them: `TF_CONFIG`, SLURM or SageMaker.

TensorFlow ships a resolver for each, and imports take its seconds: for `TF_CONFIG`, the usual case, it is not loaded.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from finetune.distribution.cluster import VARIABLE, Cluster, cluster_of, read_tf_config
from finetune.errors import FinetuneError, reason

NAMES = {"tf_config": VARIABLE, "slurm": "SLURM", "sagemaker": "SageMaker"}


def find_cluster(named: str = "auto") -> Cluster | None:
    """Returns the workers that the environment names; `None` for a process alone.

    Args:
        named: `tf_config`, `slurm`, `sagemaker`, or `auto` for the first of them that names several.

    Raises:
        FinetuneError: What the environment says of them cannot be taken, or it does not say what is asked for.
    """
    source = in_environment(os.environ) if named == "auto" else named
    if source == "tf_config":
        if named != "auto" and not os.environ.get(VARIABLE):
            raise _missing(named, f"`{VARIABLE}` is not set")
        return read_tf_config()
    if source is None:
        return None
    try:
        resolver = _resolver(source)
        spec = resolver.cluster_spec().as_dict()
        task_type, task_id = resolver.get_task_info() if source == "slurm" else (resolver.task_type, resolver.task_id)
    except (AssertionError, ValueError, RuntimeError, KeyError, OSError) as error:
        raise _missing(source, reason(error)) from error
    return cluster_of(spec, task_type, task_id, NAMES[source])


def in_environment(environment: Mapping[str, str]) -> str | None:
    """Returns which of them names workers in the environment; `None` where none does.

    Args:
        environment: The environment variables.
    """
    if environment.get(VARIABLE, "").strip():
        return "tf_config"
    try:
        if len(json.loads(environment.get("SM_HOSTS") or "[]")) > 1:
            return "sagemaker"
    except (ValueError, TypeError):
        return "sagemaker"  # whose reader says what is wrong with it
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    return "slurm" if tasks.isdecimal() and int(tasks) > 1 else None


def _resolver(source: str) -> Any:
    import tensorflow as tf

    from finetune import keras_private

    if source == "sagemaker":
        return keras_private.sagemaker_resolver()
    # It would ask `nvidia-smi` for GPUs, which need not be there; each worker chooses its own. Any number is enough.
    options = {"gpus_per_node": int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)), "gpus_per_task": 1}
    return tf.distribute.cluster_resolver.SlurmClusterResolver(**options, auto_set_gpu=False)


def _missing(source: str, why: str) -> FinetuneError:
    return FinetuneError(
        f"{NAMES[source]} names the workers of a run to each of its processes. Here it does not: {why}. Start the "
        "processes with it (`srun finetune run ...`), or set `TF_CONFIG` in each."
    )
