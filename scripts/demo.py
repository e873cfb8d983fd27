"""Runs the main job offline: learns real tasks one after the other on the bundled trunk, compares, exports, checks.

python scripts/demo.py --workdir=runs/demo
"""

from pathlib import Path

from absl import flags

from model_patch.experiments import cli

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "demo.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the run writes.", required=True)


def main():
    """Config to `demo`."""
    from model_patch.experiments.demo import demo

    demo(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, resumes=True)
