"""Tables, for the terminal and for Markdown files."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]):
    """Prints a table to the terminal; the first column is left-aligned, the others right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        # Names of rows stand whole in a terminal of 80 columns; headings break between words.
        table.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=not i)
    for row in rows:
        table.add_row(*row)
    console = Console()
    Console(width=None if console.is_terminal else max(console.width, 120)).print(table)


def print_lines(header: Sequence[str], rows: Sequence[Sequence[str]]):
    """Prints a line per row in columns, never broken, so that `grep` and `cut` can be used on them."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the same table as Markdown, ending in a newline."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
