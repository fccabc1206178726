"""A `groups:` block as text, with a comment above every group that says why."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.recipe.groups import GroupSpec
from finetune.recipe.text import dump


def groups_block(groups: Sequence[GroupSpec], reasons: Mapping[str, str], header: str) -> str:
    """Writes groups as YAML.

    Args:
        groups: The groups, input to output.
        reasons: A line of comment for each group, by its name.
        header: A line of comment for all.
    """
    lines = [f"# {header}", "groups:"]
    for group in groups:
        lines.append(f"  # {group.name}: {reasons[group.name]}")
        lines += [f"  {line}" for line in dump([_plain(group)], compact=True).splitlines()]
    return "\n".join(lines) + "\n"


def _plain(group: GroupSpec) -> dict[str, Any]:
    return {
        key: list(item) if isinstance(item, tuple) else item for key, item in group.model_dump(by_alias=True).items()
    }
