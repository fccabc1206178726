import os
import stat

import pytest

from finetune.errors import FinetuneError
from finetune.files.private_folder import is_unchanged, private_folder, write_manifest


def test_a_folder_is_made_for_the_user_alone_and_taken_again(tmp_path):
    made = private_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert private_folder(made) == made


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda path: path.symlink_to(path.parent), "is a link or a file"),
        (lambda path: path.symlink_to("nowhere"), "is a link or a file"),
        (lambda path: path.touch(), "is a link or a file"),
        (lambda path: (path.mkdir(), path.chmod(0o777)), "can be written to by others"),
        (lambda path: (path.mkdir(), path.chmod(0o770)), "can be written to by others"),
    ],
)
def test_a_folder_into_which_others_could_put_files_is_refused(tmp_path, make, wrong):
    make(tmp_path / "cache")
    with pytest.raises(FinetuneError, match=rf"`.*cache` {wrong}. Remove it, or set `TFHUB_CACHE_DIR`"):
        private_folder(tmp_path / "cache")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o700)
    os.chown(tmp_path / "cache", 12345, 12345)
    with pytest.raises(FinetuneError, match="belongs to the user with number 12345"):
        private_folder(tmp_path / "cache")


def test_a_folder_is_unchanged_until_a_file_is_changed_added_or_removed(tmp_path):
    folder = tmp_path / "net"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("1")
    assert not is_unchanged(folder), "nothing was noted"
    write_manifest(folder, tmp_path / "net.json")
    assert is_unchanged(folder)
    (folder / "b").write_text("2")
    assert not is_unchanged(folder)
    (folder / "b").unlink()
    (folder / "sub" / "a").write_text("2")
    assert not is_unchanged(folder)
    (folder / "sub" / "a").unlink()
    assert not is_unchanged(folder)
