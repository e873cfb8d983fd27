"""One figure over several seeds."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one row came to with each of its seeds: accuracies in 0..1, or errors; at least one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """The largest less the smallest."""
        return max(self.values) - min(self.values)

    @property
    def bars(self) -> tuple[float, float]:
        """How far the smallest lies below the mean and the largest above it, as error bars take them."""
        return self.mean - min(self.values), max(self.values) - self.mean

    def above(self, other: "Sample", least: float = 0.0) -> bool:
        """Whether the mean is higher than another's by more than either spread, and by at least `least`."""
        return self.mean - other.mean > max(self.spread, other.spread, least)

    def __str__(self):
        return f"{self.mean:.4f} ({self.spread:.4f})"
