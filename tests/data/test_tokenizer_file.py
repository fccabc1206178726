"""Tokenizers in files: what they give, and what is said of files that are none."""

from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from finetune.data.tokenizer_file import encoding, open_tokenizer
from finetune.errors import DataError

BERT = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nfilm\nbad\n##s\n"


def word_level(folder, words, padding=None, unk_token="[UNK]"):
    made = Tokenizer(models.WordLevel(words, unk_token=unk_token))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if padding:
        made.enable_padding(pad_id=words[padding], pad_token=padding)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture
def vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text(BERT)
    return tmp_path / "vocab.txt"


def encoded(tokenizer, length, *rows):
    ids, types, lengths, cut = encoding(tokenizer, length, len(rows[0]))(rows)
    ends = [0, *lengths.cumsum().tolist()]
    parts = [slice(*pair) for pair in pairwise(ends)]
    return [ids[part].tolist() for part in parts], [types[part].tolist() for part in parts], cut.tolist()


def test_a_vocabulary_of_bert_is_a_tokenizer_with_special_tokens(vocabulary):
    tokenizer = open_tokenizer(vocabulary)
    assert encoded(tokenizer, 6, ("Good films",), ("bad",)) == (
        [[2, 5, 6, 8, 3], [2, 7, 3]],
        [[0] * 5, [0] * 3],
        [False, False],
    )
    assert (tokenizer.vocabulary, tokenizer.pad_id, tokenizer.warning) == (9, 0, "")


def test_of_a_pair_the_longer_text_is_cut_and_the_second_has_another_type(vocabulary):
    ids, types, cut = encoded(open_tokenizer(vocabulary), 7, ("good good good good good", "bad"), ("bad", "film"))
    assert ids == [[2, 5, 5, 5, 3, 7, 3], [2, 7, 3, 6, 3]]
    assert types == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert cut == [True, False]


def test_settings_of_the_file_for_length_and_padding_do_not_count(tmp_path):
    path = word_level(tmp_path, {"a": 0, "[UNK]": 1, "P": 2}, padding="P")
    made = Tokenizer.from_file(str(path))
    made.enable_truncation(2)
    made.save(str(path))
    tokenizer = open_tokenizer(path)
    assert tokenizer.pad_id == 2
    assert encoded(tokenizer, 5, ("a a a a",), ("a",))[0] == [[0, 0, 0, 0], [0]]


@pytest.mark.parametrize("name", ["[PAD]", "<pad>", "<|padding|>"])
def test_the_padding_token_is_known_by_its_name(tmp_path, name):
    tokenizer = open_tokenizer(word_level(tmp_path, {"the": 0, "[UNK]": 1, name: 2}))
    assert (tokenizer.pad_id, tokenizer.warning) == (2, "")


def test_padding_with_a_word_is_a_warning_that_names_it(tmp_path):
    path = word_level(tmp_path, {"the": 0, "[UNK]": 1, "<end>": 2})
    warning = open_tokenizer(path).warning
    assert "the id 0, which is the token `the` of `tokenizer.json`" in warning
    assert "`tokenizer: {pad_token: ...}`" in warning
    assert open_tokenizer(path, pad_token="<end>").pad_id == 2
    with pytest.raises(DataError, match=r"has 3, and `<ende>` is none of them\. Did you mean `<end>`\?"):
        open_tokenizer(path, pad_token="<ende>")


def test_a_length_of_special_tokens_alone_is_refused(vocabulary):
    tokenizer = open_tokenizer(vocabulary)
    with pytest.raises(
        DataError, match=r"`length` is 2, and `vocab.txt` adds 2 special tokens to every text\. Set at le"
    ):
        encoding(tokenizer, 2)
    with pytest.raises(DataError, match=r"adds 3 special tokens to a pair\. Set at least 5"):
        encoding(tokenizer, 3, 2)
    assert encoded(tokenizer, 3, ("good good",))[0] == [[2, 5, 3]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("reviews.csv", "text,label\ngood,1\n", "is not JSON; it begins with `text,label`"),
        ("config.json", '{"hidden_size": 8}', "is JSON without the key `model`, and has `hidden_size`"),
        ("list.json", "[1]", "is JSON without the key `model`, and has a `list`"),
        (
            "licence.txt",
            "Apache License\nVersion 2.0\n",
            "a token in each line, `[UNK]`, `[CLS]` and `[SEP]` among them",
        ),
        ("spiece.model", "\x0a\x0e\x00", "is not JSON, but binary, such as a model of SentencePiece"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Mystery"}}', "`tokenizer.json` cannot be read"),
        ("empty.json", "", "is not JSON"),
    ],
)
def test_files_that_are_no_tokenizer_are_described(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        open_tokenizer(tmp_path / name)
    assert said in str(caught.value).replace(f"{tmp_path}/", "")


def test_a_tokenizer_beside_the_file_is_named(vocabulary):
    (vocabulary.parent / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"Beside it is `vocab.txt`\."):
        open_tokenizer(vocabulary.parent / "config.json")


def test_what_is_not_there_or_is_a_folder_is_answered_with_what_is(vocabulary):
    with pytest.raises(DataError, match=r"vocab.txtt` does not exist\. Did you mean `vocab.txt`\?"):
        open_tokenizer(f"{vocabulary}t")
    with pytest.raises(DataError, match=r"is a folder\. Write `.*vocab\.txt`\."):
        open_tokenizer(vocabulary.parent)
    (vocabulary.parent / "none").mkdir()
    with pytest.raises(DataError, match=r"is a folder\. It holds neither\."):
        open_tokenizer(vocabulary.parent / "none")


def test_another_file_or_the_same_with_another_content_has_another_digest(vocabulary):
    before = open_tokenizer(vocabulary).digest
    assert before == open_tokenizer(vocabulary).digest
    vocabulary.write_text(BERT + "new\n")
    assert before != open_tokenizer(vocabulary).digest


def test_a_tokenizer_with_a_template_gives_its_types(tmp_path):
    path = word_level(tmp_path, {"[PAD]": 0, "[UNK]": 1, "a": 2, "|": 3})
    made = Tokenizer.from_file(str(path))
    made.post_processor = processors.TemplateProcessing(single="$A", pair="$A | $B:1", special_tokens=[("|", 3)])
    made.save(str(path))
    assert encoded(open_tokenizer(path), 9, ("a a", "a"))[:2] == ([[2, 2, 3, 2]], [[0, 0, 0, 1]])
