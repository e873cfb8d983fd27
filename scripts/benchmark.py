"""Times this package against other ways to do the same, side by side in one run.

    python scripts/benchmark.py --suite=serving --workdir=runs/serving
    python scripts/benchmark.py --suite=serving --tasks=1024 --batch_sizes=64 --workdir=runs/large
    python scripts/benchmark.py --suite=joint --workdir=runs/joint
    python scripts/benchmark.py --suite=training --workdir=runs/training
    python scripts/benchmark.py --suite=data --workdir=runs/data
    python scripts/benchmark.py --suite=scale --workdir=runs/scale
    python scripts/benchmark.py --suite=lora --workdir=runs/lora
    KERAS_BACKEND=jax python scripts/benchmark.py --suite=gpu --workdir=runs/gpu

`serving`: batches that mix many tasks, by a bank, by separate models, by switching one model between tasks, by sub-batches;
against one task's net, folded, in LiteRT, ONNX Runtime and PyTorch, where installed. `joint`: a training step of several tasks together against one step each.
`training`: a step of each way to train a task, against plain Keras and, if it is installed, PyTorch; and whole epochs.
`data`: what an image costs on its way from a JPEG file to a batch, beside a training step.
`scale`: joint training of 1 to 64 tasks, a bank of 1 to 4,096 patches, data sets of 1,000 to a million images, and how the
cost grows. `lora`: patches against low-rank adapters of as many parameters, in accuracy, size and time of a step.
`gpu`: training steps, joint steps and a bank on one accelerator, against PyTorch, eager and compiled.
Writes figures as JSON, a table and a plot to the workdir. All forms are timed in turns, so that other load on the machine
affects them equally; the load is in the output.
"""

from model_patch.experiments import cli
from model_patch.experiments.benchmark import SUITES, suite

_SUITE = cli.flags.DEFINE_enum("suite", None, list(SUITES), "What to time.", required=True)


def main(config, workdir):
    """Runs the suite."""
    from model_patch.experiments.workdir import claim

    claim(workdir)
    suite(_SUITE.value).run(config, workdir)


if __name__ == "__main__":
    cli.run_experiment("benchmark", main, devices=False, resumes=False)
