"""Tables, for the terminal and for Markdown files."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]):
    """Prints a table to the terminal; the first column is left-aligned, the others right."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the same table as Markdown, ending in a newline."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
