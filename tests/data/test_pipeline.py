import dataclasses
import inspect

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model_patch import ModelPatchError, Preprocessing
from model_patch.data import open_data, pipeline
from model_patch.data.images import array_split
from model_patch.data.pipeline import batches
from model_patch.data.share import Share
from model_patch.preprocessing import MODES


@pytest.fixture(scope="module")
def faces():
    return open_data("faces").train


def read(dataset):
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels), [len(y) for y in labels]


def in_any_order(images):
    return sorted(image.tobytes() for image in images)


@pytest.mark.parametrize(("mode", "cache"), [*((mode, False) for mode in MODES), ("tf", True)])
def test_without_shuffling_images_come_in_order_exactly_preprocessed(faces, mode, cache):
    preprocessing = Preprocessing(19, mode)
    dataset = batches(faces, preprocessing, 32, cache=cache)
    assert dataset.element_spec[0].shape.as_list() == [None, 19, 19, 3]
    for _ in range(2):
        images, labels, sizes = read(dataset)
        assert sizes == [28, 24, 24, 24] and images.dtype == np.float32 and labels.dtype == np.int64
        expected = list(faces.dataset().as_numpy_iterator())
        assert np.array_equal(images, np.stack([preprocessing(image).numpy() for image, _ in expected]))
        assert labels.tolist() == [label for _, label in expected]


@pytest.mark.parametrize("cache", [True, False])
def test_shuffling_keeps_every_image_with_its_label_and_differs_by_epoch_and_seed(faces, cache):
    preprocessing = Preprocessing(25, "tf")
    images, labels, _ = read(batches(faces, preprocessing, 32))
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}

    def epoch(number, seed=3):
        return read(batches(faces, preprocessing, 32, shuffle_seed=seed, epochs=range(number, number + 1), cache=cache))

    epochs = [epoch(number) for number in range(3)]
    for number, (shuffled, shuffled_labels, sizes) in enumerate(epochs):
        assert sizes == [28, 24, 24, 24]
        assert in_any_order(shuffled) == in_any_order(images)
        assert [label_of[image.tobytes()] for image in shuffled] == shuffled_labels.tolist()
        tf.random.set_seed(number)  # The global seed does not enter.
        assert np.array_equal(shuffled, epoch(number)[0])
    other = epoch(0, seed=4)
    orders = {shuffled.tobytes() for shuffled, *_ in [(images,), *epochs, other]}
    assert len(orders) == 5


@pytest.mark.parametrize("augmentation", ["none", "crop+flip"])
def test_the_batches_of_an_epoch_do_not_depend_on_the_epochs_before(faces, augmentation):
    def some(epochs):
        return read(
            batches(faces, Preprocessing(25, "tf"), 32, shuffle_seed=3, augmentation=augmentation, epochs=epochs)
        )

    (images, labels, sizes), (late_images, late_labels, _) = some(range(3)), some(range(2, 3))
    assert sizes == [28, 24, 24, 24] * 3
    assert np.array_equal(images[200:], late_images) and np.array_equal(labels[200:], late_labels)


@pytest.mark.parametrize("cache", [True, False])
def test_augmentation_differs_each_epoch_and_is_repeatable(faces, cache):
    preprocessing = Preprocessing(25, "tf")
    kwargs = {"augmentation": "crop+flip", "shuffle_seed": 3, "cache": cache}

    def epoch(number):
        return read(batches(faces, preprocessing, 32, epochs=range(number, number + 1), **kwargs))

    epochs = [(epoch(number), epoch(number)) for number in range(2)]
    for (images, labels, sizes), (same_images, same_labels, _) in epochs:
        assert sizes == [28, 24, 24, 24] and images.shape == (100, 25, 25, 3)
        assert np.array_equal(images, same_images) and np.array_equal(labels, same_labels)
    plain = set(in_any_order(read(batches(faces, preprocessing, 32))[0]))
    assert len(plain & set(in_any_order(epochs[0][0][0]))) < 10  # A crop of a small image is now and then all of it.
    assert in_any_order(epochs[0][0][0]) != in_any_order(epochs[1][0][0])


def test_augmentation_without_shuffling_keeps_the_order(faces):
    dataset = batches(faces, Preprocessing(25, "tf"), 50, augmentation="shift")
    _, labels, _ = read(dataset)
    assert labels.tolist() == [label for _, label in faces.dataset().as_numpy_iterator()]


