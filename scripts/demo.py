"""Runs the main job offline: trains real tasks one after the other on the bundled trunk, compares, exports and checks them.

python scripts/demo.py --workdir=runs/demo
"""

from model_patch.experiments import cli


def main(config, workdir):
    """Runs the demo."""
    from model_patch.experiments.demo import demo

    demo(config, workdir)


if __name__ == "__main__":
    cli.run_experiment("demo", main, devices=False)
