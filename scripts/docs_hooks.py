"""Hooks of `mkdocs build`: notebooks become pages, `llms.txt` lists the pages for programs that read them.

What lies beside `docs/` is shown as a path and is no link.
"""

import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Adds a page for each notebook, with the pictures that its cells show."""
    from mkdocs.structure.files import File

    for path in sorted(Path(config["docs_dir"]).glob("notebooks/*.ipynb")):
        page, pictures = page_of_notebook(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    agents = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    files.append(
        File.generated(config, "llms.txt", content=llms_text(config["nav"], config["site_description"], agents))
    )
    return files


def llms_text(nav: list[dict[str, Any]], description: str, agents: str) -> str:
    """Returns the pages and the commands for agents, as https://llmstxt.org has it.

    Args:
        nav: The navigation of `mkdocs.yml`: sections with pages.
        description: What the project is, in a sentence.
        agents: The text of `AGENTS.md`, whose commands come first.
    """
    lines = ["# finetune", "", f"> {description}.", ""]
    body = _LINK.sub(lambda match: f"`{match[2]}`" if ".md" in match[2] else match[0], agents)
    lines += [re.sub("^# ", "## ", body).strip(), ""]
    for section, pages in (item for each in nav for item in each.items()):
        lines += [f"## {section}", ""]
        for page in pages:
            title, source = ("Overview", page) if isinstance(page, str) else next(iter(page.items()))
            place = "" if source == "index.md" else source.removesuffix(".md") + "/"
            lines.append(f"- [{title}](./{place})")
        lines.append("")
    return "\n".join(lines)


def page_of_notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, and its pictures by their names.

    Outputs that follow each other are a block of text; a picture has no text beside it.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        shown = ""
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures) + 1}.png"
                pictures[name] = b64decode("".join(data["image/png"]))
                parts.append(f"![What the cell above shows]({name})")
            else:
                shown += "".join(output.get("text") or data["text/plain"]).strip("\n") + "\n"
        parts += [f"```text\n{shown}```"] if shown else []
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces links that lead out of `docs/`, and those to notebooks; the build fails where a file does not exist.

    Raises:
        FileNotFoundError: A link leads nowhere.
    """
    up = "../" * page.file.src_path.count("/")

    def path(match: re.Match[str]) -> str:
        text, target = match.groups()
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{page.file.src_path}: `{up}../{target}` does not exist.")
        return text if target in text else f"{text} (`{target}`)"

    outside = re.sub(rf"\[([^\]]+)\]\({re.escape(up)}\.\./([^)#]+)[^)]*\)", path, markdown)
    return re.sub(r"\]\((notebooks/\w+)\.ipynb\)", r"](\1.md)", outside)
