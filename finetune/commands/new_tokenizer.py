"""The tokenizer of words that `finetune new` makes for the small network of texts."""

from collections.abc import Sequence
from pathlib import Path

from finetune.data.survey import DataSurvey
from finetune.errors import FinetuneError
from finetune.results.new_files import check_new_file


def tokenizer_name(out: Path) -> str:
    """Returns the name of the file beside a recipe."""
    return f"{out.stem}.tokenizer.json"


def make_tokenizer(found: DataSurvey, inputs: Sequence[str], out: Path, *, overwrite: bool) -> tuple[str, int, int]:
    """Makes a tokenizer of the words in a table.

    Args:
        found: The table.
        inputs: Its columns of texts, which one row joins.
        out: The recipe.
        overwrite: Whether the file of the tokenizer may exist.

    Returns:
        Its text, how many tokens it has, and a length for most texts.

    Raises:
        FinetuneError: The package is not installed, or the file exists.
    """
    from finetune.data.several_tables import read_tables
    from finetune.data.table_head import table_paths

    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    except ImportError as error:
        raise FinetuneError(
            "Texts become token ids by a tokenizer, which needs a package that is not installed. Install it: "
            "`pip install 'discriminative-finetune[text]'`."
        ) from error
    check_new_file(out.with_name(tokenizer_name(out)), overwrite=overwrite)
    table = read_tables(table_paths([found.source["table"]]))
    texts = [text for name in inputs for text in table.columns[name].values.tolist()]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[SEP]"]
    tokenizer.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(vocab_size=20_000, min_frequency=2, special_tokens=special, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing("$A", "$A [SEP] $B", [("[SEP]", 2)])
    lengths = sorted(len(encoding) for encoding in tokenizer.encode_batch(texts[:10_000]))
    long = lengths[int(0.95 * (len(lengths) - 1))] * len(inputs) + 1
    return tokenizer.to_str(), tokenizer.get_vocab_size(), min(256, max(8, -(-long // 8) * 8))
