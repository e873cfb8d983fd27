"""What a suite writes: its figures as JSON, a page of tables, a plot."""

from collections.abc import Sequence
from pathlib import Path

from model_patch.experiments.report.comparison import save_figure
from model_patch.files import write_bytes, write_json


def write_report(folder: Path, name: str, title: str, results: dict, parts: Sequence[str], figure=None):
    """Writes `NAME.json`, `NAME.md` and, of a figure, `NAME.png`.

    Args:
        folder: is made where it is not there.
        name: of the suite.
        title: heading of the page.
        results: the figures, with `machine` and `versions`, which the page says, too.
        parts: what follows, in Markdown; empty ones are left out.
        figure: of matplotlib.
    """
    write_json(folder / f"{name}.json", results)
    about = ", ".join(f"{k} {v}" for k, v in (results["machine"] | results["versions"]).items())
    page = "\n\n".join(part.rstrip("\n") for part in (f"# {title}", about, *parts) if part)
    write_bytes(folder / f"{name}.md", f"{page}\n".encode())
    if figure:
        save_figure(figure, folder / f"{name}.png")
