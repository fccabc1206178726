import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from finetune.files.temporary_folders import PREFIX, TemporaryFolder, temporary_folder
from finetune.pretrained.formats.archives import unpack


@pytest.fixture
def parent(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def killed(parent, code):
    """Runs code in a process that is then killed, as the out-of-memory killer does."""
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{kill}"], env={**os.environ, "TMPDIR": str(parent)}, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_a_folder_lives_as_long_as_its_block(parent):
    with temporary_folder() as folder:
        (folder / "a").write_text("text")
        assert folder.parent.parent == parent
        assert list(folder.iterdir()) == [folder / "a"]
    assert list(parent.iterdir()) == []


def test_a_folder_lives_as_long_as_its_object(parent):
    folder = TemporaryFolder()
    (folder.path / "a").write_text("text")
    del folder
    assert list(parent.iterdir()) == []


def test_the_folder_of_a_process_that_was_killed_is_removed_by_the_next(parent):
    code = "from finetune.files.temporary_folders import TemporaryFolder; f = TemporaryFolder(); (f.path / 'a').touch()"
    killed(parent, code)
    (left,) = parent.iterdir()
    assert (left / "content" / "a").exists()
    with temporary_folder() as folder:
        assert list(parent.iterdir()) == [folder.parent]


def test_folders_in_use_of_this_and_of_other_processes_stay(parent):
    code = (
        "from finetune.files.temporary_folders import TemporaryFolder as T; f = T(); print(f.path, flush=True); input()"
    )
    command = [sys.executable, "-c", code]
    options = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
        "env": {**os.environ, "TMPDIR": str(parent)},
    }
    with subprocess.Popen(command, **options) as other, temporary_folder() as folder:
        theirs = Path(other.stdout.readline().strip())
        with temporary_folder():
            assert theirs.is_dir()
            assert folder.is_dir()
        other.communicate("\n")
    assert list(parent.iterdir()) == []


def test_what_somebody_else_keeps_there_stays(parent):
    kept = [
        parent / f"{PREFIX}without-a-lock",
        parent / f"{PREFIX}link",
        parent / f"{PREFIX}file",
        parent / "finetune-digits-1.weights.h5",
    ]
    kept[0].mkdir()
    (parent / "elsewhere").mkdir()
    (parent / "elsewhere" / ".in-use").touch()
    kept[1].symlink_to(parent / "elsewhere")
    kept[2].touch()
    kept[3].touch()
    with temporary_folder():
        pass
    assert all(os.path.lexists(path) for path in kept)
    assert (parent / "elsewhere" / ".in-use").exists()


def test_unpacked_archives_of_killed_processes_do_not_fill_the_disk(parent, tmp_path_factory):
    archive = tmp_path_factory.mktemp("archives") / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("m.h5", "weights")
    code = f"from pathlib import Path; from finetune.pretrained.formats.archives import unpack; u = unpack(Path({str(archive)!r}))"
    for _ in range(3):
        killed(parent, code)
    assert len(list(parent.iterdir())) == 1
    unpacked = unpack(archive)
    assert [path.name for path in unpacked.folder.iterdir()] == ["m.h5"]
    unpacked.remove()
    assert list(parent.iterdir()) == []
