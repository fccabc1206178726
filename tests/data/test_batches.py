import time
from itertools import chain

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.batches import batches_in_order, measurement_batches, steps_per_epoch, training_batches
from finetune.data.rows import Rows, select
from finetune.errors import DataError

X = np.random.default_rng(0).normal(size=(11, 3)).astype("float32")
Y = np.arange(11)


def targets(batches, count):
    return [y.numpy().tolist() for _, y in batches.take(count)]


def test_every_epoch_holds_every_row_once_and_the_last_batch_what_is_left():
    batches = targets(training_batches(X, Y, batch_size=4, seed=1), 6)
    assert [len(batch) for batch in batches] == [4, 4, 3, 4, 4, 3]
    first, second = (list(chain(*part)) for part in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == Y.tolist()
    assert first != second
    assert first != Y.tolist()


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 12),
    batch_size=st.integers(1, 14),
    passes=st.integers(1, 3),
    first_epoch=st.integers(0, 4),
    data=st.data(),
    by_row=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    shuffle=st.booleans(),
)
def test_the_version_of_an_epoch_is_taken_by_row_and_by_batch_from_wherever_training_begins(
    rows, batch_size, passes, first_epoch, data, by_row, shuffle
):
    steps = steps_per_epoch(rows, batch_size)
    first_step = data.draw(st.integers(0, steps - 1))

    def made(values, taken_alone):
        take_row = (lambda index: tf.gather(values, index)) if taken_alone else None
        return Rows(len(values), lambda indices: tf.gather(values, indices), take_row=take_row)

    versions = np.arange(passes * rows)
    batches = training_batches(
        (made(versions, by_row[0]), made(10 * versions, by_row[1])),
        made(versions[:rows], by_row[2]),
        batch_size=batch_size,
        shuffle=shuffle,
        passes=passes,
        first_epoch=first_epoch,
        first_step=first_step,
    )
    count = 2 * steps + 1
    plain = training_batches(versions[:rows], versions[:rows], batch_size=batch_size, shuffle=shuffle)
    begin = first_epoch * steps + first_step
    order = targets(plain, begin + count)[begin:]
    for at, ((x, ten_x), y) in enumerate(batches.take(count)):
        version = (begin + at) // steps % passes * rows
        assert y.numpy().tolist() == order[at]
        assert (x.numpy() - version).tolist() == order[at]
        assert (ten_x.numpy() // 10 - version).tolist() == order[at]


@settings(max_examples=8)
@given(rows=st.integers(1, 30), batch_size=st.integers(1, 40), epoch=st.integers(0, 5), seed=st.integers(0, 2**70))
def test_an_epoch_has_the_same_batches_whichever_epoch_training_began_with(rows, batch_size, epoch, seed):
    y, steps = np.arange(rows), steps_per_epoch(rows, batch_size)
    options = {"batch_size": batch_size, "seed": seed}
    whole = targets(training_batches(y, y, **options), (epoch + 1) * steps)
    assert whole[epoch * steps :] == targets(training_batches(y, y, first_epoch=epoch, **options), steps)


def test_another_seed_gives_another_order():
    one, other = (targets(training_batches(Y, Y, batch_size=11, seed=seed), 1) for seed in (1, 2))
    assert one != other


def test_inputs_targets_and_weights_of_a_row_stay_together():
    x = {"left": X, "right": [X * 2, X * 3]}
    for inputs, y, weights in training_batches(x, Y, batch_size=4, sample_weight=Y * 0.5).take(3):
        np.testing.assert_array_equal(inputs["left"], X[y])
        np.testing.assert_array_equal(inputs["right"][1], X[y] * 3)
        np.testing.assert_array_equal(weights, y.numpy().astype("float32") * 0.5)


def test_without_shuffling_fit_trains_on_the_batches_that_keras_would_make_of_the_arrays():
    losses = []
    for arrays in (True, False):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
        x = X.astype("float64")  # Keras makes float32 of it
        if arrays:
            history = model.fit(x, Y, batch_size=4, epochs=3, shuffle=False, verbose=0)
        else:
            batches = training_batches(x, Y, batch_size=4, shuffle=False)
            history = model.fit(batches, steps_per_epoch=3, epochs=3, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    assert losses[0] == losses[1]


def test_versions_of_the_inputs_take_turns_by_epoch():
    versions = np.concatenate([Y, Y + 100])
    batches = training_batches(versions, Y, batch_size=11, passes=2).take(4)
    assert [sorted(set((x - y).numpy())) for x, y in batches] == [[0], [100], [0], [100]]


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(
        DataError, match=r"^Inputs, targets and weights must have the same number of rows\. Received \[11\]"
    ):
        training_batches(X, Y[:5], batch_size=4)


def test_a_batch_of_no_rows_and_an_epoch_before_the_first_are_refused():
    with pytest.raises(
        DataError, match=r"`batch_size` must be at least 1 and `first_epoch` at least 0. Received 0 and -1"
    ):
        training_batches(X, Y, batch_size=0, first_epoch=-1)


def test_batches_in_order_hold_every_row_once_and_end():
    x = np.arange(7)
    assert [batch.numpy().tolist() for batch, _ in batches_in_order(x, x, batch_size=3)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(("limit", "count"), [(2, 2), (3, 3), (9, 3)])
def test_batches_in_order_can_be_limited_and_never_begin_again(limit, count):
    x = np.arange(7)
    assert len(list(batches_in_order(x, x, batch_size=3, limit=limit))) == count


def test_measurement_batches_are_full_and_no_row_comes_twice():
    x = np.arange(10)
    batches = [batch.numpy().tolist() for batch, _ in measurement_batches(x, 10 * x, batch_size=3, seed=1)]
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert len({row for batch in batches for row in batch}) == 9


def test_measurement_batches_of_one_seed_are_the_same_and_each_pass_has_its_own_order():
    x = np.arange(10)

    def two_passes():
        batches = measurement_batches(x, x, batch_size=3, seed=1)
        return [[batch.numpy().tolist() for batch, _ in batches] for _ in range(2)]

    first, second = two_passes()
    assert first != second
    assert two_passes() == [first, second]


def test_fewer_rows_than_a_batch_make_a_measurement_batch():
    x = np.arange(2)
    assert [sorted(batch.numpy()) for batch, _ in measurement_batches(x, x, batch_size=5, seed=0)] == [[0, 1]]


def test_rows_made_by_threads_come_in_the_same_batches_as_arrays():
    made = Rows(11, lambda indices: tf.gather(X, indices), take_row=lambda index: tf.gather(X, index))
    options = {"batch_size": 4, "seed": 3, "first_epoch": 2, "sample_weight": Y * 0.5}
    both = [training_batches({"a": x, "b": Y}, Y * 2, **options).take(7) for x in (X, made)]
    for expected, batch in zip(*both, strict=True):
        for left, right in zip(tf.nest.flatten(expected), tf.nest.flatten(batch), strict=True):
            np.testing.assert_array_equal(left, right)


def test_rows_made_by_threads_are_made_only_when_they_are_chosen():
    made = Rows(11, lambda indices: tf.gather(X, indices), take_row=lambda index: tf.gather(X, index))
    chosen = select({"x": made}, np.array([3, 5, 8]))
    [(x, y)] = batches_in_order(chosen, Y[[3, 5, 8]], batch_size=4)
    np.testing.assert_array_equal(x["x"], X[y])


# -- Position in an epoch, and parts of the batches -------------------------------------------------------------------


@pytest.fixture(params=["made as a whole", "computed from the place"])
def orders(request, monkeypatch):
    if request.param == "computed from the place":
        monkeypatch.setattr("finetune.data.batches._ORDERED_AT_ONCE", 0)


@pytest.mark.sample(6)
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(
    ("rows", "batch_size"), [(1, 1), (11, 4), pytest.param(12, 4, marks=pytest.mark.grid), (30, 7)]
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_row_once_and_beginning_at_a_step_is_skipping_to_it(
    orders, rows, batch_size, shuffle, by_row
):
    y, steps = np.arange(rows), steps_per_epoch(rows, batch_size)
    tensor = tf.constant(y)
    x = Rows(rows, lambda at: tf.gather(tensor, at), take_row=(lambda at: tensor[at]) if by_row else None)
    options = {"batch_size": batch_size, "seed": 2**40 + 3, "shuffle": shuffle}
    whole = [(x.numpy().tolist(), y.numpy().tolist()) for x, y in training_batches(x, y, **options).take(3 * steps)]
    for epoch in range(3):
        batches = whole[epoch * steps : (epoch + 1) * steps]
        assert sorted(chain(*(labels for _, labels in batches))) == y.tolist()
        assert all(made == labels for made, labels in batches)
    for first_step in range(steps):
        later = training_batches(x, y, first_epoch=1, first_step=first_step, **options).take(2 * steps - first_step)
        assert [y.numpy().tolist() for _, y in later] == [labels for _, labels in whole[steps + first_step :]]


def test_every_epoch_has_an_order_of_its_own_also_where_it_is_computed(orders):
    first, second = (targets(training_batches(Y, Y, batch_size=11, first_epoch=n), 1)[0] for n in (0, 1))
    assert first != second
    assert first != targets(training_batches(Y, Y, batch_size=11, seed=1), 1)[0]


@pytest.mark.sample(5)
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(
    ("batch_size", "workers"),
    [(4, 3), (5, 3), (5, 5), *(pytest.param(*each, marks=pytest.mark.grid) for each in ((4, 1), (5, 2), (11, 4)))],
)
def test_the_shares_of_all_workers_are_the_global_batches(orders, batch_size, workers, by_row):
    if by_row:
        tensor = tf.constant(X)
        x = Rows(11, lambda at: tf.gather(tensor, at), take_row=lambda at: tensor[at])
    else:
        x = X
    count = 2 * steps_per_epoch(11, batch_size)
    whole = targets(training_batches(x, Y, batch_size=batch_size), count)
    shares = [
        targets(training_batches(x, Y, batch_size=batch_size, share=(worker, workers)), count)
        for worker in range(workers)
    ]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    sizes = [[len(part) for part in parts] for parts in zip(*shares, strict=True)]
    assert all(max(each) - min(each) <= 1 for each in sizes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first_step": 3}, "`first_step` must be from 0 to 2, since an epoch has 3 batches. Received 3."),
        ({"first_step": -1}, "`first_step` must be from 0 to 2, since an epoch has 3 batches. Received -1."),
        ({"share": (2, 2)}, "`share` must be the number of a worker, from 0, and the number of workers. Received 2"),
        ({"share": (0, 5)}, "Every worker takes its part of each batch. Received batches of 4 rows for 5 workers."),
    ],
)
def test_a_position_or_a_share_that_does_not_exist_is_an_error(options, said):
    with pytest.raises(DataError) as caught:
        training_batches(X, Y, batch_size=4, **options)
    assert str(caught.value).startswith(said)


def test_any_step_of_ten_million_rows_is_there_within_a_second():
    y = tf.range(10**7)
    begin = time.perf_counter()
    [(x, labels)] = training_batches(y, y, batch_size=32, first_epoch=7, first_step=300_000).take(1)
    assert time.perf_counter() - begin < 1
    assert x.shape == labels.shape == (32,)
