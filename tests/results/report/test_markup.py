"""Markup from Python: whatever a text holds, it stays a text."""

from hypothesis import given
from hypothesis import strategies as st

from finetune.results.report.markup import Markup, definitions, element, sentence, table


def test_texts_and_attributes_are_escaped_and_elements_are_not():
    made = element("p", "<b>", element("i", "&"), title='"><script>')
    assert made == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;<i>&amp;</i></p>'


@given(st.text())
def test_no_text_becomes_an_element(text):
    for made in (element("p", text), element("p", title=text), table([text], [[text]]), definitions([(text, text)])):
        inside = made.replace("</", "<")
        tags = {part.partition(" ")[0].partition(">")[0] for part in inside.split("<")[1:]}
        assert tags <= {"p", "div", "table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd"}
        made.encode("utf-8")


def test_halves_of_surrogate_pairs_and_control_characters_are_shown_in_another_form():
    assert element("p", "a\udcffb\x07") == "<p>a\\udcffb\\x07</p>"


def test_what_is_in_backticks_is_code_unless_a_backtick_is_missing():
    assert element("p", sentence("class `a<b` is")) == "<p>class <code>a&lt;b</code> is</p>"
    assert element("p", sentence("a ` b")) == "<p>a ` b</p>"


def test_lists_are_joined_and_none_is_left_out():
    assert element("ul", [element("li", 1), [None, Markup("<hr>")]], class_=None) == "<ul><li>1</li><hr></ul>"
