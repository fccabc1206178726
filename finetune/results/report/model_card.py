"""A short model card beside the model: what it is, what it was trained on, how well it does, and where it fails.

References:
    Mitchell et al. (2019), Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993
"""

import re
from typing import Any

from finetune.errors import printable
from finetune.results.report.run_files import RunFiles
from finetune.results.report.verdict import interval_text, verdict_of


def model_card(run: RunFiles) -> str:
    """Returns the card of a finished run as Markdown.

    Args:
        run: The files of its folder.
    """
    verdict, rows = verdict_of(run), run.data.get("rows", {})
    lines = [f"# {_plain(run.folder.name)}", "", verdict.sentence, ""]
    if about := run.report.get("about"):
        lines += [_plain(about), ""]
    lines += ["## Evaluation", "", "| metric | test | 95 % interval | before training |", "|---|---|---|---|"]
    before = run.result.get("metrics_before", {})
    lines += [
        f"| {_plain(name)} | {_figure(value)} | {interval_text(run, name) or '-'} | {_figure(before.get(name))} |"
        for name, value in run.result.get("metrics", {}).items()
    ]
    lines += ["", "## Limits", ""]
    lines += [f"- {_plain(note)}" for note in verdict.notes] or ["- Nothing in the evaluation speaks against it."]
    lines += ["- It was evaluated on the test rows of one data set; other data may differ."]
    counts = ", ".join(f"{count:,} to {_plain(name)}" for name, count in rows.items())
    lines += ["", "## Data", "", f"Rows: {counts or 'unknown'}."]
    lines += [f"Source: `{_code(value)}` ({key})." for key, value in _sources(run)]
    lines += _classes(run)
    if path := run.restore.get("path"):
        lines += [
            "",
            "## Pretrained weights",
            "",
            f"Restored from `{_code(path)}`, {len(run.restore['restored'])} weights.",
        ]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "import keras",
        "",
        'model = keras.saving.load_model("model.keras")',
        "```",
    ]
    lines += ["", "What was fitted to the data (class names, means, vocabularies) is in `data.json`."]
    return "\n".join(lines) + "\n"


def _sources(run: RunFiles) -> list[tuple[str, Any]]:
    source = run.data.get("source", {})
    return [(key, source[key]) for key in ("file", "folder", "files") if isinstance(source.get(key), str)]


def _classes(run: RunFiles) -> list[str]:
    names = run.data.get("class_names", ())
    if not names:
        return []
    shown = ", ".join(f"`{_code(name)}`" for name in names[:20]) + (" and others" if len(names) > 20 else "")
    return [f"Classes: {shown}."]


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _plain(text: object) -> str:
    """Returns a text in which nothing is markup, neither of Markdown nor of HTML."""
    return re.sub(r"([\\*_{}\[\]<>()#|!~])", r"\\\1", printable(text))


def _code(text: object) -> str:
    return printable(text).replace("`", "'")
