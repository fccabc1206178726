"""What lies at a path: every kind of data, and what is refused with a sentence about what to do."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.survey import survey
from finetune.errors import DataError


def write_image(path, size=(30, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def write_sound(path, samples=800, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.zeros(samples, "<i2").tobytes())


def write_table(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def kinds(found):
    return {column.name: column.kind for column in found.columns}


def refusal(path):
    with pytest.raises(DataError) as error:
        survey(path)
    return str(error.value)


def test_folders_of_images_are_classes_with_the_median_size(tmp_path):
    for number in range(3):
        write_image(tmp_path / "cat" / f"{number}.png", (30 + number, 40))
    write_image(tmp_path / "dog" / "deep" / "1.JPG", (31, 40))
    (tmp_path / "dog" / "notes.txt").touch()
    (tmp_path / ".hidden").mkdir()
    found = survey(tmp_path)
    assert (found.kind, found.source, found.rows, found.is_split) == ("images", {"images": tmp_path}, 4, False)
    assert (found.classes, found.shape) == ({"cat": 3, "dog": 1}, (40, 31, 3))
    assert found.said == "4 images in 2 folders of classes"


def test_folders_of_splits_have_the_classes_of_the_training_rows(tmp_path):
    for split, count in {"train": 3, "test": 2}.items():
        for name in ("cat", "dog"):
            for number in range(count):
                write_image(tmp_path / split / name / f"{number}.png")
    found = survey(tmp_path)
    assert (found.is_split, found.rows, found.classes) == (True, 6, {"cat": 3, "dog": 3})
    assert not found.has_validation
    (tmp_path / "valid").mkdir()
    assert survey(tmp_path).has_validation


def test_folders_of_sounds_have_the_rate_of_most_and_the_median_length_at_it(tmp_path):
    for number in range(3):
        write_sound(tmp_path / "low" / f"{number}.wav")
        write_sound(tmp_path / "high" / f"{number}.wav", samples=1600, rate=16000)
    write_sound(tmp_path / "high" / "3.wav")
    found = survey(tmp_path)
    assert (found.kind, found.sample_rate, found.shape) == ("audio", 8000, (800,))
    assert found.said == "7 WAV files in 2 folders of classes"


def test_columns_of_a_table_are_told_apart_by_their_values(tmp_path):
    lines = [
        f"{n + 7},{n / 7},{'ab'[n % 2]},the {n} film is long,p/{n}.png,{n}.wav,u{n}x,a|b,{n % 3}" for n in range(60)
    ]
    text = "id,size,kind,text,photo,sound,code,tags,stars\n" + "\n".join(lines)
    found = survey(write_table(tmp_path / "a.csv", text))
    assert kinds(found) == {
        "id": "id",
        "size": "number",
        "kind": "category",
        "text": "text",
        "photo": "image",
        "sound": "audio",
        "code": "id",
        "tags": "category",
        "stars": "number",
    }
    by_name = {column.name: column for column in found.columns}
    assert by_name["tags"].has_labels
    assert (by_name["stars"].distinct, by_name["stars"].is_whole, by_name["size"].is_whole) == (3, True, False)
    assert (by_name["kind"].rarest, by_name["kind"].most) == (30, 30)


def test_json_lines_are_a_table_and_a_folder_of_tables_may_be_its_splits(tmp_path):
    lines = "\n".join(json.dumps({"u": n / 3, "label": n % 2}) for n in range(9))
    found = survey(write_table(tmp_path / "rows.jsonl", lines))
    assert (found.kind, kinds(found), found.rows) == ("table", {"u": "number", "label": "number"}, 9)
    for name in ("train", "test", "val"):
        write_table(tmp_path / "split" / f"{name}.csv", "u,label\n1,0\n2,1\n")
    found = survey(tmp_path / "split")
    assert {key: path.name for key, path in found.source.items()} == {
        "table": "train.csv",
        "test_table": "test.csv",
        "validation_table": "val.csv",
    }
    for name in ("train", "dev"):
        write_table(tmp_path / "two" / f"{name}.csv", "u,label\n1,0\n2,1\n")
    assert {key: path.name for key, path in survey(tmp_path / "two").source.items()} == {
        "table": "train.csv",
        "test_table": "dev.csv",
    }
    assert found.is_split
    assert found.has_validation


def test_a_table_beside_images_that_names_them_is_what_is_meant(tmp_path):
    for number in range(3):
        write_image(tmp_path / "photos" / f"{number}.png")
    lines = "\n".join(f"photos/{number}.png,{number / 2}" for number in range(3))
    write_table(tmp_path / "prices.csv", "file,price\n" + lines)
    assert survey(tmp_path).source == {"table": tmp_path / "prices.csv"}


def test_arrays_have_a_shape_a_target_and_a_largest_value(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full((20, 8, 8, 1), 200, "uint8"), y=np.arange(20) % 2)
    found = survey(tmp_path / "a.npz")
    assert (found.kind, found.shape, found.rows, found.largest, found.is_split) == ("npz", (8, 8, 1), 20, 200.0, False)
    assert (found.columns[0].kind, found.columns[0].distinct) == ("number", 2)
    np.savez(tmp_path / "b.npz", x_train=np.ones((5, 3)), y_train=np.ones(5), x_test=np.ones((2, 3)), y_test=np.ones(2))
    assert (survey(tmp_path / "b.npz").is_split, survey(tmp_path / "b.npz").has_validation) == (True, False)
    np.savez(tmp_path / "d.npz", x_train=np.ones((5, 3)), x_test=np.ones((2, 3)), x_validation=np.ones((2, 3)))
    assert survey(tmp_path / "d.npz").has_validation
    np.savez(tmp_path / "c.npz", **{"x/a": np.ones((5, 3)), "x/b": np.ones((5, 3)), "y": np.ones(5)})
    assert (survey(tmp_path / "c.npz").shape, survey(tmp_path / "c.npz").said) == ((), "arrays for 2 inputs")


def test_records_are_known_by_their_features_in_a_file_a_folder_and_a_pattern(tmp_path):
    import tensorflow as tf

    def record(number):
        values = tf.train.Feature(float_list=tf.train.FloatList(value=[number, 1.0]))
        label = tf.train.Feature(int64_list=tf.train.Int64List(value=[number % 2]))
        return tf.train.Example(features=tf.train.Features(feature={"values": values, "label": label}))

    for split in ("train", "test", "validation"):
        with tf.io.TFRecordWriter(str(tmp_path / f"{split}-0.tfrecord")) as writer:
            for number in range(6):
                writer.write(record(number).SerializeToString())
    found = survey(tmp_path)
    assert (found.kind, found.rows, found.is_split, found.shape) == ("tfrecord", 6, True, (2,))
    assert found.has_validation
    names = ("train", "test", "validation")
    assert found.source == {"tfrecord": {split: str(tmp_path / f"{split}*") for split in names}}
    assert kinds(found) == {"label": "number", "values": "number"}
    assert survey(tmp_path / "train-0.tfrecord").source == {"tfrecord": str(tmp_path / "train-0.tfrecord")}
    assert survey(tmp_path / "t*-0.tfrecord").rows == 6
    (tmp_path / "validation-0.tfrecord").rename(tmp_path / "Val-0.tfrecord")
    assert survey(tmp_path).source["tfrecord"]["validation"] == str(tmp_path / "Val*")
    assert refusal(tmp_path / "nope-*").startswith(f"No file matches `{tmp_path}/nope-*`.")


def test_what_is_missing_offers_the_nearest_name(tmp_path):
    (tmp_path / "photos").mkdir()
    assert refusal(tmp_path / "photo").startswith(
        f"There is nothing at `{tmp_path}/photo`. Did you mean `photos`? Data are a folder with a folder of images"
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.zip", "Unpack it, and name the folder."),
        ("a.xlsx", "Save the sheet as CSV."),
        ("a.mp3", "Convert the sounds to WAV, in a folder for each class."),
        ("a.npy", "Write inputs and targets into a .npz with `numpy.savez(path, x=..., y=...)`."),
        ("a.docx", "Convert it to one of these."),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_do(tmp_path, name, advice):
    (tmp_path / name).write_bytes(b"x")
    assert refusal(tmp_path / name).endswith(f"`{tmp_path / name}` is none of these. {advice}")


def test_a_single_image_is_no_data(tmp_path):
    write_image(tmp_path / "a.png")
    assert refusal(tmp_path / "a.png").endswith("Name the folder that holds the folders of the classes.")


def test_folders_that_are_empty_flat_mixed_or_of_other_things_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").startswith(f"The folder `{tmp_path}/empty` is empty. Data are ")
    write_image(tmp_path / "flat" / "1.png")
    assert "`" + str(tmp_path / "flat") + "` holds 1 image, and no such folders." in refusal(tmp_path / "flat")
    write_image(tmp_path / "mixed" / "a" / "1.png")
    write_sound(tmp_path / "mixed" / "b" / "1.wav")
    assert "holds different things: 1 image in folders, 1 sound in folders." in refusal(tmp_path / "mixed")
    write_image(tmp_path / "both" / "a" / "1.png")
    write_table(tmp_path / "both" / "x.csv", "a,b\n1,2\n")
    assert "holds different things: 1 image in folders, `x.csv`." in refusal(tmp_path / "both")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.docx").touch()
    assert refusal(tmp_path / "other").endswith("holds `a.docx`, and none of these.")
    for name in ("a", "b"):
        write_table(tmp_path / "tables" / f"{name}.csv", "a,b\n1,2\n")
    assert (
        "holds several tables: `a.csv`, `b.csv`. Name one of them; or all of them, if they have the same columns, by "
        f"`{tmp_path / 'tables' / '*.csv'}`; or call them `train`, `test`"
    ) in refusal(tmp_path / "tables")
    (tmp_path / "tables" / "c.docx").touch()
    assert "A pattern is for tables with the same columns, or for files of records" in refusal(
        tmp_path / "tables" / "*"
    )


def test_classes_without_files_and_a_single_class_are_refused(tmp_path):
    write_image(tmp_path / "one" / "cat" / "1.png")
    assert "`cat`. Name the folder that holds a folder for each class." in refusal(tmp_path / "one")
    (tmp_path / "one" / "dog").mkdir()
    assert "`dog` in " in refusal(tmp_path / "one")


def test_arrays_without_inputs_and_damaged_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    assert "holds `a`. Rename them." in refusal(tmp_path / "a.npz")
    Path(tmp_path / "b.npz").write_bytes(b"PK\x03\x04 no archive")
    assert "cannot be read as a file of `numpy.savez`" in refusal(tmp_path / "b.npz")


def test_a_text_file_is_a_table_where_it_is_named_and_notes_in_a_folder(tmp_path):
    write_table(tmp_path / "data/t.txt", "a;b\n1,5;x\n2,5;y\n")
    assert kinds(survey(tmp_path / "data/t.txt")) == {"a": "number", "b": "category"}
    write_table(tmp_path / "data/t.csv", "a,b,c\n1,x,2\n2,y,3\n")
    assert len(survey(tmp_path / "data").columns) == 3


def test_files_of_a_pattern_are_a_table_and_shards_in_a_folder_are_those_of_each_split(tmp_path):
    for name, value in (("train-00000-of-00002", 1), ("train-00001-of-00002", 2), ("test-00000-of-00001", 3)):
        write_table(tmp_path / f"{name}.csv", f"a,b\n{value},u\n{value},v\n")
    found = survey(tmp_path / "train-*.csv")
    assert (found.kind, found.source, found.rows, found.is_split) == (
        "table",
        {"table": tmp_path / "train-*.csv"},
        4,
        False,
    )
    found = survey(tmp_path)
    assert found.source == {"table": tmp_path / "train-*.csv", "test_table": tmp_path / "test-*.csv"}
    assert (found.rows, found.is_split) == (4, True)
    (tmp_path / "test-00000-of-00001.csv").unlink()
    assert survey(tmp_path).source == {"table": tmp_path / "train-*.csv"}
    write_table(tmp_path / "other.csv", "a,b\n1,u\n")
    assert "holds several tables" in refusal(tmp_path)
