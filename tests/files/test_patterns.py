"""Files of a pattern: which they are, in which order, and how they are called."""

from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.files.patterns import is_pattern, matching_files, short_names


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a-1", "a-0", "2026/a-2", ".a-3", "[x]-1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_pattern_gives_files_once_in_the_order_of_their_names_and_a_list_in_its_own(folder):
    files = matching_files([folder / "b", folder / "a-*", folder / "a-0"], "files")
    assert files == [folder / "b", folder / "a-0", folder / "a-1"]
    assert matching_files([folder / "**" / "a-*"], "files") == [folder / "2026/a-2", folder / "a-0", folder / "a-1"]


def test_the_name_of_a_file_that_exists_is_no_pattern(folder):
    assert [is_pattern(folder / name) for name in ("a-?", "[x]-1", "[x]-2", "b")] == [True, False, True, False]
    assert matching_files([folder / "[x]-1"], "files") == [folder / "[x]-1"]


@pytest.mark.parametrize(("pattern", "near"), [("a-O", r" Did you mean `a-1` or `a-0`"), ("2027/*", "")])
def test_a_pattern_without_files_is_answered_with_what_is_there(folder, pattern, near):
    with pytest.raises(
        DataError, match=rf"There must be tables\. `.*{pattern[0]}.*` matches none\. `.*` holds .*{near}"
    ):
        matching_files([folder / "b", folder / pattern], "tables")


def test_files_have_their_names_and_where_two_are_the_same_their_folders():
    assert short_names([Path("/d/x/a"), Path("/d/y/b")]) == ["a", "b"]
    assert short_names([Path("/d/x/a"), Path("/d/y/a"), Path("/d/b")]) == ["x/a", "y/a", "b"]
