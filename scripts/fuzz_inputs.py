"""What `fuzz.py` feeds to finetune: recipes, data files, weights files and arguments, each a little wrong.

An input is a function of a seed and a number. It begins as something valid for a tiny network, and a few mutations
are made to it: most to what the grammar of recipes knows (`finetune.recipe.keys`), some to the text, to the bytes of
files, or to the arguments of a command.
"""

import json
import random
import re
import shutil
import struct
import wave
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz_run_folders import RUN_COMMANDS, make_run_case
from pydantic import ValidationError

from finetune.recipe.keys import blocks
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.schema import Recipe

COMMANDS = ("check", "plan", "run", "data", "lr-range", "suggest", "inspect", "reference", "keys")
_TRIES = 40  # to change a recipe so that the schema accepts it
CHEAP = ("check", "keys", "inspect")  # they need a moment

_BASE: dict[str, Any] = {
    "seed": 3,
    "model": {"keras_file": "tiny.keras"},
    "data": {"npz": "rows.npz"},
    "groups": [
        {"name": "stem", "prefixes": ["stem", "bn"], "frozen": True},
        {"name": "body", "prefixes": ["body"], "optimizer": {"name": "sgd", "momentum": 0.9}, "learning_rate": 1e-2},
        {"name": "head", "rest": True, "optimizer": "adamw", "learning_rate": 1e-3},
    ],
    "train": {"epochs": 1, "batch_size": 16, "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
}
_PIXELS = {"model": {"keras_file": "pixels.keras"}}
_SOURCES: tuple[dict[str, Any], ...] = (
    *({}, {}, {}),
    {"data": {"table": "rows.csv", "inputs": list("abcdef"), "target": "label"}},
    {"data": {"table": "rows.jsonl", "inputs": list("abcdef"), "target": "label", "split": {"test": 0.3}}},
    {**_PIXELS, "data": {"images": "photos", "size": [8, 8], "split": {"test": 0.5}}},
    {**_PIXELS, "data": {"table": "photos.csv", "inputs": "file", "target": "label", "size": [8, 8]}},
    {"model": {"keras_file": "sound.keras"}, "data": {"audio": "clips", "length": 64, "split": {"test": 0.5}}},
)
_EXTRAS: tuple[dict[str, Any], ...] = (
    *({}, {}),
    {"restore": {"from": "tiny.weights.h5", "exclude": ["head"]}},
    {"restore": {"from": "weights.npz"}},
    {"restore": {"from": "tiny.keras", "verify": "reference.npz"}},
    {"phases": "gradual_unfreezing", "train": {"epochs": 3}},
    {"phases": [{"train": ["head"], "epochs": 1}, {"train": "all", "epochs": 1}], "train": {"epochs": None}},
    {"groups": {"by": "layer", "peak": 1e-3, "decay": 2.6, "optimizer": "adam"}},
    {"train": {"loss": "auto", "validation_fraction": 0.2}},
)
_FILES = (
    "tiny.keras",
    "pixels.keras",
    "sound.keras",
    "tiny.weights.h5",
    "weights.npz",
    "rows.npz",
    "reference.npz",
    "photos",
)
_LIKELY: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("keras_file", "from", "npz", "verify"), _FILES),
    **dict.fromkeys(("table", "target", "inputs"), ("rows.csv", "rows.jsonl", "label", "a", ["a", "b"], "file")),
    **dict.fromkeys(("loss", "metrics"), ("mse", "auto", "binary_crossentropy", "huber", "accuracy", "auc", "recall")),
    **dict.fromkeys(("exclude", "prefixes", "train"), (["head"], ["body", "bn"], "all", ["stem/kernel"], ["x"], [])),
    "seed": (0, 1, 2**32 - 1),
    "schedule": ("exponential_decay", "cosine_decay", "one_cycle", "slanted_triangular", "piecewise_constant"),
    "batch_size": (1, 2, 7, 1000),
    "epochs": (1, 2),
}
_ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        3,
        7,
        0.5,
        1e-300,
        1e300,
        -0.0,
        float("nan"),
        float("inf"),
        10**12,
        2**31,
        -(2**63),
    ),
    *(
        "",
        " ",
        "auto",
        "none",
        "all",
        "head",
        "rows.npz",
        "tiny.keras",
        "../x",
        "/proc/self/mem",
        "/dev/null",
        "a:b",
        "*",
    ),
    *(
        "1:2",
        "99:",
        "[",
        "\u0000",
        "\x1b[31m",
        "ß核",
        "a" * 300,
        "true",
        "1e-3",
        "x/../y",
        "~",
        "https://127.0.0.1:1/x",
    ),
    *([], {}, [None], [[]], {"": 1}, {"name": "sgd"}, {"name": None}, ["head", "head"], [0.5, 0.5], {"a": {"b": []}}),
)


