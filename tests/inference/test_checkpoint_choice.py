"""Of a run that is not finished, the newest weights are taken, the best, or those of a file."""

import re
import shutil
import subprocess
import sys

import pytest

from finetune.errors import FinetuneError
from finetune.inference.checkpoint_choice import choose_weights, unfinished
from finetune.results.run_lock import locked


def test_a_run_that_was_stopped_offers_to_go_on_and_the_weights_that_it_has(best_kept):
    _, stopped = best_kept
    assert re.fullmatch(
        rf"A run has a model when it is finished\. `{stopped}` is not: `model\.keras` or `result\.json` is missing\. "
        rf"Finish it with `finetune resume {stopped}`, or take the best weights so far, after epoch \d, where `val_loss` "
        r"was \d+\.\d{4}: `--checkpoint best`, or take the newest, after epoch 4 of 6: `--checkpoint last`\.",
        unfinished(stopped),
    )


def test_a_run_that_is_being_trained_is_said_to_be(best_kept, tmp_path):
    shutil.copytree(best_kept[1], tmp_path / "run")
    with locked(tmp_path / "run"):
        said = unfinished(tmp_path / "run")
        assert choose_weights(tmp_path / "run", "last").said == "after epoch 4 of 6"
    assert ". It is being trained at this moment: wait for its end, or take the best weights so far, " in said


def test_weights_are_chosen_by_a_word_or_by_the_name_of_their_file(best_kept):
    _, stopped = best_kept
    last = choose_weights(stopped, "last")
    assert choose_weights(stopped, last.file.name).said == last.said == "after epoch 4 of 6"
    assert choose_weights(stopped, "last.weights.h5").arrays is None
    with pytest.raises(
        FinetuneError,
        match=r"`--checkpoint` is `best`, `last`, or the name of a file in `checkpoints`\. Received: `lst`\. .* has "
        r"`step-.*`, `last\.weights\.h5`\. Did you mean `last`\?",
    ):
        choose_weights(stopped, "lst")


def test_without_a_checkpoint_or_the_best_weights_that_is_said(best_kept, run_of, tmp_path):
    shutil.copytree(run_of("arrays"), tmp_path / "run")
    with pytest.raises(
        FinetuneError, match=r"has `train\.keep: best`, .* has none\. Take its newest: `--checkpoint last`\."
    ):
        choose_weights(tmp_path / "run", "best")
    for file in (tmp_path / "run" / "checkpoints").glob("step-*"):
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(FinetuneError, match=r"is damaged \(.*\)\. Take `--checkpoint last`"):
            choose_weights(tmp_path / "run", file.name)
    assert choose_weights(tmp_path / "run", "last").file.name == "last.weights.h5"
    assert "take the weights so far, in `" in unfinished(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(
        FinetuneError, match=r"writes its first checkpoint .* has none\. Finish it with `finetune resume"
    ):
        choose_weights(tmp_path / "run", "last")


def test_it_is_chosen_without_tensorflow():
    code = "import sys, finetune.inference.checkpoint_choice; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
