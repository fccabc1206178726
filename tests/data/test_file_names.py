"""Names of many files, and descriptions of many rows, without an object of Python for each."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.file_names import FilePaths, RowPlaces, file_paths, joined_texts

NAMES = ["a.png", "", "ä/ß 1.png", os.fsdecode(b"\xff.png"), "/elsewhere/b.png"]


def test_texts_that_lie_one_after_another_are_those_that_were_joined():
    texts = joined_texts(NAMES)
    assert list(texts) == NAMES
    assert texts[-1] == NAMES[-1]
    assert list(texts[1:3]) == NAMES[1:3]
    assert list(texts.select(np.array([4, 0, 4]))) == [NAMES[4], NAMES[0], NAMES[4]]
    with pytest.raises(IndexError):
        texts[5]


def test_no_texts_are_no_texts():
    assert list(joined_texts([])) == []


def test_paths_are_those_in_the_folder_in_graphs_too():
    paths = FilePaths(Path("/photos"), joined_texts(NAMES))
    assert paths[0] == Path("/photos/a.png")
    assert paths[4] == Path("/elsewhere/b.png")
    assert list(paths[:1]) == [Path("/photos/a.png")]
    name = tf.function(paths.select(np.array([4, 3, 2, 0])).graph_names())
    read = [name(tf.constant(index, tf.int64)).numpy() for index in range(4)]
    assert read == [b"/elsewhere/b.png", b"/photos/\xff.png", "/photos/ä/ß 1.png".encode(), b"/photos/a.png"]


def test_relative_paths_stay_relative():
    paths = file_paths([Path("a/b.png"), Path("/c.png")])
    assert list(paths) == [Path("a/b.png"), Path("/c.png")]
    assert [paths.graph_names()(index).numpy() for index in range(2)] == [b"./a/b.png", b"/c.png"]
    assert file_paths(paths) is paths


def test_a_path_takes_a_few_bytes_beside_its_name():
    texts = joined_texts(f"class/{number:06}.jpg" for number in range(1000))
    assert sys.getsizeof(texts.content) + texts.starts.nbytes + texts.lengths.nbytes < 1000 * (16 + 12 + 1)


def test_places_are_written_when_they_are_asked_for():
    asked = []
    places = RowPlaces(lambda row: asked.append(row) or f"t.csv:{row}", np.array([7, 3, 9]))
    assert not asked
    assert places[1] == "t.csv:3"
    assert places[1:] == ["t.csv:3", "t.csv:9"]
    assert places != ["t.csv:7"]
    assert asked[0] == 3
