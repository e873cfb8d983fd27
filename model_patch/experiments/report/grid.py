"""Pictures of test images with what tasks answer."""

from collections.abc import Sequence

import numpy as np


def prediction_grid(rows: Sequence[tuple[str, Sequence[np.ndarray], Sequence[str], Sequence[str]]]):
    """Draws one row of images per task, each with its predicted label, red where it is not the true one.

    Args:
        rows: per task its name, images uint8 `(height, width, 3)` of any size, predicted labels and true labels.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    columns = max(len(images) for _, images, _, _ in rows)
    figure = Figure(figsize=(1.1 * columns + 1, 1.4 * len(rows)), dpi=120, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for cells, (name, images, predicted, true) in zip(grid, rows, strict=True):
        for axes in cells:
            axes.set_axis_off()
        for axes, image, answer, truth in zip(cells, images, predicted, true, strict=False):
            axes.imshow(image)
            axes.set_title(answer, fontsize=8, color="black" if answer == truth else "red")
        cells[0].text(-0.15, 0.5, name, rotation=90, ha="right", va="center", fontsize=9, transform=cells[0].transAxes)
    return figure
