"""The task that a classifier was trained for, as a task of its own trunk."""

import json
import re
from pathlib import Path

import numpy as np

from model_patch.bind import BoundTask, bind
from model_patch.errors import ModelPatchError
from model_patch.files import as_path
from model_patch.spec import parse
from model_patch.tasks import Task
from model_patch.trunk import Trunk
from model_patch.trunks import file, tfjs


def own_task(spec: str, labels: str | Path | None = None, name: str = "own") -> BoundTask:
    """Makes the classes of a saved classifier a task of its trunk: the trunk's first patch.

    The classifier without its last layer is the trunk, as `?top=false` opens it, and the last layer is the task's head. The
    task predicts what the classifier does. It is of kind `last`, and further tasks can be bound to its trunk.

    Args:
        spec: `file:PATH` or `tfjs:PATH` of a classifier whose last layer is dense, with softmax.
        labels: a text file with a label on each line, with or without its number before it; None for the `labels.txt` or
            `metadata.json` that Teachable Machine writes beside a model.
        name: name of the task.

    Raises:
        ModelPatchError: the model or the labels cannot be read, do not go together, or the model ends otherwise.
    """
    parsed = parse(spec)
    loaders = {"file": file, "tfjs": tfjs}
    if parsed.scheme not in loaders or parsed.fragment or parsed.options.get("top") == "true":
        raise ModelPatchError(f"{spec!r} is no whole classifier: expected file:PATH or tfjs:PATH, without #layer")
    options = file.file_options(parsed) | {"top": "false"}
    path = as_path(parsed.rest)
    path = path / "model.json" if path.is_dir() else path
    model = loaders[parsed.scheme].load_model(path)
    _, last = file.without_top(model, spec)
    trunk: Trunk = file.trunk_of_model(model, parsed, options, None)
    names = _labels(as_path(labels) if labels else file.labels_file(path))
    if len(names) != last.units:
        raise ModelPatchError(
            f"{spec!r} has {last.units} classes and {len(names)} labels: give the labels it was trained with"
        )
    bound = bind(trunk, Task(name, names, trunk.preprocessing), "last")
    bound.head.kernel.assign(last.kernel)
    bound.head.bias.assign(last.bias if last.use_bias else np.zeros(last.units))
    return bound


def _labels(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
        lines = [str(label) for label in json.loads(text)["labels"]] if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelPatchError(
            f"the labels {path} cannot be read ({error}): give a text file with a label a line"
        ) from None
    lines = [line.strip() for line in lines if line.strip()]
    numbered = all(re.match(rf"{i}\s+\S", line) for i, line in enumerate(lines))
    return tuple(line.partition(" ")[2].strip() if numbered else line for line in lines)
