#!/usr/bin/env python3
"""Runs the recipes, and writes what they reach as a table: docs/recipes.md.

Those whose networks and data were not fetched are left out; `finetune recipes` says what each needs.

    python scripts/recipe_results.py                       all of them, then the table
    python scripts/recipe_results.py --only digits_slim    one, whose row is replaced

Each run is a process of its own; its processor time and its peak memory are those of the process.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune.commands.shipped_recipes import ShippedRecipe, shipped_folder, shipped_recipes

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
_BEGIN, _END = "<!-- results -->", "<!-- /results -->"


def measured(recipe: ShippedRecipe) -> dict[str, Any]:
    """Runs a recipe; returns its test metrics, those before training, processor seconds and GB of memory."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = shipped_folder() / f"{recipe.name}.yaml", Path(folder) / "run"
        command = [sys.executable, "-m", "finetune", "run", str(path), "--out", str(out)]
        command += ["--allow-code", f"hub:{recipe.needs[0]}"] if "hub: " in path.read_text() else []
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{recipe.name}: {said}")
        result = json.loads((out / "result.json").read_text())
    # Processor time: wall time says more about what else the machine does.
    seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    before = result.get("metrics_before", {}).get("accuracy")
    return {"accuracy": result["metrics"]["accuracy"], "before": before, "seconds": seconds, "memory": memory}


def row(recipe: ShippedRecipe, result: dict[str, Any]) -> str:
    """Returns the line of the table."""
    before = "" if result["before"] is None else f"{result['before']:.3f}"
    link = f"[`{recipe.name}`](../recipes/{recipe.name}.yaml)"
    cost = f"{result['seconds']:.0f} s, {result['memory']:.1f} GB"
    return f"| {link} | {recipe.shows} | {before} | {result['accuracy']:.3f} | {cost} |"


def main() -> None:
    """Runs the recipes and writes the table."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="name of a recipe; may be repeated")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose table is written")
    arguments = parser.parse_args()
    text = arguments.page.read_text(encoding="utf-8")
    head, rest = text.split(_BEGIN)
    old, tail = rest.split(_END)
    rows = {match[1]: line for line in old.splitlines() if (match := re.match(r"\| \[`(\w+)`\]", line))}
    for recipe in shipped_recipes():
        lacks = [name for name in recipe.needs if not (shipped_folder() / name).is_dir()]
        if lacks:
            print(f"{recipe.name}: left out, since `finetune fetch {' '.join(lacks)}` was not called")
        if lacks or (arguments.only and recipe.name not in arguments.only):
            continue
        rows[recipe.name] = row(recipe, measured(recipe))
        print(rows[recipe.name], flush=True)
        table = ["| recipe | shows | accuracy before | after | processor time and memory |", "|---|---|---|---|---|"]
        table += [rows[name] for name in sorted(rows)]
        # After each of them: what is measured is kept where the next one fails.
        arguments.page.write_text(f"{head}{_BEGIN}\n" + "\n".join(table) + f"\n{_END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
