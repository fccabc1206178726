#!/usr/bin/env python3
"""Writes the 8x8 digits that the examples train on: finetune/examples/uci_digits.npz.

The images are scikit-learn's copy (`sklearn.datasets.load_digits`) of the test part of "Optical Recognition of
Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository,
https://archive.ics.uci.edu/dataset/80, licensed CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Stored as
unsigned bytes, otherwise unchanged.

    pip install discriminative-finetune[examples]
    python scripts/make_uci_digits.py
"""

import argparse
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "finetune" / "examples" / "uci_digits.npz"


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns 1,797 images of shape (8, 8), 0 to 16, and their labels, all uint8."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.uint8)


def main() -> None:
    """Writes the file."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    out = parser.parse_args().out
    images, labels = read_digits()
    np.savez_compressed(out, images=images, labels=labels)
    print(f"{out}: {len(images)} images, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
