"""The notebooks: their cells run in order, show the pictures that are kept, and become a page.

The cells run in this process, without a kernel, which would only cost the start of another; `scripts/run_notebook.py`
makes the outputs that are kept with one.
"""

import ast
import base64
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PNG = b"\x89PNG\r\n"
ABSOLUTE = re.compile(r"(?<![\w.:/-])(?:/[\w.-]+){2}|\b[A-Z]:\\\\")  # a path of a machine


def cells_of(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def pictures_in(cell):
    return [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown_by(source, names):
    """Runs a cell, and returns what a notebook would show: the value of its last line."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_the_cells_with_a_picture_show_one(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    names = {"__name__": path.stem}
    for cell in cells_of(path):
        value = shown_by("".join(cell["source"]), names)
        picture = value._repr_png_() if hasattr(value, "_repr_png_") else b""
        assert picture.startswith(PNG) == bool(pictures_in(cell)), cell["source"]
    assert names["history"].history["accuracy"][-1] > 0.8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_of_one_execution_in_order_and_names_no_machine(path):
    cells = cells_of(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [picture for cell in cells for picture in pictures_in(cell)]
    assert len(pictures) >= 2
    assert all(base64.b64decode(picture).startswith(PNG) for picture in pictures)
    kinds = {(output["output_type"], output.get("name")) for cell in cells for output in cell["outputs"]}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}
    text = path.read_text(encoding="utf-8")
    for picture in pictures:
        text = text.replace(json.dumps(picture), "")  # its letters are no path
    assert ABSOLUTE.search("saved in `/a/b`"), "the search sees an absolute path"
    assert not ABSOLUTE.search(text)


def test_a_notebook_becomes_a_page_with_its_pictures_and_a_link_to_it_leads_there():
    hooks = script("docs_hooks")
    page, pictures = hooks.page_of_notebook(NOTEBOOKS[0])
    assert [name for name in pictures if f"({name})" in page] == [*pictures]
    assert "```python\ntuner.evaluate()\n```\n\n```text\n{'accuracy': " in page

    class Page:
        class file:  # noqa: N801 - as mkdocs has it
            src_path = "index.md"

    assert hooks.on_page_markdown("[a](notebooks/digits.ipynb)", Page) == "[a](notebooks/digits.md)"
    Page.file.src_path = "notebooks/digits.md"
    assert hooks.on_page_markdown("[a](../fine_tuner.md)", Page) == "[a](../fine_tuner.md)"
    assert hooks.on_page_markdown("[a](../../README.md)", Page) == "a (`README.md`)"


def test_outputs_are_kept_without_remarks_on_the_machine_and_without_html_beside_the_same_text():
    cell = {
        "cell_type": "code",
        "metadata": {"execution": "12:00"},
        "execution_count": 7,
        "outputs": [
            {"output_type": "stream", "name": "stderr", "text": "no GPU"},
            {
                "output_type": "execute_result",
                "execution_count": 7,
                "data": {"text/plain": "1", "text/html": "<b>1</b>"},
            },
            {"output_type": "display_data", "data": {"text/html": "<b>2</b>"}},
        ],
    }
    assert script("run_notebook").cleaned(cell, 2) == {
        "cell_type": "code",
        "metadata": {},
        "execution_count": 2,
        "outputs": [
            {"output_type": "execute_result", "execution_count": 2, "data": {"text/plain": "1"}},
            {"output_type": "display_data", "data": {"text/html": "<b>2</b>"}},
        ],
    }
