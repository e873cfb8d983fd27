"""What image files of real life are, and what becomes of them: the rules of docs/reliability.md, by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from model_patch.preprocessing import FORMATS

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
UNREADABLE = "cannot be read: left out"
TURNED = "turned as their EXIF orientation says"
NOT_TURNED = "with an EXIF orientation that is not followed, as they are no JPEG"
CMYK = "CMYK: made RGB"
PALETTE = "with a palette: made RGB"
ALPHA = "with alpha, which is left out"
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


def rules_of(path: Path) -> list[str]:
    """Returns the rules that apply to an image file, by what its header says; empty where it is used as it is stored.

    Nothing is decoded. A file that Pillow cannot open has no rules: whether it can be read is for `decode` to say.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            file.seek(0)
            head = file.read(25)
            upright = image.getexif().get(0x0112, 1) not in range(2, 9)
            applies = {
                TURNED: not upright and image.format in EXTENSIONS[".jpg"],
                NOT_TURNED: not upright and image.format not in EXTENSIONS[".jpg"],
                CMYK: image.mode == "CMYK",
                PALETTE: image.mode in ("P", "PA"),
                ALPHA: image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
                DEEP: image.format == "PNG" and head[24] == 16,
                ANIMATED: image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False),
                MISNAMED: image.format not in EXTENSIONS.get(path.suffix.lower(), ()),
                TINY: min(image.size) == 1,
                HUGE: max(image.size) > 10_000,
            }
            return [rule for rule, does in applies.items() if does]
    except Exception:  # A hostile header may raise anything, and then says nothing.
        return []


def summary(root: Path, num_images: int, found: Mapping[str, Iterable[str]]) -> str:
    """Says in one text what was found that is not used as it is stored; empty where there is nothing.

    Args:
        root: the folder that was opened.
        num_images: how many images are used.
        found: paths, relative to the folder, by rule.
    """
    lines = [f"\n  {len(paths)} {rule}: {named(paths, NUM_NAMED)}" for rule in found if (paths := sorted(found[rule]))]
    return "".join([f"{root}: {num_images} images are used, and found were", *lines]) if lines else ""


def named(paths: list[str], most: int) -> str:
    """Returns the first so many paths, and dots where there are more."""
    return ", ".join(paths[:most]) + (", ..." if len(paths) > most else "")
