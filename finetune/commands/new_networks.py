"""The networks that `finetune new` can write into a recipe, for each kind of data."""

import json
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.survey import DataSurvey
from finetune.errors import FinetuneError, did_you_mean
from finetune.files.zip_archives import zip_archive
from finetune.recipe.model import APPLICATIONS

SMALL = "small"
_TWO_OUTPUTS = ("bert", "albert", "electra", "f_net", "fnet")  # presets whose network returns its sequence by name
_LARGEST = 96  # pixels of an image for the small network


@dataclass(frozen=True)
class Network:
    """A network as a recipe writes it.

    Attributes:
        lines: The lines of `model` but its head, indented.
        head: Keys of its head beside `classes`, as YAML in braces without them.
        data: Keys of `data` that it needs, as lines.
        is_pretrained: Whether it comes with weights.
        is_language_model: Whether it reads token ids with pretrained weights.
        brings_tokenizer: Whether texts need no tokenizer of the user.
        allow_code: What `--allow-code` must name.
        unused: A layer for an output that is not taken; "" for none.
        notes: Sentences for the user.
    """

    lines: tuple[str, ...]
    head: str = ""
    data: tuple[str, ...] = ()
    is_pretrained: bool = True
    is_language_model: bool = False
    brings_tokenizer: bool = False
    allow_code: str = ""
    unused: str = ""
    notes: tuple[str, ...] = field(default=())


def offers(kind: str) -> list[str]:
    """Returns what `--model` may be for a kind of input, and what each needs, as sentences.

    Args:
        kind: `images`, `audio`, `text` or `vector`.
    """
    small = f"`{SMALL}`: a small network that begins with random weights; needs nothing, and many rows"
    files = "a `.keras` file, the folder of a SavedModel, or `package.module:function` that returns a network"
    if kind == "images":
        return [
            small,
            "`MobileNetV2`, or another network of `keras.applications`: Keras downloads its ImageNet weights in the "
            "first run; without a connection, name a file of them with `--weights`",
            "the folder of a KerasHub preset, or its name, which is downloaded",
            files,
        ]
    if kind == "text":
        return [
            small,
            "the folder of a KerasHub preset, or its name such as `bert_tiny_en_uncased`, which is downloaded in the "
            "first run (`pip install 'discriminative-finetune[presets]'`)",
            files,
        ]
    return [small, files]


def choose_network(
    name: str, kind: str, survey: DataSurvey, *, weights: str | None, folder: Path, vocabulary: int = 0
) -> Network:
    """Returns the network that a name or a path stands for.

    Args:
        name: What the user wrote for `--model`.
        kind: `images`, `audio`, `text` or `vector`.
        survey: The data.
        weights: What the user wrote for `--weights`, or `None`.
        folder: The folder of the recipe, to which paths are relative.
        vocabulary: Tokens of the tokenizer that was made for the small network of text.

    Raises:
        FinetuneError: There is no such network, or it does not take such inputs.
    """
    path = Path(name).expanduser()
    scaled = (
        ("  value_range: [0, 1]  # what most SavedModels of images take",)
        if kind == "images" and survey.kind != "npz"
        else ()
    )
    application = {known.lower(): known for known in APPLICATIONS}.get(name.lower().replace("_", ""))
    if weights is not None and not application:
        raise FinetuneError(
            f"`--weights` are those of a network of `keras.applications`. Received `--model {name}`. Remove "
            "`--weights`, or write `restore: {from: FILE}` into the recipe."
        )
    if name == SMALL:
        return _small(kind, survey, vocabulary)
    if application:
        return _application(application, kind, survey, weights, folder)
    if path.is_dir() and (path / "saved_model.pb").is_file():
        line = f"  hub: {placed(path, folder)}  # its graph is code: `finetune inspect` lists it"
        return Network((line,), data=scaled, allow_code=f"hub:{placed(path, folder)}")
    if path.is_dir():
        return _preset(placed(path, folder), _class_of_preset(path), kind)
    if path.is_file():
        return _file(path, folder)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        package = name.split(".")[0].split(":")[0]
        allowed = "" if name.startswith(("finetune.examples", "keras.applications")) else package
        return Network((f"  builder: {name}  # your function returns the network",), allow_code=allowed)
    if "://" not in name and (hint := did_you_mean(name, (*APPLICATIONS, SMALL))):
        raise FinetuneError(f"There is no network `{name}`.{hint}")
    if re.fullmatch(r"[a-z0-9]+(_[a-z0-9.]+)+", name) or name.startswith(("kaggle://", "hf://")):
        return _preset(name, name, kind)
    if name.startswith("https://"):
        return Network((f"  hub: {name}  # downloaded in the first run",), data=scaled, allow_code=f"hub:{name}")
    raise FinetuneError(
        f"There is neither a network nor a file `{name}`. `--model` may be:\n"
        + "\n".join(f"- {offer}" for offer in offers(kind))
    )


def placed(path: Path, folder: Path) -> str:
    """Returns a path as a recipe in a folder writes it: relative where the recipe lies above it or beside it."""
    relative = os.path.relpath(path, folder)
    return relative if not relative.startswith(os.path.join("..", "..", "..")) else str(path.absolute())


