"""Places of the rows of tables: pairs that are made when they are asked for."""

import numpy as np

from finetune.data.table_places import join_places, places_in


def test_places_are_pairs_of_file_and_line():
    places = places_in("a.csv", np.arange(2, 6))
    assert (len(places), places[0], places[-1]) == (4, ("a.csv", 2), ("a.csv", 5))
    assert places == [("a.csv", line) for line in range(2, 6)]
    assert places[1:3] == [("a.csv", 3), ("a.csv", 4)]
    assert places != [("b.csv", line) for line in range(2, 6)]
    assert isinstance(places[0][1], int)


def test_places_follow_the_rows_that_are_chosen_and_joined():
    joined = join_places([places_in("a.csv", [2, 3]), places_in("b.csv", [5, 7]), places_in("c.csv", [9])])
    assert joined == [("a.csv", 2), ("a.csv", 3), ("b.csv", 5), ("b.csv", 7), ("c.csv", 9)]
    assert joined.select(np.array([4, 1])) == [("c.csv", 9), ("a.csv", 3)]
