"""What a run writes for people: a page of tables in Markdown, and figures."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_patch.experiments.report.table import Table, markdown, print_table
from model_patch.files import write_bytes

RESULTS = "results"
"""Name of the page and the JSON file of a run."""


def named(versions: dict) -> str:
    """Returns what figures rest on as text, for example `keras 3.15.1, numpy 2.4`."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def write_report(folder: Path, title: str, parts: Sequence[str | Table], name: str = RESULTS, show: int = 0, **figures):
    """Prints a table of a report and writes all of it as `NAME.md`.

    Args:
        folder: is made if it does not exist.
        title: heading of the page.
        parts: Markdown and tables; empty parts are left out.
        name: name of the page.
        show: which of the tables is printed, if there are any.
        **figures: matplotlib figures by the name of their PNG file.
    """
    if tables := [part for part in parts if isinstance(part, tuple)]:
        print_table(title, *tables[show])
    texts = [markdown(*part) if isinstance(part, tuple) else part for part in parts if part]
    page = "\n\n".join(text.rstrip("\n") for text in (f"# {title}", *texts))
    write_bytes(folder / f"{name}.md", f"{page}\n".encode())
    for file, figure in figures.items():
        save_figure(figure, folder / f"{file}.png")


def new_axes(width: float = 7, height: float = 4.5, rows: int = 1, columns: int = 1, **options):
    """Returns a matplotlib figure and its panels, an array `(rows, columns)`, or the one there is; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return figure, panels[0, 0] if panels.size == 1 else panels


def legend_below(figure, columns: int = 2):
    """Names what a figure shows below it, where nothing is covered."""
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8)


def accuracy_limits(lowest: float) -> tuple[float, float]:
    """Returns the limits of an axis of accuracies, within 0..1 unless some are negative, as R2 may be, with some room below."""
    least = lowest - 0.25 * (1.0 - lowest) - 0.02
    return max(0.0, least) if lowest >= 0 else least, 1.0


def figure_bytes(figure) -> bytes:
    """Returns a matplotlib figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save_figure(figure, path: Path):
    """Writes a matplotlib figure as PNG, whole or not at all."""
    write_bytes(path, figure_bytes(figure))


def prediction_grid(rows: Sequence[tuple[str, Sequence[np.ndarray], Sequence[str], Sequence[str]]]):
    """Draws one row of images per task, each with its true and its predicted label, in red if they differ.

    Args:
        rows: per task its name, images uint8 `(height, width, 3)` of any size, predicted labels and true labels.

    Returns:
        A matplotlib figure.
    """
    columns = max(len(images) for _, images, _, _ in rows)
    figure, _ = new_axes(1.2 * columns + 1, 1.6 * len(rows), len(rows), columns)
    grid = np.reshape(figure.axes, (len(rows), columns))
    for cells, (name, images, predicted, true) in zip(grid, rows, strict=True):
        for axes in cells:
            axes.set_axis_off()
        for axes, image, label, truth in zip(cells, images, predicted, true, strict=False):
            axes.imshow(image)
            axes.set_title(f"true: {truth}\npredicted: {label}", fontsize=7, color="black" if label == truth else "red")
        cells[0].text(-0.15, 0.5, name, rotation=90, ha="right", va="center", fontsize=9, transform=cells[0].transAxes)
    return figure
