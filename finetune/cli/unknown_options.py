"""What to write in place of an option that there is not, where it names a key of a recipe: `--epochs 3`.

Other programs have an option for each setting, such as `--batch_size` or TF-Slim's `--checkpoint_exclude_scopes`.
"""

import shlex
from collections.abc import Iterable, Sequence

from finetune.errors import printable


def advice_on_options(arguments: Sequence[str], known: Iterable[str]) -> str:
    """Returns a sentence on the first unknown option that is a key of a recipe; empty if there is none.

    Args:
        arguments: The command line after `finetune`: the command and what follows.
        known: The options that the command takes.
    """
    taken = {*known, "--help", "--debug", "--"}
    options = (argument for argument in enumerate(arguments) if argument[1].startswith("--"))
    at, option = next(((n, text) for n, text in options if text.partition("=")[0] not in taken), (0, ""))
    if not option or "--set" not in taken:
        return ""
    from finetune.recipe.fields import CALLED, INSTEAD
    from finetune.recipe.schema import Recipe
    from finetune.recipe.train import Train

    name, _, value = option.removeprefix("--").partition("=")
    key = name.replace("-", "_")
    if key in INSTEAD:
        return f"`--{printable(name)}` is no option here. {INSTEAD[key]}."
    parts = {**Train.elsewhere, **Recipe.elsewhere, "learning_rate": "groups.<name>", "seed": ""}
    here = next((text for text in (key, CALLED.get(key)) if text in parts), None)
    if here is None:
        return ""
    value = value or next(iter(arguments[at + 1 : at + 2]), "...")
    setting = f"{parts[here]}.{here}={value}".lstrip(".")
    written = setting if "<" in setting else shlex.quote(setting)
    return f"`--{printable(name)}` is a key of a recipe and no option. Write `--set {printable(written)}`."
