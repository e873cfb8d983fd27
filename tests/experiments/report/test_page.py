import re

import numpy as np

from model_patch.experiments.report.output import new_axes
from model_patch.experiments.report.page import Figure, Gallery, Section, thumbnail, write_page


def sections(thumbnails=()):
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1])
    rows = [("a<b>.png", "cat"), ("c.png", "dog & cat")]
    parts = ["See `code` & <more>.", (("name", "number"), [("x", "1")]), Figure("line", figure, "A line")]
    return [Section("First", parts), Section("Second", [Gallery(("path", "label"), rows, thumbnails)])]


def test_a_page_is_one_file_and_the_markdown_has_the_same_tables(tmp_path):
    images = [thumbnail(np.full((300, 200, 3), grey, "uint8")) for grey in (10, 200)]
    write_page(tmp_path, "Title", sections(images))
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "results.md"))
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page), "nothing is fetched"
    assert page.count("data:image/jpeg") == 2 and page.count("data:image/png") == 1
    assert "<code>code</code> &amp; &lt;more&gt;" in page and "a&lt;b&gt;.png" in page
    for line in ("## First", "| x | 1 |", "![A line](line.png)", "| a<b>.png | cat |"):
        assert line in text
    assert (tmp_path / "line.png").exists()


def test_without_thumbnails_a_gallery_is_a_table(tmp_path):
    write_page(tmp_path, "Title", sections())
    assert "<td>a&lt;b&gt;.png</td>" in (tmp_path / "report.html").read_text()


def test_a_page_written_twice_is_the_same(tmp_path):
    for name in ("one", "two"):
        write_page(tmp_path / name, "Title", sections([thumbnail(np.zeros((9, 9, 3), "uint8"))] * 2))
    for name in ("report.html", "results.md", "line.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
