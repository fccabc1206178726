"""Hooks of `mkdocs build`: what the pages name in the repository, beside `docs/`, is shown as a path and is no link."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces links that lead out of `docs/`; the build fails where the file does not exist.

    Raises:
        FileNotFoundError: A link leads nowhere.
    """

    def path(match: re.Match[str]) -> str:
        text, target = match.groups()
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{page.file.src_path}: `../{target}` does not exist.")
        return text if target in text else f"{text} (`{target}`)"

    return _OUTSIDE.sub(path, markdown)
