import numpy as np
import pytest
import tensorflow as tf

from model_patch import ModelPatchError
from model_patch.data.augment import AUGMENTATIONS, augmenter


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (31, 43, 3), dtype="uint8")


def apply(names, image, seed):
    return augmenter(names)(tf.constant(image), tf.constant(seed, "int64")).numpy()


@pytest.mark.parametrize("names", [*AUGMENTATIONS, "crop+flip", "shift+flip+colour"])
def test_the_same_seed_gives_the_same_image_and_others_do_not(names, image):
    results = [apply(names, image, seed) for seed in range(8)]
    assert all(result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3 for result in results)
    tf.random.set_seed(99)
    assert all(np.array_equal(result, apply(names, image, seed)) for seed, result in enumerate(results))
    distinct = {result.tobytes() for result in results}
    assert len(distinct) == 1 if names == "none" else len(distinct) > 1


def test_none_changes_nothing(image):
    assert np.array_equal(apply("none", image, 3), image)


def test_flip_mirrors_about_half(image):
    results = [apply("flip", image, seed) for seed in range(40)]
    mirrored = sum(np.array_equal(result, image[:, ::-1]) for result in results)
    assert mirrored + sum(np.array_equal(result, image) for result in results) == 40
    assert 10 <= mirrored <= 30


def test_shift_moves_within_a_tenth_and_repeats_the_edge(image):
    seen = set()
    padded = np.pad(image, ((3, 3), (4, 4), (0, 0)), mode="edge")
    windows = {padded[y : y + 31, x : x + 43].tobytes(): (y - 3, x - 4) for y in range(7) for x in range(9)}
    for seed in range(120):
        seen.add(windows[apply("shift", image, seed).tobytes()])
    assert {y for y, _ in seen} == set(range(-3, 4)) and {x for _, x in seen} == set(range(-4, 5))


def test_shift_moves_the_smallest_images_by_a_pixel(image):
    assert len({apply("shift", image[:8, :8], seed).tobytes() for seed in range(60)}) == 9


def test_crop_cuts_out_a_part_of_the_stated_size(image):
    areas = []
    for seed in range(60):
        part = apply("crop", image, seed)
        height, width = part.shape[:2]
        areas.append(height * width / (31 * 43))
        assert 0.7 < width / height < 1.45  # 3/4 to 4/3, up to rounding to pixels
        assert any(
            np.array_equal(part, image[y : y + height, x : x + width])
            for y in range(32 - height)
            for x in range(44 - width)
        )
    assert 0.3 < min(areas) < 0.5 and max(areas) > 0.7


def test_colour_changes_values_mildly(image):
    for seed in range(10):
        result = apply("colour", image, seed)
        assert result.shape == image.shape
        assert 0 < np.abs(result.astype(int) - image).mean() < 50


def test_an_unknown_name_is_named():
    with pytest.raises(
        ModelPatchError, match="unknown augmentation 'flop': expected one of colour, crop, flip, none, shift"
    ):
        augmenter("shift+flop")
