"""Turns a detector into a classifier: cuts off its head, and learns other images on its trunk in several ways.

    python scripts/ssd_to_classification.py --detector=runs/detect --data=mnist --workdir=runs/ssd_to_mnist

The detector is a folder that `scripts/detect.py train` wrote, or the spec of any trunk. Everything else is as in
`scripts/transfer.py`: a row per way to learn, a table of accuracies and trained parameters, a patch file per row.
"""

from pathlib import Path

from absl import flags

from model_patch.experiments import cli

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "ssd_to_classification.py")
_WORKDIR, _DRY_RUN = cli.define_outputs()
_DEVICES = cli.define_devices()
_DETECTOR = flags.DEFINE_string(
    "detector", None, "Folder of a trained detector, or a trunk, scheme:rest; by default the config's trunk."
)
_DETECTOR_SEED = flags.DEFINE_integer("detector_seed", None, "Which detector of the folder; by default the first.")
_FIELDS = cli.Fields()
_FIELDS.strings(data="digits | mnist | faces | textures | folder:PATH | idx:PATH | tfds:NAME")
_FIELDS.lists(train="What to train, a row each: kinds and last joined by +, or full.")
_FIELDS.integers(
    image_size="Height and width in pixels; 0: the trunk's own.", epochs="Passes over the training images."
)
_FIELDS.integer_lists(seeds="Seeds, a row of results each, for example 0,1,2.")


def main():
    """Detector to trunk, flags to config, config to `transfer`."""
    from model_patch.detection.detector import trunk_of
    from model_patch.errors import ModelPatchError
    from model_patch.experiments.transfer import transfer

    if not (_DETECTOR.value or _CONFIG.value.trunk):
        raise ModelPatchError("no detector is given: expected --detector=FOLDER of one, or the spec of a trunk")
    trunk = _DETECTOR.value and trunk_of(_DETECTOR.value, _DETECTOR_SEED.value)
    config = _FIELDS.over(_CONFIG.value, trunk=trunk)
    if _DRY_RUN.value:
        from model_patch.experiments.dry_run import dry_run_transfer

        dry_run_transfer(config)
    else:
        with _DEVICES(_WORKDIR.value) as workdir:
            transfer(config, workdir)


if __name__ == "__main__":
    cli.run(main, resumes=True)
