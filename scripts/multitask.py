"""Trains several tasks at once on one trunk, and compares what they may share.

    python scripts/multitask.py --workdir=runs/multitask
    python scripts/multitask.py --trunk='keras:MobileNetV2?weights=imagenet' --data=folder:flowers,folder:birds \
        --share=nothing,trunk,trunk+patch --seeds=0,1,2 --workdir=runs/photos
    python scripts/multitask.py --data=mnist --resolutions=96,64,48,32 --workdir=runs/resolutions

Values of --share: `nothing`, each task has a net of its own; `trunk`, each has its own patch and head; `trunk+patch`,
each has its own head only, and batch norm is shared. Each is a row of the comparison.

To add a resolution later, with trunk and head frozen, give the trunk and a patch of an earlier run:

    python scripts/multitask.py --trunk='keras:MobileNetV2?alpha=0.35&weights=runs/resolutions/trunks/trunk-seed0.safetensors' \
        --notrain_trunk --head_from=runs/resolutions/patches/trunk-mnist-96px-seed0.safetensors --train=scale_bias \
        --share=trunk --data=mnist --resolutions=80 --workdir=runs/added

Writes to the workdir: results.json, results.md, accuracy_by_task.png, a patch file per row and task under patches/, the
trained trunks under trunks/, and TensorBoard logs under tensorboard/. The same command resumes with the rows that are missing.
"""

from model_patch.experiments import cli


def train(config, workdir):
    """Trains the tasks together."""
    from model_patch.experiments.multitask import multitask

    multitask(config, workdir)


def dry_run(config):
    """Counts what would be trained."""
    from model_patch.experiments.dry_run import dry_run_multitask

    dry_run_multitask(config)


if __name__ == "__main__":
    cli.run_experiment("multitask", train, dry_run)
