"""What data are for: what `finetune new` takes for the inputs, the target and the task, and what it says of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.commands.new_networks import SMALL, offers
from finetune.data.column_survey import ColumnSurvey
from finetune.data.survey import DataSurvey
from finetune.errors import FinetuneError, did_you_mean, quote

Ask = Callable[[str, Sequence[str], str], str]  # a question, the answers, and the default; returns the answer
TASKS = ("classes", "labels", "number")
FEW = 20  # whole numbers up to which they are classes, as `loss: auto` has it
_TARGETS = ("target", "label", "labels", "class", "y", "category", "outcome", "answer", "result", "sentiment", "price")


@dataclass(frozen=True)
class Wishes:
    """What the user has said, by options or as answers.

    Attributes:
        data: The data; `None` asks for them.
        task: One of `TASKS`; `None` goes by the target.
        model: The network, see `new_networks.offers`; `None` asks for it, or takes the small one.
        weights: The weights of a network of `keras.applications`.
        target: The column of the target, of a table or of records; `None` goes by names and values.
    """

    data: Path | None = None
    task: str | None = None
    model: str | None = None
    weights: str | None = None
    target: str | None = None


@dataclass(frozen=True)
class Choices:
    """What was decided about the data: the kind of the inputs, their keys, the target, the task, and the column that
    says which rows train and which test.
    """

    kind: str
    inputs: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    target: ColumnSurvey | None = None
    task: str = "classes"
    split: ColumnSurvey | None = None


def choose(found: DataSurvey, wishes: Wishes, ask: Ask | None) -> Choices:
    """Decides what is predicted from what.

    Args:
        found: The data.
        wishes: What the user has said.
        ask: Asks the user; `None` where nobody answers.

    Raises:
        FinetuneError: It is not clear, or not possible.
    """
    if found.kind in ("images", "audio"):
        if wishes.target or wishes.task not in (None, "classes"):
            said = f"`--target {wishes.target}`" if wishes.target else f"`--task {wishes.task}`"
            raise FinetuneError(
                f"Folders of classes have classes alone. Received {said}. Name the files in a table with a column of "
                "the target, and `--data` the table."
            )
        return Choices(found.kind)
    if found.kind == "npz":
        kind = {1: "vector", 3: "images"}.get(len(found.shape), "arrays")
        if kind == "arrays" and wishes.model in (None, SMALL):
            raise FinetuneError(
                f"There is no small network for {found.said}. Name a network that takes them with `--model`: "
                f"{offers(kind)[-1]}."
            )
        target = next(iter(found.columns), None)
        return Choices(kind, target=target, task=_task(target, wishes))
    target = _target(found, wishes, ask)
    others = [column for column in found.columns if column.name != target.name]
    kinds = {kind: [column.name for column in others if column.kind == kind] for kind in ("image", "audio", "text")}
    task = _task(target, wishes)
    for kind, name in (("image", "images"), ("audio", "audio")):
        if kinds[kind]:
            return Choices(name, (kinds[kind][0],), target=target, task=task)
    if kinds["text"]:
        return Choices("text", tuple(kinds["text"][:2]), target=target, task=task)
    if found.kind == "tfrecord":
        numbers = tuple(column.name for column in others if column.kind == "number")
        if not numbers:
            raise FinetuneError(
                f"Records need a feature that is the input: an image, or numbers. These have {_names(found.columns)}. "
                "Write `inputs` into a recipe by hand: `finetune keys data`."
            )
        return Choices("vector", numbers, target=target, task=task)
    left_out = tuple(column.name for column in others if column.kind == "id")
    if not any(column.kind in ("number", "category") for column in others):
        raise FinetuneError(
            f"Beside the target `{target.name}` the table has no column of numbers, categories, texts or files to "
            f"learn from: {_names(found.columns)}. Name another `--target`, or write `inputs` into a recipe by hand."
        )
    return Choices("vector", ("rest",), left_out, target, task)


def _target(found: DataSurvey, wishes: Wishes, ask: Ask | None) -> ColumnSurvey:
    by_name = {column.name: column for column in found.columns}
    if wishes.target is not None:
        if wishes.target not in by_name:
            hint = did_you_mean(wishes.target, list(by_name))
            raise FinetuneError(f"There is no column `{wishes.target}`. The columns are {_names(found.columns)}.{hint}")
        return by_name[wishes.target]
    usable = [column for column in found.columns if column.kind in ("number", "category") and column.distinct != 1]
    if not usable or len(found.columns) < 2:
        raise FinetuneError(
            "A recipe needs a target: a column of classes or numbers to predict from the others. The columns are "
            f"{_names(found.columns)}, and none of them can be that. Add one, or name it with `--target`."
        )
    named = [*usable, *(column for column in found.columns if column.repeats)]
    likely = [column for name in _TARGETS for column in named if column.name.lower() == name]
    names = [column for column in usable if column.kind == "category"]
    texts = any(column.kind in ("text", "image", "audio") for column in found.columns)
    if not likely and (len(usable) == 1 or (len(names) == 1 and (names[0] in (usable[0], usable[-1]) or texts))):
        likely = usable if len(usable) == 1 else names  # the only one, or the only one of names, at an end of the table
    if likely:
        return likely[0]
    candidates = [column.name for column in usable]
    if ask:
        answer = ask("Which column is to be predicted?", candidates, candidates[-1])
        return by_name[answer]
    raise FinetuneError(
        f"It is not clear which column is to be predicted. Candidates are {quote(candidates, limit=12)}. Name it: "
        f"`--target {candidates[-1]}`."
    )


def _task(target: ColumnSurvey | None, wishes: Wishes) -> str:
    if target is None:
        return wishes.task or "classes"
    natural = "number"
    if target.kind != "number":
        natural = "labels" if target.has_labels else "classes"
    elif target.is_whole and target.distinct <= FEW:
        natural = "classes"
    if wishes.task == "number" and target.kind != "number":
        raise FinetuneError(
            f"`--task number` needs a column of numbers, and `{target.name}` holds names. Remove `--task`, or name "
            "another `--target`."
        )
    if wishes.task == "labels" and not target.has_labels:
        raise FinetuneError(
            f"`--task labels` needs a column of several names for each row, written as `a|b`. `{target.name}` has "
            "none. Write `--task classes`."
        )
    return wishes.task or natural


def _names(columns: Sequence[ColumnSurvey]) -> str:
    return ", ".join(f"`{column.name}` ({column.kind})" for column in columns[:12]) + (
        f" and {len(columns) - 12} more" if len(columns) > 12 else ""
    )


def said_of(found: DataSurvey, chosen: Choices) -> list[str]:
    """Returns sentences about what is predicted from what."""
    if not chosen.target or found.kind == "npz":
        return []
    inputs = "all other columns" if chosen.inputs == ("rest",) else quote(chosen.inputs)
    without = f", without {quote(chosen.exclude)}" if chosen.exclude else ""
    used = {*chosen.inputs, chosen.target.name, *([chosen.split.name] if chosen.split else [])}
    unused = [each.name for each in found.columns if each.name not in used] if chosen.inputs != ("rest",) else []
    task = {"classes": "a class", "labels": "several labels", "number": "a number"}[chosen.task]
    return [
        f"predicted: `{chosen.target.name}`, {task}, from {inputs}{without}",
        *(
            f"note: `{each.name}` is taken for text: {each.distinct} different values of {each.words:.0f} words"
            for each in found.columns
            if each.repeats and each.name in chosen.inputs
        ),
        *([f"split: `{chosen.split.name}` says which rows train and which test"] if chosen.split else []),
        *([f"note: not used: {quote(unused)}"] if unused else []),
        *_said_of_values(found, chosen),
    ]


def _said_of_values(found: DataSurvey, chosen: Choices) -> list[str]:
    """Returns sentences about values that are read otherwise than the user may think."""
    notes = [
        f"note: `{word}` in `{name}` is taken for a missing number (`data.missing`)"
        for word, name in found.placeholders.items()
    ]
    without = [each for each in found.columns if each.name in chosen.exclude]
    notes += [
        f"note: `{each.name}` is left out, since it has other text than numbers: {each.strays}. Correct that, "
        "or empty these cells where it stands for a missing number, and call this command again with `--overwrite`"
        for each in without
        if each.strays
    ]
    texts = [each for each in without if each.example and not each.strays]
    if texts:
        shown = ", ".join(f"`{each.name}` (such as `{each.example[:40]}`)" for each in texts[:6])
        notes.append(
            f"note: {shown}: most rows have a value of their own. Dates are text, and so are numbers with units, signs "
            "of a currency or separators of thousands, and columns with words among numbers: write plain numbers where "
            "the network is to see them"
        )
    if (target := chosen.target) and target.missing:
        notes.append(
            f"note: every row needs a target, and `{target.name}` has none in {target.missing:,} of {found.rows:,} "
            "rows: remove these rows, or fill them in, before the recipe runs"
        )
    return notes
