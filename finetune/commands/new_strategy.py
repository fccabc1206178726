"""How `finetune new` trains: the only place that decides on groups, phases, optimizers and rates of a new recipe.

What `docs/transfer.md` measured: which rate it is matters far more than which strategy, and with few rows and steps no
single rate is good on all tasks. So all layers train from the start at one rate, under a schedule that halves it after
every quarter of the run, and three rates are tried, of which the validation rows choose one. A pretrained network of
text is as before: a low rate below its head, which is trained alone first. That was not measured there.
"""

from dataclasses import dataclass

SCHEDULE = "{schedule: exponential_decay, initial: %s, decay_fraction: 0.25, decay_rate: 0.5, staircase: true}"


@dataclass(frozen=True)
class Setup:
    """What the strategy depends on.

    Attributes:
        is_pretrained: Whether the network has pretrained weights.
        is_language_model: Whether it is a pretrained network of text, which large rates ruin.
        rows: Rows of the data; 0 where that is unknown.
        unused: A layer for an output of the network that is not taken; "" for none.
    """

    is_pretrained: bool
    is_language_model: bool
    rows: int
    unused: str = ""


def strategy_lines(setup: Setup) -> list[str]:
    """Returns the `groups`, `phases` and `train` of a recipe."""
    tenth = max(1, setup.rows // 10) if setup.rows else 32
    batch_size = 2 ** min(5, max(2, tenth.bit_length() - 1))  # a power of 2 from 4 to 32
    train = [
        "",
        "train:  # loss and metrics are chosen by the target",
        f"  batch_size: {batch_size}  # rows in a step: fewer take less memory, and make more, noisier steps",
    ]
    if not setup.is_pretrained:
        return [
            "",
            "groups:  # nothing is pretrained: all layers learn at the same rate",
            "  - name: all",
            "    rest: true  # every weight",
            "    optimizer: adam",
            f"    learning_rate: {SCHEDULE % '3.0e-3'}",
            *train,
            "  epochs: 20  # passes over the training rows",
        ]
    body, head = ("3.0e-5", "1.0e-3") if setup.is_language_model else ("3.0e-3", "3.0e-3")
    phases = [
        "",
        "phases:  # with few rows, try the first one alone",
        "  - {train: head, epochs: 1}  # the new head alone, so that its first steps do not spoil the body",
        "  - {train: all, epochs: 4}  # then everything",
    ]
    unused = [
        "  - name: unused  # makes the other output of the network, which is not taken",
        f"    prefixes: [{setup.unused}]",
        "    frozen: true",
    ]
    search = "  learning_rate: search  # tries a third and three times the rates, too: the validation rows choose"
    return [
        "",
        "groups:  # each has its own optimizer and its own rate",
        "  - name: body  # what is pretrained: a lower rate keeps more of it",
        "    rest: true  # every weight that no other group takes",
        "    optimizer: adamw",
        f"    learning_rate: {SCHEDULE % body}",
        "  - name: head  # what is new",
        "    prefixes: [head]",
        "    optimizer: adamw",
        f"    learning_rate: {SCHEDULE % head}",
        *(unused if setup.unused else []),
        *(phases if setup.is_language_model else []),
        *train,
        search,
        *([] if setup.is_language_model else [f"  epochs: {_epochs(setup.rows, batch_size)}  # passes over the rows"]),
    ]


def _epochs(rows: int, batch_size: int) -> int:
    """Returns how many epochs make about 100 steps, as long as trainings were measured, from 5 to 20."""
    steps = max(1, int(0.65 * rows) // batch_size)
    return min(20, max(5, -(-100 // steps))) if rows else 5
