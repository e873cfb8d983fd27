"""Times this package against other ways to do the same, side by side in one run.

    python scripts/benchmark.py --suite=serving --workdir=runs/serving
    python scripts/benchmark.py --suite=serving --config.tasks='(1024,)' --config.batch_sizes='(64,)' --workdir=runs/large
    python scripts/benchmark.py --suite=joint --workdir=runs/joint
    python scripts/benchmark.py --suite=training --workdir=runs/training
    python scripts/benchmark.py --suite=scale --workdir=runs/scale

`serving`: many tasks mixed in a batch, by a bank, by separate models, by switching one model from task to task, by
sub-batches; against a folded net of one task. `joint`: a training step of several tasks together against one step each.
`training`: a step of each way to learn a task, against plain Keras and, where it is installed, PyTorch; and epochs.
`scale`: joint training of 1 to 64 tasks, a bank of 1 to 4,096 patches, data sets of 1,000 to a million images, and laws.
Writes figures as JSON, a table and a plot into the workdir. All are timed in turns, so that what else the machine does falls
on all of them; it says how busy the machine was. What is timed can be set with --config.NAME=VALUE.
"""

from pathlib import Path

from absl import flags

from model_patch.experiments import cli
from model_patch.experiments.benchmark import SUITES, suite

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "benchmark.py")
_SUITE = flags.DEFINE_enum("suite", None, list(SUITES), "What is timed.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the figures.", required=True)


def main():
    """Config to the suite."""
    from model_patch.experiments.workdir import claim

    claim(_WORKDIR.value)
    suite(_SUITE.value).run(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main)
