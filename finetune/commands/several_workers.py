"""What a run does beside `finetune.commands.run` where it has several workers: each is a process with the same command.

In its order: the workers find each other and compare their versions and recipes, before TensorFlow is loaded
(`join_workers`); each that is not the chief gets a folder of its own, which goes afterwards (`as_worker`); the networks
and the rows are compared before training (`check_same_layout`); behind it the chief alone goes on.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from finetune import __version__
from finetune.distribution.cluster import Cluster
from finetune.distribution.cluster_resolvers import find_cluster as resolve_cluster
from finetune.distribution.facts import check_equal, fingerprint, keys_of, versions
from finetune.distribution.greeting import open_channel
from finetune.errors import FinetuneError
from finetune.recipe.loader import dump_recipe, load_recipe, place_of
from finetune.recipe.schema import Recipe
from finetune.results.run_lock import LOCK_FILE

if TYPE_CHECKING:
    from finetune.build.layout import Layout


def find_cluster(recipe: Recipe) -> Cluster | None:
    """Returns the workers that the environment names, if a run has several.

    Raises:
        FinetuneError: The recipe asks for several, and the environment names none.
    """
    devices = recipe.distribute.devices
    cluster = resolve_cluster() if devices in ("auto", "multi_worker") else None
    if cluster is None and devices == "multi_worker":
        raise FinetuneError(
            f"{place_of(recipe, 'distribute', 'devices')}: `distribute.devices: multi_worker` needs several processes "
            "that know of each other, and neither `TF_CONFIG` nor SLURM or SageMaker names any. Begin them with "
            "`finetune launch`, or set `TF_CONFIG` in each."
        )
    return cluster


def join_workers(
    recipe: Path, overrides: Sequence[str] = (), *, out: Path | None = None, resume: bool = False
) -> Callable[[], object] | None:
    """Waits for the other workers of a run, if there are some, and compares what they are told.

    Args:
        recipe: The recipe.
        overrides: Changes to it.
        out: The run folder.
        resume: Whether the run in it goes on.

    Returns:
        What to call between the import of TensorFlow and its first operation; `None` for a single process.

    Raises:
        FinetuneError: The cluster is wrong, or a worker does not come, or was told something else.
    """
    loaded = load_recipe(recipe, overrides=overrides)
    cluster = find_cluster(loaded)
    if cluster is None:
        return None
    if out is None:
        raise FinetuneError(
            f"All workers of a run are told of the same run folder. {cluster.source} names {cluster.workers} workers. "
            "Choose the folder with `--out`."
        )
    if loaded.train.mixed_precision == "auto":  # as each would choose by its own clock
        raise FinetuneError(
            f"{place_of(loaded, 'train', 'mixed_precision')}: `train.mixed_precision: auto` measures steps on one "
            f"machine, and {cluster.source} names {cluster.workers} workers. Write `bfloat16` or `false`; a run or "
            "`finetune plan` on one of the machines says which is faster."
        )
    channel = open_channel(cluster)
    told = keys_of(loaded.model_dump(by_alias=True)) | {"run folder": out.name, "--resume": resume}
    try:
        check_equal(cluster, channel.exchange(told | versions(__version__), "what it was told"))
    except FinetuneError as error:
        channel.close(str(error))
        raise

    def join() -> None:
        from finetune.distribution.workers import join

        join(channel)

    return join


@contextmanager
def as_worker(out: Path | None, *, resume: bool) -> Iterator[Path | None]:
    """Yields the folder that this process writes a run to: `out`, but for workers that are not the chief.

    Args:
        out: The run folder.
        resume: Whether the run in it goes on; a worker then has a copy of what it reads.
    """
    from finetune.distribution.workers import leaving, workers

    together = workers()
    if together is None:
        yield out
        return
    assert out is not None
    with leaving():
        seen = _seen(out) if resume else []
        files = together.agree(seen, "the files of the run that goes on")
        with TemporaryDirectory(prefix="finetune-worker-") as own:
            folder = out if together.is_chief else Path(own)
            if files and not together.is_chief:
                _copy_run(out, folder, files, together.cluster)
            together.channel.exchange(None, "the copies of the run that goes on")
            yield folder
            together.channel.exchange(None, "the end of the run")


def check_same_layout(layout: "Layout", described: Any) -> None:
    """Checks that all workers have built the same network and read the same rows.

    Args:
        layout: What is trained.
        described: What `data.json` says of the rows.

    Raises:
        FinetuneError: They differ.
    """
    from finetune.checksum import checksum
    from finetune.distribution.workers import workers

    together = workers()
    if together is None:
        return
    weights = "".join(f"{leaf.name} {checksum(leaf.variable)}\n" for leaf in layout.tree.leaves)
    facts = {
        "rows": fingerprint(repr(described)),
        "weights at the start": fingerprint(weights),
        "batch_size": layout.recipe.train.batch_size,
        "resolved recipe": fingerprint(dump_recipe(layout.recipe)),
        "steps": layout.length.steps,
    }
    check_equal(together.cluster, together.channel.exchange(facts, "the network and the rows"))


def common_clock() -> Callable[[], float]:
    """Returns a clock that shows all workers the time of the chief; all of them must look at the same moments."""
    from finetune.distribution.workers import workers

    together = workers()
    return time.monotonic if together is None else lambda: together.agree(time.monotonic(), "the time limit")


def _seen(out: Path) -> list[tuple[str, int]]:
    """Returns the checkpoints of a run and their sizes."""
    files = sorted((out / "checkpoints").rglob("*")) if (out / "checkpoints").is_dir() else []
    return [(str(path.relative_to(out)), path.stat().st_size) for path in files if path.is_file()]


def _copy_run(out: Path, folder: Path, files: Sequence[Sequence[Any]], cluster: Cluster) -> None:
    """Gives a worker the files of a run that it reads: copies of small ones, and links to checkpoints.

    Raises:
        FinetuneError: It does not see the files of the chief.
    """
    if [list(each) for each in _seen(out)] != [list(each) for each in files]:
        raise FinetuneError(
            "A run goes on from checkpoints that all of its workers read. "
            f"{cluster.name(cluster.index, begins=True)} does not see those that the chief sees in `{out}`. Keep the "
            "run folder on a disk that all machines share."
        )
    for path in out.iterdir():
        if path.is_file() and path.name != LOCK_FILE and path.suffix != ".keras":
            shutil.copy2(path, folder / path.name)
    if (out / "data").is_dir():
        shutil.copytree(out / "data", folder / "data")
    for name, _ in files:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink((out / name).resolve(), link)
