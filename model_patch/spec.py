"""The one grammar for "where does it come from": `scheme:rest?key=value&key=value#fragment`.

Trunks and data are named the same way in every script, for example `bundled`, `keras:MobileNetV2?alpha=0.35`,
`file:trunk.keras#mobilenetv2` and `folder:flowers`. Everything after the scheme is optional.
"""

import dataclasses
import os

from model_patch.errors import ModelPatchError

WITH_FRAGMENT = ("file", "tfjs")
"""Schemes that open a part of a model, named by a fragment."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A parsed spec.

    Attributes:
        scheme: the part before the first colon, or the whole name where there is none.
        rest: what the scheme opens: a net's name, a path, a URL; may be empty. A path's `~` is the home folder.
        options: the `key=value` pairs after `?`, as strings; paths as in `rest`.
        fragment: the part after `#`, naming a place inside what is opened; may be empty.
    """

    scheme: str
    rest: str
    options: dict[str, str]
    fragment: str
    text: str

    def take(self, **defaults: str) -> dict[str, str]:
        """Returns the options over their defaults, all as strings.

        Raises:
            ModelPatchError: an option is not among the defaults, or there is a fragment, which the scheme does not take.
        """
        if self.fragment and self.scheme not in WITH_FRAGMENT:
            raise ModelPatchError(
                f"{self.text!r} has a part after '#', which {self.scheme}: does not take: leave it out, or rename a path "
                "with '#' in it"
            )
        for key in self.options:
            if key not in defaults:
                known = f"expected one of {', '.join(sorted(defaults))}" if defaults else f"{self.scheme} takes none"
                raise ModelPatchError(f"unknown option {key!r} in {self.text!r}: {known}")
        return {**defaults, **self.options}


def parse(text: str) -> Spec:
    """Parses a spec.

    Args:
        text: for example `keras:MobileNetV2?alpha=0.35&weights=imagenet`.

    Raises:
        ModelPatchError: the text is empty, or an option is not written `key=value` or is given twice.
    """
    body, _, fragment = text.partition("#")
    body, _, query = body.partition("?")
    scheme, _, rest = body.partition(":")
    if not scheme:
        raise ModelPatchError(f"{text!r} names nothing: expected scheme:rest, for example keras:MobileNetV2")
    # Taken as written, with no URL decoding: `+` and `%` occur in paths and in the splits of TFDS.
    pairs = [option.partition("=") for option in query.split("&")] if query else []
    if not all(key and equals for key, equals, _ in pairs):
        raise ModelPatchError(f"{text!r} has options that are not written ?key=value&key=value")
    options = {key: os.path.expanduser(value) for key, _, value in pairs}  # noqa: PTH111 - not all are paths.
    if len(options) < len(pairs):
        raise ModelPatchError(f"{text!r} gives an option more than once: write each once")
    return Spec(scheme, os.path.expanduser(rest), options, fragment, text)  # noqa: PTH111
