"""Trains several tasks at once on one trunk, and compares what they may share.

    python scripts/multitask.py --workdir=runs/multitask
    python scripts/multitask.py --trunk='keras:MobileNetV2?weights=imagenet' --data=folder:flowers,folder:birds \
        --share=nothing,trunk,trunk+patch --seeds=0,1,2 --workdir=runs/photos
    python scripts/multitask.py --data=mnist --resolutions=96,64,48,32 --workdir=runs/resolutions

What --share means: `nothing`, each task has a net of its own; `trunk`, each has its own patch and head; `trunk+patch`,
each has its own head only, batch norm is shared. Each is a row of the comparison.

A resolution is added later, trunk and head as they are, with the trunk and a patch of an earlier run:

    python scripts/multitask.py --trunk='keras:MobileNetV2?alpha=0.35&weights=runs/resolutions/trunks/trunk-seed0.safetensors' \
        --notrain_trunk --head_from=runs/resolutions/patches/trunk-mnist-96px-seed0.safetensors --train=scale_bias \
        --share=trunk --data=mnist --resolutions=80 --workdir=runs/added

Writes to the workdir: results.json, results.md, accuracy_by_task.png, a patch file per row and task under patches/, the
trained trunks under trunks/, and TensorBoard logs under tensorboard/. The same command again goes on with the rows that
are missing. Flags override the config; what is not a flag can be set with --config.NAME=VALUE.
"""

from pathlib import Path

from absl import flags

from model_patch import cli

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "multitask.py")
_WORKDIR, _DRY_RUN = cli.define_outputs()
_TRUNK = flags.DEFINE_string(
    "trunk",
    None,
    "bundled | keras:NAME[?alpha=0.35&weights=imagenet] | file:PATH[#layer] | hub:HANDLE | slim:CHECKPOINT | kerashub:PRESET",
)
_DATA = flags.DEFINE_list(
    "data", None, "One per task: digits | mnist | faces | textures | folder:PATH | idx:PATH | tfds:NAME"
)
_TASK_NAMES = flags.DEFINE_list("task_names", None, "Names of the tasks; by default the data's.")
_IMAGE_SIZES = flags.DEFINE_list("image_sizes", None, "Pixels, one per task; 0: the trunk's own.")
_RESOLUTIONS = flags.DEFINE_list("resolutions", None, "Image sizes at which one data set is learnt, each a task.")
_SHARE = flags.DEFINE_list("share", None, "What the tasks share, a row each: nothing, trunk, trunk+patch.")
_TRAIN = flags.DEFINE_string("train", None, "What of a task is learnt: kinds and last joined by +.")
_HEAD = flags.DEFINE_enum(
    "head", None, ["auto", "own", "shared"], "A head per task, or one; auto: one for resolutions."
)
_HEAD_FROM = flags.DEFINE_string("head_from", None, "Patch file whose head all tasks take and keep.")
_TRAIN_TRUNK = flags.DEFINE_bool("train_trunk", None, "Learn the trunk from all tasks, or leave it as it is.")
_NORM_STATISTICS = flags.DEFINE_enum(
    "norm_statistics",
    None,
    ["auto", "batch", "frozen"],
    "Train with the tasks' own batch-norm statistics (batch), or with the trunk's (frozen).",
)
_SAMPLER = flags.DEFINE_enum(
    "sampler", None, ["uniform", "proportional", "annealed"], "Which share of a step's images each task has."
)
_SAMPLER_POWER = flags.DEFINE_float("sampler_power", None, "Exponent of the data's sizes; if annealed, at the end.")
_TASK_WEIGHTS = flags.DEFINE_list("task_weights", None, "What each task's mean loss counts; by default 1 each.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Passes over as many images as all tasks have together.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images per task and step, on average.")
_OPTIMIZER = flags.DEFINE_string("optimizer", None, "adam | adamw | rmsprop | sgd")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "Highest learning rate; 0: by what is trained.")
_AUGMENTATION = flags.DEFINE_string("augmentation", None, "none | auto | shift, flip, crop, colour joined by +")
_VALIDATION_FRACTION = flags.DEFINE_float(
    "validation_fraction", None, "Held out to choose the best epoch; 0: the last."
)
_MAX_TRAIN_IMAGES = flags.DEFINE_integer("max_train_images", None, "Use this many training images per task; 0: all.")
_MAX_TEST_IMAGES = flags.DEFINE_integer("max_test_images", None, "Use this many test images per task; 0: all.")
_SKIP_BAD_IMAGES = flags.DEFINE_bool("skip_bad_images", None, "Leave out image files that cannot be read.")
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds, a row of results each, for example 0,1,2.")


def main():
    """Flags to config, config to `multitask`."""
    from model_patch.training.multitask import multitask

    def integers(flag: flags.FlagHolder):
        return flag.value and cli.integers(flag.name, flag.value)

    config = cli.override(
        _CONFIG.value,
        trunk=_TRUNK.value,
        data=_DATA.value and tuple(_DATA.value),
        task_names=_TASK_NAMES.value and tuple(_TASK_NAMES.value),
        image_sizes=integers(_IMAGE_SIZES),
        resolutions=integers(_RESOLUTIONS),
        share=_SHARE.value and tuple(_SHARE.value),
        train=_TRAIN.value,
        head=_HEAD.value,
        head_from=_HEAD_FROM.value,
        train_trunk=_TRAIN_TRUNK.value,
        norm_statistics=_NORM_STATISTICS.value,
        sampler=_SAMPLER.value,
        sampler_power=_SAMPLER_POWER.value,
        task_weights=_TASK_WEIGHTS.value and cli.numbers("task_weights", _TASK_WEIGHTS.value),
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE.value,
        optimizer=_OPTIMIZER.value,
        learning_rate=_LEARNING_RATE.value,
        augmentation=_AUGMENTATION.value,
        validation_fraction=_VALIDATION_FRACTION.value,
        max_train_images=_MAX_TRAIN_IMAGES.value,
        max_test_images=_MAX_TEST_IMAGES.value,
        skip_bad_images=_SKIP_BAD_IMAGES.value,
        seeds=integers(_SEEDS),
    )
    if _DRY_RUN.value:
        from model_patch.dry_run import dry_run_multitask

        dry_run_multitask(config)
    else:
        multitask(config, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, resumes=True)
