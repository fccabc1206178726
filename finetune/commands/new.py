"""`finetune new`: looks at data, and writes a commented recipe for them that runs as it is.

What the data are for is decided in `finetune.commands.new_choices`, how it trains in `new_strategy`, and which networks
there are in `new_networks`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune.commands.check import check
from finetune.commands.new_choices import FEW, TASKS, Ask, Choices, Wishes, choose, said_of
from finetune.commands.new_networks import SMALL, Network, choose_network, offers, placed
from finetune.commands.new_strategy import Setup, strategy_lines
from finetune.commands.new_tokenizer import make_tokenizer, tokenizer_name
from finetune.commands.schema import SCHEMA_FILE, write_schema_beside
from finetune.data.split_names import SPLITS
from finetune.data.survey import DataSurvey, survey
from finetune.data.table_head import MISSING
from finetune.errors import FinetuneError, did_you_mean, quote
from finetune.recipe.text import dump
from finetune.results.new_files import check_new_file
from finetune.results.run_folder import replacing

_CALLED = {"regression": "number", "classification": "classes", "multilabel": "labels", "multi-label": "labels"}


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
    chosen = choose(found, wishes, ask)
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
    notes = [f"data: {found.said}", *said_of(found, chosen), *(f"note: {note}" for note in network.notes)]
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


def _line(text: str, comment: str) -> str:
    return f"{text}  # {comment}"


def _aligned(line: str) -> str:
    """Returns a line of a recipe with its comment below those of the other lines."""
    text, mark, comment = line.partition("  # ")
    return f"{text.rstrip():<36}  # {comment}" if mark and text.strip() else line


def _flow(value: object) -> str:
    return dump([value], compact=True).strip().removeprefix("- ").removeprefix("[").removesuffix("]")


def _model_lines(network: Network, chosen: Choices) -> list[str]:
    standardize = ", standardize: true" if chosen.task == "number" else ""
    meaning = {
        "classes": "new: an output for each class",
        "labels": "new: an output for each label",
        "number": "new: it begins with the mean and the spread of the target",
    }[chosen.task]
    head = _line(f"  head: {{classes: auto{network.head}{standardize}}}", meaning)
    return ["", "model:", *network.lines, head]


def _data_lines(
    found: DataSurvey, chosen: Choices, network: Network, out: Path, tokenizer: tuple[str, int, int] | None
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


def _split_lines(found: DataSurvey, chosen: Choices, network: Network) -> list[str]:
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


def _types(found: DataSurvey, chosen: Choices) -> list[str]:
    """Returns the types of files, and that of the target where its values suggest another."""
    assert chosen.target
    files = [f"{_quoted(each.name)}: {each.kind}" for each in found.columns if each.kind in ("image", "audio")]
    types = [each for each in files if chosen.kind in ("images", "audio") and each.split(":")[0] in chosen.inputs]
    few = chosen.target.is_whole and chosen.target.distinct <= FEW
    if chosen.target.kind == "number" and few != (chosen.task == "classes"):
        types.append(f"{_quoted(chosen.target.name)}: {'category' if chosen.task == 'classes' else 'number'}")
    return types
