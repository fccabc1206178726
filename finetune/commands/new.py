"""`finetune new`: looks at data, and writes a commented recipe for them that runs as it is.

How it trains is decided in `finetune.commands.new_strategy`, which networks there are in `new_networks`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.commands.check import check
from finetune.commands.new_networks import SMALL, Network, choose_network, offers, placed
from finetune.commands.new_strategy import Setup, strategy_lines
from finetune.commands.new_tokenizer import make_tokenizer, tokenizer_name
from finetune.commands.schema import SCHEMA_FILE, write_schema_beside
from finetune.data.column_survey import SPLITS, ColumnSurvey
from finetune.data.survey import DataSurvey, survey
from finetune.data.table_head import MISSING
from finetune.errors import FinetuneError, did_you_mean, quote
from finetune.recipe.text import dump
from finetune.results.new_files import check_new_file
from finetune.results.run_folder import replacing

Ask = Callable[[str, Sequence[str], str], str]  # a question, the answers, and the default; returns the answer
TASKS = ("classes", "labels", "number")
_CALLED = {"regression": "number", "classification": "classes", "multilabel": "labels", "multi-label": "labels"}
_TARGETS = ("target", "label", "labels", "class", "y", "category", "outcome", "answer", "result", "sentiment", "price")
_FEW = 20  # whole numbers up to which they are classes, as `loss: auto` has it


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
class _Chosen:
    """What was decided about the data: the kind of the inputs, their keys, the target, the task, and the column that
    says which rows train and which test.
    """

    kind: str
    inputs: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    target: ColumnSurvey | None = None
    task: str = "classes"
    split: ColumnSurvey | None = None


def new_recipe(out: Path, wishes: Wishes, *, ask: Ask | None = None, overwrite: bool = False) -> list[str]:
    """Writes a recipe for some data.

    Args:
        out: The recipe to write.
        wishes: What the user has said.
        ask: Asks the user; `None` where nobody answers.
        overwrite: Whether the file may exist.

    Returns:
        Sentences about what was understood, and the next commands.

    Raises:
        FinetuneError: There are no such data, it is not clear what they are for, or the file exists.
    """
    check_new_file(out, overwrite=overwrite)
    if out.suffix not in (".yaml", ".yml"):
        raise FinetuneError(f"A recipe is a YAML file. Received `--out {out}`. End its name in `.yaml`.")
    if wishes.task not in (None, *TASKS):
        raise FinetuneError(
            f"`--task` is one of {quote(TASKS)}. Received: `{wishes.task}`."
            + did_you_mean(_CALLED.get(str(wishes.task), str(wishes.task)), TASKS)
        )
    data = wishes.data
    if data is None and ask is None:
        raise FinetuneError("A recipe is written for data. Name them: `finetune new --data PATH`.")
    if data is None and ask:
        data = Path(ask("Where are the data (a folder, a table, a .npz file)?", (), ""))
    assert data
    found = survey(data.expanduser())
    chosen = _chosen(found, wishes, ask)
    columns = found.columns if found.kind == "table" and not found.is_split else ()
    splits = (column for column in columns if column.kind == "split" and column != chosen.target)
    chosen = replace(chosen, split=next(splits, None))
    name = wishes.model or SMALL
    if wishes.model is None and ask:
        for offer in offers(chosen.kind):
            print(f"  {offer}")
        name = ask("Which network?", (), SMALL)
    folder = out.parent
    tokenizer = (
        make_tokenizer(found, chosen.inputs, out, overwrite=overwrite)
        if (chosen.kind, name) == ("text", SMALL)
        else None
    )
    network = choose_network(
        name, chosen.kind, found, weights=wishes.weights, folder=folder, vocabulary=tokenizer[1] if tokenizer else 0
    )
    notes = [f"data: {found.said}", *_said_of(found, chosen), *(f"note: {note}" for note in network.notes)]
    if wishes.model is None and not ask and len(offers(chosen.kind)) > 1:
        notes += ["note: other networks, with `--model`:", *(f"  {offer}" for offer in offers(chosen.kind)[1:])]
    commands, is_text = _commands(out, network), network.is_language_model
    setup = Setup(network.is_pretrained, is_text, found.rows, network.unused)
    lines = [
        f"# {found.said[0].upper()}{found.said[1:]}. Written by `finetune new`.",
        "#",
        *(f"#   {command:<48} {meaning}" for command, meaning in commands),
        "seed: 7  # the same seed gives the same run",
        *_model_lines(network, chosen),
        *_data_lines(found, chosen, network, out, tokenizer),
        *strategy_lines(setup),
    ]
    beside = _write(out, "\n".join(map(_aligned, lines)) + "\n", network, tokenizer)
    more = f", and beside it {quote(beside)}" if beside else ""
    return [*notes, f"written: {out}{more}", *(f"  {command:<48} {meaning}" for command, meaning in commands)]


def _write(out: Path, text: str, network: Network, tokenizer: tuple[str, int, int] | None) -> list[str]:
    """Writes the recipe, the schema and the tokenizer, unless the recipe is not valid; returns the names beside it."""
    allowed = [network.allow_code] if network.allow_code else []
    made = out.with_name(tokenizer_name(out))
    if tokenizer:
        with replacing(made) as temporary:
            temporary.write_text(tokenizer[0], encoding="utf-8")
    with replacing(out) as temporary:
        first = write_schema_beside(out.parent)
        temporary.write_text(f"{first}\n{text}" if first else text, encoding="utf-8")
        try:
            check(temporary, allow_code=allowed)
        except FinetuneError as error:
            if tokenizer:
                made.unlink(missing_ok=True)
            raise type(error)(str(error).replace(str(temporary), str(out))) from error
    return [*([made.name] if tokenizer else []), *([SCHEMA_FILE] if first else [])]


def _commands(out: Path, network: Network) -> list[tuple[str, str]]:
    allowed = f" --allow-code {network.allow_code}" if network.allow_code else ""
    return [
        (f"finetune data {out}{allowed}", "what was understood of the data?"),
        (f"finetune plan {out}{allowed}", "what will happen to every weight?"),
        (f"finetune check --deep {out}{allowed}", "can every row be read, and how long will it take?"),
        (f"finetune run {out}{allowed}", "train it"),
    ]


# -- What the data are for --------------------------------------------------------------------------------------------


def _chosen(found: DataSurvey, wishes: Wishes, ask: Ask | None) -> _Chosen:
    if found.kind in ("images", "audio"):
        if wishes.target or wishes.task not in (None, "classes"):
            said = f"`--target {wishes.target}`" if wishes.target else f"`--task {wishes.task}`"
            raise FinetuneError(
                f"Folders of classes have classes alone. Received {said}. Name the files in a table with a column of "
                "the target, and `--data` the table."
            )
        return _Chosen(found.kind)
    if found.kind == "npz":
        kind = {1: "vector", 3: "images"}.get(len(found.shape), "arrays")
        if kind == "arrays" and wishes.model in (None, SMALL):
            raise FinetuneError(
                f"There is no small network for {found.said}. Name a network that takes them with `--model`: "
                f"{offers(kind)[-1]}."
            )
        target = next(iter(found.columns), None)
        return _Chosen(kind, target=target, task=_task(target, wishes))
    target = _target(found, wishes, ask)
    others = [column for column in found.columns if column.name != target.name]
    kinds = {kind: [column.name for column in others if column.kind == kind] for kind in ("image", "audio", "text")}
    task = _task(target, wishes)
    for kind, name in (("image", "images"), ("audio", "audio")):
        if kinds[kind]:
            return _Chosen(name, (kinds[kind][0],), target=target, task=task)
    if kinds["text"]:
        return _Chosen("text", tuple(kinds["text"][:2]), target=target, task=task)
    if found.kind == "tfrecord":
        numbers = tuple(column.name for column in others if column.kind == "number")
        if not numbers:
            raise FinetuneError(
                f"Records need a feature that is the input: an image, or numbers. These have {_names(found.columns)}. "
                "Write `inputs` into a recipe by hand: `finetune keys data`."
            )
        return _Chosen("vector", numbers, target=target, task=task)
    left_out = tuple(column.name for column in others if column.kind == "id")
    if not any(column.kind in ("number", "category") for column in others):
        raise FinetuneError(
            f"Beside the target `{target.name}` the table has no column of numbers, categories, texts or files to "
            f"learn from: {_names(found.columns)}. Name another `--target`, or write `inputs` into a recipe by hand."
        )
    return _Chosen("vector", ("rest",), left_out, target, task)


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
    elif target.is_whole and target.distinct <= _FEW:
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


def _said_of(found: DataSurvey, chosen: _Chosen) -> list[str]:
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


def _said_of_values(found: DataSurvey, chosen: _Chosen) -> list[str]:
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


# -- The text ---------------------------------------------------------------------------------------------------------


def _line(text: str, comment: str) -> str:
    return f"{text}  # {comment}"


def _aligned(line: str) -> str:
    """Returns a line of a recipe with its comment below those of the other lines."""
    text, mark, comment = line.partition("  # ")
    return f"{text.rstrip():<36}  # {comment}" if mark and text.strip() else line


def _flow(value: object) -> str:
    return dump([value], compact=True).strip().removeprefix("- ").removeprefix("[").removesuffix("]")


def _model_lines(network: Network, chosen: _Chosen) -> list[str]:
    standardize = ", standardize: true" if chosen.task == "number" else ""
    meaning = {
        "classes": "new: an output for each class",
        "labels": "new: an output for each label",
        "number": "new: it begins with the mean and the spread of the target",
    }[chosen.task]
    head = _line(f"  head: {{classes: auto{network.head}{standardize}}}", meaning)
    return ["", "model:", *network.lines, head]


def _data_lines(
    found: DataSurvey, chosen: _Chosen, network: Network, out: Path, tokenizer: tuple[str, int, int] | None
) -> list[str]:
    lines, folder = ["", "data:"], out.parent
    for key, value in found.source.items():
        if isinstance(value, dict):
            value = {split: placed(Path(pattern), folder) for split, pattern in value.items()}
            lines.append(f"  {key}: {{{', '.join(f'{split}: {_quoted(path)}' for split, path in value.items())}}}")
        else:
            lines.append(_line(f"  {key}: {_quoted(placed(Path(value), folder))}", found.said))
    if found.placeholders:
        words = [*MISSING, *found.placeholders]
        lines.append(_line(f"  missing: {_list(words)}", "what stands for a missing value"))
    if chosen.inputs:
        one = chosen.inputs[0] if len(chosen.inputs) == 1 else list(chosen.inputs)
        lines.append(_line(f"  inputs: {_flow(one) if isinstance(one, str) else _list(one)}", "what is looked at"))
    if chosen.exclude:
        lines.append(_line(f"  exclude: {_list(chosen.exclude)}", "most rows have a value of their own there"))
    if chosen.target and found.kind != "npz":
        lines.append(_line(f"  target: {_flow(chosen.target.name)}", "what is predicted"))
        if found.kind == "table" and (types := _types(found, chosen)):
            lines.append(_line(f"  types: {{{', '.join(types)}}}", "what values alone do not show"))
    if found.kind == "audio":
        lines.append(_line(f"  sample_rate: {found.sample_rate}", "samples in a second; others are resampled"))
        lines.append(_line(f"  length: {found.shape[0]}", "samples: longer sounds are cut, shorter ones filled up"))
    if chosen.kind == "text" and tokenizer:
        lines.append(f"  tokenizer: {{file: {_quoted(tokenizer_name(out))}, length: {tokenizer[2]}}}")
    elif chosen.kind == "text" and network.brings_tokenizer:
        lines.append(_line("  tokenizer: {length: 128}", "tokens: longer texts are cut"))
    lines += network.data
    counts = list(found.classes.values()) or ([chosen.target.rarest, chosen.target.most] if chosen.target else [])
    if chosen.task == "classes" and counts and max(counts) > 3 * max(1, min(counts)):
        lines.append(_line("  class_weight: balanced", "classes with few rows count as much as others"))
    return [*lines, *_split_lines(found, chosen, network)]


def _split_lines(found: DataSurvey, chosen: _Chosen, network: Network) -> list[str]:
    """Returns how rows are split: as the data say, and where they do not say which rows validate, by a share."""
    share = "validation: 0.15" if network.is_pretrained else "validation: 0.1"  # pretrained: they choose the rates
    if chosen.split:
        column = f"column: {_flow(chosen.split.name)}"
        if chosen.split.distinct == len(SPLITS):
            return [_line(f"  split: {{{column}}}", "says which rows train, test and validate")]
        return [_line(f"  split: {{{column}, {share}}}", "says which rows test; of the others a share validates")]
    if not found.is_split:
        return [_line(f"  split: {{test: 0.2, {share}}}", "shares that are not trained on")]
    return [] if found.has_validation else [_line(f"  split: {{{share}}}", "a share of the training rows")]


def _quoted(path: str) -> str:
    return _flow(path) if not any(mark in path for mark in ",{}[]") else f'"{path}"'


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(_quoted(name) for name in names)}]"


def _types(found: DataSurvey, chosen: _Chosen) -> list[str]:
    """Returns the types of files, and that of the target where its values suggest another."""
    assert chosen.target
    files = [f"{_quoted(each.name)}: {each.kind}" for each in found.columns if each.kind in ("image", "audio")]
    types = [each for each in files if chosen.kind in ("images", "audio") and each.split(":")[0] in chosen.inputs]
    few = chosen.target.is_whole and chosen.target.distinct <= _FEW
    if chosen.target.kind == "number" and few != (chosen.task == "classes"):
        types.append(f"{_quoted(chosen.target.name)}: {'category' if chosen.task == 'classes' else 'number'}")
    return types
