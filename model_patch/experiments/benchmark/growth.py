"""How a cost grows with the work: a law fitted to what was measured."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class CostFit:
    """Cost by amount of work, in two forms.

    Attributes:
        base: cost that is there without any work, of the straight line `base + each * work`.
        each: cost of one more.
        exponent: of the power law `factor * work ** exponent`: 0 where work costs nothing, 1 where cost is proportional.
        largest_error: largest relative difference of the straight line from a measured cost.
    """

    base: float
    each: float
    exponent: float
    largest_error: float

    def line(self, work) -> np.ndarray:
        """Returns what the straight line says."""
        return self.base + self.each * np.asarray(work, "float64")


def fit_cost(work: Sequence[float], cost: Sequence[float]) -> CostFit:
    """Fits both forms by least squares of relative errors.

    Args:
        work: at least two different amounts, more than 0.
        cost: what each took, more than 0.
    """
    x, y = (np.asarray(each, "float64") for each in (work, cost))
    terms = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    base, each = np.linalg.lstsq(terms, np.ones_like(y), rcond=None)[0]
    exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
    return CostFit(float(base), float(each), float(exponent), float(np.abs((base + each * x) / y - 1).max()))
