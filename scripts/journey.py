"""The whole way on six kinds of data: recipe, run, predict, export, and a new process that answers raw rows.

    python scripts/journey.py                            all six, as a table
    python scripts/journey.py table text                 some of them
    python scripts/journey.py --peers                    beside programs of plain Keras
    python scripts/journey.py --peers --fastai PYTHON    and of fastai, run by another Python that has it
    python scripts/journey.py --peers --write            puts the tables into docs/after.md
    python scripts/journey.py --moved audio              asks the run again, moved, without what it was made of

The data are made on the spot, small and learnable. For each kind the commands of a user run, each in a process of its
own: `finetune run`, `finetune predict`, `finetune export`. The export is a SavedModel; `export` opens it in a process
with TensorFlow alone and compares its answers for raw test rows with those of the run. The only thing written by hand
is the recipe.

The programs of the peers, in `scripts/peers/journey`, are the shortest that their users would write for the same data,
tested on the same rows: they train, answer the test rows, and save what they have trained. Their lines are counted with
imports, without blank lines and comments. A kind without a program of a peer has an empty cell.
"""

import argparse
import csv
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

MOST_SECONDS = 300  # for a kind, on two cores
MOST_DIFFERENCE = 1e-5
WORDS = {"good": "good fine lovely great", "bad": "bad dull poor boring"}
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}
TAIL = """
groups: [{name: all, rest: true, optimizer: adam, learning_rate: 0.01}]
train: {epochs: EPOCHS, batch_size: 16}
"""
PEERS = Path(__file__).resolve().parent / "peers" / "journey"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "after.md"
_random = np.random.default_rng(0)


class Journey(NamedTuple):
    """What became of a kind of data.

    Attributes:
        kind: The kind.
        lines: Lines of the recipe.
        score: The accuracy on the test rows.
        seconds: Wall time of all commands.
        processor_seconds: Of all commands, over all cores.
        difference: Between the answers of the export and of the run.
        format: What was exported.
        takes: What the export takes.
    """

    kind: str
    lines: int
    score: float
    seconds: float
    processor_seconds: float
    difference: float
    format: str
    takes: str


def images(folder: Path) -> tuple[str, list[str]]:
    """Writes photos of coloured squares, JPEG and PNG of many sizes, and returns the recipe and what to predict."""
    import keras
    from PIL import Image

    for name, colour in COLOURS.items():
        for number in range(30):
            place = folder / "photos" / _part(number) / name
            place.mkdir(parents=True, exist_ok=True)
            pixels = _random.normal(colour, 25, (40 + number, 60 - number, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(place / f"{number}.{'jpg' if number % 2 else 'png'}", quality=95)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)).save(folder / "net.keras")
    recipe = "model: {keras_file: net.keras, head: {classes: auto}}\ndata: {images: photos/}"
    return recipe + TAIL.replace("EPOCHS", "15"), ["photos/test"]


def _vocabulary(folder: Path, words: list[str]) -> None:
    import tokenizers

    ids = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def _embeds(folder: Path, *, with_size: bool = False) -> None:
    """Writes a network of token ids, and of a number if `with_size`."""
    import keras

    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(64, 16)(ids))
    if not with_size:
        keras.Model(ids, x).save(folder / "net.keras")
        return
    size = keras.Input((1,), name="size")
    keras.Model([ids, size], keras.layers.Concatenate()([x, size])).save(folder / "net.keras")


def _sentence(words: str) -> str:
    return " ".join(_random.choice([*words.split(), "the", "film", "was"], 6))


def text(folder: Path) -> tuple[str, list[str]]:
    """Writes reviews and a tokenizer."""
    rows = [(_sentence(WORDS[kind]), kind) for _ in range(100) for kind in WORDS]
    _table(folder / "reviews.csv", ["text", "kind"], rows)
    _vocabulary(folder, " ".join([*WORDS.values(), "the film was"]).split())
    _embeds(folder)
    recipe = (
        "model: {keras_file: net.keras, head: {classes: auto}}\n"
        "data: {table: reviews.csv, test_table: reviews_test.csv, inputs: text, target: kind,\n"
        "       tokenizer: {file: tokenizer.json, length: 8}}"
    )
    return recipe + TAIL.replace("EPOCHS", "8"), ["reviews_test.csv"]


def table(folder: Path) -> tuple[str, list[str]]:
    """Writes a table of numbers and categories, with missing values."""
    rows = []
    for number in range(300):
        age, town = float(_random.normal(40, 12)), str(_random.choice(["Ulm", "Bonn", "Köln"]))
        kind = "yes" if age + 15 * (town == "Bonn") > 44 else "no"
        rows.append(("NA" if number % 29 == 0 else f"{age:.1f}", town, kind))
    _table(folder / "people.csv", ["age", "town", "kind"], rows)
    recipe = (
        "model: {builder: finetune.examples.networks:mlp, arguments: {units: [32]}, head: {classes: auto}}\n"
        "data: {table: people.csv, test_table: people_test.csv, inputs: [age, town], target: kind}"
    )
    return recipe + TAIL.replace("EPOCHS", "15"), ["people_test.csv"]


