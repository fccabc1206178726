import csv
import errno
import json
import math
import os
import resource
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from finetune.errors import FinetuneError, LockError, WriteError
from finetune.results.run_folder import (
    RUN_FILES,
    check_holds_run,
    check_room,
    check_run_folder,
    open_run_folder,
    replacing,
    write_csv,
    write_json,
    write_text,
)


def make_run_folder(out, **more):
    """The folder of a run that ends at once."""
    with open_run_folder(out, **more) as folder:
        return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_numbered_folders_count_up_and_skip_what_is_there(here):
    (here / "runs" / "pets-2").mkdir(parents=True)
    (here / "runs" / "pets-3").write_text("a file")
    made = [make_run_folder(None, name="pets").name for _ in range(3)]
    assert made == ["pets-1", "pets-4", "pets-5"]
    assert make_run_folder(None, name="cars").name == "cars-1"


def test_two_runs_that_start_at_the_same_time_get_two_folders(here):
    check_run_folder(None)
    check_run_folder(None)
    assert make_run_folder(None, name="x") != make_run_folder(None, name="x")


def test_a_folder_is_made_with_those_above_it(here):
    assert make_run_folder(Path("a/b/c"), name="x").is_dir()


def test_an_empty_folder_is_taken(here):
    (here / "out").mkdir()
    assert make_run_folder(Path("out"), name="x") == Path("out")


def test_the_check_makes_nothing(here):
    check_run_folder(Path("a/b"))
    check_run_folder(None)
    assert list(here.iterdir()) == []


def test_a_folder_that_holds_something_is_refused_and_nothing_in_it_touched(here):
    (here / "out").mkdir()
    (here / "out" / "note.txt").write_text("mine")
    for refuse in (check_run_folder, lambda out: make_run_folder(out, name="x")):
        with pytest.raises(FinetuneError) as error:
            refuse(Path("out"))
        assert str(error.value) == (
            "A run does not overwrite files. `--out out` is not empty. Choose another folder, remove `--out` "
            "for a new numbered folder, or add `--overwrite`."
        )
    assert [(path.name, path.read_text()) for path in (here / "out").iterdir()] == [("note.txt", "mine")]


def a_run(folder):
    for name in RUN_FILES:
        path = folder / name
        if "." in name:
            write_text(path, "old")
        else:
            write_text(path / "inside", "old")


def test_overwriting_removes_every_file_of_the_former_run_and_nothing_else(here):
    a_run(here / "out")
    (here / "out" / "note.txt").write_text("mine")
    check_run_folder(Path("out"), overwrite=True)
    assert (here / "out" / "model.keras").exists()
    make_run_folder(Path("out"), name="x", overwrite=True)
    assert [path.name for path in (here / "out").iterdir()] == ["note.txt"]


def test_overwriting_a_folder_that_is_not_a_run_removes_nothing(here):
    a_run(here / "out")
    (here / "out" / "plan.txt").unlink()
    make_run_folder(Path("out"), name="x", overwrite=True)
    assert len(list((here / "out").iterdir())) == len(RUN_FILES) - 1


def test_overwriting_follows_no_link_out_of_the_folder(here):
    a_run(here / "elsewhere")
    a_run(here / "out")
    (here / "out" / "plots" / "inside").unlink()
    (here / "out" / "plots").rmdir()
    (here / "out" / "plots").symlink_to(here / "elsewhere")
    make_run_folder(Path("out"), name="x", overwrite=True)
    assert not (here / "out" / "plots").is_symlink()
    assert len(list((here / "elsewhere").iterdir())) == len(RUN_FILES)


@pytest.mark.parametrize("out", ["file", "file/sub", "file/sub/sub"])
def test_a_file_in_the_way_is_refused_before_any_work(here, out):
    (here / "file").write_text("mine")
    with pytest.raises(FinetuneError, match=r"is a file\. Choose another folder with `--out`\."):
        check_run_folder(Path(out))


