"""What image files of real life are, and what becomes of them: the rules of docs/reliability.md, by name."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from model_patch.data.decoding import EXIF_BYTES, EXIF_MARK, FORMATS, orientation
from model_patch.files import as_path, is_remote, matching

EXTENSIONS = {
    ".jpg": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".bmp": ("BMP", "DIB"),
    ".gif": ("GIF",),
    ".webp": ("WEBP",),
}
"""Endings of the names of images that are used, and what Pillow calls their formats."""

SYSTEM_NAMES = {
    "__MACOSX",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "Thumbs.db",
    "desktop.ini",
}

HIDDEN = "hidden, or of an operating system: left out"
FOREIGN = f"no {FORMATS} by their names: left out"
BESIDE = "beside the class folders: left out"
INNER = "folders inside a class: left out"
ASTRAY = "links that lead nowhere, or back: left out"
BAD_ROW = "rows that cannot be used: left out"
UNREADABLE = "cannot be read: left out"
TURNED = "turned as their EXIF orientation says"
NOT_TURNED = "with an EXIF orientation that is not followed, because they are not JPEG"
CMYK = "CMYK: made RGB"
PALETTE = "with a palette: made RGB"
ALPHA = "with alpha, laid on white if a PNG channel, else left out"
DEEP = "of 16 bits, of which the upper 8 are taken"
ANIMATED = "animated, of which the first frame is taken"
MISNAMED = "of another format than their names say: read by their contents"
TINY = "one pixel high or wide"
HUGE = "more than 10,000 pixels high or wide"

NUM_NAMED = 3
"""How many files a summary names of each sort."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: its name starts with a dot, or is one that systems give."""
    return name.startswith(".") or name in SYSTEM_NAMES


def extension(name: str) -> str:
    """Returns the ending of a file's name in lower case, with its dot; empty where there is none."""
    stem, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if dot and stem else ""


@dataclasses.dataclass(frozen=True)
class Frame:
    """The pixels of an image file.

    Attributes:
        size: width and height in pixels, as stored.
        orientation: the EXIF orientation that `decode` follows, 1..8; 1 is stored upright.
    """

    size: tuple[int, int]
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height in pixels once decoded."""
        return self.size if self.orientation < 5 else self.size[::-1]


def image_paths(names: Sequence[str]) -> list[str]:
    """Returns image files by their names, patterns, and folders, which represent all images at any depth.

    Files and folders of operating systems are left out of folders. Names and errors as `files.matching`.
    """
    return matching(names, _below)


def _below(folder: str) -> Iterator[str]:
    for inner, folders, names in as_path(folder).walk() if is_remote(folder) else os.walk(folder):  # type: ignore[attr-defined]
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            if extension(name) in EXTENSIONS and not is_hidden(name):
                yield f"{str(inner).rstrip('/')}/{name}"


def read_frame(path: Path) -> Frame | None:
    """Reads size and orientation of an image file; None if it is not an image that `decode` reads. Nothing is decoded."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            file.seek(0)
            start = file.read(EXIF_BYTES)
            size, known = image.size, any(image.format in formats for formats in EXTENSIONS.values())
    except Exception:  # A hostile header may raise anything.
        return None
    # By the operation that `decode` uses, so that both always agree.
    turn = int(_compiled_orientation()(start)) if EXIF_MARK in start else 1
    return Frame(size, turn) if known else None


@functools.cache
def _compiled_orientation():
    import tensorflow as tf

    return tf.function(orientation, input_signature=[tf.TensorSpec((), "string")], autograph=False)


RULES = (TURNED, NOT_TURNED, CMYK, PALETTE, ALPHA, DEEP, ANIMATED, MISNAMED, TINY, HUGE)
"""The rules that a header tells, in the order of their bits in an index: new ones go to the end."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        pixels: width times height.
        jpeg_side: the shorter side of a JPEG image in pixels, 0 for other formats.
        rules: those of `RULES` that apply; empty where the image is used unchanged.
        is_plain: whether the file is of a form that `decode` reads, and ends where such files end. Only the others need to be
            decoded to learn whether they can be read.
    """

    pixels: int
    jpeg_side: int
    rules: tuple[str, ...]
    is_plain: bool


def read_header(open_file: Callable[[], BinaryIO], name: str, num_bytes: int) -> Header | None:
    """Returns what the header of an image file says; None where Pillow cannot open it. Nothing is decoded.

    Args:
        open_file: opens it.
        name: its name; only endings of images say something about its format.
        num_bytes: its size.
    """
    try:
        with open_file() as file, Image.open(file) as image:
            file.seek(0)
            head = file.read(25)
            file.seek(max(0, num_bytes - 16))
            end = file.read(16)
            # Pillow decodes a whole PNG to look for EXIF after its pixels; what comes before them it knows already.
            exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
            upright = exif.get(0x0112, 1) not in range(2, 9)
            is_animated = image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False)
            applies = {
                TURNED: not upright and image.format in EXTENSIONS[".jpg"],
                NOT_TURNED: not upright and image.format not in EXTENSIONS[".jpg"],
                CMYK: image.mode == "CMYK",
                PALETTE: image.mode in ("P", "PA"),
                ALPHA: image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
                DEEP: image.format == "PNG" and head[24] == 16,
                ANIMATED: is_animated,
                MISNAMED: image.format not in EXTENSIONS.get(extension(name), (image.format,)),
                TINY: min(image.size) == 1,
                HUGE: max(image.size) > 10_000,
            }
            is_whole = {
                "JPEG": end.endswith(b"\xff\xd9"),
                "PNG": end[-8:-4] == b"IEND",
                "GIF": end.endswith(b";"),
                "WEBP": not is_animated and int.from_bytes(head[4:8], "little") + 8 == num_bytes,
            }.get(image.format or "", False)
            return Header(
                image.width * image.height,
                min(image.size) if image.format in EXTENSIONS[".jpg"] else 0,
                tuple(rule for rule in RULES if applies[rule]),
                is_whole and not applies[MISNAMED],
            )
    except Exception:  # A hostile header may raise anything: whether the image can be read is for `decode` to say.
        return None


def summary(root: str | Path, num_images: int, found: Mapping[str, Iterable[str]]) -> str:
    """Summarises which files are skipped or converted; empty if none are.

    Args:
        root: the folder that was opened.
        num_images: how many images are used.
        found: paths, relative to the folder, by rule.
    """
    lines = [f"\n  {len(paths)} {rule}: {named(paths, NUM_NAMED)}" for rule in found if (paths := sorted(found[rule]))]
    return "".join([f"{root}: {num_images} images are used, and found were", *lines]) if lines else ""


def named(paths: list[str], most: int) -> str:
    """Returns the first few paths, and dots if there are more."""
    return ", ".join(paths[:most]) + (", ..." if len(paths) > most else "")
