import json
import os
import shutil
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from finetune.training.features.store import (
    FeatureStore,
    choose_place,
    of_mask,
)

VALUES = np.arange(24, dtype="float32").reshape(6, 4)


def keep(store, key="k", values=VALUES, place="disk", **options):
    with store.writing(key, tf.as_dtype(values.dtype), values.shape, place, **options) as append:
        append(values[:4])
        append(values[4:])


def read(store, key="k"):
    rows = store.find(key).rows
    return rows.take(tf.range(rows.length)).numpy()


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16, "bool", "int64", "uint8"])
def test_what_is_written_is_read_in_its_own_type(tmp_path, place, dtype):
    store = FeatureStore(tmp_path)
    keep(store, values=VALUES.astype(dtype), place=place)
    assert read(store).dtype == VALUES.astype(dtype).dtype
    np.testing.assert_array_equal(read(store), VALUES.astype(dtype))
    assert store.find("k").nbytes == VALUES.astype(dtype).nbytes
    assert store.find("k").place == place


def test_files_are_found_again_by_another_store(tmp_path):
    keep(FeatureStore(tmp_path / "cache"))
    store = FeatureStore(tmp_path / "cache")
    assert store.has("k")
    np.testing.assert_array_equal(read(store), VALUES)
    assert not FeatureStore().has("k")


def damage_length(folder):
    with (folder / "k.bin").open("r+b") as file:
        file.truncate(90)


def damage_bit(folder):
    data = bytearray((folder / "k.bin").read_bytes())
    data[17] ^= 1
    (folder / "k.bin").write_bytes(data)


def damage_manifest(folder):
    (folder / "k.json").write_text("{")


def lose_manifest(folder):
    (folder / "k.json").unlink()


def lose_entry(folder):
    about = json.loads((folder / "k.json").read_text())
    del about["shape"]
    (folder / "k.json").write_text(json.dumps(about))


def other_manifest(folder):
    (folder / "k.json").write_text("3")


@pytest.mark.parametrize(
    "damage", [damage_length, damage_bit, damage_manifest, other_manifest, lose_manifest, lose_entry]
)
def test_damaged_files_are_taken_for_none_and_removed(tmp_path, damage):
    folder = tmp_path / "cache"
    keep(FeatureStore(folder))
    damage(folder)
    assert FeatureStore(folder).find("k") is None
    assert not folder.exists()


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_breaks_off_leaves_nothing_behind(tmp_path, place, error):
    store = FeatureStore(tmp_path / "cache")

    def break_off():
        with store.writing("k", tf.float32, VALUES.shape, place) as append:
            append(VALUES[:2])
            raise error

    with pytest.raises(error):
        break_off()
    assert not store.has("k")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_what_is_shorter_than_announced_is_not_kept(tmp_path, place):
    store = FeatureStore(tmp_path)
    with (
        pytest.raises(ValueError, match=r"Features of 96 bytes were expected, and 32 bytes were written\."),
        store.writing("k", tf.float32, VALUES.shape, place) as append,
    ):
        append(VALUES[:2])
    assert not store.has("k")


def test_an_array_without_the_mask_that_belongs_to_it_is_not_whole(tmp_path):
    keep(FeatureStore(tmp_path), masked=True)
    assert not FeatureStore(tmp_path).has("k")
    keep(FeatureStore(tmp_path), of_mask("k"), VALUES > 3)
    assert FeatureStore(tmp_path).has("k")


def test_what_is_not_wanted_any_more_goes_files_too(tmp_path):
    store = FeatureStore(tmp_path / "cache")
    keep(store, "a")
    keep(store, "b")
    keep(store, "c", place="memory")
    store.forget_others(["b"])
    assert [store.has(key) for key in "abc"] == [False, True, False]
    assert sorted(os.listdir(tmp_path / "cache")) == ["b.bin", "b.json"]
    store.forget_others([])
    assert not (tmp_path / "cache").exists()


def test_the_place_is_memory_where_it_fits_else_the_disk_else_none(tmp_path):
    kilo = 1000
    assert choose_place(kilo, "auto", tmp_path, memory=4 * kilo) == ("memory", "")
    assert choose_place(kilo, "auto", tmp_path, memory=3 * kilo) == ("disk", "")
    place, why = choose_place(kilo, "auto", None, memory=3 * kilo)
    assert (place, why) == (
        "off",
        "they take 1 kB, which is more than 25% of the 3 kB of memory that are available, and nothing on disk",
    )


def test_a_place_that_was_asked_for_is_taken_or_none(tmp_path):
    assert choose_place(1000, "memory", tmp_path, memory=1200) == ("memory", "")
    assert choose_place(1000, "memory", tmp_path, memory=1000)[0] == "off"
    assert choose_place(1000, "disk", tmp_path / "deep" / "below", memory=10**12) == ("disk", "")
    place, why = choose_place(2**60, "disk", tmp_path, memory=2**61)
    assert place == "off"
    assert "which is more than the" in why
    assert "that are free in" in why


def test_a_gibibyte_of_the_disk_stays_free(tmp_path, monkeypatch):
    asked = []
    gibibyte = 2**30

    def disk_usage(path):
        asked.append(path)
        return SimpleNamespace(free=gibibyte + 5000)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    assert choose_place(5000, "disk", tmp_path, memory=0) == ("disk", "")
    assert choose_place(5001, "disk", tmp_path, memory=0)[0] == "off"
    choose_place(1, "disk", tmp_path / "not" / "yet", memory=0)
    assert set(asked) == {tmp_path}  # the folder itself, or the nearest that exists


def test_files_may_go_into_a_folder_several_levels_of_which_do_not_exist(tmp_path):
    keep(FeatureStore(tmp_path / "a" / "b" / "c"))
    assert np.array_equal(read(FeatureStore(tmp_path / "a" / "b" / "c")), VALUES)


def test_the_disk_keeps_room_for_the_weights_of_the_run(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    reserve = free - 5_000_000_000
    assert choose_place(1_000_000_000, "disk", tmp_path, reserve=reserve) == ("disk", "")
    place, why = choose_place(9_000_000_000, "disk", tmp_path, reserve=reserve)
    assert place == "off"
    assert "that are free in" in why
