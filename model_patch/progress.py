"""Progress bars of all that takes long."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
"""In a log, which no one watches."""


def progress(
    iterable: Iterable | None = None,
    description: str = "",
    total: int | None = None,
    unit: str = "step",
    initial: int = 0,
) -> tqdm:
    """Returns a bar on standard error, which goes when it ends.

    On a terminal and in a notebook it moves and begins after a second or two; into a file it is a line each half minute.

    Args:
        iterable: what is gone through; without it the caller calls `update`.
        description: stands before the bar.
        total: of `unit`; None if it is not known.
        unit: what is counted.
        initial: how many are finished already.
    """
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    delay, interval = (1.0, 0.1) if watched else (SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_LINES)
    pace = {"delay": delay, "mininterval": interval, "maxinterval": max(interval, 10.0)}
    return tqdm(iterable, description, total, unit=unit, initial=initial, leave=False, **pace)
