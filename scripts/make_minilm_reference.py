#!/usr/bin/env python3
"""Writes the outputs of MiniLM for a few sentences: tests/data/minilm_reference.npz, for `restore.verify`.

The outputs are computed in NumPy with double precision from the weights that PyTorch saved, without Keras and without
any code of `finetune`; the weights come from the package index. Sentences are written as token ids of BERT's
uncased vocabulary. The cosines must be those published for three of them.

    python scripts/make_minilm_reference.py
    python scripts/make_minilm_reference.py --torch PYTHON    # a Python with torch and transformers: compares
"""

import argparse
import math
import subprocess
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from finetune.files.fetchable import MINILM
from finetune.files.packages import package_folder

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "minilm_reference.npz"
SENTENCES = ("the weather is lovely today .", "it ' s so sunny outside !", "he drove to the stadium .", "yes")
# Of PyTorch, https://sbert.net/docs/sentence_transformer/usage/usage.html
PUBLISHED_COSINES = {(0, 1): 0.6660, (0, 2): 0.1046, (1, 2): 0.1411}
HEADS = 12


def token_ids(vocabulary: list[str]) -> np.ndarray:
    """Returns the ids of the sentences, padded with 0; every word in them is one token."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    rows = [[ids["[CLS]"], *(ids[word] for word in sentence.split()), ids["[SEP]"]] for sentence in SENTENCES]
    width = max(map(len, rows))
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int32)


def embed(weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Computes the sentence embeddings, one sentence after the other and without its padding."""
    return np.stack([_embed_sentence(weights, row[row != 0]) for row in tokens])


def _embed_sentence(w: dict[str, np.ndarray], row: np.ndarray) -> np.ndarray:
    x = w["embeddings.word_embeddings.weight"][row] + w["embeddings.position_embeddings.weight"][: len(row)]
    x = _norm(w, "embeddings", x + w["embeddings.token_type_embeddings.weight"][0])
    for n in range(6):
        layer = f"encoder.layer.{n}"
        x = _norm(w, f"{layer}.attention.output", x + _attention(w, layer, x))
        hidden = _linear(w, f"{layer}.intermediate.dense", x)
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = _norm(w, f"{layer}.output", x + _linear(w, f"{layer}.output.dense", hidden))
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def _attention(w: dict[str, np.ndarray], layer: str, x: np.ndarray) -> np.ndarray:
    query, key, value = (_linear(w, f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value"))
    width = x.shape[1] // HEADS
    heads = []
    for head in range(HEADS):
        columns = slice(head * width, (head + 1) * width)
        scores = query[:, columns] @ key[:, columns].T / math.sqrt(width)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        heads.append(scores / scores.sum(axis=1, keepdims=True) @ value[:, columns])
    return _linear(w, f"{layer}.attention.output.dense", np.concatenate(heads, axis=1))


def _linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
    return scaled * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]


PYTORCH = """
import json, sys
import numpy as np, torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel
folder, reference = sys.argv[1:]
model = BertModel(BertConfig(**json.load(open(folder + "/config.json")))).eval()
assert not model.load_state_dict(load_file(folder + "/model.safetensors"), strict=False).missing_keys
saved = np.load(reference)
tokens = torch.tensor(saved["input"].astype("int64"))
mask = tokens != 0
with torch.no_grad():
    states = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
difference = np.abs(torch.nn.functional.normalize(mean, dim=1).numpy() - saved["output/sentence"]).max()
print(f"PyTorch {torch.__version__}: the largest difference is {difference:.1e}")
assert difference < 1e-5
"""


def main() -> None:
    """Computes the outputs, compares the cosines and writes the file."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    parser.add_argument("--torch", help="a Python with torch and transformers, whose outputs are compared")
    arguments = parser.parse_args()
    out = arguments.out
    folder = package_folder(MINILM)
    weights = {name: array.astype("float64") for name, array in load_file(folder / "model.safetensors").items()}
    tokens = token_ids((folder / "vocab.txt").read_text(encoding="utf-8").split("\n"))
    embeddings = embed(weights, tokens)
    np.savez_compressed(out, **{"input": tokens, "output/sentence": embeddings.astype("float32")})
    for (first, second), published in PUBLISHED_COSINES.items():
        cosine = float(embeddings[first] @ embeddings[second])
        assert abs(cosine - published) < 1e-4, f"cosine of {first} and {second}: {cosine}, published: {published}"
    print(f"{out}: {len(tokens)} sentences, cosines as published, {out.stat().st_size} bytes")
    if arguments.torch:
        subprocess.run([arguments.torch, "-c", PYTORCH, folder, out], check=True)


if __name__ == "__main__":
    main()
