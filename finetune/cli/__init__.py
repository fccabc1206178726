"""The `finetune` command: options and printing, a file for each family of commands. The work is done below.

Importing the families registers their commands, in the order in which `--help` lists them.
"""

from finetune.cli import runs, trained, exports, recipes, find_rates, weight_files, reports  # isort: skip
from finetune.cli.application import app
from finetune.cli.entry import main

__all__ = ["app", "exports", "find_rates", "main", "recipes", "reports", "runs", "trained", "weight_files"]
