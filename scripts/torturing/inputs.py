"""Bombs, names with control characters, inputs that nobody thought of, and when `check` answers."""

import json
import random
import re
import struct
import time
from pathlib import Path
from typing import Any

from torturing import bombs
from torturing.harness import RECIPE, check, finetune, python, tiny

PEAK = 1500 * 2**20  # bytes; TensorFlow itself takes 650 MB


@check("bombs", list(bombs.BOMBS))
def a_small_file_that_asks_for_gigabytes_gets_none(folder: Path, name: str) -> None:
    path = bombs.make(name, folder)
    seen = bombs.measure(path.parent, bombs.command(name, path))
    assert "Traceback" not in seen.said, seen.said
    assert "please report it" not in seen.said, seen.said
    assert seen.code in (0, 2), (seen.code, seen.said)
    assert seen.peak < PEAK, f"{seen.peak:,} bytes: {seen.said}"


# What a terminal obeys: colours, a title, a carriage return, a bell, a line that looks like ours.
NAMES = ["\x1b[31mred", "\x1b]0;title\x07", "a\rb", "a\nerror: forged", "a\x9b2J", "a\u202ename", "\u2066a"]


_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _obeyed(text: str) -> list[str]:
    return _CONTROLS.findall(text)


@check("names", NAMES)
def names_in_weights_are_shown_escaped(folder: Path, name: str) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({f"{name}/kernel": entry}).encode()
    (folder / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    for arguments in (["inspect", "w.safetensors"], ["inspect", "w.safetensors", "--json"]):
        said = finetune(folder, *arguments)
        assert not _obeyed(said), (arguments, said)
        assert "\nerror: forged" not in said
    said = finetune(folder, "plan", RECIPE, "--set", f"restore.from={folder}/w.safetensors", codes=(2,))
    assert not _obeyed(said), said


_PHOTOS = """
import json, keras, numpy as np
from pathlib import Path
from PIL import Image
for number, kind in enumerate(json.loads(Path("names.json").read_text())):
    folder = Path("photos") / kind
    folder.mkdir(parents=True)
    for n in range(8):
        Image.new("RGB", (8, 8), (n * 20, 100 * number, 9)).save(folder / f"{kind}{n}.png")
image = keras.Input((8, 8, 3))
pooled = keras.layers.GlobalAveragePooling2D()(image)
keras.Model(image, keras.layers.Dense(2, activation="softmax", name="head")(pooled)).save("net.keras")
"""


@check("names", NAMES)
def names_of_classes_and_files_are_escaped_wherever_they_are_written(folder: Path, name: str) -> None:
    tiny(folder)
    (folder / "names.json").write_text(json.dumps([name, "b"]))
    python(folder, _PHOTOS)
    (folder / "r.yaml").write_text("""model: {keras_file: net.keras}
data: {images: photos, split: {test: 0.3}}
groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 1.0e-3}]
train: {epochs: 1, batch_size: 4, loss: sparse_categorical_crossentropy}
""")
    said = finetune(folder, "data", "r.yaml", "--sheet", "sheet.png")
    said += finetune(folder, "run", "r.yaml", "--out", "out")
    for path in (folder / "out").rglob("*"):
        if path.is_file() and path.suffix in (".txt", ".json", ".csv", ".yaml", ".svg"):
            said += path.read_text(encoding="utf-8")
    assert not _obeyed(said), sorted(set(_obeyed(said)))
    assert "\nerror: forged" not in said


_SCHEDULE = "{schedule: exponential_decay, initial: 1e-3, decay_epochs: 5, decay_rate: 1e300}"
INTERNAL: list[list[str]] = [
    ["check", "r.yaml", "--set", f'train.epochs="{"9" * 5000}"'],
    ["inspect", "/proc/self/mem"],
    ["inspect", "/dev/zero"],
    ["inspect", "."],
    ["inspect", "x" * 250],
    ["inspect", "a\nb"],
    ["plan", "r.yaml", "--set", "train.steps_per_execution=1000000000000"],
    ["plan", "r.yaml", "--set", "train.batch_size=1000000000000"],
    ["plan", "r.yaml", "--set", "train.epochs=1000000000000000000"],
    ["plan", "r.yaml", "--set", "seed=99999999999999999999"],
    ["plan", "r.yaml", "--set", "model.head={classes: 1000000000000}"],
    ["plan", "r.yaml", "--set", f"groups.head.learning_rate={_SCHEDULE}"],
    ["lr-range", "r.yaml", "--steps", "1000000000000"],
    ["lr-range", "r.yaml", "--start", "nan"],
    ["data", "r.yaml", "--sheet", "/proc/none/s.png"],
    ["reference", "net.keras", "/proc/none/r.npz", "--input", "d.npz"],
    ["suggest", "r.yaml", "--peak", "inf"],
    ["keys", "\x1b[31m"],
]


@check("inputs", range(len(INTERNAL)))
def no_input_is_an_error_of_ours(folder: Path, number: int) -> None:
    tiny(folder)
    finetune(folder, *INTERNAL[number], codes=(0, 1, 2))


_PIECES = [
    *("", "~", "[]", "{}", "[[]]", "-1", "0", "1e400", "nan", "'", '"', "*a", "&a", "!!python/object:os.system"),
    *("\t", "\0", "9" * 400, "true", "a: b", "<<: 1", "\u202e", "- -", "?", "%", "@", "{", "]", "|", ">", "#"),
    *("1_0", ".inf", "''", "../../x", "/dev/null", "x" * 5000),
]


def mutated(text: str, generator: random.Random) -> str:
    """Returns a recipe with a few of its words exchanged, doubled, moved or lost."""
    words: list[Any] = text.replace(",", " , ").replace(":", ": ").replace("}", " } ").split(" ")
    for _ in range(generator.randint(1, 4)):
        place, how = generator.randrange(len(words)), generator.random()
        if how < 0.5:
            words[place] = generator.choice(_PIECES)
        elif how < 0.7:
            del words[place]
        elif how < 0.85:
            words.insert(place, generator.choice(words))
        else:
            other = generator.randrange(len(words))
            words[place], words[other] = words[other], words[place]
    return " ".join(words)


@check("inputs", range(20))
def a_mutated_recipe_is_refused_with_a_sentence(folder: Path, seed: int) -> None:
    text = tiny(folder).read_text()
    (folder / "r.yaml").write_text(mutated(text, random.Random(seed)))
    begun = time.monotonic()
    said = finetune(folder, "check", "r.yaml", codes=(0, 2))
    assert time.monotonic() - begun < 15, said


LATE = {
    "a taken folder": (["--out", "taken"], "is not empty"),
    "a missing file": (["--set", "data.npz=none.npz"], "does not exist"),
    "missing weights": (["--set", "restore={from: none.h5}"], "none.h5"),
    "an unknown loss": (["--set", "train.loss=crossentropi"], "crossentropi"),
    "an unknown metric": (["--set", "train.metrics=[acuracy]"], "acuracy"),
    "a missing builder": (["--set", "model={builder: finetune.examples.digits:none}"], "none"),
    "wrong arguments": (["--set", "model={builder: finetune.examples.digits:small_cnn, arguments: {wide: 1}}"], "wide"),
}


@check("time", list(LATE))
def check_tells_before_tensorflow_starts(folder: Path, what: str) -> None:
    tiny(folder)
    (folder / "taken").mkdir()
    (folder / "taken" / "file").touch()
    options, words = LATE[what]
    begun = time.monotonic()
    said = finetune(folder, "check", "r.yaml", *options, codes=(2,))
    seconds = time.monotonic() - begun
    assert words in said, said
    assert seconds < 10, f"{seconds} seconds"  # on a busy machine; a second by itself, and TensorFlow takes five
