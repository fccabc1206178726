"""What is kept of a training that breaks off: the weights of its finished steps, and the sentence that says where."""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune.distribution.workers import lost_worker
from finetune.errors import FinetuneError, TrainingError, reason
from finetune.interruption import Stopped
from finetune.machine_failures import failure_text
from finetune.training.callbacks import LastWeights
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.finite_weights import FiniteWeights
from finetune.training.non_finite_gradients import NonFiniteGradients

SEE_WHERE = "The option `--debug` shows where."


@contextmanager
def finished_steps_kept(
    weights: LastWeights,
    checkpoint: Checkpoint | None,
    non_finite: NonFiniteGradients | None,
    finite_weights: FiniteWeights,
) -> Iterator[None]:
    """Saves the weights of the finished steps where training breaks off, and says so in the error.

    Args:
        weights: Saves the weights.
        checkpoint: Writes the whole position, too, where a signal asks the process to end.
        non_finite: Knows the step at which it has stopped the training.
        finite_weights: Knows whether a weight is no finite number, so that only the weights of an epoch before count.

    Raises:
        Stopped: A signal asks the process to end.
        TrainingError: For any error that is not a `FinetuneError` itself.
    """
    try:
        yield
    except Stopped as stop:
        stop.kept = weights.keep()
        if checkpoint and checkpoint.save():
            stop.kept += f" `finetune resume {weights.path.parents[1]}` goes on from there."
        raise
    except FinetuneError as error:
        # An error of training itself comes to all workers, and some have ended before this one looks.
        if (lost := lost_worker(seconds=0)) and lost in str(error):
            raise TrainingError(f"{error} {_kept_after_loss(weights, checkpoint)}") from error
        if non_finite and non_finite.stopped_at:
            # Neither a later step of the call was made, nor was the call counted yet.
            weights.count(non_finite.stopped_at.step - 1)
        kept = weights.keep(newest=not finite_weights.failed)
        raise type(error)(f"{error} {kept}") from error
    except Exception as error:
        if lost := lost_worker():
            raise TrainingError(f"{lost} {_kept_after_loss(weights, checkpoint)}") from error
        what = failure_text(error) or f"{type(error).__name__}: {reason(error)}."
        raise TrainingError(
            f"Training stopped with an error. {what} {weights.keep()} {SEE_WHERE} What was written so far is "
            f"in `{weights.path.parents[1]}`."
        ) from error
    finally:
        if checkpoint:
            checkpoint.wait()  # before the folder is no longer this process's


def _kept_after_loss(weights: LastWeights, checkpoint: Checkpoint | None) -> str:
    """Returns what is kept where a worker is gone, and how to go on: a step that it left may be made in part."""
    if checkpoint is None or not checkpoint.writes:
        return "Begin all workers anew with `--resume`."
    kept = weights.keep(newest=False)
    if checkpoint.path is None:
        return f"{kept} Begin the run anew: there is no checkpoint yet."
    return f"{kept} Begin all workers anew with `--resume`, which goes on from `{checkpoint.path}`."
