"""Tables of short texts that people rated: praise or blame, the kinder of two sentences, and where a text comes from.

The texts are those of C.J. Hutto and E. Gilbert (2014), VADER: 10,605 sentences about films, 5,190 of editorials, 3,708
about products and 4,200 tweets. 20 people rated each from -4 to 4. `finetune fetch rated_texts` writes the tables.
"""

import csv
import random
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

RATINGS = "hutto_ICWSM_2014/{}_GroundTruth.txt"
KINDS = {
    "film": "movieReviewSnippets",
    "editorial": "nytEditorialSnippets",
    "product": "amazonReviewSnippets",
    "tweet": "tweets",
}


def write_tables(archive: Path, out: Path) -> None:
    """Writes the three tables.

    - `movie_sentences.tsv`: a sentence, and whether its mean rating is above or below 0;
    - `movie_pairs.tsv`: two sentences whose ratings are at least 2 apart, and which of them has the higher one;
    - `kinds.tsv`: a text, and its kind; 1,500 of each.

    Args:
        archive: `hutto_ICWSM_2014.tar.gz` of the package vaderSentiment.
        out: The folder to write to.
    """
    texts = {kind: rated_texts(archive, name) for kind, name in KINDS.items()}
    labelled = [(text, "positive" if rating > 0 else "negative") for rating, text in texts["film"] if rating]
    write_table(out / "movie_sentences.tsv", ("text", "label"), labelled)
    write_table(out / "movie_pairs.tsv", ("first", "second", "higher"), pairs_of(texts["film"]))
    draw = random.Random(0)
    kinds = [(text, kind) for kind, rated in texts.items() for _, text in draw.sample(rated, min(1500, len(rated)))]
    write_table(out / "kinds.tsv", ("text", "kind"), draw.sample(kinds, len(kinds)))


def rated_texts(archive: Path, name: str) -> list[tuple[float, str]]:
    """Returns the mean rating of each text of a kind, and the text."""
    with tarfile.open(archive) as file:
        member = file.extractfile(RATINGS.format(name))
        assert member, f"{archive} has no {RATINGS.format(name)}"
        lines = member.read().decode("utf-8").splitlines()
    rows = [line.split("\t", 2) for line in lines if line.strip()]
    return [(float(rating), " ".join(text.split())) for _, rating, text in rows]


def pairs_of(sentences: list[tuple[float, str]], apart: float = 2.0) -> Iterator[tuple[str, str, str]]:
    """Yields pairs of sentences and which is rated higher: `first` or `second`, both alike often.

    Args:
        sentences: The mean rating of each sentence, and the sentence. Each is in a single pair.
        apart: How far the ratings of a pair are apart at least.
    """
    shuffled = random.Random(0).sample(sentences, len(sentences))
    for one, two in zip(shuffled[::2], shuffled[1::2], strict=False):
        if abs(one[0] - two[0]) >= apart:
            yield one[1], two[1], "first" if one[0] > two[0] else "second"


def write_table(path: Path, names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Writes a table whose values are separated by tabs.

    Args:
        path: The file to write.
        names: Names of the columns.
        rows: The values of each row.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([names, *rows])
