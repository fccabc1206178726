"""The page: well-formed, without scripts or addresses, and complete."""

from html.parser import HTMLParser

import pytest

from finetune.results.report.page import report_page
from finetune.results.report.run_files import read_run

EMPTY = {"meta", "img", "br", "hr"}


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag == "img":
            assert dict(attrs)["alt"]
        self.open += [] if tag in EMPTY else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_has_every_section_and_nothing_in_it_runs_or_is_loaded(folder):
    reader = read(report_page(read_run(folder)))
    heads = [text for text in reader.texts if text in SECTIONS]
    assert heads == SECTIONS
    assert not {"script", "iframe", "link", "object", "b", "i"} & set(reader.tags) - {"i"}
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert "</p><script>alert(1)</script>" in reader.texts


SECTIONS = ["Metrics", "Classes", "Worst errors", "Curves", "LR range test", "Plan, restored weights and proof", "Data",
            "Resources and environment", "Repeat it"]  # fmt: skip


@pytest.mark.parametrize("gone", ["report", "result", "plan", "data", "environment", "restore", "plots/lr_range"])
def test_a_page_is_written_of_whatever_files_there_are(folder, gone):
    (folder / f"{gone}.json").unlink()
    read(report_page(read_run(folder)))


def test_the_same_files_give_the_same_page(folder):
    assert report_page(read_run(folder)) == report_page(read_run(folder))
