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

from model_patch.experiments import cli

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "transfer.py")
_WORKDIR, _DRY_RUN = cli.define_outputs()
_DEVICES = cli.define_devices()
_FIELDS = cli.Fields()
_FIELDS.strings(
    trunk="bundled | keras:NAME[?alpha=0.35&weights=imagenet] | file:PATH[#layer] | hub:HANDLE | slim:CHECKPOINT | "
    "kerashub:PRESET",
    data="digits | mnist | faces | textures | folder:PATH | idx:PATH | tfds:NAME",
    task_name="Name of the task; by default the data's.",
    optimizer="adam | adamw | rmsprop | sgd",
    augmentation="none | auto | shift, flip, crop, colour joined by +",
)
_FIELDS.lists(train="What to train, a row each: kinds and last joined by +, or full.")
_FIELDS.choice(
    ("auto", "batch", "frozen"),
    norm_statistics="Train with the task's own batch-norm statistics (batch), or with the trunk's (frozen); auto: by what "
    "is trained.",
)
_FIELDS.integers(
    image_size="Height and width in pixels; by default the trunk's own.",
    epochs="Passes over the training images.",
    batch_size="Images per step.",
    max_train_images="Use this many training images; 0: all.",
    max_test_images="Use this many test images; 0: all.",
)
_FIELDS.numbers(learning_rate="Highest learning rate; 0: by what is trained.")
_FIELDS.number_lists(learning_rates="Several, compared with each other, for example 0.003,0.01.")
_FIELDS.switches(
    skip_bad_images="Leave out image files that cannot be read.",
    remat="Train with less memory and more time: compute most maps twice.",
)
_FIELDS.integer_lists(seeds="Seeds, a row of results each, for example 0,1,2.")


def main():
    """Flags to config, config to `transfer`."""
    from model_patch.experiments.transfer import transfer

    config = _FIELDS.over(_CONFIG.value)
    if _DRY_RUN.value:
        from model_patch.experiments.dry_run import dry_run_transfer

        dry_run_transfer(config)
    else:
        from model_patch.experiments.sweep import sweep

        with _DEVICES(_WORKDIR.value) as workdir:
            (sweep if config.learning_rates else transfer)(config, workdir)


if __name__ == "__main__":
    cli.run(main, resumes=True)
