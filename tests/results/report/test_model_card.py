"""The model card."""

from finetune.results.report.model_card import model_card
from finetune.results.report.run_files import read_run


def test_the_card_says_how_well_the_model_does_where_it_fails_and_how_it_is_opened(folder):
    card = model_card(read_run(folder))
    assert card.startswith("# run-1\n\nAccuracy 0.8 on 20 test rows")
    assert "| accuracy | 0.8 | 0.7 to 0.9 | 0.3 |" in card
    assert "- 1 of 3 classes is never recognised" in card
    assert "Rows: 40 to train, 20 to test." in card
    assert "keras.saving.load_model" in card


def test_a_name_is_no_markup(folder):
    card = model_card(read_run(folder))
    assert r"\<i\>owl\</i\>" in card
    assert "Classes: `cat`, `dog`, `<i>owl</i>`." in card
