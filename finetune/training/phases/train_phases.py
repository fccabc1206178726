"""`train_phases`: a compiled model is trained phase by phase with `model.fit`; `loop.py` is what happens in a phase."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from finetune.distribution.strategy import adopted
from finetune.errors import GroupError
from finetune.groups.selectors import LayerGroup
from finetune.kernels.native_kernels import model_with_kernels
from finetune.sequences import one_or_more
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.fast.fast_loop import FastLoop
from finetune.training.freezing import freeze
from finetune.training.frozen_proof import FrozenRecords
from finetune.training.phases.auto_rgn import AUTO_RGN_BATCHES
from finetune.training.phases.backup import with_phase_backups
from finetune.training.phases.loop import grouped_optimizer, run_phases
from finetune.training.phases.named_strategies import phases_of_strategy, steps_in_epoch
from finetune.training.phases.phase import Phase, check_phases
from finetune.training.phases.phase_data import PhaseData, check_fit_arguments
from finetune.training.phases.records import PhaseRecord, PhaseStart
from finetune.training.phases.watched_metric import validates_after


def train_phases(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Phase | Sequence[Phase] | str | Mapping[str, Any],
    x: Any,
    y: Any = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] | None = (),
    kernels: str = "exact",
    every_group: bool = True,
    on_phase: Callable[[PhaseStart], None] = lambda start: None,
    **fit: Any,
) -> list[PhaseRecord]:
    """Trains a compiled model phase by phase, and proves that what a phase froze is bit-identical after it.

    Afterwards the groups that are not frozen are trainable again.

    Args:
        model: Compiled with a `GroupedOptimizer`; it does not matter what was frozen before.
        groups: All of its layer groups.
        phases: One or more; every group that is not frozen for good is trained in one of them, unless `every_group` is
            `False`. Or a strategy: its name
            such as `"gradual_unfreezing"`, or a mapping such as `{"strategy": "lp_ft", "probe_epochs": 2}`, with the
            names and settings that `phases` has in a recipe.
        x: Inputs as for `model.fit`: arrays, structures of arrays, a `tf.data.Dataset`, a `PyDataset`, or a generator,
            which is read on from phase to phase.
        y: Targets of arrays.
        epochs: Epochs of the whole run, for a strategy; in a list each phase has its own length.
        batch_size: As for `model.fit`.
        callbacks: A Keras callback or several; the epochs are numbered through all phases. A callback that stops the
            training ends a phase. With a `finetune.Checkpoint` or Keras' `BackupAndRestore`, a
            training that was interrupted goes on where its file is.
        kernels: `exact` has the bits of Keras; `native` computes layers that TensorFlow has a single kernel for by that
            kernel, in less time, where it trains and where it validates.
        every_group: Whether it is an error that no phase of a list trains a group. A strategy says itself what it
            trains.
        on_phase: Called with every phase that begins; `print` shows what is trained.
        fit: More arguments of `model.fit`, such as `validation_data` or `class_weight`.

    Returns:
        One record for each phase; none for a phase that was over before a backup which was restored.

    Raises:
        GroupError: The phases do not fit the groups, the optimizer is not a `GroupedOptimizer`, or an argument is not
            one of `fit` or is decided by the phases.
        TrainingError: A frozen tensor changed, other code changed what is trainable, a backup is of another run, or
            `kernels` is neither of the two.

    Examples:
        >>> import numpy as np
        >>> from finetune import GroupedOptimizer, Selector, resolve_groups
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="body"), keras.layers.Dense(2)])
        >>> selectors = [Selector("body", prefixes=("body",)), Selector("head", rest=True)]
        >>> body, head = groups = resolve_groups(model, selectors)
        >>> adam = keras.optimizers.Adam
        >>> model.compile(GroupedOptimizer({"body": (adam(1e-4), body), "head": (adam(1e-3), head)}), loss="mse")
        >>> phases = [Phase(["head"], epochs=1), Phase("all", epochs=2, rates={"head": 5e-4})]
        >>> records = train_phases(model, groups, phases, np.ones((8, 4)), np.ones((8, 2)), on_phase=print)
        phase 1/2: train head (18 of 58 parameters), 1 epoch
        phase 2/2: train body, head (58 of 58 parameters), 2 epochs
        >>> records[0].frozen_tensors, records[0].frozen_unchanged
        (2, True)
    """
    check_fit_arguments(fit)
    # Phases announce themselves through `on_phase`; Keras' own lines appear on request.
    settings = {"verbose": 0, **fit, **({} if batch_size is None else {"batch_size": batch_size})}
    steps = steps_in_epoch(x, batch_size or 32, fit)
    is_strategy = isinstance(phases, str | Mapping)
    if isinstance(phases, str | Mapping):
        rates = grouped_optimizer(model).initial_rates
        phases = phases_of_strategy(phases, groups, rates, epochs=epochs, steps_per_epoch=steps)
    elif epochs is not None:
        raise GroupError(
            f"In a list of phases, each phase has its own length. Received `epochs={epochs}` as well. Remove "
            "`epochs`, or pass a strategy such as `gradual_unfreezing` in place of the list."
        )
    phases = one_or_more(phases)
    check_phases(groups, phases, every=every_group and not is_strategy)
    data = PhaseData(x, y, settings, AUTO_RGN_BATCHES, model)
    callbacks, backups = with_phase_backups(callbacks)
    checkpoint = next((callback for callback in callbacks if isinstance(callback, Checkpoint)), None)
    callbacks = [callback for callback in callbacks if callback is not checkpoint]

    def fit_phase(start: PhaseStart, **more: Any) -> None:
        phase = start.phase
        # A generator is read on from phase to phase, so it must be known how many batches a phase takes.
        planned = phase.steps or (steps and (phase.epochs or 0) * steps)
        inputs = data.inputs(steps=planned or None, looks_ahead=phase.auto_rgn is not None)
        of_phase = [FastLoop(), *callbacks, *more["callbacks"]]
        if checkpoint:  # last: what it writes is the state after all others
            checkpoint.in_phases, checkpoint.callbacks = True, of_phase
        model.fit(inputs, y, **{**settings, **more, "callbacks": [*of_phase, *([checkpoint] if checkpoint else [])]})

    records, proof = [], FrozenRecords()
    try:
        with adopted(model), model_with_kernels(model, kernels):
            for record in run_phases(
                model,
                groups,
                phases,
                fit_phase,
                gradient_batches=lambda: data,
                validates=lambda epoch: validates_after(epoch, settings.get("validation_freq", 1)),
                proof=proof,
                batches_per_epoch=steps,
                restore=lambda: max([0, *[backup.restore(model) for backup in backups]]),
                checkpoint=checkpoint,
                on_phase=on_phase,
            ):
                proof.check()
                records.append(record)
        for backup in backups:
            backup.finish()
    finally:
        # Also after an error: the model is left as `groups` says, and a later `fit` compiles its step anew.
        freeze(model, groups)
        model.make_train_function(force=True)
    return records
