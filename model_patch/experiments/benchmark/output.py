"""What a suite writes: its figures as JSON, a page of tables, a plot."""

from collections.abc import Sequence
from pathlib import Path

from model_patch.experiments.report.machine import machine
from model_patch.experiments.report.output import named, write_report
from model_patch.experiments.report.table import Table
from model_patch.experiments.workdir import versions
from model_patch.files import write_json


def new_results(**facts) -> dict:
    """Returns the results of a suite, still without figures: what was timed, and the machine and versions."""
    return {**facts, "machine": machine(), "versions": versions(), "rows": []}


def write_suite(folder: Path, name: str, title: str, results: dict, parts: Sequence[str | Table], figure=None, show=0):
    """Prints a table and writes `NAME.json`, `NAME.md` and, for a figure, `NAME.png`.

    Args:
        folder: is made if it does not exist.
        name: name of the suite.
        title: heading of the page.
        results: as `new_results` makes them, with figures.
        parts: Markdown and tables that follow machine and versions; empty parts are left out.
        figure: a matplotlib figure.
        show: which of the tables is printed.
    """
    write_json(folder / f"{name}.json", results)
    about = named(results["machine"] | results["versions"])
    write_report(folder, title, [about, *parts], name, show, **({name: figure} if figure else {}))
