"""Trains a trunk from random weights: how the bundled one was made.

python scripts/pretrain.py --workdir=runs/pretrain
"""

from pathlib import Path

from absl import flags

from model_patch import cli

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "pretrain_fashion_mnist.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the run writes.", required=True)
_DATA = flags.DEFINE_string("data", None, "Images to train on, scheme:rest.")


def main():
    """Flags to config, config to `pretrain`."""
    from model_patch.training.pretrain import pretrain

    pretrain(cli.override(_CONFIG.value, data=_DATA.value), _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main)
