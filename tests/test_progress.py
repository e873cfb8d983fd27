"""A log is not filled with progress."""

import io
import sys
import time

import pytest

from model_patch import progress as module
from model_patch.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, monkeypatch) -> str:
    """Returns what is written while four things take a third of a second each."""
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress(range(4), "counting", unit="sheep"):
        time.sleep(0.35)
    return stream.getvalue()


def test_a_terminal_sees_a_bar_move(monkeypatch):
    assert shown(Terminal(), monkeypatch).count("counting:") >= 1


@pytest.mark.parametrize(("seconds", "lines"), [(3600.0, {0}), (1.0, {1, 2, 3})])
def test_a_log_gets_few_lines(monkeypatch, seconds, lines):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", seconds)
    assert shown(io.StringIO(), monkeypatch).count("counting:") in lines
