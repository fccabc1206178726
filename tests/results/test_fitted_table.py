from io import StringIO

from rich.console import Console

from finetune.results.fitted_table import FittedTable, TableColumn


def text(table, width):
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return out.getvalue()


def table(name="encoder", **more):
    columns = (
        TableColumn("name", names=True),
        TableColumn("rate", right=True),
        TableColumn("layers", names=True, leaves=1),
        TableColumn("decay", leaves=2),
    )
    made = FittedTable(columns)
    made.add(name, "1.25e-06", "conv1, conv2, conv3", "0.01")
    return made


def test_columns_that_do_not_fit_are_left_out_in_their_order_and_named():
    assert "conv3" in text(table(), 60)
    assert "Too narrow" not in text(table(), 60)
    narrow, narrowest = text(table(), 40), text(table(), 20)
    assert "conv" not in narrow
    assert "0.01" in narrow
    assert "0.01" not in narrowest
    assert "Too narrow for `layers`: a" in " ".join(narrow.split())
    assert " ".join(narrowest.split()).endswith(
        "Too narrow for `layers`, `decay`: a wider terminal or the run's `plan.txt` shows that."
    )


def test_numbers_are_never_broken_and_long_names_go_over_several_lines():
    name = "a_name_of_a_group_that_is_longer_than_the_terminal_is_wide"
    printed = text(table(name), 40)
    assert "1.25e-06" in printed
    lines = printed.partition("Too narrow")[0].splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert name in "".join(line[:29].strip() for line in lines)


def test_a_column_in_which_no_row_has_a_value_is_not_shown():
    made = FittedTable((TableColumn("name"), TableColumn("decay", leaves=1)))
    made.add("stem", "")
    assert "decay" not in text(made, 200)


def test_control_characters_and_markup_in_cells_are_shown_as_they_are():
    printed = text(table("[red]x\x1b[0m"), 80)
    assert "[red]x\\x1b[0m" in printed
