import pytest

from finetune.errors import FinetuneError
from finetune.results.new_files import check_new_file


def test_a_new_file_may_be_written_and_an_existing_one_only_if_that_is_asked_for(tmp_path):
    path = tmp_path / "a.yaml"
    check_new_file(path)
    path.write_text("mine")
    with pytest.raises(FinetuneError) as error:
        check_new_file(path)
    assert str(error.value) == (
        f"An existing file is not overwritten. `{path}` exists. Add `--overwrite`, or name another file."
    )
    check_new_file(path, overwrite=True)


def test_a_link_to_nothing_is_an_existing_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(FinetuneError, match="exists"):
        check_new_file(tmp_path / "link")


def test_a_folder_is_never_overwritten(tmp_path):
    with pytest.raises(FinetuneError) as error:
        check_new_file(tmp_path, overwrite=True)
    assert str(error.value) == f"A file is written. `{tmp_path}` is a folder. Name a file in it."
