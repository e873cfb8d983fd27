"""Boxes of a detector: default boxes, overlap, matching and coding.

A box is `(ymin, xmin, ymax, xmax)` in fractions of the image's height and width, everywhere in this package. The terms are
those of Liu et al. 2016, "SSD: Single Shot MultiBox Detector". Functions work on tensors of any backend, in float32.
"""

import dataclasses
import itertools
import math

import numpy as np
from keras import ops

from model_patch.errors import ModelPatchError, require_each_once

CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
"""What box codes are divided by, so that all four have about the same spread: "variance" in the released code of SSD."""

MAX_SIZE_CODE = math.log(1000 / 16) / SIZE_VARIANCE
"""Size codes are clipped here when they are decoded: a diverging net must not make infinite boxes."""

BACKGROUND = -1
"""Index of the true box of a default box that is matched to none."""


@dataclasses.dataclass(frozen=True)
class DefaultBoxes:
    """The default boxes of an SSD: at each cell of each feature map, one per aspect ratio, larger on coarser maps.

    The scales of the maps are evenly spaced from `min_scale` to `max_scale`. A map of scale s has boxes of area s^2 and
    one of area s * s', where s' is the scale of the next map, 1 for the last (Liu et al. 2016, section 2.2).

    Attributes:
        grids: cells along each side of the maps, finest map first.
        min_scale, max_scale: scales of the finest and of the coarsest map, as fractions of the image's side.
        aspect_ratios: width over height of the boxes of area s^2.
        reduce_lowest: the finest map has only three boxes: 1:1 at half its scale, 2:1 and 1:2. The Object Detection API
            does so, as small boxes of all shapes would be half of all boxes.

    Raises:
        ModelPatchError: there is no grid, or a number is out of range.
    """

    grids: tuple[int, ...]
    min_scale: float = 0.2
    max_scale: float = 0.95
    aspect_ratios: tuple[float, ...] = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)
    reduce_lowest: bool = True

    def __post_init__(self):
        if not self.grids or min(self.grids) < 1:
            raise ModelPatchError(
                f"default boxes on grids of {self.grids} cells: expected at least one grid of one cell"
            )
        if not 0 < self.min_scale <= self.max_scale <= 1:
            raise ModelPatchError(
                f"scales of default boxes from {self.min_scale} to {self.max_scale}: expected 0 < min <= max <= 1"
            )
        require_each_once("aspect_ratios", self.aspect_ratios)
        if not all(0 < ratio < math.inf for ratio in self.aspect_ratios):
            raise ModelPatchError(
                f"aspect ratios {self.aspect_ratios} of default boxes: expected at least one, above 0"
            )

    def shapes(self) -> list[list[tuple[float, float]]]:
        """Returns the `(height, width)` of the boxes at a cell, for each map, in fractions of the image's sides."""
        scales = [*np.linspace(self.min_scale, self.max_scale, len(self.grids)).tolist(), 1.0]
        shapes = []
        for i, (scale, following) in enumerate(itertools.pairwise(scales)):
            if i == 0 and self.reduce_lowest:
                areas = [(scale / 2, 1.0), (scale, 2.0), (scale, 0.5)]
            else:
                areas = [(scale, ratio) for ratio in self.aspect_ratios] + [(math.sqrt(scale * following), 1.0)]
            shapes.append([(side / math.sqrt(ratio), side * math.sqrt(ratio)) for side, ratio in areas])
        return shapes

    def corners(self) -> np.ndarray:
        """Returns all boxes, float32 `(boxes, 4)`: map by map, row by row, cell by cell. Some stick out of the image."""
        boxes = []
        for grid, shapes in zip(self.grids, self.shapes(), strict=True):
            centres = (np.arange(grid) + 0.5) / grid
            y, x = (centre[..., None] for centre in np.meshgrid(centres, centres, indexing="ij"))
            height, width = np.array(shapes).T
            corners = [y - height / 2, x - width / 2, y + height / 2, x + width / 2]  # (grid, grid, shapes) each
            boxes.append(np.stack(corners, axis=-1).reshape(-1, 4))
        return np.concatenate(boxes).astype("float32")


def area(boxes):
    """Returns the areas `(...)` of boxes `(..., 4)`; 0 where a box ends before it begins."""
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def iou(first, second):
    """Returns the intersection over union of each box with each: `(..., n, 4)` and `(..., m, 4)` to `(..., n, m)`, 0..1.

    It is 0 where a box has no area.
    """
    first, second = first[..., :, None, :], second[..., None, :, :]
    low = ops.maximum(first[..., :2], second[..., :2])
    high = ops.minimum(first[..., 2:], second[..., 2:])
    common = area(ops.concatenate([low, high], axis=-1))
    union = area(first) + area(second) - common
    return common / ops.maximum(union, 1e-12)


def match(boxes, is_box, default_boxes, threshold: float = 0.5):
    """Matches each default box to a true box or to none.

    A default box belongs to the true box that it overlaps most, if by at least `threshold`. Besides, each true box gets
    the default box that overlaps it most, whatever that one's own choice; if two want the same, it goes to the one that
    it overlaps more (Liu et al. 2016, section 2.2, "Matching strategy").

    Args:
        boxes: true boxes `(batch, most, 4)`.
        is_box: bool `(batch, most)`, false for the rows of `boxes` that are only padding.
        default_boxes: `(defaults, 4)`.
        threshold: least IoU, in 0..1.

    Returns:
        int32 `(batch, defaults)`, index of the true box, or `BACKGROUND`.
    """
    is_box = is_box[..., None]
    overlap = ops.where(is_box, iou(boxes, default_boxes), -1.0)  # (batch, most, defaults)
    best = ops.argmax(overlap, axis=-1)
    wanted = ops.logical_and(ops.one_hot(best, len(default_boxes), dtype="bool"), is_box)
    overlap = ops.where(wanted, overlap + 2.0, overlap)
    matched = ops.max(overlap, axis=-2) >= threshold
    return ops.where(matched, ops.cast(ops.argmax(overlap, axis=-2), "int32"), BACKGROUND)


def encode(boxes, default_boxes):
    """Codes boxes relative to default boxes: shift of the centre in sizes of the default box, logarithm of the ratio of sizes.

    Args:
        boxes: `(..., 4)`, with area.
        default_boxes: `(..., 4)`, of the same or a broadcast shape.

    Returns:
        `(..., 4)`: y, x, height, width, divided by their variances.
    """
    centre, size = _centre_and_size(boxes)
    default_centre, default_size = _centre_and_size(default_boxes)
    shift = (centre - default_centre) / default_size / CENTRE_VARIANCE
    return ops.concatenate([shift, ops.log(size / default_size) / SIZE_VARIANCE], axis=-1)


def decode(codes, default_boxes):
    """Inverse of `encode`, with sizes clipped at 62.5 times the default box."""
    default_centre, default_size = _centre_and_size(default_boxes)
    centre = codes[..., :2] * CENTRE_VARIANCE * default_size + default_centre
    size = ops.exp(ops.minimum(codes[..., 2:], MAX_SIZE_CODE) * SIZE_VARIANCE) * default_size
    return ops.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def _centre_and_size(boxes):
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low
