"""`finetune repeat`: a run and its repetition, in real runs."""

import json

import pytest

import finetune
from finetune.commands.audit import audit
from finetune.commands.repeat import repeat, repetition_lines
from finetune.errors import FinetuneError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_a_run_is_repeated_bit_for_bit_and_what_differs_is_told(tiny_files, tmp_path):
    folder = finetune.run(tiny_files / "tiny.yaml", tmp_path / "out", recalibrate=True).folder
    assert audit(folder).holds
    same = repeat(folder)
    assert (same.holds, same.surroundings) == (True, ())
    assert repetition_lines(same) == [
        f"bit-identical: all {same.tensors} tensors, the metrics of every epoch and those on the test rows"
    ]
    assert same.tensors > 10
    recipe, environment = folder / "recipe.yaml", json.loads((folder / "environment.json").read_text())
    recipe.write_text(recipe.read_text().replace("seed: 3", "seed: 4"))
    environment["versions"]["keras"] = "3.0"
    (folder / "environment.json").write_text(json.dumps(environment))
    other = repeat(folder, out=tmp_path / "kept")
    assert not other.holds
    assert other.epoch == 1
    assert "test loss: was" in "\n".join(repetition_lines(other))
    assert "`recipe.yaml` was changed" in other.surroundings
    assert any(line.startswith("versions, keras: was 3.0, is 3.") for line in other.surroundings)
    assert (tmp_path / "kept" / "model.keras").exists()


def test_a_run_that_has_not_ended_or_was_extended_is_refused(tmp_path):
    with pytest.raises(
        FinetuneError, match=r"A run that has ended is repeated. `.*` holds none: it has no `result.json`"
    ):
        repeat(tmp_path)
    (tmp_path / "former").mkdir()
    for name in ("recipe.yaml", "plan.txt", "result.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(FinetuneError, match=r"was extended or changed on its way, which one recipe does not say"):
        repeat(tmp_path)
