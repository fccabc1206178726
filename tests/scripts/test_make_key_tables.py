import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_key_tables", ROOT / "scripts" / "make_key_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_in_the_documentation_are_those_of_the_schema(script):
    advice = "Run `python scripts/make_key_tables.py`"
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == script.reference(), advice
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script.with_tables(readme) == readme, advice


def test_a_marker_that_is_missing_is_reported(script):
    with pytest.raises(SystemExit, match="markers of `data` exactly once, and has them 0 times"):
        script.with_tables("no markers")
