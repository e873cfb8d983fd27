import gzip

import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.data import open_data
from model_patch.detection.boxes import iou
from model_patch.detection.data import open_detection_data
from model_patch.detection.data.scenes import INK, NOISE


def examples(text, split="train"):
    return list(getattr(open_detection_data(text), split).dataset().as_numpy_iterator())


def test_images_stand_in_their_boxes_on_canvases_of_the_size():
    data = open_detection_data("scenes:digits?size=64&train=30&test=10&objects=3")
    assert (data.name, data.labels) == ("digits-scenes", tuple("0123456789"))
    assert (data.train.num_images, data.test.num_images) == (30, 10)
    numbers = []
    for image, boxes, classes, ignored in data.train.dataset().as_numpy_iterator():
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert len(boxes) == len(classes) == len(ignored) and not ignored.any()
        numbers.append(len(boxes))
        outside = image[..., 0].copy()
        for ymin, xmin, ymax, xmax in (boxes * 64).round().astype(int):
            inside = image[ymin:ymax, xmin:xmax, 0]
            assert all((edge >= INK).any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1])), (
                "it is tight"
            )
            outside[ymin:ymax, xmin:xmax] = 0
        assert outside.max() < NOISE
        overlaps = np.array(iou(boxes, boxes)) - np.eye(len(boxes))
        assert overlaps.max(initial=0.0) <= 0.1
    assert set(numbers) == {0, 1, 2, 3}, "some have no object"


def test_the_same_seed_gives_the_same_scenes_and_another_others():
    one, same, other = (examples(f"scenes:digits?train=5&test=1&seed={seed}") for seed in (1, 1, 2))
    assert all(
        np.array_equal(x, y)
        for first, second in zip(one, same, strict=True)
        for x, y in zip(first, second, strict=True)
    )
    assert not all(np.array_equal(first[0], second[0]) for first, second in zip(one, other, strict=True))


def test_test_scenes_show_test_images(tmp_path):
    """With train images of class 0 and test images of class 1, the scenes cannot mix them."""
    for name, label in (("train", 0), ("t10k", 1)):
        images = np.full((3, 6, 6), 200, "uint8")
        header = [b"".join(int(n).to_bytes(4, "big") for n in numbers) for numbers in ((2051, 3, 6, 6), (2049, 3))]
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header[0] + images.tobytes()))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(header[1] + bytes([label] * 3))
    text = f"scenes:idx:{tmp_path}?train=20&test=20"
    assert open_data(f"idx:{tmp_path}").labels == ("0", "1")
    for split, label in (("train", 0), ("test", 1)):
        classes = np.concatenate([classes for _, _, classes, _ in examples(text, split)])
        assert len(classes) > 5 and (classes == label).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "scenes:faces",
            "does not name images to place: expected scenes:DATA, where DATA is digits, mnist or idx:FOLDER",
        ),
        ("scenes", "does not name images to place"),
        ("scenes:digits?size=8", "size=8 in .* is not a whole number of at least 16"),
        ("scenes:digits?train=many", "train=many in .* is not a whole number of at least 1"),
        ("scenes:digits?objekts=3", "unknown option 'objekts'"),
        ("scenes:idx:/nowhere", "names no folder"),
        ("voc", "unknown detection data 'voc': expected one of coco, scenes, tfds"),
    ],
)
def test_specs_that_cannot_be_opened_are_refused(text, message):
    with pytest.raises(ModelPatchError, match=message):
        open_detection_data(text)
