"""Learns one task on a frozen trunk in several ways and compares them.

    python scripts/transfer.py --trunk=bundled --data=digits --workdir=runs/digits
    python scripts/transfer.py --trunk='keras:MobileNetV2?weights=imagenet' --data=folder:photos \
        --train=last,scale_bias+last --seeds=0,1,2 --workdir=runs/photos

Writes to the workdir: results.json, results.md, accuracy_vs_parameters.png, a patch file per row under patches/, and
TensorBoard logs under tensorboard/. With several --learning_rates each has all that in a folder of its own, and the workdir a
table and a plot of accuracy against rate. --dry_run builds, counts and writes nothing. The same command again goes on with the rows that are missing. Flags override the
config; what is not a flag can be set with --config.NAME=VALUE.
"""

from pathlib import Path

from absl import flags

from model_patch import cli

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "transfer.py")
_WORKDIR, _DRY_RUN = cli.define_outputs()
_DEVICES = cli.define_devices()
_TRUNK = flags.DEFINE_string(
    "trunk",
    None,
    "bundled | keras:NAME[?alpha=0.35&weights=imagenet] | file:PATH[#layer] | hub:HANDLE | slim:CHECKPOINT | kerashub:PRESET",
)
_DATA = flags.DEFINE_string("data", None, "digits | mnist | faces | textures | folder:PATH | idx:PATH | tfds:NAME")
_TASK_NAME = flags.DEFINE_string("task_name", None, "Name of the task; by default the data's.")
_TRAIN = flags.DEFINE_list("train", None, "What to train, a row each: kinds and last joined by +, or full.")
_NORM_STATISTICS = flags.DEFINE_enum(
    "norm_statistics",
    None,
    ["auto", "batch", "frozen"],
    "Train with the task's own batch-norm statistics (batch), or with the trunk's (frozen); auto: by what is trained.",
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Height and width in pixels; by default the trunk's own.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Passes over the training images.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images per step.")
_OPTIMIZER = flags.DEFINE_string("optimizer", None, "adam | rmsprop | sgd")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "Highest learning rate; 0: by what is trained.")
_LEARNING_RATES = flags.DEFINE_list(
    "learning_rates", None, "Several, compared with each other, for example 0.003,0.01."
)
_AUGMENTATION = flags.DEFINE_string("augmentation", None, "none | auto | shift, flip, crop, colour joined by +")
_MAX_TRAIN_IMAGES = flags.DEFINE_integer("max_train_images", None, "Use this many training images; 0: all.")
_MAX_TEST_IMAGES = flags.DEFINE_integer("max_test_images", None, "Use this many test images; 0: all.")
_SKIP_BAD_IMAGES = flags.DEFINE_bool("skip_bad_images", None, "Leave out image files that cannot be read.")
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds, a row of results each, for example 0,1,2.")


def main():
    """Flags to config, config to `transfer`."""
    from model_patch.training.transfer import transfer

    config = cli.override(
        _CONFIG.value,
        trunk=_TRUNK.value,
        data=_DATA.value,
        task_name=_TASK_NAME.value,
        train=_TRAIN.value and tuple(_TRAIN.value),
        norm_statistics=_NORM_STATISTICS.value,
        image_size=_IMAGE_SIZE.value,
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE.value,
        optimizer=_OPTIMIZER.value,
        learning_rate=_LEARNING_RATE.value,
        learning_rates=_LEARNING_RATES.value and cli.numbers("learning_rates", _LEARNING_RATES.value),
        augmentation=_AUGMENTATION.value,
        max_train_images=_MAX_TRAIN_IMAGES.value,
        max_test_images=_MAX_TEST_IMAGES.value,
        skip_bad_images=_SKIP_BAD_IMAGES.value,
        seeds=_SEEDS.value and cli.integers("seeds", _SEEDS.value),
    )
    if _DRY_RUN.value:
        from model_patch.dry_run import dry_run_transfer

        dry_run_transfer(config)
    else:
        from model_patch.training.sweep import sweep

        with _DEVICES(_WORKDIR.value) as workdir:
            (sweep if config.learning_rates else transfer)(config, workdir)


if __name__ == "__main__":
    cli.run(main, resumes=True)
