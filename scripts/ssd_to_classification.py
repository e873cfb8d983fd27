"""Turns a detector into a classifier: replaces its head, and trains other images on its trunk in several ways.

    python scripts/ssd_to_classification.py --detector=runs/detect --data=mnist --workdir=runs/ssd_to_mnist

The detector is a folder that `scripts/detect.py train` wrote, or the spec of any trunk. Everything else is as in
`scripts/transfer.py`: a row per way to train, a table of accuracies and trained parameters, a patch file per row.
"""

from model_patch.experiments import cli

_DETECTOR = cli.flags.DEFINE_string("detector", None, "Folder of a trained detector, or a trunk, scheme:rest.")
_DETECTOR_SEED = cli.flags.DEFINE_integer("detector_seed", None, "Which detector of the folder; by default the first.")


def with_trunk(config):
    """Returns the config with the detector's trunk."""
    from model_patch.errors import ModelPatchError
    from model_patch.experiments.detector import trunk_of

    if _DETECTOR.value:
        config.trunk = trunk_of(_DETECTOR.value, _DETECTOR_SEED.value)
    if not config.trunk:
        raise ModelPatchError("no detector is given: expected --detector=FOLDER of one, or the spec of a trunk")
    return config


def train(config, workdir):
    """Trains the classifiers."""
    from model_patch.experiments.transfer import transfer

    transfer(with_trunk(config), workdir)


def dry_run(config):
    """Counts what would be trained."""
    from model_patch.experiments.dry_run import dry_run_transfer

    dry_run_transfer(with_trunk(config))


if __name__ == "__main__":
    cli.run_experiment("ssd_to_classification", train, dry_run)
