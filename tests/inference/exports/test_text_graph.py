"""Texts become the token ids of training in a graph, or the graph says that they do not."""

import json

import pytest
import tensorflow as tf

from finetune.inference.exports.raw_graph import raw_graph
from finetune.inference.exports.text_graph import first_difference, text_graph
from finetune.inference.prepared_inputs import prepares
from finetune.inference.raw_rows import RawRows
from finetune.inference.record import InputRecord, RunRecord

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("tensorflow_text")

TEXTS = [
    "The quick brown fox",
    "Straße, ÉTÉ naïve; İstanbul",  # folding of case makes `ss`
    "字段类型\uff1a值 「日本語」",
    "\u039f ΟΔΥΣΣΕΥΣ της",  # a sigma at the end
    "\u06af\u0632\u06cc\u0646\u0647\u200c\u0647\u0627\u06cc",  # a joiner that has no width
    "«\xa0%(value)s\xa0» n\u2019est",
    "\x01a\ufffdb\tc\r\n d\u00ad",
    "ไม่มีช่องว่าง",
    "",
    "   ",
    "😀 a😀",
    "\ufb01ne \uff21\uff42c …",
]


@pytest.fixture(scope="module")
def record_of(tmp_path_factory):
    """Returns the record of a run on texts, whose tokenizer has some settings changed."""

    def call(change=lambda about: None, lowercase=True, strip_accents=None, padding="length"):
        folder = tmp_path_factory.mktemp("run")
        words = sorted(
            {character for text in TEXTS for character in text + text.lower()} - {" ", "\n", "\r", "\t", "\x00"}
        )
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *(f"##{word}" for word in words), "fox", "##rown", "the"]
        tokenizer = tokenizers.BertWordPieceTokenizer(
            {piece: number for number, piece in enumerate(pieces)}, lowercase=lowercase, strip_accents=strip_accents
        )
        about = json.loads(tokenizer.to_str())
        change(about)
        (folder / "tokenizer.json").write_text(json.dumps(about))
        recipe = {"data": {"inputs": {"": ["text"]}, "tokenizer": {"file": str(folder / "tokenizer.json")}}}
        fitted = {"kind": "text", "tokenizer": "tokenizer.json", "length": 20, "pad_id": 0}
        source = {"kind": "table", "padding": padding, "inputs": {"": {"text": fitted}}}
        return RunRecord(folder, recipe, {"source": source}, {})

    return call


@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "padding"),
    [(True, None, "length"), (False, None, "longest"), (True, False, "buckets"), (False, True, "length")],
)
def test_texts_of_many_scripts_have_the_ids_of_training(record_of, lowercase, strip_accents, padding):
    record = record_of(lowercase=lowercase, strip_accents=strip_accents, padding=padding)
    [each] = record.inputs
    make = text_graph(record, each)
    assert first_difference(make, record, each, TEXTS) is None
    ids = make(tf.constant(TEXTS[:1]))["ids"].numpy()
    prepared = prepares(record, _network())(RawRows({"text": TEXTS[:1]}, ["row 1"]))
    assert ids.tolist() == prepared.tolist()


def test_the_first_text_that_is_tokenized_in_another_way_is_found(record_of):
    record = record_of()
    [each] = record.inputs
    make = text_graph(record, each)
    assert first_difference(make, record, each, [*TEXTS, "a [SEP] b", "x [CLS]"]) == len(TEXTS)


def _network():
    import keras

    return keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(999, 2)])


def test_a_graph_takes_texts_where_it_has_the_ids_of_training_for_every_row_and_else_ids(record_of):
    record = record_of()
    taken = raw_graph(record, _network(), RawRows({"text": TEXTS}, [f"t.csv:{n}" for n in range(len(TEXTS))]))
    assert [(each.name, each.kind) for each in taken.inputs] == [("text", "sentence")]
    assert taken.imports == ["tensorflow_text"]
    assert taken.prepare({"text": tf.constant(["fox"])}).dtype == tf.int32
    other = raw_graph(record, _network(), RawRows({"text": ["fox", "[CLS]"]}, ["t.csv:1", "t.csv:2"]))
    assert [each.kind for each in other.inputs] == ["prepared"]
    assert other.imports == []
    assert "`t.csv:2`" in other.outside[0]
    assert "outside" in other.outside[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["normalizer"].update(clean_text=False),
        lambda about: about["normalizer"].update(handle_chinese_chars=False),
        lambda about: about.update(normalizer={"type": "Lowercase"}),
        lambda about: about.update(pre_tokenizer={"type": "Whitespace"}),
        lambda about: about["model"].update(max_input_chars_per_word=50),
        lambda about: about["model"]["vocab"].update({"gap": 9999}),
    ],
)
def test_tokenizers_of_other_kinds_are_not_in_the_graph(record_of, change):
    record = record_of(change)
    assert text_graph(record, record.inputs[0]) is None
    pair = InputRecord("", "tokens", ("question", "answer"), record.inputs[0].fitted)
    assert text_graph(record_of(), pair) is None
