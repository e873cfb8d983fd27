"""Defaults of the scripts, and one module per experiment: `python scripts/NAME.py --config=configs/FILE.py`."""
