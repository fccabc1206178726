"""Discriminative fine-tuning of pretrained TensorFlow/Keras networks.

The names below are imported when they are first used: `import finetune` alone does not load TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Every public name and the module that defines it. The imports under TYPE_CHECKING say the same to type checkers;
# `tests/test_package.py` holds the two equal.
_MODULES = {
    "Checkpoint": "training.checkpoints.checkpoint",
    "Examples": "data.examples",
    "FastLoop": "training.fast.fast_loop",
    "FineTuner": "training.fine_tuner",
    "FinetuneError": "errors",
    "FiniteWeights": "training.finite_weights",
    "FrozenProof": "training.frozen_proof",
    "GroupedOptimizer": "optimizers.grouped",
    "GroupMonitor": "training.group_monitor",
    "HubLayer": "models.hub",
    "LearningRateLogger": "training.callbacks",
    "Momentum": "optimizers.tf1_momentum",
    "NonFiniteGradients": "training.non_finite_gradients",
    "Phase": "training.phases.phase",
    "Plateau": "training.phases.plateau",
    "Selector": "groups.selectors",
    "TF1RMSprop": "optimizers.tf1_rmsprop",
    "Transform": "pretrained.transforms",
    "Until": "training.phases.until",
    "discriminative_rates": "groups.rate_spacing",
    "export_hub": "models.hub_export",
    "exponential_decay": "optimizers.schedules",
    "freeze": "training.freezing",
    "grouped_train_step": "training.step",
    "layer_tree": "groups.layer_tree",
    "load": "inference.fine_tuned",
    "lr_range_test": "training.lr_range.api",
    "make_schedule": "optimizers.schedules",
    "plan": "commands.plan",
    "resolve_groups": "groups.selectors",
    "restore": "pretrained.restore",
    "run": "commands.run",
    "spread_rates": "groups.rate_spacing",
    "train_phases": "training.phases.train_phases",
    "warmup_stable_decay": "optimizers.schedules",
}
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll] - the names above are these

if TYPE_CHECKING:
    from finetune.commands.plan import plan as plan
    from finetune.commands.run import run as run
    from finetune.data.examples import Examples as Examples
    from finetune.errors import FinetuneError as FinetuneError
    from finetune.groups.layer_tree import layer_tree as layer_tree
    from finetune.groups.rate_spacing import discriminative_rates as discriminative_rates
    from finetune.groups.rate_spacing import spread_rates as spread_rates
    from finetune.groups.selectors import Selector as Selector
    from finetune.groups.selectors import resolve_groups as resolve_groups
    from finetune.inference.fine_tuned import load as load
    from finetune.models.hub import HubLayer as HubLayer
    from finetune.models.hub_export import export_hub as export_hub
    from finetune.optimizers.grouped import GroupedOptimizer as GroupedOptimizer
    from finetune.optimizers.schedules import exponential_decay as exponential_decay
    from finetune.optimizers.schedules import make_schedule as make_schedule
    from finetune.optimizers.schedules import warmup_stable_decay as warmup_stable_decay
    from finetune.optimizers.tf1_momentum import Momentum as Momentum
    from finetune.optimizers.tf1_rmsprop import TF1RMSprop as TF1RMSprop
    from finetune.pretrained.restore import restore as restore
    from finetune.pretrained.transforms import Transform as Transform
    from finetune.training.callbacks import LearningRateLogger as LearningRateLogger
    from finetune.training.checkpoints.checkpoint import Checkpoint as Checkpoint
    from finetune.training.fast.fast_loop import FastLoop as FastLoop
    from finetune.training.fine_tuner import FineTuner as FineTuner
    from finetune.training.finite_weights import FiniteWeights as FiniteWeights
    from finetune.training.freezing import freeze as freeze
    from finetune.training.frozen_proof import FrozenProof as FrozenProof
    from finetune.training.group_monitor import GroupMonitor as GroupMonitor
    from finetune.training.lr_range.api import lr_range_test as lr_range_test
    from finetune.training.non_finite_gradients import NonFiniteGradients as NonFiniteGradients
    from finetune.training.phases.phase import Phase as Phase
    from finetune.training.phases.plateau import Plateau as Plateau
    from finetune.training.phases.train_phases import train_phases as train_phases
    from finetune.training.phases.until import Until as Until
    from finetune.training.step import grouped_train_step as grouped_train_step


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `finetune` has no attribute `{name}`")
    from finetune.startup import quiet_import

    with quiet_import():
        module = importlib.import_module(f"finetune.{_MODULES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
