import dataclasses

import keras
import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing


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


def test_what_a_patch_file_says_nothing_of_keeps_its_meaning():
    assert Preprocessing.from_json({"image_size": 8, "mode": "tf"}) == Preprocessing(8, "tf", alpha="drop")
    assert Preprocessing.from_json(dataclasses.asdict(Preprocessing(8, "tf"))) == Preprocessing(8, "tf", alpha="white")
    with pytest.raises(ModelPatchError, match="unknown alpha 'black': expected one of drop, white"):
        Preprocessing(8, "tf", alpha="black")
