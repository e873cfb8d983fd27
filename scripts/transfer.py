"""Trains one task on a frozen trunk in several ways and compares them.

    python scripts/transfer.py --trunk=bundled --data=digits --workdir=runs/digits
    python scripts/transfer.py --trunk='keras:MobileNetV2?weights=imagenet' --data=folder:photos \
        --train=last,scale_bias+last --seeds=0,1,2 --workdir=runs/photos

    python scripts/transfer.py --trunk=bundled --data='folder:customers/*' --train=scale_bias+last --workdir=runs/customers

Several data sets (a pattern of folders, specs joined by commas, or @FILE with a spec per line) are trained in one process,
each a task with its own patches/NAME.safetensors.

Writes to the workdir: report.html and results.md with all tables and figures, results.json, a patch file per row under
patches/, the one to ship as best.safetensors, what it gets wrong as evaluation.json, and TensorBoard logs under
tensorboard/. With several --learning_rates each rate has a folder with all that, and the workdir a
table and a plot of accuracy against learning rate. The same command resumes with the rows that are missing.
"""

from model_patch.experiments import cli


def train(config, workdir):
    """Trains at one learning rate, or compares several, or trains many data sets."""
    from model_patch.experiments.many import is_many, transfer_many
    from model_patch.experiments.sweep import sweep
    from model_patch.experiments.transfer import transfer

    (transfer_many if is_many(config.data) else sweep if config.learning_rates else transfer)(config, workdir)


def dry_run(config):
    """Counts what would be trained."""
    from model_patch.experiments.dry_run import dry_run_transfer
    from model_patch.experiments.many import data_specs

    config.data, *_ = data_specs(config.data)  # The others take as much each.
    dry_run_transfer(config)


if __name__ == "__main__":
    cli.run_experiment("transfer", train, dry_run)
