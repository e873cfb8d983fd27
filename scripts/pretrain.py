"""Trains a trunk from random weights: how the bundled one was made.

python scripts/pretrain.py --workdir=runs/pretrain
"""

from model_patch.experiments import cli


def train(config, workdir):
    """Trains the trunk."""
    from model_patch.experiments.pretrain import pretrain

    pretrain(config, workdir)


def dry_run(config):
    """Counts what would be trained."""
    from model_patch.experiments.dry_run import dry_run_pretrain

    dry_run_pretrain(config)


if __name__ == "__main__":
    cli.run_experiment("pretrain_fashion_mnist", train, dry_run)
