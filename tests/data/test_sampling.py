import numpy as np
import pytest

from model_patch import ModelPatchError, Preprocessing
from model_patch.data import open_data
from model_patch.data.images import array_split
from model_patch.data.sampling import LEAST_PER_STEP, Sampler, joint_batches

SIZES = (1200, 300, 100)


@pytest.mark.parametrize(
    ("sampler", "progress", "shares"),
    [
        # Worked out by hand: 1200:300:100 is 12:3:1, of which the square roots are 3.4641, 1.7321 and 1.
        (Sampler(), 0.0, (1 / 3, 1 / 3, 1 / 3)),
        (Sampler("proportional", 1.0), 0.0, (12 / 16, 3 / 16, 1 / 16)),
        (Sampler("proportional", 0.5), 1.0, (0.559081, 0.279527, 0.161392)),
        (Sampler("proportional", 0.0), 0.5, (1 / 3, 1 / 3, 1 / 3)),
        (Sampler("annealed", 0.0), 0.0, (12 / 16, 3 / 16, 1 / 16)),
        (Sampler("annealed", 0.0), 0.5, (0.559081, 0.279527, 0.161392)),
        (Sampler("annealed", 0.0), 1.0, (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_shares_are_powers_of_the_sizes(sampler, progress, shares):
    np.testing.assert_allclose(sampler.shares(SIZES, progress), shares, atol=1e-4)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler("proportional", 1.0), Sampler("annealed", 0.2)])
@pytest.mark.parametrize("batch_size", [7, 32])
def test_every_step_is_full_and_the_sums_are_as_the_shares_say(sampler, batch_size):
    steps = 101
    sizes = sampler.sizes(SIZES, batch_size, steps)
    assert sizes.shape == (steps, 3) and set(sizes.sum(1)) == {3 * batch_size}
    assert sizes.min() >= LEAST_PER_STEP
    shares = [sampler.shares(SIZES, step / (steps - 1)) for step in range(steps)]
    expected = 3 * batch_size * np.cumsum(shares, axis=0)
    if 3 * batch_size * np.min(shares) >= LEAST_PER_STEP:
        # Nothing is drawn: no data set is ever a whole image or more away from its share.
        assert np.abs(np.cumsum(sizes, axis=0) - expected).max() < 1 + 1e-6
    assert np.array_equal(sizes, sampler.sizes(SIZES, batch_size, steps))


def test_a_tiny_data_set_has_its_least_share_and_the_others_the_rest():
    sizes = Sampler("proportional", 1.0).sizes((100_000, 20_000, 10), 16, 50)
    assert set(sizes[:, 2]) == {LEAST_PER_STEP} and set(sizes.sum(1)) == {48}
    assert sizes[:, 0].sum() / sizes[:, 1].sum() == pytest.approx(5, rel=0.15)
    assert set(Sampler().sizes((10, 10), 1, 3).ravel()) == {1}


def test_what_is_no_sampler_is_refused():
    with pytest.raises(
        ModelPatchError, match="unknown sampler 'random': expected one of annealed, proportional, uniform"
    ):
        Sampler("random")
    with pytest.raises(ModelPatchError, match="sampler_power is -1: expected at least 0"):
        Sampler("annealed", -1)


def numbered(number: int, offset: int = 0):
    """Images that can be told apart: image i is all of the grey i + offset, and has the label i."""
    return array_split(np.repeat(np.arange(number), 16).reshape(-1, 4, 4).astype("uint8") + offset, np.arange(number))


@pytest.mark.parametrize("sampler", [Sampler(), Sampler("proportional", 1.0)])
def test_steps_have_the_sizes_asked_for_and_small_data_sets_repeat(sampler):
    splits = {"large": numbered(40), "small": numbered(7, offset=100)}
    sizes = sampler.sizes([40, 7], 5, 12)
    batches = joint_batches(splits, dict.fromkeys(splits, Preprocessing(4, "none")), sizes, seed=3)
    seen = {name: [] for name in splits}
    for step, (images, labels) in enumerate(batches):
        for k, name in enumerate(splits):
            assert images[name].shape == (sizes[step, k], 4, 4, 3)
            # An image has its label, and comes from its own data set.
            assert np.array_equal(images[name][:, 0, 0, 0], labels[name] + 100 * k)
            seen[name] += list(map(int, labels[name]))
    assert step == 11
    for name, number in (("large", 40), ("small", 7)):
        # All images come once before any comes again, in a new order.
        passes = [seen[name][i : i + number] for i in range(0, len(seen[name]) - number + 1, number)]
        assert all(sorted(each) == list(range(number)) for each in passes)
    assert len(seen["small"]) > 14 and seen["small"][:7] != seen["small"][7:14]


def test_the_seed_decides_the_order():
    splits = {"a": numbered(30), "b": numbered(30)}

    def order(seed):
        batches = joint_batches(splits, dict.fromkeys(splits, Preprocessing(4, "none")), np.full((6, 2), 5), seed=seed)
        return [[*map(int, y["a"])] for _, y in batches], [[*map(int, y["b"])] for _, y in batches]

    one, again, other = order(1), order(1), order(2)
    assert one == again != other and one[0] != one[1]


@pytest.mark.parametrize("sampler", [Sampler(), Sampler("proportional", 1.0)])
def test_from_a_later_step_on_the_batches_are_the_same(sampler):
    splits = {"large": numbered(40), "small": numbered(7, offset=100)}
    sizes = sampler.sizes([40, 7], 5, 12)

    def labels(first_step):
        preprocessing = dict.fromkeys(splits, Preprocessing(4, "none"))
        batches = joint_batches(splits, preprocessing, sizes, seed=3, first_step=first_step)
        return [{name: y[name].numpy().tolist() for name in splits} for _, y in batches]

    assert labels(9) == labels(0)[9:] and len(labels(9)) == 3


def test_tasks_are_augmented_each_in_its_way_and_have_image_sizes_of_their_own():
    data = open_data("textures").train
    preprocessing = {"plain": Preprocessing(32, "none"), "flipped": Preprocessing(16, "none")}
    splits = dict.fromkeys(preprocessing, data)
    batches = joint_batches(
        splits, preprocessing, np.full((2, 2), 3), augmentation={"plain": "none", "flipped": "flip"}
    )
    images, _ = next(iter(batches))
    assert images["plain"].shape == (3, 32, 32, 3) and images["flipped"].shape == (3, 16, 16, 3)