def _known() -> dict[str, list[str]]:
    """Returns the keys of each mapping of a recipe by the last word of its path."""
    keys: dict[str, list[str]] = {}
    for block in blocks():
        place = re.sub(r" \(.*\)", "", block.path).rpartition(".")[2]
        keys.setdefault(place, []).extend(key.name for key in block.keys)
    return keys


_KEYS = _known()
_VALUES = {key.name: re.findall(r"`([^`]+)`", key.values) for block in blocks() for key in block.keys}


@dataclass
class Case:
    """An input.

    Attributes:
        arguments: The command line, without the name of the program.
        files: Functions that change files in the working folder, by the names of the files.
        recipe: Text of `recipe.yaml`.
        run: The name of a run folder, and what changes a file in it.
    """

    arguments: list[str]
    recipe: str
    files: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    run: tuple[str, Callable[[Path], None]] | None = None

    def write(self, pristine: Path, folder: Path) -> None:
        """Makes the working folder of the input anew from a folder of valid files."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine, folder, ignore=shutil.ignore_patterns("runs"))
        (folder / "recipe.yaml").write_bytes(self.recipe.encode("utf-8", "surrogatepass"))
        for name, change in self.files.items():
            (folder / name).write_bytes(change((folder / name).read_bytes()))
        if self.run:
            name, change_run = self.run
            shutil.copytree(pristine / name, folder / name)
            if "other" in self.arguments:
                shutil.copytree(pristine / "runs" / "arrays", folder / "other")
            change_run(folder / name)


def make_case(seed: int, number: int, commands: tuple[str, ...] = COMMANDS) -> Case:
    """Makes an input.

    Args:
        seed: Of the whole session.
        number: Of the input.
        commands: From which the command is chosen.
    """
    draw = random.Random(f"{seed}:{number}")
    command = draw.choice(commands)
    if command in RUN_COMMANDS:
        arguments, run, change = make_run_case(command, draw)
        return Case(arguments, yaml.safe_dump(_BASE), run=(run, change))
    source, extra = draw.choice(_SOURCES), draw.choice(_EXTRAS)
    recipe = _merged(_merged(_BASE, source), extra if "model" not in source or "restore" not in extra else {})
    files = _changed_files(draw) if draw.random() < 0.3 else {}
    times = 0 if files and draw.random() < 0.7 else draw.choice([1, 1, 1, 2, 3])
    is_deep = draw.random() < 0.6
    for _ in range(times):
        changes = (_mutated(recipe, draw, ()) for _ in range(_TRIES))
        recipe = next(filter(_keeps_the_rules, changes), recipe) if is_deep else next(changes)
    text = yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False)
    if not is_deep and draw.random() < 0.15:
        text = _changed_text(text, draw)
    return Case(_arguments(command, draw), text, files)


# -- Recipes ----------------------------------------------------------------------------------------------------------


def _keeps_the_rules(recipe: Any) -> bool:
    """Whether the schema accepts a recipe: what is wrong with it then shows only when it is built."""
    try:
        Recipe.model_validate(recipe)
    except ValidationError:
        return False
    except Exception:  # not refused but broken: the command that gets the recipe shows it as an internal error
        return True
    return True


def _merged(base: Any, top: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    replaces = {"keras_file", "npz", "table", "images", "audio"} & top.keys()  # another source
    kept = {} if replaces else base
    return {**kept, **{key: _merged(kept.get(key), value) if key in kept else value for key, value in top.items()}}


def _mutated(node: Any, draw: random.Random, path: tuple[Any, ...]) -> Any:
    """Returns a tree with a change somewhere in it."""
    if isinstance(node, dict) and node and draw.random() < 0.75:
        key = draw.choice(list(node))
        return {**node, key: _mutated(node[key], draw, (*path, key))}
    if isinstance(node, list) and node and draw.random() < 0.6:
        index = draw.randrange(len(node))
        return [*node[:index], _mutated(node[index], draw, path), *node[index + 1 :]]
    if isinstance(node, dict):
        return _changed_mapping(node, draw, path)
    if isinstance(node, list):
        return draw.choice([node[::-1], node + node, node[1:], [node], [*node, _value(draw, path)], _value(draw, path)])
    return _value(draw, path)


def _changed_mapping(node: dict[Any, Any], draw: random.Random, path: tuple[Any, ...]) -> Any:
    place = str(path[-1]) if path else ""
    known = _KEYS.get(place) or ["name", "learning_rate", "schedule"]
    kind = draw.random()
    if kind < 0.65:
        key = draw.choice(known)
        return {**node, key: _value(draw, (*path, key))}
    if kind < 0.8 and node:
        gone = draw.choice(list(node))
        return {key: value for key, value in node.items() if key != gone}
    if kind < 0.9 and node:
        old = draw.choice(list(node))
        new = str(old)[:-1] or draw.choice([1, None, True, "x y"])
        return {new if key == old else key: value for key, value in node.items()}
    return draw.choice([list(node.values()), list(node), None, {**node, draw.choice(known): node}])


def _value(draw: random.Random, path: tuple[Any, ...]) -> Any:
    """Returns a value for a key: often what the key takes, else anything."""
    key = str(path[-1]) if path else ""
    kind = draw.random()
    if kind < 0.4 and _VALUES.get(key):
        text = draw.choice(_VALUES[key])
        return text if text == "," else yaml.safe_load(text)  # a comma alone is written with quotes
    if kind < 0.8 and key in _LIKELY:
        return draw.choice(_LIKELY[key])
    if kind < 0.5 and key in ("optimizer", "name"):
        return draw.choice([*OPTIMIZERS, "adafactor", {"name": "adam", "beta_1": draw.choice(_ODD)}])
    if kind < 0.65:
        return draw.choice([1, 2, 5, 0.1, 0.3, 1e-3, 16, 40, "head", ["head"], "stem", "label", "a", "mse", "accuracy"])
    if kind < 0.7:
        return {draw.choice(_KEYS.get(key) or ["name"]): draw.choice(_ODD)}
    return draw.choice(_ODD)


def _changed_text(text: str, draw: random.Random) -> str:
    position = draw.randrange(len(text))
    piece = draw.choice(
        ["\t", ":", "- ", "{", "]", "'", '"', "&a ", "*a", "!!python/object ", "\u0000", "\ud800", "%", "? "]
    )
    return draw.choice(
        [text[:position] + piece + text[position:], text[:position], text[:position] + text[position + 1 :]]
    )


# -- Files ------------------------------------------------------------------------------------------------------------


def _changed_files(draw: random.Random) -> dict[str, Callable[[bytes], bytes]]:
    changed: dict[str, Callable[[bytes], bytes]] = {}
    for _ in range(draw.choice([1, 1, 2])):
        name = draw.choice(
            ["rows.npz", "rows.csv", "rows.jsonl", "tiny.keras", "tiny.weights.h5", "weights.npz", "photos.csv"]
            + ["photos/cat/0.png", "photos/dog/1.png", "clips/high/0.wav", "reference.npz", "pixels.keras"]
        )
        inner = random.Random(draw.random())
        change = _changed_bytes
        if name.endswith("npz") and draw.random() < 0.7:
            change = _changed_arrays
        elif name.endswith(("csv", "jsonl")) and draw.random() < 0.8:
            change = _changed_table
        changed[name] = lambda data, change=change, inner=inner: change(data, inner)
    return changed


def _changed_bytes(data: bytes, draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.15:
        return draw.choice([b"", b"\0" * 100, b"text\n", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x93NUMPY", b"RIFF"])
    if kind < 0.45:
        return data[: draw.randrange(len(data) + 1)]
    changed = bytearray(data)
    for _ in range(draw.choice([1, 3, 30])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _changed_arrays(data: bytes, draw: random.Random) -> bytes:
    from io import BytesIO

    with np.load(BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    name = draw.choice(list(arrays))
    array = arrays[name]
    flat: Any = array.astype(np.float64)
    flat.reshape(-1)[: draw.choice([1, 2, flat.size])] = draw.choice([np.nan, np.inf, -1.0, 1e30, 1e300])
    with np.errstate(all="ignore"):
        arrays[name] = draw.choice(
            [flat, flat.astype(np.float32), array[:1], array[:0], array[..., None], array.astype(str), array.T]
            + [array.astype(complex), array.astype(np.uint8), array.astype(bool), np.float32(3.0), array.reshape(-1)]
            + [array.astype("datetime64[s]"), np.asfortranarray(array), array.astype(np.float16), array * 0]
        )
    if draw.random() < 0.3:
        arrays[draw.choice(["x_train", "y_test", "x_validation", "z", "x_train/a", "\x1b[0m"])] = arrays.pop(name)
    out = BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def _changed_table(data: bytes, draw: random.Random) -> bytes:
    lines = data.decode().splitlines()
    line = draw.randrange(len(lines))
    odd = [
        "",
        "nan",
        "x",
        "1e999",
        '"',
        "1;2",
        "1,5",
        "\ufeff",
        "0x1",
        "true",
        "2024-01-01",
        "[1, 2]",
        "{}",
        "-",
        "\x00",
    ]
    kind = draw.random()
    if kind < 0.5:
        cells = lines[line].split(",")
        cells[draw.randrange(len(cells))] = draw.choice(odd)
        lines[line] = ",".join(cells)
    elif kind < 0.7:
        lines = draw.choice([lines[:1], lines[:2], [], lines[1:], lines + lines, lines[:line], ["", *lines, ""]])
    elif kind < 0.8:
        lines = [each.replace(",", draw.choice([";", "\t", "|"])) for each in lines]
    else:
        lines[line] += draw.choice([",1", ",", "\r", ' "', "\\"])
    return "\n".join(lines).encode(draw.choice(["utf-8", "utf-8", "utf-16", "latin-1"]), "replace")


# -- Arguments --------------------------------------------------------------------------------------------------------


def _arguments(command: str, draw: random.Random) -> list[str]:
    odd = lambda *good: draw.choice([*good, *good, *map(str, _ODD[:18]), "x", ""])  # noqa: E731
    options: dict[str, list[list[str]]] = {
        "run": [["--overwrite"], ["--recalibrate"], ["--out", draw.choice(["out", "photos", "rows.npz", "a/b/c", ""])]],
        "check": [["--out", draw.choice(["out", "photos", "rows.npz"])]],
        "plan": [["--weights"], ["--json"]],
        "data": [["--sheet", draw.choice(["sheet.png", "sheet.txt", "photos", "no/such/a.png"])]],
        "lr-range": [["--steps", odd("24")], ["--start", odd("1e-6")], ["--end", odd("1")], ["--group", odd("head")]]
        + [
            ["--repeats", odd("1")],
            ["--each"],
            ["--others", odd("frozen", "constant")],
            ["--write"],
            ["--out", "curve"],
        ],
        "suggest": [
            ["--by", odd("layer", "block")],
            ["--batches", odd("2")],
            ["--peak", odd("1e-3")],
            ["--out", "s.yaml"],
        ],
        "inspect": [["--json"]],
        "reference": [["--layer", odd("body", "head")], ["--input", odd("inputs.npy", "rows.npz")], ["--overwrite"]],
        "keys": [["--markdown"]],
    }
    positional = ["recipe.yaml"]
    if command == "inspect":
        names = [
            "tiny.keras",
            "tiny.weights.h5",
            "weights.npz",
            "rows.npz",
            "photos",
            "photos/cat/0.png",
            "rows.csv",
            "no",
        ]
        positional = [draw.choice(names)]
    if command == "reference":
        positional = [
            draw.choice(["recipe.yaml", "tiny.keras", "rows.npz", "no.keras"]),
            draw.choice(["o.npz", "rows.npz"]),
        ]
    if command == "keys":
        positional = [draw.choice([*_VALUES, "train.epochs", "x", ""])]
    chosen = [option for option in options[command] if draw.random() < 0.15]
    if command == "lr-range" and not any("--steps" in option for option in chosen):
        chosen.append(["--steps", "24"])
    if command not in ("inspect", "keys", "reference") and draw.random() < 0.15:
        place = draw.choice(
            ["train.epochs", "train.loss", "groups.head.learning_rate", "groups.0", "data", "x", "model.head"]
        )
        chosen.append(["--set", f"{place}={json.dumps(draw.choice(_ODD), default=str)}"])
    return [command, *positional, *(word for option in chosen for word in option)]


# -- Valid files ------------------------------------------------------------------------------------------------------


def make_pristine(folder: Path) -> None:
    """Writes the valid files that inputs begin with: three tiny models, their weights, and rows in several forms."""
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    folder.mkdir(parents=True)
    middle = lambda: [layers.BatchNormalization(name="bn"), layers.Dense(8, "relu", name="body")]  # noqa: E731
    head = lambda classes: layers.Dense(classes, "softmax", name="head")  # noqa: E731
    tiny = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="stem"), *middle(), head(3)])
    flat = [keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(8, name="stem"), *middle(), head(2)]
    sound = [keras.Input((64,)), layers.Dense(8, name="stem"), *middle(), head(2)]
    tiny.save(folder / "tiny.keras")
    tiny.save_weights(folder / "tiny.weights.h5")
    keras.Sequential(flat).save(folder / "pixels.keras")
    keras.Sequential(sound).save(folder / "sound.keras")
    names = {v.path.removeprefix(f"{tiny.name}/"): v.numpy() for v in tiny.weights}
    np.savez(folder / "weights.npz", **names)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 6)).astype("float32"), rng.integers(0, 3, 60)
    np.save(folder / "inputs.npy", x[:4])
    np.savez(folder / "rows.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    np.savez(folder / "reference.npz", input=x[:4], output=np.asarray(tiny(x[:4])))
    rows = [{**dict(zip("abcdef", map(float, row), strict=True)), "label": int(c)} for row, c in zip(x, y, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    text = ["a,b,c,d,e,f,label", *(",".join(map(str, row.values())) for row in rows)]
    (folder / "rows.csv").write_text("\n".join(text) + "\n")
    photos = ["file,label"]
    for kind, color in (("cat", 60), ("dog", 200)):
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(4):
            (folder / "photos" / kind / f"{number}.png").write_bytes(_png(np.full((8, 8, 3), color + number, np.uint8)))
            photos.append(f"photos/{kind}/{number}.png,{kind}")
    (folder / "photos.csv").write_text("\n".join(photos) + "\n")
    for kind, height in (("low", 3), ("high", 9)):
        (folder / "clips" / kind).mkdir(parents=True)
        for number in range(4):
            with wave.open(str(folder / "clips" / kind / f"{number}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 64, "NONE", ""))
                file.writeframes((np.sin(np.arange(64) * height / 10 + number) * 9000).astype("<i2").tobytes())


def _png(pixels: np.ndarray) -> bytes:
    height, width, _ = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
