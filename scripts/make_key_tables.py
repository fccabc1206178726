"""Writes the tables of a recipe's keys into the documentation, from the schema.

    python scripts/make_key_tables.py            # docs/recipe.md, and README.md between its markers

A test fails where they are not up to date.
"""

import re
from pathlib import Path

from finetune.recipe.keys import blocks, blocks_at, markdown

ROOT = Path(__file__).resolve().parent.parent
IN_README = ("data", "data.split", "data.tokenizer", "model.head", "train")


def reference() -> str:
    """Returns the page that lists every key of a recipe."""
    head = (
        "# Every key of a recipe\n\n"
        "Written by `scripts/make_key_tables.py` from the schema; `finetune keys NAME` prints the same.\n"
    )
    tables = [
        f"## {f'`{block.path}`' if block.path else 'The first keys'}\n\n{block.about}\n\n{markdown(block)}"
        for block in blocks()
    ]
    return "\n".join([head, *tables])


def with_tables(readme: str) -> str:
    """Returns the README with current tables between its markers."""
    for name in IN_README:
        table = markdown(blocks_at(name)[0])
        marked = rf"(<!-- keys of {re.escape(name)} -->\n).*?(<!-- end -->)"
        readme, count = re.subn(marked, lambda match: match[1] + table + match[2], readme, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise SystemExit(f"README.md must have the markers of `{name}` exactly once, and has them {count} times.")
    return readme


if __name__ == "__main__":
    (ROOT / "docs" / "recipe.md").write_text(reference(), encoding="utf-8")
    page = ROOT / "README.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
