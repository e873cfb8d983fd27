"""A page of sections: tables, figures and pictures, as one HTML file that needs nothing else, and as Markdown."""

import base64
import dataclasses
import functools
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model_patch.experiments.report.output import RESULTS, figure_bytes
from model_patch.experiments.report.table import Table, markdown
from model_patch.files import write_bytes

REPORT = "report.html"
"""Name of the page in a folder."""

THUMBNAIL = 112
"""Longer side of a thumbnail in pixels; smaller images are not enlarged."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A matplotlib figure.

    Attributes:
        name: name of its PNG file, beside the Markdown.
        figure: the figure.
        text: what it shows, for those who do not see it.
    """

    name: str
    figure: object
    text: str

    @functools.cached_property
    def png(self) -> bytes:
        """The figure as a PNG file, drawn once for the Markdown and the page."""
        return figure_bytes(self.figure)


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images, each with what is said of it.

    Attributes:
        header: names of what is said, the first that of the path.
        rows: what is said of each image, its path first.
        thumbnails: JPEG files, one for each row, or none at all.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    thumbnails: Sequence[bytes] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page with a heading; paragraphs are plain text, in which `code` is marked as in Markdown."""

    title: str
    parts: Sequence[str | Table | Figure | Gallery]


def thumbnail(image: np.ndarray) -> bytes:
    """Returns an image, uint8 `(height, width, 3)`, as a small JPEG file."""
    from PIL import Image

    small, buffer = Image.fromarray(image), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_page(folder: Path, title: str, sections: Sequence[Section]):
    """Writes a page as `report.html`, and as `results.md` with figures beside it; the Markdown has no thumbnails."""
    text = "\n\n".join(part.rstrip("\n") for part in (f"# {title}", *_markdown(sections)))
    for figure in (part for section in sections for part in section.parts if isinstance(part, Figure)):
        write_bytes(folder / f"{figure.name}.png", figure.png)
    write_bytes(folder / f"{RESULTS}.md", f"{text}\n".encode())
    write_bytes(folder / REPORT, _html(title, sections).encode())


def _html(title: str, sections: Sequence[Section]) -> str:
    import jinja2

    environment = jinja2.Environment(loader=jinja2.PackageLoader(__package__, "."), autoescape=True, trim_blocks=True)
    environment.filters |= {"code": _code, "data_url": _data_url}
    environment.tests |= {name: lambda part, kind=kind: isinstance(part, kind) for name, kind in _KINDS.items()}
    return environment.get_template("page.html.j2").render(title=title, sections=sections)


_KINDS = {"text": str, "table": tuple, "figure": Figure, "gallery": Gallery}


def _code(text: str):
    """Returns text as HTML, with text in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _data_url(contents) -> str:
    """Returns a figure, as PNG, or the contents of a JPEG file, as a URL that holds it."""
    kind, contents = ("png", contents.png) if isinstance(contents, Figure) else ("jpeg", contents)
    return f"data:image/{kind};base64,{base64.b64encode(contents).decode()}"


def _markdown(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield f"## {section.title}"
        for part in section.parts:
            if isinstance(part, Figure):
                yield f"![{part.text}]({part.name}.png)"
            elif isinstance(part, Gallery):
                yield markdown(part.header, part.rows)
            else:
                yield markdown(*part) if isinstance(part, tuple) else part
