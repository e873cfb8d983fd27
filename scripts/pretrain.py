"""Trains a trunk from random weights: how the bundled one was made.

python scripts/pretrain.py --workdir=runs/pretrain
"""

from pathlib import Path

from model_patch.experiments import cli

_CONFIG = cli.define_config(Path(__file__).resolve().parents[1] / "configs" / "pretrain_fashion_mnist.py")
_WORKDIR, _DRY_RUN = cli.define_outputs()
_DEVICES = cli.define_devices()
_FIELDS = cli.Fields()
_FIELDS.strings(data="Images to train on, scheme:rest.")


def main():
    """Flags to config, config to `pretrain`."""
    from model_patch.experiments.pretrain import pretrain

    config = _FIELDS.over(_CONFIG.value)
    if _DRY_RUN.value:
        from model_patch.experiments.dry_run import dry_run_pretrain

        dry_run_pretrain(config)
    else:
        with _DEVICES(_WORKDIR.value) as workdir:
            pretrain(config, workdir)


if __name__ == "__main__":
    cli.run(main, resumes=True)
