"""`finetune audit`: what it says."""

import pytest

from finetune.commands.audit import audit, audit_lines
from finetune.errors import FinetuneError
from finetune.results.hashes import Audit


def test_the_lines_name_what_has_changed_and_count_what_has_not():
    good = Audit(9, (), (), ("notes.txt",), 0, {})
    assert audit_lines(good) == ["added since: notes.txt", "9 files: every bit is as it was at the end of the run"]
    bad = Audit(8, ("a",), ("b",), (), 3, {})
    assert audit_lines(bad) == [
        "changed: a",
        "missing: b",
        "3 files outside of the run folder compared by size and time alone, as they are large together",
        "2 of 10 files changed or missing",
    ]
    assert audit_lines(Audit(0, tuple(map(str, range(30))), (), (), 0, {}))[20] == "and 10 more"


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FinetuneError, match="is no run folder"):
        audit(tmp_path)
