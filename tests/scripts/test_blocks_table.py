import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "blocks_table.py"
SPEC = importlib.util.spec_from_file_location("blocks_table", PATH)
assert SPEC
assert SPEC.loader
blocks_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(blocks_table)


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small", "VGG16"])
def test_a_sample_of_the_applications_has_the_blocks_of_its_paper(name, capsys):
    assert blocks_table.main([name]) == 0
    assert capsys.readouterr().out.split() == [name, *[str(blocks_table.APPLICATIONS[name])] * 2]


def test_a_row_that_differs_is_shown_and_fails(capsys, monkeypatch):
    monkeypatch.setitem(blocks_table.APPLICATIONS, "VGG16", 3)
    assert blocks_table.main(["VGG16"]) == 1
    assert "DIFFERS" in capsys.readouterr().out
