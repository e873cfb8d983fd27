"""The errors this package raises on purpose.

Each message is one sentence: what was given, what was expected, what to do. Scripts print it and exit with status 2;
every other exception is a bug and keeps its traceback.
"""

import math
import numbers
from collections.abc import Hashable, Iterable

_MOST_CHARACTERS = 300
"""Reasons are cut after this many: Keras quotes whole configurations."""


class ModelPatchError(ValueError):
    """Something the caller gave is wrong: a flag, a spec, a file, a folder. Base class of this package's errors."""

    exit_status = 2
    """What a script that ends with this error returns."""


class PatchError(ModelPatchError):
    """A patch file is damaged, or does not belong to the trunk or the task it was given to."""


class TrainingError(ModelPatchError):
    """Training cannot continue, for example because the loss became NaN."""


def unknown(noun: str, given: str, known) -> ModelPatchError:
    """Builds the error for a name that is not in a list of known names."""
    return ModelPatchError(f"unknown {noun} {given!r}: expected one of {', '.join(sorted(known))}")


def require_number(name: str, value, low: float, high: float = math.inf, *, whole: bool = False):
    """Checks that a number is in `low <= value < high`.

    Args:
        name: what the number is called, for the error.
        value: the number.
        low, high: its range.
        whole: refuse fractions.

    Raises:
        ModelPatchError: it is not a number, or is out of range.
    """
    is_number = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    if not (is_number and low <= value < high):
        end = "" if high == math.inf else f" and below {high}"
        raise ModelPatchError(f"{name} is {value}: expected at least {low}{end}{', a whole number' if whole else ''}")


def require_seed(value):
    """Checks that NumPy and Keras take a value as a seed. Raises as `require_number`."""
    require_number("seed", value, 0, 2**32, whole=True)


def require_seeds(values: Iterable[int]):
    """Checks an option of several seeds. Raises as `require_each_once` and `require_seed`."""
    require_each_once("seeds", values)
    for value in values:
        require_seed(value)


def require_each_once(name: str, values: Iterable[Hashable]):
    """Checks an option of several values, each of which gets results of its own.

    Raises:
        ModelPatchError: there is none, or one is there more than once, which would count as further results without any
            spread.
    """
    values = list(values)
    if not values:
        raise ModelPatchError(f"{name} is empty, so there is nothing to run: give at least one")
    for value in values:
        if values.count(value) > 1:
            raise ModelPatchError(f"{name} has {value} more than once: give each value once")


def require_known(noun: str, names: Iterable[str], known):
    """Raises `unknown` for the first name that is not in a list of known names."""
    for name in names:
        if name not in known:
            raise unknown(noun, name, known)


def mismatches(expected: dict[str, tuple], given: dict[str, tuple], most: int = 8) -> str:
    """Says how given keys and shapes differ from the expected ones; empty where they do not.

    Args:
        expected, given: shapes by key.
        most: how many keys of each sort are named.
    """
    both = expected.keys() & given.keys()
    shapes = [f"{key} {given[key]} instead of {expected[key]}" for key in sorted(both) if expected[key] != given[key]]
    sorts = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": shapes,
    }
    return "; ".join(
        f"{sort}: {', '.join(keys[:most])}{f' and {len(keys) - most} more' if len(keys) > most else ''}"
        for sort, keys in sorts.items()
        if keys
    )


def reason(error: Exception) -> str:
    """Returns why Keras failed, or another library, for one of this package's sentences: its innermost reason, without a full stop."""
    text = str(error).split("Exception encountered: ")[-1].strip() or type(error).__name__
    sentence = text.splitlines()[0].split(". ")[0].rstrip(".:")
    return sentence if len(sentence) <= _MOST_CHARACTERS else sentence[:_MOST_CHARACTERS] + "..."
