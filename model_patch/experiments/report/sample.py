"""One figure over several seeds."""

import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any


def grouped(rows: Iterable[dict], *fields: str) -> dict[Any, list[dict]]:
    """Returns the rows by their value of a field, or by the tuple of several, in order of first appearance."""
    groups: dict[Any, list[dict]] = {}
    for row in rows:
        key = tuple(row[field] for field in fields)
        groups.setdefault(key if len(fields) > 1 else key[0], []).append(row)
    return groups


def figure_of(row: dict) -> str:
    """Returns the name of what a row is compared by, see `Task.figures`; runs of earlier versions had accuracy only."""
    return row.get("figure", "accuracy")


def figure_of_all(rows: Iterable[dict]) -> str:
    """Returns the name of what all rows are compared by; `figure` where it differs."""
    figures = {figure_of(row) for row in rows}
    return figures.pop() if len(figures) == 1 else "figure"


@dataclasses.dataclass(frozen=True)
class Sample:
    """The figures of one row of a table, one per seed: accuracies or the like, or errors; at least one."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, rows: Iterable[dict], field: str = "") -> "Sample":
        """Returns the sample of a field, which has one value in each row; by default of the test figure."""
        return cls(tuple(row[field or f"test_{figure_of(row)}"] for row in rows))

    @property
    def mean(self) -> float:
        """Their mean, correctly rounded: that of equal values is their value, so that no bar is negative."""
        return float(statistics.mean(self.values))

    @property
    def spread(self) -> float:
        """The largest minus the smallest."""
        return max(self.values) - min(self.values)

    @property
    def bars(self) -> tuple[float, float]:
        """Distances of the smallest below the mean and of the largest above it, as matplotlib's error bars take them."""
        return self.mean - min(self.values), max(self.values) - self.mean

    def above(self, other: "Sample", least: float = 0.0) -> bool:
        """Whether the mean is higher than another's by more than either spread, and by at least `least`."""
        return self.mean - other.mean > max(self.spread, other.spread, least)

    def __str__(self):
        return f"{self.mean:.4f} ({self.spread:.4f})"
