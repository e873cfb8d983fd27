"""Tables, for the terminal and for Markdown files."""

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows."""

Columns = Mapping[str, Any]
"""By heading the cells of a column: a format string of a row's fields, such as `{accuracy:.4f}`, or a function of the row."""


class _Formatter(string.Formatter):
    """Formats fields as `str.format` does, with a space before the percent sign."""

    def format_field(self, value, format_spec):
        text = super().format_field(value, format_spec)
        return f"{text[:-1]} %" if format_spec.endswith("%") else text


def table(rows: Iterable[Mapping[str, Any]], columns: Columns) -> Table:
    """Formats rows; a cell is empty where its row lacks a field of the format."""
    formatter = _Formatter()

    def cell(row: Mapping[str, Any], column) -> str:
        try:
            return column(row) if callable(column) else formatter.vformat(column, (), row)
        except KeyError:
            return ""

    return list(columns), [[cell(row, column) for column in columns.values()] for row in rows]


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]):
    """Prints a table to the terminal; the first column is left-aligned, the others right."""
    printed = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        # Names of rows stay on one line in a terminal of 80 columns; headings break between words.
        printed.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=not i)
    for row in rows:
        printed.add_row(*row)
    console = Console()
    Console(width=None if console.is_terminal else max(console.width, 120)).print(printed)


def print_lines(header: Sequence[str], rows: Sequence[Sequence[str]]):
    """Prints a line per row in columns, never broken, so that `grep` and `cut` work on them."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the same table as Markdown, ending in a newline."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
