"""Images with several labels and a number: rectangles whose colour, size and place are what is asked for."""

import numpy as np
import pytest
from PIL import Image

from model_patch import Preprocessing, Trunk
from tests.conftest import SIZE, small_net

TAGS = ("bright", "left", "red")


def rectangles(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns images, uint8 `(n, 16, 16, 3)`; which of `TAGS` they have, int64 `(n, 3)`; and the width, float32 `(n, 1)`."""
    random = np.random.RandomState(0)
    images = random.randint(40, 60, (number, 16, 16, 3)).astype("uint8")
    tags, widths = random.randint(0, 2, (number, len(TAGS))), random.randint(3, 9, number)
    for image, (bright, left, red), width in zip(images, tags, widths, strict=True):
        if bright:
            image += 60
        start = 0 if left else 16 - width
        image[4:12, start : start + width] = (250, 30, 30) if red else (30, 30, 250)
    return images, tags, widths[:, None].astype("float32")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder with PNG files, a table of their tags and widths, and of every tenth split the validation images."""
    root = tmp_path_factory.mktemp("rectangles")
    lines = ["path,tags,width,colour,split"]
    for i, (image, tags, (width,)) in enumerate(zip(*rectangles(160), strict=True)):
        Image.fromarray(image).save(root / f"{i}.png")
        names = ";".join(name for name, given in zip(TAGS, tags, strict=True) if given)
        split = ("test", "validation", "train")[min(i % 5, 2)]
        lines.append(f"{i}.png,{names},{10 * width + 100:g},{'red' if tags[2] else 'blue'},{split}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def specs(pictures) -> dict[str, str]:
    """The spec of the data of each type of task."""
    table = f"csv:{pictures}/table.csv"
    return {
        "classification": f"{table}?label=colour",
        "multi_label": f"{table}?label=tags&type=multi_label",
        "regression": f"{table}?label=width&type=regression",
    }


@pytest.fixture(scope="session")
def small_trunk() -> Trunk:
    return Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