def test_a_file_called_runs_is_refused_before_any_work(here):
    (here / "runs").write_text("mine")
    with pytest.raises(FinetuneError, match=r"A run is written to a folder\. `runs` is a file\."):
        check_run_folder(None)


def test_a_dangling_link_is_refused(here):
    (here / "out").symlink_to(here / "nowhere")
    with pytest.raises(FinetuneError, match="is a file"):
        check_run_folder(Path("out"))


def test_a_folder_that_cannot_be_made_after_all_is_a_short_error(here):
    with pytest.raises(FinetuneError, match=r"can be created and written to\. `/proc/run`: "):
        make_run_folder(Path("/proc/run"), name="x")


def test_json_holds_what_is_not_finite_as_null_and_tuples_as_lists(here):
    write_json(here / "a.json", {"a": (1, math.nan), "b": {"c": [math.inf, -math.inf, 0.5]}, 3: None})
    assert json.loads((here / "a.json").read_text()) == {"a": [1, None], "b": {"c": [None, None, 0.5]}, "3": None}


def test_csv_has_the_columns_of_all_rows_in_order_of_appearance(here):
    write_csv(here / "a.csv", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "val_loss": 1.0}])
    with (here / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["epoch", "loss", "val_loss"], ["1", "0.5", ""], ["2", "0.25", "1.0"]]


def test_a_file_is_replaced_whole_or_not_at_all(here):
    write_text(here / "a.txt", "old")
    with suppress(RuntimeError), replacing(here / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in here.iterdir()] == [("a.txt", "old")]
    with replacing(here / "a.txt") as temporary:
        temporary.write_text("new")
        assert (here / "a.txt").read_text() == "old"
    assert [(path.name, path.read_text()) for path in here.iterdir()] == [("a.txt", "new")]


def test_the_temporary_name_keeps_the_ending_by_which_keras_knows_the_format(here):
    with replacing(here / "deep" / "last.weights.h5") as temporary:
        assert temporary.name.endswith(".weights.h5")
        temporary.touch()


def test_a_folder_is_locked_while_a_run_writes_it_and_holds_no_lock_afterwards(here):
    with open_run_folder(Path("out"), name="x"):
        for refused in (check_run_folder, lambda out, **more: make_run_folder(out, name="x", **more)):
            for overwrite in (False, True):
                with pytest.raises(LockError, match=rf"`{here / 'out'}` is in use: process {os.getpid()} on "):
                    refused(Path("out"), overwrite=overwrite)
        assert os.listdir("out") == [".lock"]
    assert os.listdir("out") == []


def test_files_that_a_killed_run_was_writing_are_removed_with_the_run(here):
    a_run(here / "out")
    (here / "out" / ".writing-model.keras").write_text("half")
    (here / "out" / ".lock").write_text("{")  # as a process leaves it that is killed while it writes it
    make_run_folder(Path("out"), name="x", overwrite=True)
    assert os.listdir("out") == []


def test_a_run_that_goes_on_removes_what_a_killed_process_was_writing_and_nothing_else(here):
    a_run(here / "out")
    before = os.listdir("out")
    (here / "out" / "plots").mkdir(exist_ok=True)
    (here / "out" / "other").mkdir()  # perhaps a run that is being written
    for name in (".writing-model.keras", "plots/.writing-rates.png", "mine", "other/.writing-model.keras"):
        (here / "out" / name).write_text("half")
    with open_run_folder(Path("out"), name="x", overwrite=True, removes=False):
        assert {*os.listdir("out")} == {*before, "plots", "mine", "other", ".lock"}
        assert list(Path("out").rglob(".writing-*")) == [Path("out/other/.writing-model.keras")]


def test_a_run_whose_folder_is_removed_writes_nothing_in_its_place(here):
    with open_run_folder(Path("out"), name="x"):
        shutil.rmtree("out")
        with pytest.raises(WriteError) as error:
            write_text(Path("out/metrics.csv"), "1")
        assert str(error.value) == (
            f"A run writes to the folder that it has locked. `{here / 'out'}` was removed or moved while a run wrote "
            "it; `metrics.csv` is lost."
        )
        assert not Path("out").exists()
        with open_run_folder(Path("out"), name="x"), pytest.raises(LockError):
            check_run_folder(Path("out"), overwrite=True)


