import keras
import pytest

from finetune.commands.written_files import draw_curves, write_model
from finetune.errors import TrainingError
from finetune.training.callbacks import LastWeights
from finetune.training.fit import last_weights
from finetune.training.phases.records import PhaseRecord


class Unsaved(keras.layers.Layer):
    def get_config(self):
        raise TypeError("no config of this layer")


def test_a_model_that_cannot_be_saved_leaves_its_weights_and_says_what_to_correct(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), Unsaved()])
    model.compile("sgd", "mse")
    weights = LastWeights(last_weights(tmp_path))
    with pytest.raises(TrainingError, match=r"saved whole.*Correct the `get_config`"):
        write_model(model, tmp_path, weights)
    assert not (tmp_path / "model.keras").exists()


def test_curves_are_drawn_of_the_metrics_that_were_logged(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,loss,val_loss,learning_rate/a\n1,2.0,,0.1\n2,1.0,1.5,0.05\n")
    record = PhaseRecord(1, ("a",), 2, 0, 2, 3, 0, (), 0.1)
    draw_curves(tmp_path, [record])
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"training.png", "training.svg"}
