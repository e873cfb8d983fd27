"""Why Keras failed, short enough for one of this package's sentences."""

_MOST = 300
"""Characters of a reason that are kept: Keras quotes whole configurations."""


def reason(error: Exception) -> str:
    """Returns the innermost reason of a Keras error, as the first sentence of it, without a final full stop."""
    text = str(error).split("Exception encountered: ")[-1].strip() or type(error).__name__
    sentence = text.splitlines()[0].split(". ")[0].rstrip(".:")
    return sentence if len(sentence) <= _MOST else sentence[:_MOST] + "..."
