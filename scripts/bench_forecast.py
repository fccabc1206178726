#!/usr/bin/env python3
"""Compares the forecast of `finetune check --deep` with what the run then takes: seconds of an epoch, peak memory.

The recipes are the shipped one and five that are made here: a folder of photographs for MobileNetV2, a table, short
texts, a table of files and numbers for a network of two inputs, and sounds. Forecast and run are processes of their
own, and take turns. Each result is a line of a JSON file, so that a measurement that was interrupted goes on where it
was. Other work on the machine shows in the spread: the load is printed beside the figures, and `--clock processor`
compares seconds of the processor, which other work changes less.

    python scripts/bench_forecast.py --out forecast.jsonl
    python scripts/bench_forecast.py --out processor.jsonl --clock processor
    python scripts/bench_forecast.py --out forecast.jsonl --rounds 5 --cases digits photos
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import types
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CASES = ("digits", "photos", "table", "text", "two_inputs", "sounds")
GROUPS = """
groups:
  - {name: head, prefixes: [head], optimizer: adam, learning_rate: 1.0e-3}
  - {name: body, rest: true, optimizer: adam, learning_rate: 1.0e-4}
"""
RECIPES = {
    "photos": f"""
model: {{application: MobileNetV2, weights: none, input_shape: [96, 96, 3], head: {{classes: auto}}}}
data: {{images: photos/, split: {{test: 0.1, validation: 0.1}}}}
{GROUPS}
train: {{epochs: 4, batch_size: 32}}
""",
    "table": f"""
model: {{keras_file: table.keras, head: {{classes: auto}}}}
data: {{table: table.csv, inputs: [a, b, c, d, e, f, g, h, town], target: kind}}
{GROUPS}
train: {{epochs: 16, batch_size: 64, validation_fraction: 0.1}}
""",
    "text": f"""
model: {{keras_file: text.keras, head: {{classes: auto}}}}
data: {{table: text.csv, inputs: text, target: kind, tokenizer: {{file: tokenizer.json, length: 64}}}}
{GROUPS}
train: {{epochs: 4, batch_size: 32}}
""",
    "two_inputs": f"""
model: {{keras_file: two_inputs.keras, head: {{classes: auto}}}}
data: {{table: files.csv, inputs: {{photo: file, numbers: [a, b]}}, target: kind, split: {{validation: 0.1}}}}
{GROUPS}
train: {{epochs: 6, batch_size: 32, evaluate_every_steps: 10}}
""",
    "sounds": f"""
model: {{keras_file: sounds.keras, head: {{classes: auto}}}}
data: {{audio: clips/, split: {{test: 0.1, validation: 0.1}}}}
{GROUPS}
train: {{epochs: 8, batch_size: 32}}
""",
}


def make_case(name: str, folder: Path) -> Path:
    """Writes the recipe of a case and its data into a folder, and returns the recipe."""
    if name == "digits":
        return ROOT / "recipes/digits.yaml"
    import keras
    import numpy as np

    random = np.random.default_rng(0)
    if name == "photos":
        from bench_data import make_images

        make_images(folder / "photos", 1500)
    elif name == "table":
        from bench_tables import write

        write(folder / "raw.csv", 40_000)
        lines = (folder / "raw.csv").read_text().splitlines()
        kinds = random.choice(["x", "y", "z"], len(lines))
        body = [f"{line},{kind}" for line, kind in zip(lines[1:], kinds[1:], strict=True)]
        (folder / "table.csv").write_text("\n".join([f"{lines[0]},kind", *body]))
        layers = keras.layers
        inputs = keras.Input((13,))
        x = layers.Dense(128, activation="relu")(layers.Dense(256, activation="relu")(inputs))
        keras.Model(inputs, x).save(folder / "table.keras")
    elif name == "two_inputs":
        from bench_data import make_images

        make_images(folder / "photos", 800)
        files = [f"{path},{a:.3f},{b:.3f},{path.parent.name}" for path, (a, b) in _numbered(folder, random)]
        (folder / "files.csv").write_text("\n".join(["file,a,b,kind", *files]))
        photo, numbers = keras.Input((64, 64, 3), name="photo"), keras.Input((2,), name="numbers")
        x = keras.layers.Conv2D(16, 5, strides=2, activation="relu")(keras.layers.Rescaling(1 / 255)(photo))
        x = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling2D()(x), keras.layers.Dense(8)(numbers)])
        keras.Model({"photo": photo, "numbers": numbers}, x).save(folder / "two_inputs.keras")
    elif name == "sounds":
        for number in range(600):
            path = folder / "clips" / "ab"[number % 2] / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(random.integers(-9000, 9000, 8000).astype("<i2").tobytes())
        inputs = keras.Input((8000, 1))
        x = keras.layers.Conv1D(16, 64, strides=16, activation="relu")(inputs)
        keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x)).save(folder / "sounds.keras")
    else:
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = [f"w{number}" for number in range(5_000)]
        tokenizer = Tokenizer(
            models.WordLevel({"[PAD]": 0} | {w: n for n, w in enumerate(words, 1)}, unk_token="[PAD]")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        lines = [f"{' '.join(random.choice(words, 40))},{'ab'[number % 2]}" for number in range(6_000)]
        (folder / "text.csv").write_text("\n".join(["text,kind", *lines]))
        inputs = keras.Input((64,), dtype="int32")
        x = keras.layers.Embedding(5_001, 64)(inputs)
        x = keras.layers.Bidirectional(keras.layers.LSTM(64))(x)
        keras.Model(inputs, x).save(folder / "text.keras")
    (folder / "recipe.yaml").write_text(RECIPES[name])
    return folder / "recipe.yaml"


def _numbered(folder: Path, random: Any) -> Iterator[tuple[Path, Any]]:
    """Yields the photographs of a folder, relative to it, with two numbers for each."""
    paths = sorted((folder / "photos").glob("*/*.jpg"))
    return zip([path.relative_to(folder) for path in paths], random.normal(size=(len(paths), 2)), strict=True)


def forecast(recipe: Path, clock: str) -> dict[str, Any]:
    """Returns the forecast of `finetune check --deep`, made in this process, in seconds of a clock."""
    from rich.console import Console

    from finetune.commands import check
    from finetune.commands.check import check_deep
    from finetune.training import rehearsal, training_clock
    from finetune.training.phases import loop

    begun = time.process_time()
    if clock == "processor":
        for module in (check, loop, rehearsal, training_clock):
            vars(module)["time"] = types.SimpleNamespace(perf_counter=time.process_time, monotonic=time.process_time)
    checked = check_deep(recipe, console=Console(quiet=True))
    assert checked.forecast, checked.problems
    made = dataclasses.asdict(checked.forecast)
    return made | ({"seconds": made["seconds"] + begun} if clock == "processor" else {})  # with all imports


def measure_forecast(recipe: Path, clock: str) -> dict[str, Any]:
    """Returns the forecast, made in a process of its own, and how long that took."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--forecast", str(recipe), "--clock", clock],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]) | {"check_seconds": time.perf_counter() - begun}


