#!/usr/bin/env python3
"""Trains every public layer of Keras in every way and variant, and compares with Keras' own single optimizer.

So are its losses, regularizers, constraints and initializers, under names such as `losses.Poisson`.

python scripts/keras_grid.py                                  # the whole grid: about an hour on two cores
python scripts/keras_grid.py --sample 10                      # ten of them, drawn at random
python scripts/keras_grid.py --variant masked --only LSTM --only GRU
python scripts/keras_grid.py --state grid.json                # keeps what is done there, and goes on from it

The ways are `fit`, `FastLoop` and `train_phases`, with a group for every layer; the variants are float32, mixed
precision, XLA (within rounding, by SGD), inputs with a mask and ragged inputs. Some layers cannot be trained by Keras
itself in some variant. The exit code is 1 if a result differs, or if a layer fails that Keras can train.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras_cases import VARIANTS, LayerCase, data_for, layer_cases, model_of, variants_of
from keras_members import MemberCase, member_cases, model_of_losses, model_of_weights
from keras_ways import WAYS, differences, train

from finetune.errors import reason

ROUNDING = 1e-5  # XLA contracts multiplications and additions as it sees fit
Case = LayerCase | MemberCase
SAME, CANNOT = "same", "not by Keras itself"


def main(arguments: Sequence[str]) -> int:
    """Runs the grid and prints its table; returns 1 if something differs or fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="may be repeated; default: all")
    parser.add_argument(
        "--only",
        action="append",
        help="a name in `keras.layers`, or `losses.` and a name in "
        "`keras.losses`, and so on; may be repeated; default: all",
    )
    parser.add_argument("--sample", type=int, help="how many to draw at random")
    parser.add_argument("--together", type=int, default=8, help="how many share a model while all is well")
    parser.add_argument("--state", type=Path, help="a JSON file of what is done; what is in it is not run again")
    options = parser.parse_args(arguments)
    everything = [*layer_cases(), *member_cases()]
    cases = [case for case in everything if not options.only or case.name in options.only]
    if options.sample is not None:
        cases = random.sample(cases, min(options.sample, len(cases)))
    done: dict[str, str] = json.loads(options.state.read_text()) if options.state and options.state.exists() else {}
    results = {}
    for variant in options.variant or VARIANTS:
        takes = [case for case in cases if variant in variants_of(case.kind)]
        results |= {key: done[key] for case in takes if (key := f"{variant} {case.name}") in done}
        missing = [case for case in takes if f"{variant} {case.name}" not in done]
        # Keras compiles no model by XLA in which a layer does not allow it: there every one is tried alone.
        for part in _parts(missing, 1 if variant == "jit_compile" else options.together):
            results |= {f"{variant} {name}": outcome for name, outcome in outcomes(part, variant).items()}
            done |= results
            if options.state:
                options.state.write_text(json.dumps(done, indent=1))
        print(table(variant, results), flush=True)
    return int(any(not outcome.startswith((SAME, CANNOT)) for outcome in results.values()))


def _parts(cases: Sequence[Case], longest: int) -> Iterator[list[Case]]:
    """Yields cases that can share a model: of one kind, and not too many."""
    for _, alike in groupby(sorted(cases, key=lambda case: case.kind), key=lambda case: case.kind):
        part = list(alike)
        for start in range(0, len(part), longest):
            yield part[start : start + longest]


def outcomes(cases: Sequence[Case], variant: str) -> dict[str, str]:
    """Returns what came of each case, by its name: `same`, or what differs in which way.

    Args:
        cases: Of one kind. Each is tried alone if anything is wrong with all of them together.
        variant: One of `VARIANTS`.
    """
    try:
        outcome = _compared(cases, variant)
    except Exception as error:  # whatever a layer or Keras raises is the result
        outcome = f"{CANNOT}: {reason(error)}"
    if len(cases) == 1 or outcome.startswith(SAME):
        return {case.name: outcome for case in cases}
    return {name: outcome for case in cases for name, outcome in outcomes([case], variant).items()}


def _compared(cases: Sequence[Case], variant: str) -> str:
    is_compiled = variant == "jit_compile"
    options: dict[str, Any] = {"jit_compile": True, "rule": keras.optimizers.SGD} if is_compiled else {}
    model, data, of_kind = _model(cases, variant)
    options |= of_kind
    start = [v.numpy() for v in model.trainable_variables]
    expected = train(model, data, "keras", **options)
    if all(np.array_equal(expected.values[path], value) for path, value in zip(expected.trainable, start, strict=True)):
        return f"{CANNOT}: no weight moves"
    why: set[str] = set()
    for way in WAYS:
        try:
            trained = train(model, data, way, **options)
        except Exception as error:
            return f"{way} FAILS: {reason(error)}"
        if different := differences(trained, expected, ROUNDING if is_compiled else 0.0):
            return f"{way} DIFFERS: {'; '.join(different[:3])}"
        why |= {trained.reason} - {None}  # pyright: ignore[reportAssignmentType] - `None` is taken out
    return f"{SAME}, by Keras' own loop: {', '.join(sorted(why))}" if why else SAME


def _model(cases: Sequence[Case], variant: str) -> tuple[Any, Any, dict[str, Any]]:
    """Makes a model, its data, and what `compile` gets beside."""
    members = [case for case in cases if isinstance(case, MemberCase)]
    if not members:
        return model_of(cases, variant), data_for(cases[0].kind, len(cases), variant), {}  # pyright: ignore
    if members[0].kind == "loss":
        model, losses, data = model_of_losses(members, variant)
        return model, data, {"loss": losses}
    return *model_of_weights(members, variant), {}


def table(variant: str, results: dict[str, str]) -> str:
    """Returns how many of a variant ended how, and those that are not simply the same."""
    own = {key.partition(" ")[2]: outcome for key, outcome in results.items() if key.partition(" ")[0] == variant}
    counts = Counter(outcome.partition(":")[0] for outcome in own.values())
    lines = [f"{variant}: {len(own)} tried; " + ", ".join(f"{count} {what}" for what, count in counts.most_common())]
    return "\n".join([*lines, *(f"  {name}: {outcome}" for name, outcome in own.items() if ": " in outcome)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
