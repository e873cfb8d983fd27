"""Timing things against one another: interleaved, so that whatever else the machine does falls on all of them."""

import concurrent.futures
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, seconds: float = float("inf")
) -> dict[str, np.ndarray]:
    """Times calls in turns: every round makes each of them once, in a new random order.

    Args:
        calls: by name; each must wait for its result.
        rounds: timed rounds at most, at least 1.
        warmup: rounds before them that are not timed, for what happens on first calls only.
        seconds: no further round begins after this time, warm-up excluded; at least three are run.

    Returns:
        Seconds `(rounds,)` by name.
    """
    timed: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    begin = time.perf_counter()
    for i in range(warmup + rounds):
        if i == warmup:
            begin = time.perf_counter()
        if i >= warmup + 3 and time.perf_counter() - begin > seconds:
            break
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            calls[name]()
            if i >= warmup:
                timed[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in timed.items()}


def milliseconds(seconds: np.ndarray, percent: float = 50, digits: int = 3) -> float:
    """Returns a percentile of times, by default the median, in rounded milliseconds."""
    return round(1e3 * float(np.percentile(seconds, percent)), digits)


def spread(times: np.ndarray) -> dict[str, float]:
    """Returns the median and the quartiles of times in milliseconds, and the number of rounds."""
    return {
        "ms": milliseconds(times),
        "ms_p25": milliseconds(times, 25),
        "ms_p75": milliseconds(times, 75),
        "rounds": len(times),
    }


def in_own_process(function: Callable, *arguments):
    """Returns what a function of a module returns in a new process, whose memory holds nothing else."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def resident_bytes() -> int:
    """Returns the memory that this process holds at present, in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def forget_peak():
    """Resets `peak_bytes` to the memory that is held at present (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Returns the most memory that this process held since it began, or since `forget_peak`, in bytes (Linux)."""
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])
