from io import StringIO

import pytest
from rich.console import Console

from finetune.results.tables import as_text, group_table, phase_table, plan_text, weight_table


def row(name, group, **changes):
    usual = {
        "name": name,
        "group": group,
        "shape": [2, 3],
        "parameters": 6,
        "frozen": False,
        "optimizer": "sgd",
        "learning_rate": [1e-2, 5e-3, 2.5e-3],
        "weight_decay": 0.0,
        "batch_normalization": None,
        "restored_from": None,
        "peak": 1e-2,
    }
    return usual | changes


UNTRAINED = {"peak": None, "optimizer": None, "learning_rate": None, "weight_decay": None}
PLAN = {
    "groups": ["stem", "head"],
    "steps": 10,
    "advice": ["Sleep well."],
    "weights": [
        row("conv/kernel", "stem", **UNTRAINED, frozen=True, restored_from="layer0/0", parameters=123456),
        row("bn/mean", "stem", **UNTRAINED, frozen=True, batch_normalization="inference, statistics fixed"),
        row("norm/mean", "head", **UNTRAINED),
        row("head/kernel", "head", weight_decay=0.01),
        row("head/bias", "head", shape=[]),
    ],
}


def cells(table):
    return [line.split("  ") for line in as_text(table).splitlines() if line.strip() and "─" not in line]


def stripped(line):
    return [cell.strip() for cell in line if cell.strip()]


def test_a_group_has_one_row_with_layers_size_optimizer_rates_decay_and_restored_count():
    header, stem, head = map(stripped, cells(group_table(PLAN)))
    assert header[:4] == ["group", "layers", "parameters", "optimizer"]
    assert stem == ["stem", "conv, bn", "123,462", "frozen", "inference", "1/2"]
    assert head == ["head", "norm, head", "18", "sgd", "0.01", "0.01, 0.005, 0.0025", "0.01", "0/3"]


def test_a_weight_has_one_row_and_says_why_it_is_not_trained():
    rows = [stripped(line) for line in cells(weight_table(PLAN))][1:]
    assert rows == [
        ["conv/kernel", "stem", "2x3", "frozen", "layer0/0"],
        ["bn/mean", "stem", "2x3", "frozen", "inference"],
        ["norm/mean", "head", "2x3", "not trainable"],
        ["head/kernel", "head", "2x3", "sgd", "0.01, 0.005, 0.0025", "0.01"],
        ["head/bias", "head", "scalar", "sgd", "0.01, 0.005, 0.0025"],
    ]


def test_a_constant_rate_is_printed_once():
    plan = PLAN | {"weights": [row("a/kernel", "head", learning_rate=[1e-3] * 3)], "groups": ["head"]}
    assert "0.001" in as_text(group_table(plan))
    assert "0.001, " not in as_text(group_table(plan))


def test_many_layers_are_printed_as_the_first_and_the_last():
    weights = [row(f"conv{n}/kernel", "body") for n in range(5)]
    assert "conv0 ... conv4 (5)" in as_text(group_table(PLAN | {"weights": weights, "groups": ["body"]}))


def test_names_that_look_like_markup_or_emoji_are_printed_unchanged():
    weights = [row("x[bold]/[/red]", "head", restored_from=":smile:")]
    text = as_text(weight_table(PLAN | {"weights": weights}))
    assert "x[bold]/[/red]" in text
    assert ":smile:" in text


def test_the_text_holds_both_tables_and_the_advice_without_trailing_space():
    text = plan_text(PLAN)
    assert text.count("head/kernel") == 1
    assert "123,462" in text
    assert text.endswith("Advice: Sleep well.\n")
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_a_long_name_is_never_cut_short():
    name = "/".join(f"transformer_layer_{n}" for n in range(12))
    assert name in as_text(weight_table(PLAN | {"weights": [row(name, "head", restored_from=name)]}))


