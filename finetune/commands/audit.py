"""`finetune audit`: whether every file of a finished run, and every file that it has read, is as it was."""

from pathlib import Path

from finetune.errors import counted
from finetune.results.hashes import Audit, check_hashes

_SHOWN = 20


def audit(folder: str | Path) -> Audit:
    """Compares every file with the hashes that the run wrote at its end.

    Args:
        folder: The run folder.

    Raises:
        FinetuneError: There are no hashes, or they were changed themselves.
    """
    return check_hashes(Path(folder))


def audit_lines(result: Audit) -> list[str]:
    """Returns what an audit shows, a line each.

    Args:
        result: What `audit` has returned.
    """
    faults = [f"changed: {name}" for name in result.changed] + [f"missing: {name}" for name in result.missing]
    lines = _first(faults) + _first([f"added since: {name}" for name in result.added])
    if result.by_time:
        count = counted(result.by_time, "file")
        lines.append(f"{count} outside of the run folder compared by size and time alone, as they are large together")
    if result.holds:
        return [*lines, f"{counted(result.unchanged, 'file')}: every bit is as it was at the end of the run"]
    return [*lines, f"{len(faults)} of {counted(result.unchanged + len(faults), 'file')} changed or missing"]


def _first(lines: list[str]) -> list[str]:
    return lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
