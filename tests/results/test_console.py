"""What is printed shows control characters of names."""

from io import StringIO

from finetune.results.console import PlainConsole, plain_console


def test_text_is_printed_without_markup_and_with_its_control_characters_escaped():
    out = StringIO()
    console = PlainConsole(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print("layer [red]a\x1b[31m\x07\r\u202e :smile:\nnext", "größe")
    assert out.getvalue() == "layer [red]a\\x1b[31m\\x07\\r\\u202e :smile:\nnext größe\n"


def test_colours_of_the_console_itself_are_no_text():
    out = StringIO()
    console = PlainConsole(file=out, force_terminal=True, color_system="standard", markup=False, highlight=False)
    console.print("red\x1b[0m", style="red")
    assert out.getvalue() == "\x1b[31mred\\x1b[0m\x1b[0m\n"


def test_a_console_writes_where_it_should(capsys):
    plain_console(stderr=True, width=40).print("to errors")
    plain_console(stderr=False, width=40).print("to output")
    assert capsys.readouterr() == ("to output\n", "to errors\n")
