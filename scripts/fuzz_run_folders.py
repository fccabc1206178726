"""What `fuzz.py` feeds to the commands on a run: run folders in which a file is a little wrong.

Three runs are made once, of arrays, of a table and of pictures, and of each a copy that was stopped before its end. An
input takes one of them and changes a file in it: a value of a document of JSON or of a checkpoint, whose checksum is
then right again, or bytes.
"""

import csv
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

RUN_COMMANDS = ("resume", "evaluate", "predict", "export", "report", "compare", "audit", "repeat", "inspect-run")
KINDS = ("arrays", "table", "photos")
_DOCUMENTS = ("result", "data", "plan", "restore", "environment", "report", "hashes")
_FILES = (*(f"{name}.json" for name in _DOCUMENTS), "recipe.yaml", "metrics.csv", "predictions.npz", "model.keras")
_OF_STOPPED = ("checkpoint", "checkpoint", "checkpoint", "recipe.yaml", "data.json", "metrics.csv", "plan.json")
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 0.5, 1e-300, 10**30, 10**400, 2**63, float("nan"), float("inf"), 1e300),
    *("", "x", "\x1b[31m", "../x", "ß核", "a" * 300, "head", "nan", "1"),
    *([], {}, [None], [[]], {"": 1}, {"x": {"y": []}}, ["a", "a"], [1, 2, 3]),
)
_BYTES = (
    *(b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 50_000),
    *(b"1" * 5000, b"PK\x03\x04", b"a: &a [*a, *a]\n", b"\0" * 64),
)
Change = Callable[[Path], None]


def make_runs(pristine: Path) -> None:
    """Runs the recipes whose folders are changed, in a folder with the valid files of `fuzz_inputs.make_pristine`."""
    import finetune

    base = {
        "seed": 3,
        "model": {"keras_file": "tiny.keras"},
        "data": {"npz": "rows.npz"},
        "groups": [
            {"name": "stem", "prefixes": ["stem", "bn"], "frozen": True},
            {"name": "head", "rest": True, "optimizer": "adam", "learning_rate": 1e-3},
        ],
        "train": {
            "epochs": 2,
            "batch_size": 16,
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
            "checkpoint_steps": 1,
            "keep_checkpoints": True,
        },
    }
    longer = {"validation_fraction": 0.2, "until": {"monitor": "val_loss", "patience": 5}, "keep": "best"}
    decay = {"schedule": "exponential_decay", "initial": 1e-3, "decay_steps": 9, "decay_rate": 0.5}
    groups = [*base["groups"][:1], {**base["groups"][1], "learning_rate": decay}]
    recipes = {
        "arrays": base | {"train": base["train"] | longer, "restore": {"from": "tiny.weights.h5"}, "groups": groups},
        "table": base | {"data": {"table": "rows.csv", "inputs": list("abcdef"), "target": "label"}},
        "photos": base
        | {"model": {"keras_file": "pixels.keras"}}
        | {"data": {"images": "photos", "size": [8, 8], "split": {"test": 0.5}}},
    }
    for kind, recipe in recipes.items():
        path = pristine / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        folder = pristine / "runs" / kind
        finetune.run(path, out=folder)
        shutil.copytree(folder, stopped := pristine / "runs" / f"{kind}-stopped")
        newest = max((stopped / "checkpoints").glob("step-*"), key=lambda path: path.name.split("-")[2])
        for path in (newest, stopped / "result.json", stopped / "hashes.json", stopped / "model.keras"):
            path.unlink()


