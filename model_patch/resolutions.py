"""Choosing among tasks that differ in their image size alone: the paper's domain adaptation at inference."""

import math
from collections.abc import Iterable

from model_patch.bind import BoundTask
from model_patch.errors import ModelPatchError


def pick(tasks: Iterable[BoundTask], height: int, width: int) -> BoundTask:
    """Returns the task whose image size is nearest to an image's.

    The image's size is the geometric mean of its sides, so that it has as many pixels as the square of that side. Nearest
    is meant in proportion: 64 px lie between 48 and 96 nearer to 48. Of two equally near the larger is taken, which loses
    no detail.

    Args:
        tasks: the candidates, at least one.
        height, width: of the image in pixels, at least 1.

    Raises:
        ModelPatchError: there is no task, or the image has no pixels.
    """
    tasks = list(tasks)
    if not tasks:
        raise ModelPatchError("there is no task to pick from: give at least one")
    if min(height, width) < 1:
        raise ModelPatchError(f"an image of {height} x {width} pixels has no size to pick by: expected at least 1 x 1")
    side = math.sqrt(height * width)
    sizes = {bound.task.preprocessing.image_size: bound for bound in reversed(tasks)}
    return sizes[min(sizes, key=lambda size: (round(abs(math.log(size / side)), 9), -size))]
