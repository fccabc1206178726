import pytest

from finetune.files.checkpoint_prefixes import prefixes_in, without_index


@pytest.fixture
def folder(tmp_path):
    for name in ("a-1.index", "a-1.data-00000-of-00001", "b-2.data-00000-of-00001", "c-3.meta", "d-4.index"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_prefix_is_that_of_an_index(folder):
    assert prefixes_in(folder) == ["a-1", "d-4"]


def test_a_prefix_with_other_files_than_an_index_is_told_what_to_copy(folder):
    told = without_index(folder / "b-2")
    assert f"`{folder}/b-2.data-00000-of-00001` is there, and `{folder}/b-2.index` is not." in told
    assert told.endswith(f"Copy all files that begin with `b-2` to `{folder}`.")
    assert f"`{folder}/c-3.meta` is there" in without_index(folder / "c-3")


def test_what_has_an_index_or_no_files_at_all_is_not_told(folder):
    assert without_index(folder / "a-1") == without_index(folder / "b") == without_index(folder / "no" / "b-2") == ""


def test_a_folder_is_told_only_where_it_has_no_checkpoint(folder):
    assert without_index(folder) == ""
    for name in ("a-1.index", "d-4.index"):
        (folder / name).unlink()
    assert "`a-1`" in without_index(folder)
