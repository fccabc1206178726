from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from finetune.results.run_log import RunLog


def console(**options):
    return Console(file=StringIO(), width=40, **options)


def test_the_file_has_what_the_console_shows_without_colours_and_what_came_before_it_was_opened(tmp_path):
    shown = console(force_terminal=True)
    table = Table("group")
    table.add_row("body")
    with RunLog(shown).attach() as log:
        shown.print("[bold]before[/bold]", markup=True)
        log.open(tmp_path / "run.log")
        shown.print(table)
        with Progress(console=shown, transient=True) as bar:
            bar.add_task("training", total=3)
            shown.print("a line that is longer than the forty columns of this console")
    shown.print("after")
    text = (tmp_path / "run.log").read_text()
    lines = [line for line in text.splitlines() if line]
    assert lines[0] == "before"
    assert lines[-1] == "a line that is longer than the forty columns of this console"
    assert any("body" in line for line in lines)
    assert "\x1b" not in text
    assert "training" not in text
    assert "\x1b[1mbefore" in shown.file.getvalue()
    assert "after" in shown.file.getvalue()


def test_a_run_that_goes_on_adds_to_the_file_and_a_quiet_console_is_logged_too(tmp_path):
    for text in ("first", "second"):
        quiet = console(quiet=True)
        with RunLog(quiet).attach() as log:
            log.open(tmp_path / "run.log", append=text == "second")
            quiet.print(text)
    assert (tmp_path / "run.log").read_text() == "first\nsecond\n"


def test_the_error_that_ends_a_run_is_in_the_file(tmp_path):
    log = RunLog(console())
    log.open(tmp_path / "run.log")
    with pytest.raises(ValueError, match="invalid"), log.attach():
        int("no number")
    assert (tmp_path / "run.log").read_text() == "ValueError: invalid literal for int() with base 10: 'no number'\n"


def test_without_a_file_that_can_be_written_the_console_shows_everything(tmp_path):
    shown = console()
    with RunLog(shown).attach() as log:
        log.open(tmp_path / "missing" / "run.log")
        shown.print("seen")
    assert shown.file.getvalue() == "seen\n"
