import pytest

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind
from model_patch.resolutions import pick
from tests.conftest import small_net


@pytest.fixture(scope="module")
def tasks():
    bound = []
    for size in (32, 48, 96):
        preprocessing = Preprocessing(size, "tf")
        trunk = Trunk(small_net(size=size), "test", preprocessing)
        bound.append(bind(trunk, Task(f"{size}px", ("a", "b"), preprocessing)))
    return bound


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (32, 32, 32),
        (40, 40, 48),  # 48/40 is less than 40/32.
        (39, 39, 32),
        (64, 64, 48),
        (70, 70, 96),
        (96, 48, 96),  # As near to both: the larger.
        (1, 1, 32),
        (4000, 3000, 96),
        (16, 64, 32),
    ],
)
def test_the_nearest_size_in_proportion_is_picked(tasks, height, width, size):
    assert pick(tasks, height, width).task.name == f"{size}px"
    assert pick(reversed(tasks), height, width).task.name == f"{size}px"


def test_nothing_to_pick_from_and_images_without_pixels_are_refused(tasks):
    with pytest.raises(ModelPatchError, match="there is no task to pick from"):
        pick([], 32, 32)
    with pytest.raises(ModelPatchError, match="an image of 0 x 32 pixels"):
        pick(tasks, 0, 32)
