"""Learns functions of one number by the biases of a net whose weights are random and fixed.

    python scripts/expressivity.py --workdir=runs/expressivity

Writes to the workdir: results.json, results.md and expressivity.png. --dry_run counts, takes one step and writes nothing. The same command again goes on with the rows that are
missing. Fields of the config are set with --config.NAME=VALUE.
"""

from pathlib import Path

from model_patch.experiments import cli

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "expressivity.py")
_WORKDIR, _DRY_RUN = cli.define_outputs()


def main():
    """Config to `expressivity`."""
    from model_patch.experiments.expressivity import dry_run, expressivity

    if _DRY_RUN.value:
        dry_run(_CONFIG.value)
    else:
        expressivity(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, resumes=True)
