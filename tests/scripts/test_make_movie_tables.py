"""The tables of movie sentences: what is read of the ratings, which sentences make a pair, and the recipes for them."""

import importlib.util
import io
import sys
import tarfile
from pathlib import Path

import pytest

from finetune.data.table_files import read_table
from finetune.recipe.loader import load_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec = importlib.util.spec_from_file_location("make_movie_tables", ROOT / "scripts" / "make_movie_tables.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def test_ratings_and_sentences_are_read_from_the_archive(script, tmp_path):
    content = b'1\t2.5\tA fine  film\r\n2\t-1.0\tDull, and "loud"\r\n'
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(script.RATINGS)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    assert script.rated_sentences(tmp_path / "a.tar.gz") == [(2.5, "A fine film"), (-1.0, 'Dull, and "loud"')]


def test_a_sentence_is_in_a_single_pair_whose_ratings_are_apart(script):
    ratings = {f"s{n}": n / 10 - 4 for n in range(80)}
    pairs = script.pairs_of([(rating, text) for text, rating in ratings.items()])
    used = [text for first, second, _ in pairs for text in (first, second)]
    assert len(pairs) > 10
    assert len(used) == len(set(used))
    for first, second, higher in pairs:
        assert abs(ratings[first] - ratings[second]) >= 2
        assert (higher == "first") == (ratings[first] > ratings[second])


def test_what_is_written_is_read_as_it_was(script, tmp_path):
    rows = [('said "yes"', "a, b", "first"), ("x", "y", "second")]
    assert script.write_table(tmp_path / "t.tsv", ("first", "second", "higher"), rows) == 2
    table = read_table(tmp_path / "t.tsv")
    assert [table.column(name).values.tolist() for name in table.columns] == [
        list(each) for each in zip(*rows, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "inputs"), [("sentences", {"": ("text",)}), ("pairs", {"token_ids": ("first", "second")})]
)
def test_the_recipes_read_these_columns(name, inputs):
    recipe = load_recipe(ROOT / "recipes" / f"movie_{name}.yaml", allow_code=[])
    assert recipe.data.inputs == inputs
    assert recipe.data.table == f"movie/{name}.tsv"
