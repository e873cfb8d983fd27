"""Progress bars of all that takes long."""

import sys
import weakref
from collections.abc import Iterable

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
"""In a log, which no one watches."""

_open: weakref.WeakSet[tqdm] = weakref.WeakSet()


def progress(
    iterable: Iterable | None = None,
    description: str = "",
    total: int | None = None,
    unit: str = "step",
    initial: int = 0,
) -> tqdm:
    """Returns a bar on standard error, which disappears when it ends.

    On a terminal and in a notebook it appears after a second; in a log it is one line every half minute.

    Args:
        iterable: what to iterate over; without it the caller calls `update`.
        description: text before the bar.
        total: number of `unit`s; None if it is not known.
        unit: what is counted.
        initial: how many are finished already.
    """
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    delay, interval = (1.0, 0.1) if watched else (SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_LINES)
    pace = {"delay": delay, "mininterval": interval, "maxinterval": max(interval, 10.0)}
    bar = tqdm(iterable, description, total, unit=unit, initial=initial, leave=False, **pace)
    _open.add(bar)
    return bar


def close_all():
    """Closes all bars, so that a message has a line to itself."""
    for bar in list(_open):
        bar.close()
