"""Trains one task on a frozen trunk in several ways and compares them.

    python scripts/transfer.py --trunk=bundled --data=digits --workdir=runs/digits
    python scripts/transfer.py --trunk='keras:MobileNetV2?weights=imagenet' --data=folder:photos \
        --train=last,scale_bias+last --seeds=0,1,2 --workdir=runs/photos

Writes to the workdir: report.html and results.md with all tables and figures, results.json, a patch file per row under
patches/, the one to ship as best.safetensors, what it gets wrong as evaluation.json, and TensorBoard logs under
tensorboard/. With several --learning_rates each rate has a folder with all that, and the workdir a
table and a plot of accuracy against learning rate. The same command resumes with the rows that are missing.
"""

from model_patch.experiments import cli


def train(config, workdir):
    """Trains at one learning rate, or compares several."""
    from model_patch.experiments.sweep import sweep
    from model_patch.experiments.transfer import transfer

    (sweep if config.learning_rates else transfer)(config, workdir)


def dry_run(config):
    """Counts what would be trained."""
    from model_patch.experiments.dry_run import dry_run_transfer

    dry_run_transfer(config)


if __name__ == "__main__":
    cli.run_experiment("transfer", train, dry_run)
