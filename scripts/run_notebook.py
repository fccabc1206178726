#!/usr/bin/env python3
"""Executes a notebook in a kernel of its own, and keeps what its cells show. Needs the extra `notebook`.

    python scripts/run_notebook.py docs/notebooks/digits.ipynb

What goes to standard error is left out: TensorFlow's remarks on the machine. So are the times of the cells, and HTML
beside the same text.
"""

import argparse
from pathlib import Path
from typing import Any


def cleaned(cell: dict[str, Any], number: int) -> dict[str, Any]:
    """Returns a cell with the outputs that are kept.

    Args:
        cell: The cell as it was executed.
        number: Its place among the cells of code, from 1.
    """
    if cell["cell_type"] != "code":
        return cell
    outputs = [each for each in cell["outputs"] if each.get("name") != "stderr"]
    for output in outputs:
        data = output.get("data", {})
        if "text/plain" in data:
            data.pop("text/html", None)
        if "execution_count" in output:
            output["execution_count"] = number
    return cell | {"metadata": {}, "execution_count": number, "outputs": outputs}


def main() -> None:
    """Executes the notebook and writes it."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path, help="the notebook, which is overwritten")
    path = parser.parse_args().notebook
    import nbformat  # pyright: ignore[reportMissingImports]  - of the extra
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    number = 0
    for place, cell in enumerate(notebook["cells"]):
        number += cell["cell_type"] == "code"
        notebook["cells"][place] = nbformat.from_dict(cleaned(cell, number))
    notebook["metadata"]["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
