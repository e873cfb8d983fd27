"""Fits functions of one variable by training the biases of a net whose weights are random and fixed.

    python scripts/expressivity.py --workdir=runs/expressivity

Writes to the workdir: results.json, results.md and expressivity.png. The same command resumes with the rows that are missing.
"""

from model_patch.experiments import cli


def train(config, workdir):
    """Fits each function with nets of each width."""
    from model_patch.experiments.expressivity import expressivity

    expressivity(config, workdir)


def dry_run(config):
    """Counts what would be trained."""
    from model_patch.experiments.expressivity import dry_run

    dry_run(config)


if __name__ == "__main__":
    cli.run_experiment("expressivity", train, dry_run, devices=False)