def two_inputs(folder: Path) -> tuple[str, list[str]]:
    """Writes reviews with a number beside the text."""
    rows = []
    for _ in range(120):
        for kind in WORDS:
            size = int(_random.integers(0, 100))
            rows.append((_sentence(WORDS[kind]), size, f"{kind} {'large' if size > 50 else 'small'}"))
    _table(folder / "rows.csv", ["text", "size", "kind"], rows)
    _vocabulary(folder, " ".join([*WORDS.values(), "the film was"]).split())
    _embeds(folder, with_size=True)
    recipe = (
        "model: {keras_file: net.keras, head: {classes: auto}}\n"
        "data: {table: rows.csv, test_table: rows_test.csv, inputs: {ids: text, size: size}, target: kind,\n"
        "       tokenizer: {file: tokenizer.json, length: 8}}"
    )
    return recipe + TAIL.replace("EPOCHS", "20"), ["rows_test.csv"]


def audio(folder: Path) -> tuple[str, list[str]]:
    """Writes low and high tones, and a SavedModel that makes features of samples, as TensorFlow Hub has them."""
    import tensorflow as tf

    for name, pitch in {"low": 200, "high": 900}.items():
        for number in range(30):
            place = folder / "clips" / _part(number) / name
            place.mkdir(parents=True, exist_ok=True)
            samples = 0.4 * np.sin(2 * np.pi * (pitch + number) * np.arange(4000) / 4000) + _random.normal(0, 0.1, 4000)
            with wave.open(str(place / f"{number}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(4000)
                file.writeframes((samples * 2**14).astype("<i2").tobytes())

    class Features(tf.Module):
        def __init__(self):
            super().__init__()
            self.filters = tf.Variable(_random.normal(0, 0.1, (64, 1, 16)), dtype=tf.float32, name="filters")
            self.variables_, self.trainable_variables_ = [self.filters], [self.filters]

        @tf.function(input_signature=[tf.TensorSpec((None, 4000), tf.float32)])
        def __call__(self, samples):
            bands = tf.nn.conv1d(samples[..., tf.newaxis], self.filters, 32, "VALID")
            return tf.reduce_mean(tf.square(bands), axis=1)

    tf.saved_model.save(Features(), str(folder / "features"))
    recipe = "model: {hub: ./features, head: {classes: auto}}\ndata: {audio: clips/, sample_rate: 4000, length: 4000}"
    return recipe + TAIL.replace("EPOCHS", "15"), ["clips/test"]


def several_labels(folder: Path) -> tuple[str, list[str]]:
    """Writes texts that have any number of three labels."""
    rows = []
    for number in range(240):
        labels = [name for place, name in enumerate(COLOURS) if number >> place & 1]
        rows.append((" ".join([*labels, "box", str(_random.choice(["the", "a"]))]), "|".join(labels) or "|"))
    _table(folder / "boxes.csv", ["text", "colours"], rows)
    _vocabulary(folder, [*COLOURS, "box", "the", "a"])
    _embeds(folder)
    recipe = (
        "model: {keras_file: net.keras, head: {classes: auto}}\n"
        "data: {table: boxes.csv, test_table: boxes_test.csv, inputs: text, target: colours,\n"
        "       tokenizer: {file: tokenizer.json, length: 8}}"
    )
    return recipe + TAIL.replace("EPOCHS", "20"), ["boxes_test.csv"]


KINDS: dict[str, Callable[[Path], tuple[str, list[str]]]] = {
    "images": images,
    "text": text,
    "table": table,
    "two inputs": two_inputs,
    "audio": audio,
    "several labels": several_labels,
}


def _part(number: int) -> str:
    """Returns the split of a row: every fifth is to test."""
    return "train" if number % 5 else "test"


def _table(path: Path, names: list[str], rows: list[tuple[object, ...]]) -> None:
    """Writes the training rows of a table, and beside them the test rows."""
    for part, name in {"train": path.name, "test": f"{path.stem}_test.csv"}.items():
        some = [row for number, row in enumerate(rows) if _part(number) == part]
        with path.with_name(name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *some])


def journey(kind: str, folder: Path, *, moved: bool = False) -> Journey:
    """Goes the whole way for a kind of data.

    Args:
        kind: A key of `KINDS`.
        folder: An empty folder.
        moved: Whether the run must also answer from another folder, after all that it was made of is gone.

    Raises:
        SystemExit: A command fails, the answers differ by too much, or it takes too long.
    """
    recipe, inputs = KINDS[kind](folder)
    (folder / "recipe.yaml").write_text(recipe)
    allow = ["--allow-code", "hub:./features"] if kind == "audio" else []
    again = ["--allow-code", "hub:run"] if kind == "audio" else []
    begun, used = time.monotonic(), _processor_seconds()
    _finetune(folder, "run", "recipe.yaml", "--out", "run", *allow)
    answers = _finetune(folder, "predict", "run", *inputs, *again).splitlines()
    _finetune(folder, "export", "run", "--out", "out", "--format", "savedmodel", *again, *allow)
    seconds, processor_seconds = time.monotonic() - begun, _processor_seconds() - used
    about = json.loads((folder / "out" / "export.json").read_text())
    metrics = json.loads((folder / "run" / "result.json").read_text())["metrics"]
    score = next(value for name, value in metrics.items() if name != "loss")
    done = Journey(
        kind,
        lines_of(recipe),
        score,
        seconds,
        processor_seconds,
        about["difference"],
        about["format"],
        ", ".join(f"`{each['name']}`" for each in about["inputs"]),
    )
    if not answers or done.difference > MOST_DIFFERENCE or seconds > MOST_SECONDS:
        raise SystemExit(f"the promise does not hold: {done}")
    if moved:
        _answer_elsewhere(folder, inputs, answers, again)
    return done


def _answer_elsewhere(folder: Path, inputs: Sequence[str], answers: Sequence[str], allow: Sequence[str]) -> None:
    """Moves the run and the rows to answer into another folder, removes all else, and asks again."""
    with tempfile.TemporaryDirectory() as other:
        for name in ("run", *inputs):
            (Path(other) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / name, Path(other) / name)
        shutil.rmtree(folder)
        folder.mkdir()
        if _finetune(Path(other), "predict", "run", *inputs, *allow).splitlines() != answers:
            raise SystemExit("a run that was moved gives other answers")
        for *command, expected in (
            ("inspect", "run", "finished"),
            ("evaluate", "run", "--data", *inputs, *allow, "loss"),
        ):
            if expected not in (said := _finetune(Path(other), *command)):
                raise SystemExit(f"`finetune {' '.join(command)}` of a run that was moved says:\n{said}")


class PeerRun(NamedTuple):
    """What became of a peer on a kind of data.

    Attributes:
        lines: Lines of its program.
        seconds: Processor seconds of the process, over all cores: other work on the machine plays no part.
        score: The accuracy on the test rows.
    """

    lines: int
    seconds: float
    score: float


def lines_of(text: str) -> int:
    """Returns how many lines of a text are neither blank nor comments."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())


def peer_run(peer: str, python: str, kind: str, folder: Path) -> PeerRun | None:
    """Runs the program of a peer; `None` where it has none for the kind of data.

    Args:
        peer: `keras` or `fastai`.
        python: The Python that has it.
        kind: A key of `KINDS`.
        folder: Where the data are.

    Raises:
        SystemExit: The program fails.
    """
    program = PEERS / f"{peer}_{kind.replace(' ', '_')}.py"
    if not program.is_file():
        return None
    used = _processor_seconds()
    ended = subprocess.run([python, str(program)], cwd=folder, capture_output=True, text=True)
    seconds = _processor_seconds() - used
    score = re.search(r"score ([\d.]+)\s*$", ended.stdout)
    if ended.returncode or not score:
        raise SystemExit(f"`{program.name}` ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return PeerRun(lines_of(program.read_text()), seconds, float(score[1]))


def _processor_seconds() -> float:
    """Returns what the processes that this one has started and that have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _finetune(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "finetune", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(
            f"{' '.join(arguments)} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr[-2000:]}"
        )
    return ended.stdout


def main(arguments: list[str]) -> None:
    """Prints a line of a table for each kind, and with `--peers` a second table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--fastai", metavar="PYTHON")
    parser.add_argument("--moved", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    peers = {"keras": sys.executable} | ({"fastai": options.fastai} if options.fastai else {})
    rows, beside = [], []
    for kind in options.kinds or list(KINDS):
        with tempfile.TemporaryDirectory() as folder:
            done = journey(kind, Path(folder), moved=options.moved)
            of_peers = [peer_run(*peer, kind, Path(folder)) for peer in peers.items()] if options.peers else []
        rows.append(
            (done.kind, done.lines, f"{done.score:.3f}", f"{done.seconds:.0f}", done.takes, f"{done.difference:.1g}")
        )
        beside.append((kind, *map(_cell, (PeerRun(done.lines, done.processor_seconds, done.score), *of_peers))))
        print(*rows[-1], *beside[-1][2:], sep=" | ", flush=True)
    heads = ["data", "lines of YAML", "accuracy", "seconds", "export takes", "difference"]
    tables = {"journey": _markdown(heads, rows)}
    if options.peers:
        tables["journey beside peers"] = _markdown(
            ["data", "finetune", "plain Keras", "fastai"][: 2 + len(peers)], beside
        )
    for name, table in tables.items():
        print(table)
        if options.write:
            marked = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
            page, count = re.subn(marked, lambda match: match[1] + table + match[2], PAGE.read_text(), flags=re.DOTALL)  # noqa: B023
            if count != 1:
                raise SystemExit(f"{PAGE.name} must have the markers of `{name}` exactly once.")
            PAGE.write_text(page)


def _cell(run: PeerRun | None) -> str:
    return f"{run.lines} lines, {run.seconds:.0f} s, {run.score:.3f}" if run else ""


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


if __name__ == "__main__":
    main(sys.argv[1:])
