import numpy as np
import pytest

from model_patch import ModelPatchError, open_data
from model_patch.data.images import ImageData, array_split
from model_patch.data.pipeline import batches
from model_patch.preprocessing import Preprocessing


def numbered(labels) -> ImageData:
    """Image i is all of the grey i, so images are distinguishable whatever their labels."""
    images = np.repeat(np.arange(len(labels)), 16).reshape(-1, 4, 4).astype("uint8")
    split = array_split(images, np.asarray(labels))
    return ImageData("greys", ("a", "b", "c"), split, array_split(images[:3] + 200, np.arange(3)), "none")


def greys(split) -> list[int]:
    return [int(image[0, 0, 0]) for image, _ in split.dataset().as_numpy_iterator()]


def test_the_validation_split_is_the_last_training_images():
    data = numbered(np.arange(50) % 3)
    held = data.with_validation(0.14)
    assert greys(held.train) + greys(held.validation) == greys(data.train) and held.validation.num_images == 7
    held = data.with_validation(0.25, max_train_images=20)
    assert greys(held.train) + greys(held.validation) == greys(data.train)[:20] and held.validation.num_images == 5
    assert held.validation.image_labels().tolist() == data.train.image_labels()[15:20].tolist()
    seen = [int(grey) for x, _ in batches(held.validation, Preprocessing(4, "none"), 2) for grey in x[:, 0, 0, 0]]
    assert seen == greys(held.validation)


def test_a_fraction_of_zero_holds_out_nothing_and_a_split_of_the_datas_own_is_kept():
    held = numbered(np.arange(50) % 3).with_validation(0.1)
    assert held.with_validation(0.5) is held and held.with_validation(0) is held
    plain = numbered(np.arange(50) % 3)
    assert plain.with_validation(0) is plain and plain.validation is None


@pytest.mark.parametrize(
    ("fraction", "most", "message"),
    [
        (0.1, 1, "of 1 training images of 'greys', 1 cannot be split off: use a lower --validation_fraction"),
        (1.0, None, "validation_fraction is 1.0: expected at least 0 and below 1"),
    ],
)
def test_without_images_left_to_train_on_the_split_is_refused(fraction, most, message):
    with pytest.raises(ModelPatchError, match=message):
        numbered(np.arange(50) % 3).with_validation(fraction, most)


def test_folds_test_every_training_image_once_and_divide_each_class_evenly():
    data = numbered([0] * 20 + [1] * 10 + [2] * 3)
    folds = data.folds(5)
    assert sorted(grey for fold in folds for grey in greys(fold.test)) == sorted(greys(data.train))
    for fold in folds:
        assert sorted(greys(fold.train) + greys(fold.test)) == sorted(greys(data.train))
        counts = np.bincount(fold.test.image_labels(), minlength=3)
        assert counts[:2].tolist() == [4, 2] and counts[2] <= 1
    with pytest.raises(ModelPatchError, match="folds is 21: expected 2 to 20"):
        data.folds(21)


def test_labels_are_those_of_the_images():
    split = open_data("textures").train
    assert split.image_labels(50).tolist() == [int(label) for _, label in split.dataset(50).as_numpy_iterator()]
