"""Writing a trunk that was trained so that a spec opens it again."""

import tempfile
from pathlib import Path

from model_patch.errors import ModelPatchError
from model_patch.files import write_bytes
from model_patch.spec import parse
from model_patch.trunk import Trunk
from model_patch.trunks import bundled
from model_patch.trunks.weights import save_weights


def saved_spec(text: str, stem: str | Path) -> str:
    """Returns the spec that will open a trunk once `save_trunk` wrote it.

    Args:
        text: spec by which the trunk was opened.
        stem: path of the file to write, without its ending.

    Raises:
        ModelPatchError: the path holds characters that mean something in specs.
    """
    spec = parse(bundled.NET if text == "bundled" else text)
    # With ImageNet's weights Keras gives EfficientNet one more layer, without variables, which weights alone do not bring.
    is_other_graph = spec.rest.startswith("EfficientNetB") and spec.options.get("weights", "imagenet") == "imagenet"
    if spec.scheme == "keras" and not is_other_graph:
        path = f"{stem}.safetensors"
        options = {key: value for key, value in spec.options.items() if key != "seed"} | {"weights": path}
        saved = f"keras:{spec.rest}?" + "&".join(f"{key}={value}" for key, value in options.items())
    else:
        path = f"{stem}.keras"
        saved = f"file:{path}"
    if any(character in path for character in "#?&"):
        raise ModelPatchError(f"the path {path} cannot be part of a spec: choose a --workdir without '#', '?' and '&'")
    return saved


def save_trunk(trunk: Trunk, stem: str | Path) -> str:
    """Writes a trunk, whole or not at all: the weights of a net of keras.applications, or else the whole model.

    Args:
        trunk: with the values to save; its name is the spec that it was opened with.
        stem: path of the file, without its ending.

    Returns:
        The spec that opens it.

    Raises:
        ModelPatchError: the file cannot be written, or the path cannot be part of a spec.
    """
    saved = saved_spec(trunk.name, stem)
    if saved.startswith("keras:"):
        save_weights(trunk, f"{stem}.safetensors")
        return saved
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trunk.keras"
        try:
            trunk.model.save(path)
        except OSError as error:
            raise ModelPatchError(
                f"the trunk cannot be written to {folder} ({error}): free the disk, or set TMPDIR to another"
            ) from None
        write_bytes(f"{stem}.keras", path.read_bytes())
    tokens = f"&prefix_tokens={trunk.prefix_tokens}" if len(trunk.model.output.shape) == 3 else ""
    return f"{saved}?preprocessing={trunk.preprocessing.mode}{tokens}"
