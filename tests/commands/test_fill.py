from pathlib import Path

import pytest

from finetune.commands.fill import fill
from finetune.commands.plan import plan
from finetune.errors import FinetuneError

ROOT = Path(__file__).resolve().parent.parent.parent
WINE = ROOT / "recipes" / "wine.yaml"


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_a_filled_recipe_plans_as_the_recipe_does(name, tmp_path):
    path = ROOT / "recipes" / f"{name}.yaml"
    fill(path, tmp_path / "deep" / "filled.yaml")
    assert plan(tmp_path / "deep" / "filled.yaml").plan.to_json() == plan(path).plan.to_json()


def test_an_existing_file_is_overwritten_only_if_that_is_asked_for(tmp_path):
    out = tmp_path / "out.yaml"
    text = fill(WINE, out)
    assert out.read_text() == text
    with pytest.raises(FinetuneError, match="An existing file is not overwritten"):
        fill(WINE, out)
    assert fill(WINE, out, overwrite=True) == text


def test_a_recipe_that_is_not_valid_writes_nothing(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epoch: 1}\n")
    with pytest.raises(FinetuneError, match="Did you mean `epochs`"):
        fill(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert not (tmp_path / "b.yaml").exists()
