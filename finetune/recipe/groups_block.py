"""A `groups:` block as text, with the reason for every group as a comment above it."""

from collections.abc import Mapping, Sequence

from finetune.recipe.groups import GroupSpec
from finetune.recipe.text import dump


def groups_block(groups: Sequence[GroupSpec], reasons: Mapping[str, str], header: str) -> str:
    """Writes groups as YAML.

    Args:
        groups: The groups, input to output.
        reasons: A line of comment for each group, by its name.
        header: A line of comment above the block.

    Returns:
        The block, to be pasted into a recipe.
    """
    lines = [f"# {header}", "groups:"]
    for group in groups:
        dumped = group.model_dump(by_alias=True, exclude_defaults=True)
        values = {key: list(item) if isinstance(item, tuple) else item for key, item in dumped.items()}  # as YAML has
        lines.append(f"  # {group.name}: {reasons[group.name]}")
        lines += [f"  {line}" for line in dump([values], compact=True).splitlines()]
    return "\n".join(lines) + "\n"
