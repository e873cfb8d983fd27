"""The errors this package raises on purpose.

Each message is one sentence: what was given, what was expected, what to do. Scripts print it and exit with status 2;
every other exception is a bug and keeps its traceback.
"""

_MOST_CHARACTERS = 300
"""Of a reason that are kept: Keras quotes whole configurations."""


class ModelPatchError(ValueError):
    """Something the caller gave is wrong: a flag, a spec, a file, a folder. Base class of this package's errors."""


class PatchError(ModelPatchError):
    """A patch file is damaged, or does not belong to the trunk or the task it was given to."""


class TrainingError(ModelPatchError):
    """Training cannot go on, for example because the loss became NaN."""


def unknown(noun: str, given: str, known) -> ModelPatchError:
    """Builds the error for a name that is not in a list of known names."""
    return ModelPatchError(f"unknown {noun} {given!r}: expected one of {', '.join(sorted(known))}")


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
