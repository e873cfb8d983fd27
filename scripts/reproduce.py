"""Runs the paper's experiments at our scale and writes the page of their results, docs/results.md.

    python scripts/reproduce.py --suite=small --workdir=runs/small
    python scripts/reproduce.py --suite=real --workdir=runs/real      # after scripts/real_bench.py
    python scripts/reproduce.py --suite=small --workdir=runs/small --only=rates,expressivity
    python scripts/reproduce.py --suite=small --workdir=runs/smoke --smoke

Each experiment runs in a process of its own and has a folder of its own in the workdir. The same command resumes where it
stopped, skips what is finished, and then writes the page again. With --smoke every run is as short as possible, and the page
is written to the workdir.
"""

from pathlib import Path

from model_patch.experiments import cli

_SUITE = cli.flags.DEFINE_string("suite", "small", "Which experiments: small or real.")
_WORKDIR = cli.flags.DEFINE_string("workdir", None, "Folder for the runs.", required=True)
_OUTPUT = cli.flags.DEFINE_string("output", None, "Folder of the page; by default docs, with --smoke the workdir.")
_ONLY = cli.flags.DEFINE_list("only", (), "Names of the experiments to run; by default all.")
_SMOKE = cli.flags.DEFINE_bool("smoke", False, "Keep every run as short as possible, to check that it works.")


def main():
    """Flags to `reproduce`."""
    from model_patch.experiments.reproduce import ROOT, reproduce

    output = _OUTPUT.value or (Path(_WORKDIR.value) / "page" if _SMOKE.value else ROOT / "docs")
    reproduce(_SUITE.value, _WORKDIR.value, output, only=_ONLY.value, smoke=_SMOKE.value)


if __name__ == "__main__":
    cli.run(main, resumes=True)
