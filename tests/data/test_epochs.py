import numpy as np
import pytest
import tensorflow as tf

from model_patch.data.epochs import batch_sizes, in_epochs


def test_no_batch_is_a_handful_of_images():
    for batch_size in (*range(1, 34), 64):
        for number in range(1, 200):
            sizes = batch_sizes(number, batch_size)
            assert sizes.sum() == number and sizes.max() <= batch_size
            assert len(sizes) == -(-number // batch_size), "no more steps than batches of the full size would take"
            assert len(sizes) == 1 or sizes.min() >= batch_size / 4
            if batch_size % 8 == 0:
                assert not (sizes[1:] % (8 if batch_size >= 32 else 2)).any(), "devices share all but the first evenly"


@pytest.mark.parametrize(
    ("number", "batch_size", "expected"),
    [
        (65, 64, [33, 32]),
        (128, 64, [64, 64]),
        (3, 64, [3]),
        (257, 64, [49, 56, 56, 48, 48]),
        (100, 32, [28, 24, 24, 24]),
        (11, 5, [4, 4, 3]),
        (5, 1, [1] * 5),
    ],
)
def test_sizes_of_batches(number, batch_size, expected):
    assert batch_sizes(number, batch_size).tolist() == expected


@pytest.mark.parametrize(("number", "batch_size"), [(65, 64), (10, 4), (7, 7), (2, 5)])
def test_every_example_comes_once_in_each_epoch(number, batch_size):
    def one_epoch(epoch):
        return tf.data.Dataset.range(number).map(lambda i: 1000 * epoch + i)

    batches = in_epochs(one_epoch, range(2, 5), number, batch_size)
    found = list(batches.as_numpy_iterator())
    assert len(batches) == len(found)
    assert [len(each) for each in found] == [*batch_sizes(number, batch_size)] * 3
    assert np.concatenate(found).tolist() == [1000 * epoch + i for epoch in (2, 3, 4) for i in range(number)]
