import dataclasses

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing
from model_patch.preprocessing import RESIZE


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
def test_scaling_is_that_of_keras_applications(mode):
    images = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype("float32")
    expected = keras.applications.imagenet_utils.preprocess_input(images.copy(), data_format="channels_last", mode=mode)
    np.testing.assert_allclose(Preprocessing(5, mode).scale(images), expected, rtol=1e-5, atol=2e-5)


def test_images_of_any_size_and_number_type_are_brought_to_size():
    preprocessing = Preprocessing(8, "unit")
    grey = np.full((30, 11, 3), 51, "uint8")
    np.testing.assert_allclose(preprocessing(grey), np.full((8, 8, 3), 0.2), rtol=1e-6)
    assert preprocessing(grey[None].astype("float32")).shape == (1, 8, 8, 3)


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((64, 64, 3), "uint8")
    stripes[:, ::2] = 255
    np.testing.assert_allclose(Preprocessing(8, "none").resize(stripes)[2:-2, 2:-2], 127.5, atol=4)


@pytest.mark.parametrize(("height", "width"), [(40, 20), (20, 40), (40, 1)])
def test_crop_takes_the_central_square_and_pad_surrounds_the_whole_image(height, width):
    image = np.full((height, width, 3), 10, "uint8")
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = 200
    for batch in (image, image[None]):
        np.testing.assert_allclose(Preprocessing(10, "none", resizing="crop").resize(batch), 200, rtol=1e-6)
    padded = np.array(Preprocessing(10, "none", alpha="#ff8000", resizing="pad").resize(np.zeros_like(image)))
    is_colour = (padded == [255, 128, 0]).all(-1)
    across = max(1, 10 * side // 40)
    before = (10 - across) // 2
    inside = np.s_[:, before : before + across] if height > width else np.s_[before : before + across]
    assert not padded[inside].any() and is_colour.sum() == 100 - 10 * across
    white = np.array(Preprocessing(10, "none", alpha="drop", resizing="pad").resize(image))
    assert (white == 255).all(-1).sum() == 100 - 10 * across


def test_a_square_image_is_resized_alike_in_every_way():
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype("uint8")
    squashed, *others = (np.array(Preprocessing(8, "none", resizing=each).resize(image)) for each in RESIZE)
    for other in others:
        np.testing.assert_allclose(other, squashed, atol=1e-4)


def test_what_a_patch_file_says_nothing_of_keeps_its_meaning():
    old = Preprocessing.from_json({"image_size": 8, "mode": "tf"})
    assert old == Preprocessing(8, "tf", alpha="drop", reduces=False) and old.decoding == ("drop", 0)
    assert Preprocessing(9, "tf").decoding == ("white", 14)
    assert Preprocessing.from_json(dataclasses.asdict(Preprocessing(8, "tf"))) == Preprocessing(8, "tf", alpha="white")
    assert Preprocessing.from_json({"image_size": 8, "mode": "tf"}).resizing == "squash"
    with pytest.raises(
        ModelPatchError, match="unknown alpha 'black': expected white, drop, or a colour such as #808080"
    ):
        Preprocessing(8, "tf", alpha="black")
    with pytest.raises(ModelPatchError, match="unknown resize 'stretch': expected one of crop, pad, squash"):
        Preprocessing(8, "tf", resizing="stretch")