def test_on_a_narrow_terminal_columns_are_left_out_and_nothing_is_cut_short():
    out = StringIO()
    console = Console(file=out, width=80, soft_wrap=True)
    console.print(group_table(PLAN))
    console.print(weight_table(PLAN))
    text = out.getvalue()
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    for whole in ("parameters", "optimizer", "123,462", "peak rate", "restored", "0/3"):
        assert whole in text


def test_the_text_says_which_steps_the_rates_are_of():
    assert "first, the middle and the last step" in plan_text(PLAN)


def test_names_from_outside_are_shown_escaped_in_every_table_and_in_the_plan():
    weights = [row("a\x1b[31m\nb/kernel", "head", restored_from="x\ry")]
    text = plan_text({"groups": ["head"], "steps": 1, "advice": ["look at `n\n\x07`"], "weights": weights})
    assert not set("\x1b\x07\r") & set(text)
    assert "a\\x1b[31m\\nb/kernel" in text
    assert "x\\ry" in text
    assert "Advice: look at `n\\n\\x07`\n" in text


def phased(count, trained):
    """A plan of many groups, and a phase for each number of groups that are trained."""
    names = [f"encoder_block_{number:02d}" for number in range(count)]
    peaks = {name: 1e-3 / 2.6 ** (count - 1 - number) for number, name in enumerate(names)}

    def phase(number):
        in_phase = {name: peaks[name] for name in names[-number:]}
        rates = {name: [peak / 32, peak, peak / 32] for name, peak in in_phase.items()}
        size = {"parameters": 100 * number, "epochs": 1, "steps": 120}
        more = {"batch_norm": {}, "notes": [], "inference_layers": []}
        return {"train": [*in_phase], "learning_rates": rates, "peaks": in_phase, **size, **more}

    weights = [row(f"{name}/kernel", name, peak=peaks[name]) for name in names]
    return {"groups": names, "weights": weights, "phases": [phase(number) for number in trained], "advice": []}


def printed(table, width):
    out = StringIO()
    Console(file=out, width=width, soft_wrap=True, color_system=None).print(table)
    return out.getvalue()


@pytest.mark.parametrize("count", [3, 19, 100])
@pytest.mark.parametrize("width", [80, 120, 200])
def test_plans_of_many_groups_have_a_line_for_each_group_and_whole_numbers(count, width):
    plan = phased(count, trained=(1, 2, count))
    groups = printed(group_table(plan), width).splitlines()
    lines = [line for line in groups if "encoder_block" in line]
    assert len(lines) == count
    assert all(len(line) <= width for line in groups)
    assert [line.partition("sgd")[2].split()[0] for line in (lines[0], lines[-1])] == [
        f"{1e-3 / 2.6 ** (count - 1):.3g}",
        "0.001",
    ]
    phases = printed(phase_table(plan), width)
    assert all(len(line) <= width for line in phases.splitlines())
    assert f"{1e-3 / 2.6 ** (count - 1):.3g} to 0.001" in phases
    assert len(phases.splitlines()) <= 13


def test_a_group_shows_its_peak_and_the_first_phase_in_which_it_has_it():
    rows = [stripped(line) for line in cells(group_table(phased(3, trained=(1, 2, 3))))]
    assert rows[0][4:6] == ["peak rate", "in phase"]
    assert [row[4:6] for row in rows[1:]] == [["0.000148", "3"], ["0.000385", "2"], ["0.001", "1"]]


def test_many_groups_of_a_phase_are_the_first_and_the_last_with_the_range_of_their_peaks():
    few, many = [stripped(line) for line in cells(phase_table(phased(5, trained=(1, 5))))][1:]
    assert few[-2:] == ["0.001", "encoder_block_04 3.13e-05, 0.001, 3.13e-05"]
    assert many[1:] == ["encoder_block_00 ... encoder_block_04 (5)", "500", "1", "120", "2.19e-05 to 0.001"]
