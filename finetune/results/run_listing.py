"""What a run folder holds, as plain data and as text: state, figures, data, files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import printable
from finetune.results.formatting import size_text
from finetune.results.run_documents import read_of_run
from finetune.results.run_folder import is_finished
from finetune.results.run_lock import LOCK_FILE

_SHOWN = 12  # classes


def list_run(folder: Path) -> dict[str, Any]:
    """Returns what a run folder holds, as plain data.

    Args:
        folder: The run folder; the run may be unfinished.

    Raises:
        FinetuneError: A file of it cannot be read.
    """
    data, result = (read_of_run(folder / name) for name in ("data.json", "result.json"))
    source = data.get("source") or {}
    outputs = data.get("outputs", {"": data})
    classes = {name: of.get("class_names", []) for name, of in outputs.items() if of.get("class_names")}
    files = {
        str(path.relative_to(folder)): _size(path)
        for path in sorted(folder.iterdir())
        if path.name != LOCK_FILE and not path.name.startswith(".")
    }
    return {
        "kind": "run",
        "finished": is_finished(folder),
        "source": {key: source[key] for key in ("kind", "file", "folder") if key in source},
        "rows": data.get("rows", {}),
        "classes": classes,
        "metrics": result.get("metrics", {}),
        "frozen_unchanged": result.get("frozen_unchanged"),
        "warnings": result.get("warnings", []),
        "seconds": result.get("seconds", {}),
        "files": files,
    }


def run_text(folder: Path, listing: Mapping[str, Any]) -> str:
    """Returns the listing of a run as text for people.

    Args:
        folder: The run folder.
        listing: What `list_run` has returned.
    """
    state = "finished" if listing["finished"] else f"not finished: `finetune resume {folder}` goes on"
    lines = [f"run {folder}: {state}"]
    rows = ", ".join(f"{count:,} {split}" for split, count in listing["rows"].items())
    lines += [f"data: {' '.join(map(str, listing['source'].values())) or 'arrays'}; rows: {rows}"] if rows else []
    for output, names in listing["classes"].items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"classes{f' of {output}' if output else ''}: {', '.join(map(str, names[:_SHOWN]))}{more}")
    lines += [f"test {name}: {value:.4f}" for name, value in listing["metrics"].items() if value is not None]
    if listing["frozen_unchanged"] is not None:
        lines.append(f"frozen tensors unchanged: {'yes' if listing['frozen_unchanged'] else 'NO'}")
    lines += [f"warning: {warning}" for warning in listing["warnings"]]
    if seconds := sum(listing["seconds"].values()):
        lines.append(f"took: {seconds:.0f} s, {listing['seconds'].get('train', 0):.0f} s of them training")
    width = max(map(len, listing["files"]), default=0)
    lines += ["", *(f"{name:<{width}}  {size_text(size):>10}" for name, size in listing["files"].items())]
    return "\n".join(map(printable, lines))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())