def _small(kind: str, survey: DataSurvey, vocabulary: int) -> Network:
    note = ("the network begins with random weights: nothing is pretrained",)
    if kind == "text":
        lines = (
            "  builder: finetune.examples.networks:word_average  # averages an embedding of each token",
            f"  arguments: {{vocabulary: {vocabulary}, width: 32}}  # wider takes more rows to learn",
        )
        return Network(lines, is_pretrained=False, notes=note)
    if kind == "images":
        scale = "1.0" if survey.largest is not None and survey.largest <= 1 else "0.00392157"
        lines = (
            "  builder: finetune.examples.networks:cnn  # three convolutions",
            f"  arguments: {{filters: [16, 32, 64], scale: {scale}}}  # more filters see more, and take longer",
        )
        is_array = survey.kind == "npz"
        height, width = [max(16, min(_LARGEST, size)) for size in (survey.shape or (64, 64, 3))[:2]]
        size = f"  size: [{height}, {width}]  # pixels: larger shows more, and takes longer"
        return Network(lines, data=() if is_array else (size,), is_pretrained=False, notes=note)
    if kind == "audio":
        lines = (
            "  builder: finetune.examples.networks:sound_cnn  # a spectrogram and three convolutions",
            "  arguments: {filters: [16, 32, 64], window: 256}  # samples of a column of the spectrogram",
        )
        return Network(lines, is_pretrained=False, notes=note)
    lines = (
        "  builder: finetune.examples.networks:mlp  # takes as many values as the columns make",
        "  arguments: {units: [64, 64], dropout: 0.1}  # more units fit more; more dropout fits less",
    )
    return Network(lines, is_pretrained=False)


def _application(name: str, kind: str, survey: DataSurvey, weights: str | None, folder: Path) -> Network:
    if kind != "images":
        raise FinetuneError(
            f"`{name}` takes images, and these data are {kind}. `--model` may be:\n"
            + "\n".join(f"- {offer}" for offer in offers(kind))
        )
    weights = weights or "imagenet"
    notes: tuple[str, ...] = ()
    written = weights
    if weights == "imagenet":
        notes = (
            "Keras downloads the ImageNet weights in the first run; without a connection, name a file of them with "
            "`--weights`",
        )
    elif weights == "none":
        notes = ("the network begins with random weights: nothing is pretrained",)
    elif not Path(weights).expanduser().is_file():
        raise FinetuneError(
            f"`--weights` are `imagenet`, `none`, or a file. There is no file `{weights}`. Download it, or check the "
            "path."
        )
    else:
        written = placed(Path(weights).expanduser(), folder)
    size = 96 if name.startswith("MobileNet") else 224 if name.startswith(("NASNetMobile", "ResNet", "VGG")) else 160
    lines = (
        f"  application: {name}  # a larger network is more accurate, and slower",
        f"  weights: {written}",
        f"  input_shape: [{size}, {size}, 3]  # pixels: larger shows more, and takes longer",
    )
    if survey.kind == "npz" and survey.shape:
        raise FinetuneError(
            f"`{name}` takes images of one size with three channels, and these are arrays of shape "
            f"{survey.shape}. Write `--model {SMALL}`, or keep the images as files."
        )
    return Network(lines, is_pretrained=weights != "none", notes=notes)


def _preset(written: str, name: str, kind: str) -> Network:
    if kind not in ("text", "images"):
        raise FinetuneError(f"A preset takes texts or images, and these data are {kind}. Write `--model {SMALL}`.")
    lines = [f"  preset: {written}  # its weights, and its tokenizer or image converter"]
    head = unused = ""
    if kind == "text" and name.lower().startswith(_TWO_OUTPUTS):
        lines.append("  output_key: sequence_output")
        head, unused = ", pooling: first", "backbone/pooled_dense"  # which makes the other output
    is_text = kind == "text"
    return Network(tuple(lines), head, is_language_model=is_text, brings_tokenizer=is_text, unused=unused)


def _class_of_preset(path: Path) -> str:
    """Returns the class that a preset of KerasHub names, or the kind of network that a folder of Hugging Face names."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return str(config["class_name"] if "class_name" in config else config["model_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise FinetuneError(
            f"`{path}` is neither a SavedModel (it has no `saved_model.pb`) nor a KerasHub preset or a network of "
            "Hugging Face (it has no `config.json` that names a class or a `model_type`). Name the folder that "
            "`save_to_preset`, `save_pretrained` or `model.export` wrote."
        ) from None


def _file(path: Path, folder: Path) -> Network:
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return Network((f"  hub: {placed(path, folder)}",), allow_code=f"hub:{placed(path, folder)}")
    if path.suffix not in (".keras", ".h5", ".hdf5") or path.name.endswith(".weights.h5"):
        raise FinetuneError(
            f"`--model` may be a file that `model.save` wrote (`.keras`). `{path}` is another file. If it holds "
            "weights alone, name the network, and write `restore: {from: FILE}` into the recipe."
        )
    line = f"  keras_file: {placed(path, folder)}  # the network and its weights"
    try:  # a classifier ends in a layer for its own classes, which the new head takes the place of
        with zip_archive(path) as archive:
            layers = json.loads(archive.read("config.json"))["config"]["layers"]
        names = [layer["config"].get("name") for layer in layers if layer["class_name"] != "InputLayer"]
        after = f", after: {names[-2]}" if layers[-1]["class_name"] == "Dense" and len(names) > 1 else ""
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile, RecursionError):
        after = ""
    return Network((line,), after)
