"""Runs the scripts as their users do: in a process of their own, with flags."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_script(name: str, *arguments: str, timeout: float = 1800, **environment: str) -> subprocess.CompletedProcess:
    """Runs `scripts/NAME.py`; returns its exit status and what it printed, as text.

    Args:
        name: without `.py`.
        arguments: flags and other arguments.
        timeout: seconds after which the test fails.
        environment: variables to set besides those of this process.
    """
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment})


def default_interrupt():
    """Lets Ctrl-C reach a process, as its `preexec_fn`, also where the tests run in a shell's background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def error_of(ran: subprocess.CompletedProcess) -> str:
    """Returns the one sentence of a script that refused what it was given."""
    assert ran.returncode == 2 and "Traceback" not in ran.stderr, ran.stderr[-2000:]
    (error,) = (line.removeprefix("error: ") for line in ran.stderr.splitlines() if line.startswith("error: "))
    return error