def test_max_images_takes_the_first(faces):
    preprocessing = Preprocessing(9, "unit")
    images, labels, _ = read(batches(faces, preprocessing, 8))
    few, few_labels, few_sizes = read(batches(faces, preprocessing, 8, max_images=11))
    assert few_sizes == [5, 6]
    assert np.array_equal(few, images[:11]) and np.array_equal(few_labels, labels[:11])
    shuffled, *_ = read(batches(faces, preprocessing, 8, max_images=11, shuffle_seed=0))
    assert in_any_order(shuffled) == in_any_order(few)
    assert len(read(batches(faces, preprocessing, 8, max_images=1000))[1]) == 100
    assert read(batches(faces, preprocessing, 8, max_images=16))[2] == [8, 8]
    assert read(batches(faces, preprocessing, 8, max_images=7, shuffle_seed=0, epochs=range(2)))[2] == [7, 7]


@pytest.mark.parametrize("augmentation", ["none", "flip"])
def test_each_image_is_loaded_once_if_kept_even_by_one_who_stops_early(faces, augmentation):
    loaded = tf.Variable(0)

    def load(stored, *decoding):
        loaded.assign_add(1)
        return faces.load(stored, *decoding)

    counted = dataclasses.replace(faces, load=load)
    kwargs = {"augmentation": augmentation, "shuffle_seed": 0}
    dataset = batches(counted, Preprocessing(25, "tf"), 10, epochs=range(2), **kwargs)
    next(iter(dataset))
    read(dataset)
    read(dataset)
    assert loaded.numpy() == 100
    loaded.assign(0)
    read(batches(counted, Preprocessing(25, "tf"), 10, epochs=range(2), cache=False, **kwargs))
    assert loaded.numpy() == 200


def test_what_does_not_fit_is_not_kept_and_still_whole(faces, monkeypatch):
    expected, *_ = read(batches(faces, Preprocessing(25, "tf"), 10))
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 1000)
    monkeypatch.setattr(pipeline, "SHUFFLE_BYTES", faces.stored_bytes // 3)
    for augmentation in ("none", "flip"):
        dataset = batches(
            faces, Preprocessing(25, "tf"), 10, shuffle_seed=0, augmentation=augmentation, epochs=range(2)
        )
        first, second = np.split(read(dataset)[0], 2)
        assert len(first) == 100 and not np.array_equal(first, second)
        if augmentation == "none":
            assert in_any_order(first) == in_any_order(second) == in_any_order(expected)


def test_files_of_different_sizes_become_one_batch(tmp_path):
    for name, colour in (("dark", 10), ("light", 240)):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.new("RGB", (20 + i, 30 - i), (colour,) * 3).save(tmp_path / name / f"{i}.jpg")
    train = open_data(f"folder:{tmp_path}").train
    for augmentation in ("none", "crop+flip"):
        images, labels, _ = read(
            batches(train, Preprocessing(16, "none"), 4, augmentation=augmentation, shuffle_seed=1)
        )
        assert images.shape == (train.num_images, 16, 16, 3)
        assert ((images.mean((1, 2, 3)) > 128) == labels).all()


def test_functions_are_traced_as_they_are_written(faces):
    """AutoGraph would run a rewritten copy of each, whose file names are its own."""
    files = []

    def load(form, *decoding):
        files.extend(frame.filename for frame in inspect.stack())
        return faces.load(form, *decoding)

    split = dataclasses.replace(faces, load=load)
    next(iter(batches(split, Preprocessing(19, "tf"), 32, augmentation="shift", shuffle_seed=0)))
    next(iter(split.dataset()))
    assert files and not any("autograph_generated" in each for each in files)


def test_an_unknown_augmentation_is_named(faces):
    with pytest.raises(ModelPatchError, match="unknown augmentation 'blur'"):
        batches(faces, Preprocessing(9, "tf"), 2, augmentation="blur")


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("augmentation", ["none", "shift"])
def test_shares_are_the_parts_of_the_same_batches(augmentation, cache):
    """Three processes fill up the batches of 4, 8 and 8 images with copies, in two epochs."""
    random = np.random.default_rng(0)
    split = array_split(random.integers(0, 256, (20, 6, 5, 3), "uint8"), np.arange(20) % 3)
    options = {"augmentation": augmentation, "shuffle_seed": 3, "epochs": range(1, 3), "cache": cache}
    options |= {"class_weights": np.array([0.5, 1, 1.5], "float32")} if cache else {}
    whole = list(batches(split, Preprocessing(4, "tf"), 8, **options))
    parts = [list(batches(split, Preprocessing(4, "tf"), 8, share=Share(i, 1, 3), **options)) for i in range(3)]
    assert len(whole) == 6 and all(len(each) == 6 for each in parts)
    for (x, y), *of_shares in zip(whole, *parts, strict=True):
        rows = np.arange(3 * -(-len(y) // 3)) % len(y)
        np.testing.assert_allclose(np.concatenate([part[0] for part in of_shares]), x.numpy()[rows], atol=1e-6)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in of_shares]), y.numpy()[rows])
        assert [int(part[2]) for part in of_shares] == [len(y)] * 3
