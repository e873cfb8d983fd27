"""The version, for `setup.py`, which must not import the package, and for everybody else."""

__version__ = "0.1.0"
