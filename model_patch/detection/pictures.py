"""Pictures of images with their boxes."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from model_patch.detection.evaluation import Detections
from model_patch.files import write_bytes

COLOURS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00", "#ff9f0a", "#bf5af2", "#64d2ff", "#ff6482", "#30d158", "#ac8e68")
"""Colours of the boxes, by class; again from the first one after the last."""

TRUTH = "#ffffff"
SMALLEST = 384
"""Images are enlarged, by a whole number, until their shorter side has at least this many pixels, so that text is readable."""


def draw(image: np.ndarray, found: Detections, labels: Sequence[str], truth: np.ndarray | None = None) -> Image.Image:
    """Draws detections on an image.

    Args:
        image: uint8 `(height, width, 3)`.
        found: what to draw, each with its label and score.
        labels: class names.
        truth: true boxes `(boxes, 4)`, drawn thin and white beneath the others; None for none.

    Returns:
        The picture, perhaps larger than the image.
    """
    height, width = image.shape[:2]
    factor = math.ceil(SMALLEST / min(height, width))
    picture = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)

    def corners(box) -> list[float]:
        ymin, xmin, ymax, xmax = (float(x) for x in box)
        return [xmin * picture.width, ymin * picture.height, xmax * picture.width, ymax * picture.height]

    for box in truth if truth is not None else ():
        canvas.rectangle(corners(box), outline=TRUTH, width=1)
    for box, score, label in zip(found.boxes, found.scores, found.classes, strict=True):
        colour = COLOURS[label % len(COLOURS)]
        canvas.rectangle(corners(box), outline=colour, width=3)
        text, (left, top, _, _) = f"{labels[label]} {score:.2f}", corners(box)
        place = (left, max(0.0, top - 13))
        canvas.rectangle(canvas.textbbox(place, text), fill=colour)
        canvas.text(place, text, fill="black")
    return picture


def sheet(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Returns pictures of one size in rows, as one picture."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (width * min(columns, len(pictures)), height * math.ceil(len(pictures) / columns)))
    for i, picture in enumerate(pictures):
        whole.paste(picture, (width * (i % columns), height * (i // columns)))
    return whole


def save_png(picture: Image.Image, path: str | Path):
    """Writes a picture as PNG, whole or not at all. Raises as `write_bytes`."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    write_bytes(path, buffer.getvalue())
