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

from model_patch.experiments import cli

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "multitask.py")
_WORKDIR, _DRY_RUN = cli.define_outputs()
_DEVICES = cli.define_devices()
_FIELDS = cli.Fields()
_FIELDS.strings(
    trunk="bundled | keras:NAME[?alpha=0.35&weights=imagenet] | file:PATH[#layer] | hub:HANDLE | slim:CHECKPOINT | "
    "kerashub:PRESET",
    train="What of a task is learnt: kinds and last joined by +.",
    head_from="Patch file whose head all tasks take and keep.",
    optimizer="adam | adamw | rmsprop | sgd",
    augmentation="none | auto | shift, flip, crop, colour joined by +",
)
_FIELDS.lists(
    data="One per task: digits | mnist | faces | textures | folder:PATH | idx:PATH | tfds:NAME",
    task_names="Names of the tasks; by default the data's.",
    share="What the tasks share, a row each: nothing, trunk, trunk+patch.",
)
_FIELDS.integer_lists(
    image_sizes="Pixels, one per task; 0: the trunk's own.",
    resolutions="Image sizes at which one data set is learnt, each a task.",
    seeds="Seeds, a row of results each, for example 0,1,2.",
)
_FIELDS.choice(("auto", "own", "shared"), head="A head per task, or one; auto: one for resolutions.")
_FIELDS.choice(
    ("auto", "batch", "frozen"),
    norm_statistics="Train with the tasks' own batch-norm statistics (batch), or with the trunk's (frozen).",
)
_FIELDS.choice(("uniform", "proportional", "annealed"), sampler="Which share of a step's images each task has.")
_FIELDS.switches(
    train_trunk="Learn the trunk from all tasks, or leave it as it is.",
    skip_bad_images="Leave out image files that cannot be read.",
)
_FIELDS.integers(
    epochs="Passes over as many images as all tasks have together.",
    batch_size="Images per task and step, on average.",
    max_train_images="Use this many training images per task; 0: all.",
    max_test_images="Use this many test images per task; 0: all.",
)
_FIELDS.numbers(
    sampler_power="Exponent of the data's sizes; if annealed, at the end.",
    learning_rate="Highest learning rate; 0: by what is trained.",
    validation_fraction="Held out to choose the best epoch; 0: the last.",
)
_FIELDS.number_lists(task_weights="What each task's mean loss counts; by default 1 each.")


def main():
    """Flags to config, config to `multitask`."""
    from model_patch.experiments.multitask import multitask

    config = _FIELDS.over(_CONFIG.value)
    if _DRY_RUN.value:
        from model_patch.experiments.dry_run import dry_run_multitask

        dry_run_multitask(config)
    else:
        with _DEVICES(_WORKDIR.value) as workdir:
            multitask(config, workdir)


if __name__ == "__main__":
    cli.run(main, resumes=True)
