"""Runs the main job offline: learns real tasks one after the other on the bundled trunk, compares, exports, checks.

python scripts/demo.py --workdir=runs/demo
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from model_patch import cli

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

_CONFIG = config_flags.DEFINE_config_file("config", str(CONFIGS / "demo.py"), "Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the run writes.", required=True)


def main():
    """Config to `demo`."""
    from model_patch.demo import demo

    demo(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main)
