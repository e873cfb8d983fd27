"""What people call the parts of a data set."""

import re
from collections.abc import Iterable

PARTS = TRAIN, TEST, VALIDATION = "train", "test", "validation"

_NAMES = {
    TRAIN: ("train", "training", "trn"),
    TEST: ("test", "testing", "tst"),
    VALIDATION: ("val", "valid", "validation", "validate", "validating", "dev", "eval", "evaluation", "holdout"),
}
_PARTS = {name: part for part, names in _NAMES.items() for name in names}


def part_of(name: str) -> str | None:
    """Returns which part a folder or split is by its name, in any case: `TRAIN`, `TEST`, `VALIDATION`; None for others.

    `valid`, `Training_Set`, `train-images` and `val2017` are known, for example.
    """
    letters = re.sub(r"[\W\d_]", "", name.casefold())
    return _PARTS.get(letters) or _PARTS.get(re.sub(r"(dataset|set|data|images|split)$", "", letters))


def named(names: Iterable[str], part: str) -> list[str]:
    """Returns the names that are of a part; only the part's own name if that is among them."""
    found = [name for name in names if part_of(name) == part]
    return [part] if part in found else found
