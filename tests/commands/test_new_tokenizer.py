"""The tokenizer of words: what it knows, and how long most texts are."""

import json

import pytest

from finetune.commands.new_tokenizer import make_tokenizer
from finetune.data.survey import survey_of_tables
from finetune.errors import FinetuneError


@pytest.fixture
def table(tmp_path):
    rows = [f"the film was long,{'good' if n % 2 else 'bad'} once{n}" for n in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["first,second", *rows]) + "\n")
    return survey_of_tables({"table": tmp_path / "t.csv"})


def test_it_knows_the_words_that_occur_more_than_once_and_takes_texts_of_both_columns(table, tmp_path):
    text, tokens, length = make_tokenizer(table, ["first", "second"], tmp_path / "r.yaml", overwrite=False)
    words = set(json.loads(text)["model"]["vocab"])
    assert words == {"[PAD]", "[UNK]", "[SEP]", "the", "film", "was", "long", "good", "bad"}
    assert tokens == len(words)
    assert length == 16  # twice four words and a separator, rounded up to a multiple of 8


def test_a_file_that_exists_is_kept(table, tmp_path):
    (tmp_path / "r.tokenizer.json").touch()
    with pytest.raises(FinetuneError, match=r"`.*r\.tokenizer\.json` exists"):
        make_tokenizer(table, ["first"], tmp_path / "r.yaml", overwrite=False)
