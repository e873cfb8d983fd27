"""Models of Kaggle, by handle or URL, out of the cache of `kagglehub` or downloaded by it."""

import os
import re
from pathlib import Path

from model_patch.errors import ModelPatchError, reason

_HANDLE = re.compile(
    r"(?:kaggle://|https?://(?:www\.)?kaggle\.com/models/)?([\w.-]+/[\w.-]+/[\w.-]+/[\w.-]+?)(?:/(?:versions/)?(\d+))?/?"
)


def handle_of(text: str) -> str | None:
    """Returns `owner/model/framework/variation[/version]` of a Kaggle URL or handle; None where it is neither.

    A handle without `kaggle://` is one only where no folder has that path.
    """
    found = _HANDLE.fullmatch(text)
    if not found or ("://" not in text and (Path(text).exists() or text.startswith((".", "/")))):
        return None
    handle, version = found.groups()
    return f"{handle}/{version}" if version else handle


def download(handle: str) -> Path:
    """Returns the folder of a model: of the cache, where a whole version is there, else downloaded by `kagglehub`.

    The cache is `KAGGLEHUB_CACHE`, by default `~/.cache/kagglehub`; credentials are those that `kagglehub` finds, see its
    documentation. Nothing but the cache's layout is needed for a model that is in it. Without a version in the handle it is
    the newest that is there.

    Raises:
        ModelPatchError: it is not in the cache and cannot be downloaded.
    """
    cache = Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub") / "models"
    *names, last = handle.split("/")
    folder, version = (cache.joinpath(*names), last) if len(names) == 4 else (cache.joinpath(*names, last), "")
    # kagglehub writes VERSION.complete beside a version's folder when all of its files are there.
    whole = [mark.stem for mark in folder.glob("*.complete") if mark.stem.isdecimal() and mark.with_suffix("").is_dir()]
    chosen = [each for each in whole if each == version] if version else sorted(whole, key=int)[-1:]
    if chosen:
        return folder / chosen[0]
    target = folder / (version or "VERSION")
    advice = (
        f"fetch it on a machine with network, as with kagglehub.model_download({handle!r}), and copy its files to {target} "
        f"with an empty file {target.name}.complete beside that folder, or give hub:FOLDER"
    )
    try:
        import kagglehub
    except ImportError:
        raise ModelPatchError(
            f"the Kaggle model {handle} is not in the cache {cache} (KAGGLEHUB_CACHE), and downloading it needs kagglehub: pip "
            f"install 'model_patch[kaggle]', or {advice}"
        ) from None
    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:  # Of sockets, of HTTP, of credentials; all are about this handle.
        raise ModelPatchError(
            f"the Kaggle model {handle} is not in the cache {cache} (KAGGLEHUB_CACHE) and cannot be downloaded "
            f"({reason(error)}): {advice}"
        ) from None