def make_run_case(command: str, draw: random.Random) -> tuple[list[str], str, Change]:
    """Makes an input of a command on a run.

    Args:
        command: One of `RUN_COMMANDS`.
        draw: Makes the choices.

    Returns:
        The arguments, the name of the run folder in the working folder, and what changes a file in it.
    """
    kind = draw.choice(KINDS)
    is_stopped = command == "resume" and draw.random() < 0.8
    run = f"runs/{kind}-stopped" if is_stopped else f"runs/{kind}"
    data = {"arrays": "rows.npz", "table": "rows.csv", "photos": "photos"}[kind]
    arguments = {
        "resume": [run, *draw.choice([[], [], ["--set", "train.epochs=3"]])],
        "evaluate": [run, *draw.choice([[], ["--data", data], ["--json"]])],
        "predict": [run, {"arrays": "rows.npz"}.get(kind, data), "--out", "answers.jsonl"],
        "export": [run, "--format", draw.choice(["savedmodel", "keras", "safetensors"]), "--out", "exported"],
        "report": [run],
        "compare": [run, "other", *draw.choice([[], ["--out", "page.html"]])],
        "audit": [run],
        "repeat": [run],
        "inspect-run": [run, *draw.choice([[], ["--json"]])],
    }[command]
    name = draw.choice(_OF_STOPPED if is_stopped else (*_FILES, *_FILES[:6]))
    inner = random.Random(draw.random())
    return [command.removesuffix("-run"), *arguments], run, lambda folder: _change(folder, name, inner)


def _change(folder: Path, name: str, draw: random.Random) -> None:
    if name == "checkpoint":
        for path in sorted((folder / "checkpoints").glob("step-*")):  # both, so that there is none to fall back to
            _change_checkpoint(path, draw)
        return
    path = folder / name
    if draw.random() < 0.2:
        content = path.read_bytes()
        path.write_bytes(draw.choice([*_BYTES, content[: draw.randrange(len(content) + 1)]]))
    elif name.endswith(".json"):
        document = changed(json.loads(path.read_bytes()), draw)
        if name == "hashes.json" and isinstance(document, dict):
            from finetune.results.hashes import _own

            document |= {"sha256": _own(document)}
        path.write_text(json.dumps(document, indent=2) + "\n")
    elif name.endswith(".yaml"):
        path.write_text(yaml.safe_dump(changed(yaml.safe_load(path.read_text()), draw), sort_keys=False))
    elif name.endswith(".csv"):
        rows = list(csv.reader(io.StringIO(path.read_text())))
        row = draw.choice(rows)
        row[draw.randrange(len(row))] = draw.choice(["", "x", "nan", "1e999", '"', "\x00", "-1", "9" * 400])
        path.write_text("\n".join(map(",".join, rows)) + "\n")
    elif name.endswith(".npz"):
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        key = draw.choice(list(arrays))
        array = arrays.pop(key)
        wrong = [array[..., None], array[:1] if array.ndim else array.reshape(1), array.astype(str), np.float32(3.0)]
        arrays |= draw.choice([{}, {key: draw.choice(wrong)}, {"x/y": array}])
        np.savez(path, **arrays)
    else:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def _change_checkpoint(path: Path, draw: random.Random) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save

    from finetune.training.checkpoints.checkpoint_file import _checksum

    with safe_open(path, framework="numpy") as opened:
        header = json.loads(opened.metadata()["checkpoint"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    kind = draw.random()
    if kind < 0.8:
        header["document"] = changed(header["document"], draw)
    elif kind < 0.9:
        header = changed(header, draw)
    else:
        tensors.pop(draw.choice(list(tensors)))
    content = save(tensors, {"checkpoint": json.dumps(header)})
    path.unlink()
    steps, number = path.name.split("-")[1:3]
    (path.parent / f"step-{steps}-{number}-{_checksum(content)}.safetensors").write_bytes(content)


def changed(node: Any, draw: random.Random) -> Any:
    """Returns plain data with a value that is missing or of another kind."""
    if isinstance(node, dict) and node and draw.random() < 0.85:
        key = draw.choice(list(node))
        if draw.random() < 0.15:
            return {name: value for name, value in node.items() if name != key}
        if draw.random() < 0.05:
            return {**node, "more": draw.choice(ODD)}
        return {**node, key: changed(node[key], draw)}
    if isinstance(node, list) and node and draw.random() < 0.7:
        place = draw.randrange(len(node))
        if draw.random() < 0.2:
            return draw.choice([node[:place], node + node, node[::-1]])
        return [*node[:place], changed(node[place], draw), *node[place + 1 :]]
    return draw.choice([*ODD, [node], {"a": node}, str(node)])