def _clock(process: int, clock: str) -> float:
    """Returns the seconds by the clock, or those of the processor that a process has had."""
    if clock == "wall":
        return time.perf_counter()
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_run(recipe: Path, clock: str) -> dict[str, Any]:
    """Runs a recipe in a process of its own; returns what an epoch takes, the run, and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "finetune", "run", str(recipe), "--out", f"{folder}/run"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout
        ended = [_clock(process.pid, clock) for line in process.stdout if re.match(r"epoch +\d+/\d+ ", line)]
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
        result = json.loads(Path(folder, "run/result.json").read_text())
    seconds = [after - before for before, after in itertools.pairwise(ended)]
    return {
        # A line is printed before the weights are saved, which takes longer for the first time: a part of the second.
        "epoch_seconds": seconds[1:] or seconds,
        "seconds": usage.ru_utime + usage.ru_stime if clock == "processor" else sum(result["seconds"].values()),
        "memory_bytes": usage.ru_maxrss * 1024,
    }


def ratios(results: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Returns forecast divided by what was measured in the same round, for each round of a case."""
    epoch = [
        statistics.fmean(phase["epoch_seconds"] for phase in each["forecast"]["phases"])
        / statistics.median(each["run"]["epoch_seconds"])
        for each in results
    ]
    others = {
        key: [each["forecast"][key] / each["run"][key] for each in results] for key in ("seconds", "memory_bytes")
    }
    return {"an epoch": epoch, "the run": others["seconds"], "peak memory": others["memory_bytes"]}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns the ratios of all cases, in Markdown: the median, and the least and the greatest."""
    lines = ["| | rounds | an epoch | the run | peak memory | load |", "|---|--:|--:|--:|--:|--:|"]
    for case in dict.fromkeys(each["case"] for each in results):
        of_case = [each for each in results if each["case"] == case]
        cells = [f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios(of_case).values()]
        load = statistics.fmean(each["load"] for each in of_case)
        lines.append(f"| {case} | {len(of_case)} | {' | '.join(cells)} | {load:.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the file does not hold yet, and prints the table: forecast divided by measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("forecast.jsonl"), help="the results (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case (default %(default)s)")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=CASES, help="which (default all)")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="which seconds to compare")
    parser.add_argument("--forecast", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.forecast:
        print(json.dumps(forecast(options.forecast, options.clock)))
        return 0
    results = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for case in options.cases:
        rounds = sum(each["case"] == case for each in results)
        if rounds >= options.rounds:
            continue
        with tempfile.TemporaryDirectory() as folder:
            recipe = make_case(case, Path(folder))
            for _ in range(rounds, options.rounds):
                load, clock = os.getloadavg()[0], options.clock
                each = {
                    "case": case,
                    "load": load,
                    "forecast": measure_forecast(recipe, clock),
                    "run": measure_run(recipe, clock),
                }
                results.append(each)
                with options.out.open("a") as file:
                    file.write(json.dumps(each) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
