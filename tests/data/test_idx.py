import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.data import open_data

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def encode(array: np.ndarray) -> bytes:
    header = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
    return header + array.astype("uint8").tobytes()


def write(folder: Path, zipped: bool = False) -> Path:
    """30 images to train on and 12 to test on, 5 high and 7 wide; every pixel says which image it is of, its label is
    that number modulo 3.
    """
    folder.mkdir()
    for (images, labels), numbers in zip((NAMES[:2], NAMES[2:]), (np.arange(30), np.arange(100, 112)), strict=True):
        for name, array in ((images, np.tile(numbers[:, None, None], (1, 5, 7))), (labels, numbers % 3)):
            contents = encode(array)
            path = folder / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(contents) if zipped else contents)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_images_and_labels_belong_together_and_none_is_lost(tmp_path, zipped):
    data = open_data(f"idx:{write(tmp_path / 'numbers', zipped)}")
    assert (data.name, data.labels, data.augmentation) == ("numbers", ("0", "1", "2"), "shift")
    for split, numbers in ((data.train, range(30)), (data.test, range(100, 112))):
        seen = [(image, int(label)) for image, label in split.dataset().as_numpy_iterator()]
        assert all(image.shape == (5, 7, 3) and image.dtype == np.uint8 for image, _ in seen)
        assert all((image == image[0, 0, 0]).all() and image[0, 0, 0] % 3 == label for image, label in seen)
        assert sorted(int(image[0, 0, 0]) for image, _ in seen) == list(numbers)


def test_labels_come_from_the_option_or_a_file(tmp_path):
    folder = write(tmp_path / "numbers")
    (folder / "labels.txt").write_text("none\none\n\ntwo\n")
    assert open_data(f"idx:{folder}").labels == ("none", "one", "two")
    assert open_data(f"idx:{folder}?labels=x,y,z").labels == ("x", "y", "z")
    with pytest.raises(ModelPatchError, match="has labels up to 2, but 2 names for them: expected 3"):
        open_data(f"idx:{folder}?labels=x,y")


def test_a_folder_called_fashion_mnist_has_its_names(tmp_path):
    data = open_data(f"idx:{write(tmp_path / 'fashion-mnist')}")
    assert data.labels[0] == "T-shirt/top" and data.labels[9] == "Ankle boot" and len(data.labels) == 10
    assert data.augmentation == "shift+flip"


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_has_a_fair_prefix():
    data = open_data(f"idx:{DEBIAN}")
    assert (data.name, data.train.num_images, data.test.num_images) == ("fashion-mnist", 60000, 10000)
    labels = [int(label) for _, label in data.train.dataset(1000)]
    counts = np.bincount(labels, minlength=10)
    assert counts.sum() == 1000 and counts.min() > 60 and counts.max() < 140
    assert len(set(labels[:20])) >= 5


def test_a_missing_file_is_named(tmp_path):
    folder = write(tmp_path / "numbers")
    (folder / NAMES[3]).unlink()
    with pytest.raises(ModelPatchError, match=f"numbers lacks the file {NAMES[3]}, plain or with .gz"):
        open_data(f"idx:{folder}")
    with pytest.raises(ModelPatchError, match="'idx:.*nowhere' names no folder"):
        open_data(f"idx:{tmp_path / 'nowhere'}")


def test_a_file_of_another_kind_is_named(tmp_path):
    folder = write(tmp_path / "numbers")
    shutil.copy(folder / NAMES[1], folder / NAMES[0])
    with pytest.raises(
        ModelPatchError, match=f"{NAMES[0]} is not in MNIST's format: it begins with 2049, expected 2051"
    ):
        open_data(f"idx:{folder}")
    (folder / NAMES[0]).write_bytes(b"")
    with pytest.raises(ModelPatchError, match=f"{NAMES[0]} is not in MNIST's format: it begins with 0"):
        open_data(f"idx:{folder}")


def test_a_file_that_is_too_short_is_named(tmp_path):
    folder = write(tmp_path / "numbers")
    path = folder / NAMES[2]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ModelPatchError, match=f"{NAMES[2]} has 419 bytes after its header, which says 12 x 5 x 7 = 420"
    ):
        open_data(f"idx:{folder}")


def test_a_damaged_gz_file_is_named(tmp_path):
    folder = write(tmp_path / "numbers", zipped=True)
    path = folder / f"{NAMES[1]}.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"no gzip file"):
        path.write_bytes(damaged)
        with pytest.raises(ModelPatchError, match=f"{NAMES[1]}.gz cannot be read: "):
            open_data(f"idx:{folder}")


def test_images_without_labels_and_no_images_are_refused(tmp_path):
    folder = write(tmp_path / "numbers")
    (folder / NAMES[1]).write_bytes(encode(np.zeros(29)))
    with pytest.raises(ModelPatchError, match=f"30 images in {NAMES[0]}, but 29 labels in {NAMES[1]}"):
        open_data(f"idx:{folder}")
    (folder / NAMES[0]).write_bytes(encode(np.zeros((0, 5, 7))))
    (folder / NAMES[1]).write_bytes(encode(np.zeros(0)))
    with pytest.raises(ModelPatchError, match=f"{NAMES[0]} holds no images"):
        open_data(f"idx:{folder}")
