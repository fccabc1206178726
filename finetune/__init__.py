"""Discriminative fine-tuning of pretrained TensorFlow/Keras networks.

The names below are imported when they are first used: `import finetune` alone does not load TensorFlow.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from finetune.errors import FinetuneError as FinetuneError
    from finetune.groups.layer_tree import layer_tree as layer_tree
    from finetune.groups.rates import discriminative_rates as discriminative_rates
    from finetune.groups.rates import spread_rates as spread_rates
    from finetune.groups.resolver import Selector as Selector
    from finetune.groups.resolver import resolve_groups as resolve_groups
    from finetune.optimizers.grouped import GroupedOptimizer as GroupedOptimizer
    from finetune.optimizers.momentum import Momentum as Momentum
    from finetune.optimizers.schedules import exponential_decay as exponential_decay
    from finetune.optimizers.schedules import make_schedule as make_schedule
    from finetune.prepare import plan as plan
    from finetune.pretrained.restore import restore as restore
    from finetune.run import run as run
    from finetune.sources.hub import HubLayer as HubLayer
    from finetune.sources.hub_export import export_hub as export_hub
    from finetune.training.freezing import freeze as freeze
    from finetune.training.loop import FastLoop as FastLoop
    from finetune.training.monitor import LearningRateLogger as LearningRateLogger
    from finetune.training.phase import Phase as Phase
    from finetune.training.phase_callbacks import Plateau as Plateau
    from finetune.training.phase_callbacks import Until as Until
    from finetune.training.phases import train_phases as train_phases
    from finetune.training.range_test import lr_range_test as lr_range_test
    from finetune.training.step import grouped_train_step as grouped_train_step

_HOMES = {
    "FinetuneError": "errors",
    "layer_tree": "groups.layer_tree",
    "discriminative_rates": "groups.rates",
    "spread_rates": "groups.rates",
    "Selector": "groups.resolver",
    "resolve_groups": "groups.resolver",
    "GroupedOptimizer": "optimizers.grouped",
    "Momentum": "optimizers.momentum",
    "exponential_decay": "optimizers.schedules",
    "make_schedule": "optimizers.schedules",
    "restore": "pretrained.restore",
    "HubLayer": "sources.hub",
    "export_hub": "sources.hub_export",
    "freeze": "training.freezing",
    "grouped_train_step": "training.step",
    "FastLoop": "training.loop",
    "LearningRateLogger": "training.monitor",
    "lr_range_test": "training.range_test",
    "Phase": "training.phase",
    "Plateau": "training.phase_callbacks",
    "Until": "training.phase_callbacks",
    "train_phases": "training.phases",
    "plan": "prepare",
    "run": "run",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll] - the names above are these


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `finetune` has no attribute `{name}`")
    return getattr(importlib.import_module(f"finetune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    """Keeps `finetune.run` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.run if name == "run" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