@pytest.mark.parametrize("total", [10**18, 1000])
def test_room_on_the_disk_is_checked_before_anything_is_written(here, total):
    if total == 1000:
        check_room(Path("a/b"), total, total)
        return
    with pytest.raises(WriteError) as error:
        check_room(Path("a/b"), total, total)
    assert "They take about 1e+06 TB at `a/b`, where " in str(error.value)
    assert str(error.value).endswith(" are free. Free some space, or choose another folder with `--out`.")


def test_files_of_the_former_run_count_as_room(here, monkeypatch):
    a_run(here / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 95, 5))
    check_room(here / "out", 5 + 3 * len(RUN_FILES), 1, overwrite=True)
    for more, overwrite in ((6, True), (0, False)):
        with pytest.raises(WriteError):
            check_room(here / "out", 5 + 3 * len(RUN_FILES) + more, 1, overwrite=overwrite)


def test_the_limit_of_a_process_on_the_size_of_files_is_an_error_before_and_while_writing(here):
    write_text(here / "a.txt", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"The largest takes about 2 kB, and this process may write files of 1 kB"):
            check_room(here, 3000, 2000)
        with pytest.raises(WriteError) as error:
            write_text(here / "a.txt", "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == (
        f"Files are written whole or not at all. `{here / 'a.txt'}` could not be written: {os.strerror(errno.EFBIG)}. "
        "This process may write files of 1 kB: raise the limit (`ulimit -f unlimited`)."
    )
    assert [(path.name, path.read_text()) for path in here.iterdir()] == [("a.txt", "old")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_former_file_and_says_how_much_is_free(here, code):
    write_text(here / "a.txt", "old")
    with (
        pytest.raises(WriteError, match=r"\. [0-9.]+ [kMGT]B are free there: free some space"),
        replacing(here / "a.txt"),
    ):
        raise OSError(code, os.strerror(code))
    assert [(path.name, path.read_text()) for path in here.iterdir()] == [("a.txt", "old")]


def test_names_of_columns_hold_no_control_characters(here):
    write_csv(here / "a.csv", [{"a\x1b[31m\n_loss": 1.0}])
    assert (here / "a.csv").read_text() == "a\\x1b[31m\\n_loss\n1.0\n"


def test_what_is_no_run_folder_is_told_with_what_is_there_and_the_runs_nearby(tmp_path):
    def told(folder):
        with pytest.raises(FinetuneError) as error:
            check_holds_run(folder, "An audit is of a run.")
        return str(error.value)

    runs, recipe = tmp_path / "runs", tmp_path / "pets.yaml"
    runs.mkdir()
    recipe.write_text("seed: 1")
    none = "Name the folder that the run has printed, such as `runs/digits-1`."
    assert (
        told(runs) == f"An audit is of a run. `{runs}` is no run folder: it has no `recipe.yaml` and `plan.txt`. {none}"
    )
    assert (
        told(tmp_path / "x")
        == f"An audit is of a run. `{tmp_path / 'x'}` is no run folder: there is no such folder. {none}"
    )
    assert told(recipe).endswith(
        f"it is a file. A recipe is run with `finetune run {recipe}`, which prints the folder."
    )
    run = runs / "pets-1"
    run.mkdir()
    for name in ("recipe.yaml", "plan.txt"):
        (run / name).write_text("")
    assert told(runs).endswith(f"It holds runs: `{run}`. Name one of them.")
    assert told(run / "recipe.yaml").endswith(f"it is a file. Name the folder it is in: `{run}`.")
    other = runs / "pets-2"
    assert told(other).endswith(f"There are the runs `{run}`. Did you mean `{run}`?")
    check_holds_run(run, "")
