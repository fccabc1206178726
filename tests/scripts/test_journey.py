import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "journey.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("journey", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_from_a_recipe_to_answers_of_an_export_there_is_no_code_to_write(script, tmp_path):
    done = script.journey("table", tmp_path)
    assert done.difference <= script.MOST_DIFFERENCE
    assert done.score > 0.7
    assert (done.lines, done.takes) == (4, "`age`, `town`")
    assert not list(tmp_path.glob("*.py"))


def test_there_are_six_kinds_of_data(script):
    assert list(script.KINDS) == ["images", "text", "table", "two inputs", "audio", "several labels"]


def test_lines_are_counted_without_blank_ones_and_comments(script):
    assert script.lines_of("import a\n\n# what\n  # this is\nb = 1  # c\n") == 2


def test_each_program_of_a_peer_is_for_a_kind_of_data_and_prints_its_score_last(script):
    programs = sorted(script.PEERS.glob("*.py"))
    assert programs
    for program in programs:
        peer, _, kind = program.stem.partition("_")
        assert peer in ("fastai", "keras")
        assert kind.replace("_", " ") in script.KINDS
        text = program.read_text()
        compile(text, program.name, "exec")
        assert text.splitlines()[-1].startswith('print("score", ')
