"""The tables of rated texts: what is read of the ratings, which sentences make a pair, and the recipes for them."""

import io
import tarfile
from pathlib import Path

import pytest

from finetune.data.table_files import read_table
from finetune.examples.rated_texts import KINDS, RATINGS, pairs_of, rated_texts, write_table, write_tables
from finetune.recipe.loader import load_recipe

ROOT = Path(__file__).resolve().parents[2]
CONTENT = b'1\t2.5\tA fine  film\r\n2\t-1.0\tDull, and "loud"\r\n3\t0.0\tA film\r\n'


@pytest.fixture
def archive(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        for name in KINDS.values():
            member = tarfile.TarInfo(RATINGS.format(name))
            member.size = len(CONTENT)
            file.addfile(member, io.BytesIO(CONTENT))
    return tmp_path / "a.tar.gz"


def test_ratings_and_texts_are_read_from_the_archive(archive):
    assert rated_texts(archive, "tweets") == [(2.5, "A fine film"), (-1.0, 'Dull, and "loud"'), (0.0, "A film")]


def test_a_sentence_is_in_a_single_pair_whose_ratings_are_apart():
    ratings = {f"s{n}": n / 10 - 4 for n in range(80)}
    pairs = list(pairs_of([(rating, text) for text, rating in ratings.items()]))
    used = [text for first, second, _ in pairs for text in (first, second)]
    assert len(pairs) > 10
    assert len(used) == len(set(used))
    for first, second, higher in pairs:
        assert abs(ratings[first] - ratings[second]) >= 2
        assert (higher == "first") == (ratings[first] > ratings[second])


def test_what_is_written_is_read_as_it_was(tmp_path):
    rows = [('said "yes"', "a, b", "first"), ("x", "y", "second")]
    write_table(tmp_path / "t.tsv", ("first", "second", "higher"), rows)
    table = read_table(tmp_path / "t.tsv")
    assert [table.column(name).values.tolist() for name in table.columns] == [
        list(each) for each in zip(*rows, strict=True)
    ]


@pytest.mark.parametrize("name", ["movie_sentences", "movie_pairs", "movie_preset", "text_kinds"])
def test_the_tables_have_the_columns_that_the_recipes_read(name, archive, tmp_path):
    write_tables(archive, tmp_path)
    data = load_recipe(ROOT / "recipes" / f"{name}.yaml").data
    assert data.table.startswith("rated_texts/")
    columns = set((tmp_path / Path(data.table).name).read_text().splitlines()[0].split("\t"))
    assert columns == {column for each in (data.inputs, data.target) for names in each.values() for column in names}


def test_a_sentence_with_the_rating_0_is_neither_praise_nor_blame_and_every_kind_has_its_texts(archive, tmp_path):
    write_tables(archive, tmp_path)
    assert len(read_table(tmp_path / "movie_sentences.tsv").column("label").values) == 2
    assert sorted(read_table(tmp_path / "kinds.tsv").column("kind").values.tolist()) == sorted([*KINDS] * 3)
