"""`FineTuner`: fine-tuning in three lines of Python, of which each step can be used alone.

It holds a model, its data and its layer groups, and does nothing itself: `resolve_groups` makes the groups,
`GroupedOptimizer` updates them, `lr_range_test` measures rates, `phases_of_strategy` writes strategies out, `make_plan`
shows what will happen, and `train_phases` trains and proves what stayed frozen.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console

from finetune import keras_private
from finetune.errors import GroupError, TrainingError, counted, did_you_mean, quote
from finetune.groups.layer_tree import layer_tree
from finetune.groups.rate_spacing import check_rate, rates_by_group
from finetune.planning.joined_optimizer import join_optimizers
from finetune.planning.plan import Plan, advice_on_statistics, make_plan
from finetune.training.callbacks import LearningRateLogger, ProgressLine, progress_bar
from finetune.training.fit_result import EpochRows, FitResult
from finetune.training.fitting_loss import fitting_loss
from finetune.training.freezing import freeze
from finetune.training.group_settings import first_rates, optimizer_template, scheduled_rate, settings_of_group
from finetune.training.lr_range.api import RangeTest, lr_range_test
from finetune.training.phases.named_strategies import phases_of_strategy, steps_in_epoch
from finetune.training.phases.phase import ALL, Phase, check_phases
from finetune.training.phases.preview import with_phases
from finetune.training.phases.records import PhaseStart
from finetune.training.phases.train_phases import train_phases
from finetune.training.saving import save_model
from finetune.training.searched_rates import StepCount, search_sentence
from finetune.training.snapshot import no_trace
from finetune.training.tuner_arguments import check_and_build, check_arguments, groups_of, missing_attribute
from finetune.training.tuner_data import tuner_data
from finetune.training.tuner_search import SEARCH, TunerSearch, check_searchable, is_search

AUTO = "auto"
_REPEATS = 5  # sweeps where a single one gives no suggestion


class FineTuner:
    """A model, its data and its layer groups, ready to be fine-tuned.

    The model is compiled with a `GroupedOptimizer` at once; a model that was compiled before keeps its loss, its
    metrics and its kind of optimizer, unless others are passed. Freeze nothing by hand: what is frozen now stays so.

    Args:
        model: A Keras model with its pretrained weights.
        data: The training rows: `(x, y)`, or `x` with `y` beside it; a `tf.data.Dataset` of batches, such as
            `keras.utils.image_dataset_from_directory` returns, or the pair that it returns with `subset="both"`; a
            `PyDataset` or generator; or `finetune.Examples`.
        y: Targets, where `data` are inputs alone.
        groups: `block` or `layer`, which make a group of each block or layer; or a list of `finetune.Selector`s or
            layer groups.
        by: The same as `groups`, as `resolve_groups` calls it.
        optimizer: Keras' name of an optimizer, or a new one, of which every group gets a copy. By default that of a
            compiled model, else AdamW.
        learning_rate: A number: the rate of the last group. A slice as in fastai, rates by group, or a list of them.
            By default that of an optimizer that was passed, else 1e-3.
        decay: With a number: the ratio of a group's rate to that of the group before it, >= 1; 2.6 in ULMFiT. By
            default all groups have the same rate.
        layer_decay: The same as timm says it, in (0, 1].
        loss: As for `model.compile`; by default that of a compiled model, or else chosen by the targets.
        metrics: Likewise.
        validation_data: Rows to validate on after every epoch, as for `fit`.
        test_data: Rows that `evaluate` takes by default.
        batch_size: Rows in a batch of arrays and `Examples`, >= 1.
        seed: Seed of the order of `Examples` that are read when they are needed.
        verbose: Whether phases, epochs and suggestions are printed.

    Attributes:
        model: The model.
        groups: Its layer groups, input to output.
        data: What it trains, validates and tests on.
        learning_rates: Rate of each group that is trained, by its name. A rate that is passed to a method holds for
            that call alone; a rate that is written here holds from then on.

    Raises:
        FinetuneError: The data, groups or rates are in none of these forms, or no loss can be chosen.

    Examples:
        >>> import numpy as np
        >>> from finetune import FineTuner
        >>> layers = [keras.layers.Dense(8, name="body"), keras.layers.Dense(3, activation="softmax", name="head")]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> tuner = FineTuner(model, np.ones((8, 4)), np.arange(8) % 3, groups="layer", verbose=False)
        >>> tuner.fit(strategy="gradual_unfreezing", epochs=3, learning_rate=1e-2).records[0].train
        ('head',)
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        y: Any = None,
        *,
        groups: str | Iterable[Any] | None = None,
        by: str | None = None,
        optimizer: str | keras.optimizers.Optimizer | None = None,
        learning_rate: Any = None,
        decay: float | None = None,
        layer_decay: float | None = None,
        loss: Any = None,
        metrics: Any = None,
        validation_data: Any = None,
        test_data: Any = None,
        batch_size: int = 32,
        seed: int = 0,
        verbose: bool = True,
    ):
        self.model, self.verbose, self._epochs_trained = model, verbose, 0
        more = {"validation_data": validation_data, "test_data": test_data, "batch_size": batch_size, "seed": seed}
        self.data = tuner_data(data, y, **more)
        check_and_build(model, self.data.x if not self.data.is_split else self.data.x.first(1)[0])
        self.groups = groups_of(model, groups, by)
        compiled = keras_private.compile_arguments(model) if model.compiled else {}
        template, arguments = optimizer_template(optimizer, model.optimizer if model.compiled else None)
        names = [group.name for group in self.groups if not group.frozen]
        self.learning_rates = first_rates(names, learning_rate, template, decay, layer_decay)
        self._settings = {name: settings_of_group(template, rate) for name, rate in self.learning_rates.items()}
        console = self._console()
        if loss is None and not compiled.get("loss"):
            chosen = fitting_loss(model, *self._targets(), self.data.class_names)
            loss, metrics = chosen.loss, chosen.metrics if metrics is None else metrics
            console.print(chosen.reason, highlight=False, markup=False)
        compiled |= {"loss": loss, "metrics": metrics or []} if loss is not None else {}
        compiled |= {"metrics": metrics} if metrics is not None else {}
        compiled["optimizer"] = join_optimizers(self.groups, self._settings, **arguments)
        freeze(model, self.groups)
        # XLA only where it was asked for: with Keras' `auto` every phase would be compiled by it, for minutes.
        compiled["jit_compile"] = compiled.get("jit_compile") is True
        model.compile(**compiled)

    def __getattr__(self, name: str) -> Any:  # called for what it lacks alone
        raise AttributeError(missing_attribute(name, dir(self)), name=name, obj=self)

    def __repr__(self) -> str:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self.learning_rates.items())
        return f"FineTuner({self.model.name}, {counted(len(self.groups), 'group')}, learning rates: {rates})"

    # -- The steps --------------------------------------------------------------------------------------------------

    def lr_range(self, **settings: Any) -> RangeTest:
        """Suggests learning rates by an LR range test, and leaves no trace in the model.

        Args:
            settings: Those of `finetune.lr_range_test`, such as `group="head"`, `each=True` or `repeats=5`.

        Returns:
            The result: `.plot()` draws it, `.suggestion` is the rate of the last group.
        """
        console, data = self._console(), self.data
        x = data.batches(self._epochs_trained) if data.is_split else data.x
        arrays = (
            {} if data.is_split or data.y is None else {"sample_weight": data.weights, "batch_size": data.batch_size}
        )
        with progress_bar(console, "LR range test") as on_step:
            base = {"base_rates": self.learning_rates, "on_step": on_step}
            result = lr_range_test(self.model, x, data.y, **{**arrays, **base, **settings})
        console.print(str(result), highlight=False, markup=False)
        return result

    def search_rates(self, epochs: int | None = None, learning_rate: Any = None, **settings: Any) -> dict[str, float]:
        """Trains as `fit` would, at a third of the rates, at the rates and at three times the rates; leaves no trace.

        Callbacks are left to the training itself.

        Args:
            epochs: As for `fit`.
            learning_rate: The rates in the middle, as for `fit`.
            settings: `strategy`, `train`, `schedule`, and what else `fit` takes.

        Returns:
            The rates whose loss on the validation rows is lowest at the end, in the form that `fit` takes.

        Raises:
            FinetuneError: There are no validation rows, the strategy sets all rates, or at none the loss is finite.
        """
        fit = {name: value for name, value in settings.items() if name not in ("strategy", "train", "schedule")}
        steps, began = self._steps(fit), self._epochs_trained
        validation = fit.get("validation_data", self.data.validation)
        check_searchable(self.data.x, validation, fit)
        self.model.optimizer.build(self.model.trainable_variables)  # the slots are a part of what is restored

        def loss_of(phases: tuple[Phase, ...], on_step: Callable[[int], None]) -> float:
            counted = StepCount(on_step, steps or 0)
            with no_trace(self.model):
                try:
                    history = self._train(phases, {**fit, "verbose": 0, "callbacks": counted}).history
                finally:
                    self._epochs_trained = began
                if validation is None:  # `validation_split`
                    return history["val_loss"][-1]
                return self.evaluate(validation, steps=fit.get("validation_steps"))["loss"]

        phases_at = lambda rates: self.phases(epochs, rates, **settings)  # noqa: E731
        return TunerSearch(phases_at, loss_of, steps, self._console(fit))(self._rates(learning_rate))

    def plan(self, epochs: int | None = None, learning_rate: Any = None, **settings: Any) -> Plan:
        """Says what `fit` with the same arguments would do to every group; `print` shows it, nothing is trained.

        Args:
            epochs: As for `fit`.
            learning_rate: As for `fit`; `auto` measures, and of `search` the rates in the middle are shown.
            settings: `strategy`, `train`, `schedule`, and what else `fit` takes.
        """
        searches = is_search(learning_rate)
        rates = self._rates(None if searches else learning_rate)
        phases = self.phases(epochs, rates, **settings)
        steps = self._steps(settings)
        if steps is None:
            raise GroupError(
                "A plan counts steps, and how many batches these data have is unknown before they are read. Pass a "
                "dataset with a length: `dataset.apply(tf.data.experimental.assert_cardinality(100))`."
            )
        lengths = [
            (phase.epochs or -(-(phase.steps or 0) // steps), phase.steps or (phase.epochs or 0) * steps)
            for phase in phases
        ]
        total = sum(count for _, count in lengths)
        if searches:
            self._console(settings).print(f"note: {search_sentence(total, None)}", highlight=False, markup=False)
        of_groups = {name: replace(self._settings[name], learning_rate=rate, peak=rate) for name, rate in rates.items()}
        tree = layer_tree(self.model)
        plan = make_plan(tree, self.groups, of_groups, steps=total)
        plan = with_phases(plan, self.model, self.groups, phases, of_groups, lengths)
        # A network that is passed here has its weights: where they come from is not known, and nothing is advised.
        advice = (*(line for line in plan.advice if "restored" not in line), *advice_on_statistics(plan, tree))
        return replace(plan, advice=advice, phases=plan.phases if len(phases) > 1 else ())

    def fit(
        self,
        epochs: int | None = None,
        learning_rate: Any = None,
        *,
        strategy: Any = None,
        train: Sequence[str] | str = ALL,
        schedule: Any = None,
        **fit: Any,
    ) -> FitResult:
        """Trains; a second call goes on with the weights and slots of the first.

        Args:
            epochs: Epochs in all; 1 by default without a strategy.
            learning_rate: In any of the forms of `FineTuner`, for this call: a number keeps the ratios between the
                groups. `auto` measures it by an LR range test, whose result may also be passed itself. `search` takes
                what `search_rates` returns.
            strategy: Name of a strategy, such as `gradual_unfreezing`, or a mapping with its settings, both as
                `phases` in a recipe; or a list of `finetune.Phase`s. By default all groups train all the time.
            train: Without a strategy: names of the groups to train, or of one.
            schedule: Name of a schedule that each phase goes through, such as `one_cycle`, or a mapping with `schedule`
                and its arguments; for groups to which the strategy gives no schedule. By default the rate is constant.
            fit: More arguments of `finetune.train_phases` and of `model.fit`, such as `callbacks` or `class_weight`.

        Returns:
            Losses, metrics and rates of the epochs, and what each phase trained and proved.

        Raises:
            FinetuneError: An argument does not fit the groups, or training fails.
        """
        of_phases = {"strategy": strategy, "train": train, "schedule": schedule}
        return self._train(self.phases(epochs, learning_rate, **of_phases, **fit), fit)

    def fine_tune(
        self, epochs: int, learning_rate: float = 2e-3, *, frozen_epochs: int = 1, ratio: float = 100.0, **fit: Any
    ) -> FitResult:
        """Trains as fastai's `Learner.fine_tune` does: the last group for an epoch, then all at half the rate.

        Epochs, rates, their spread over the groups and both one-cycle schedules are those of fastai. Its momentum,
        which goes from 0.95 to 0.85 and back, is constant here, and normalization layers of groups that are frozen are
        frozen, too, where fastai trains them.

        Args:
            epochs: Epochs in which all groups are trained, >= 1.
            learning_rate: Rate of the last group in the first phase, > 0; fastai's `base_lr`.
            frozen_epochs: Epochs of the first phase, >= 1; fastai's `freeze_epochs`.
            ratio: How many times smaller the rate of the first group is than that of the last; fastai's `lr_mult`.
            fit: As for `fit`.

        References:
            https://docs.fast.ai/callback.schedule.html#learner.fine_tune
        """
        check_arguments(fit)
        settings = {"peak": check_rate(learning_rate), "frozen_epochs": frozen_epochs, "ratio": ratio}
        return self.fit(strategy={"strategy": "freeze_then_all", "epochs": epochs, **settings}, **fit)

    def evaluate(self, data: Any = None, y: Any = None, **settings: Any) -> dict[str, float]:
        """Returns loss and metrics by name, on the rows to test on, or else on those to validate on.

        Args:
            data: Other rows, as for `model.evaluate`.
            y: Their targets, where `data` are inputs alone.
            settings: More arguments of `model.evaluate`.
        """
        rows = next((each for each in (data, self.data.test, self.data.validation) if each is not None), None)
        if rows is None:
            raise GroupError(
                "An evaluation needs rows that were not trained on. Received none. Pass them, as in "
                "`tuner.evaluate(x, y)`, or make the `FineTuner` with `test_data` or `validation_data`."
            )
        if y is None and isinstance(rows, tuple | list):
            rows, y, *weights = rows
            settings |= {"sample_weight": weights[0]} if weights else {}
        results: Any = self.model.evaluate(rows, y, **{"verbose": 0, **settings}, return_dict=True)
        return results

    def predict(self, x: Any, **settings: Any) -> Any:
        """Returns what the model gives for inputs, as `model.predict` does; `data.class_names` names classes."""
        return self.model.predict(x, **{"verbose": 0, **settings})

    def save(self, path: str | Path) -> Path:
        """Writes the model to a `.keras` file that opens with plain Keras, compiled with its loss and metrics."""
        path = Path(path)
        if path.suffix != ".keras":
            raise GroupError(f"A model is written to a `.keras` file. Received `{path}`. Write `{path.stem}.keras`.")
        for sentence in save_model(self.model, path):
            self._console().print(f"note: {sentence}", highlight=False, markup=False)
        return path

    # -- What they are made of ----------------------------------------------------------------------------------------

    def phases(
        self,
        epochs: int | None = None,
        learning_rate: Any = None,
        *,
        strategy: Any = None,
        train: Sequence[str] | str = ALL,
        schedule: Any = None,
        **fit: Any,
    ) -> tuple[Phase, ...]:
        """Returns the phases that `fit` with the same arguments trains, each with the rates of its groups.

        Args:
            epochs: As for `fit`.
            learning_rate: As for `fit`.
            strategy: As for `fit`.
            train: As for `fit`.
            schedule: As for `fit`.
            fit: As for `fit`, of which `steps_per_epoch`, `batch_size` and `validation_split` change the steps.
        """
        check_arguments(fit)
        if is_search(learning_rate):
            learning_rate = self.search_rates(epochs, strategy=strategy, train=train, schedule=schedule, **fit)
        rates, steps = self._rates(learning_rate), self._steps(fit)
        if strategy is not None and train != ALL:
            raise GroupError(
                f"A strategy says which groups train when. Received `train={train!r}` as well. Remove one of the two."
            )
        if isinstance(strategy, str | Mapping):
            try:
                phases = phases_of_strategy(strategy, self.groups, rates, epochs=epochs, steps_per_epoch=steps)
            except GroupError as error:  # which calls it as a recipe does
                raise GroupError(str(error).replace("train_phases: `phases`", "`strategy`")) from None
        elif strategy is None:
            phases = (Phase(train, epochs=1 if epochs is None else epochs, clock="phase"),)
        else:
            phases = (strategy,) if isinstance(strategy, Phase) else tuple(strategy)
            others = [type(phase).__name__ for phase in phases if not isinstance(phase, Phase)]
            if epochs is not None or others:
                raise GroupError(
                    "A strategy is a name, a mapping with `strategy` and its settings, or a list of `finetune.Phase`s, "
                    f"each with its own `epochs`. Received {f'a list with {quote(others)}' if others else 'phases'} "
                    f'and `epochs={epochs}`. Write `strategy="gradual_unfreezing", epochs=4`, or remove `epochs`.'
                )
        check_phases(self.groups, phases, every=False)
        return tuple(self._with_rates(phase, rates, schedule, steps) for phase in phases)

    def _with_rates(self, phase: Phase, rates: Mapping[str, float], schedule: Any, steps: int | None) -> Phase:
        """Gives each group of a phase its rate, where the strategy leaves it open."""
        if phase.auto_rgn:
            return phase
        length = phase.steps or (phase.epochs or 0) * (steps or 0)
        missing = [name for name in phase.names(self.groups) if name not in phase.rates]
        of_groups = {name: scheduled_rate(schedule, rates[name], length) for name in missing}
        return replace(phase, rates={**of_groups, **phase.rates}, clock="phase" if schedule else phase.clock)

    def _rates(self, learning_rate: Any) -> dict[str, float]:
        if isinstance(learning_rate, str) and learning_rate == AUTO:
            learning_rate = self.lr_range()
            if not learning_rate.learning_rates:  # the rules disagree on a noisy curve; a mean of several is less noisy
                learning_rate = self.lr_range(repeats=_REPEATS)
        if isinstance(learning_rate, RangeTest):
            if not learning_rate.learning_rates:
                raise TrainingError(learning_rate.refusal)
            learning_rate = learning_rate.learning_rates
        if isinstance(learning_rate, str) and (hint := did_you_mean(learning_rate, (AUTO, SEARCH))):
            raise GroupError(
                f"`learning_rate` is a number, a slice, rates of the groups, `{AUTO}` or `{SEARCH}`. Received: "
                f"`{learning_rate!r}`.{hint}"
            )
        return (
            dict(self.learning_rates) if learning_rate is None else rates_by_group(learning_rate, self.learning_rates)
        )

    def _train(self, phases: tuple[Phase, ...], fit: dict[str, Any]) -> FitResult:
        data, steps, console = self.data, self._steps(fit), self._console(fit)
        epochs = sum(phase.epochs or -(-(phase.steps or 0) // (steps or 1)) for phase in phases)
        progress = ProgressLine(console, epochs=epochs, steps_per_epoch=steps or 0)
        rows = EpochRows(self.groups, self._settings, steps)
        progress.rows = rows.within

        def on_phase(start: PhaseStart) -> None:
            rows.begin(start)
            progress.trained = start.train
            if len(phases) > 1:
                console.print(str(start), highlight=False, markup=False)

        callbacks = fit.pop("callbacks", None) or ()
        callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else [*callbacks]
        of_data = {"validation_data": data.validation, "sample_weight": data.weights, "batch_size": data.batch_size}
        if data.is_split:
            of_data |= {"steps_per_epoch": data.steps, "batch_size": None}
        if data.is_split or isinstance(data.x, tf.data.Dataset) or hasattr(data.x, "__next__"):
            of_data["shuffle"] = False  # which comes in its own order; Keras warns otherwise
        of_data = {name: value for name, value in of_data.items() if value is not None}
        with progress:
            records = train_phases(
                self.model,
                self.groups,
                phases,
                data.inputs(self._epochs_trained),
                data.y,
                callbacks=[LearningRateLogger(), rows, progress, *callbacks],
                every_group=False,
                on_phase=on_phase,
                **{**of_data, **fit, "verbose": 0},
            )
        self._epochs_trained += sum(record.epochs for record in records)
        return FitResult(tuple(records), tuple(rows.rows), tuple(rows.rates), rows.trained)

    def _steps(self, fit: Mapping[str, Any]) -> int | None:
        """Returns the batches of an epoch, if they are known."""
        return self.data.steps or steps_in_epoch(self.data.x, fit.get("batch_size") or self.data.batch_size or 32, fit)

    def _targets(self) -> tuple[Any, Any]:
        """Returns inputs and targets by which a loss is chosen."""
        return (self.data.x.first(8)[0], self.data.x.y) if self.data.is_split else (self.data.x, self.data.y)

    def _console(self, fit: Mapping[str, Any] | None = None) -> Console:
        verbose = (fit or {}).get("verbose", self.verbose)
        return Console(quiet=not verbose)
