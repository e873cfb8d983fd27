"""Tasks as files that run without this package."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_patch.errors import ModelPatchError, unknown
from model_patch.export.verify import Run, agreement, clean_process, differences
from model_patch.files import as_path, listing, local_copy, new_folder, require_no_pattern

if TYPE_CHECKING:  # Flags take their choices from here, and `--help` imports no Keras.
    from model_patch.bind import BoundTask

QUANTIZE = ("none", "dynamic")
"""`dynamic` stores kernels as int8 with a scale per output channel; what runs through the net stays float32."""

MAX_IMAGES = 2000
"""How many real images `check_on` looks at, at most."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A form in which tasks can be exported. A new one is an entry in `FORMATS` and a module.

    Attributes:
        summary: what it writes, for people.
        module: imported when it is used, as these need TensorFlow. It has two functions: `export(tasks, folder)`, with
            `quantize` where the format has it, writes the tasks into an empty folder, and
            `predictions(run, folder, tasks, images)` runs the written files in a process without this package, by
            `verify.Run`: from one batch of images per task, float32 `(batch, image_size, image_size, 3)` in 0..255, to one
            dict per task of what `Task.predictions` returns.
        runtime: what runs its files, the last part of the name of a script `clean_*.py`.
        quantizes: whether kernels can be stored as int8.
        versioned: whether the folder is one SavedModel, however many tasks there are, so that it can be a numbered version.
    """

    summary: str
    module: str
    runtime: str
    quantizes: bool = False
    versioned: bool = False

    def load(self) -> Any:
        """Imports the module."""
        return importlib.import_module(self.module)

    def clean_process(self) -> contextlib.AbstractContextManager[Run]:
        """Starts a process that has what runs the files and nothing of this package."""
        return clean_process(str(Path(__file__).with_name(f"clean_{self.runtime}.py")))


FORMATS = {
    "saved_model": Format("a SavedModel per task", "model_patch.export.saved_model", "saved_model"),
    "signatures": Format(
        "one SavedModel, the trunk once, a signature per task",
        "model_patch.export.signatures",
        "saved_model",
        versioned=True,
    ),
    "bank": Format(
        "one SavedModel of images and task names, tasks mixed in a batch",
        "model_patch.export.bank",
        "saved_model",
        versioned=True,
    ),
    "litert": Format("a .tflite file per task, batch norm folded", "model_patch.export.litert_file", "litert", True),
    "onnx": Format("an .onnx file per task, batch norm folded", "model_patch.export.onnx_file", "onnx"),
    "litert_set": Format(
        "one .tflite file, the trunk once, and a vector per task", "model_patch.export.litert_set", "litert", True
    ),
}


@dataclasses.dataclass(frozen=True)
class Verified:
    """What an export was found to compute, in a process without this package.

    Attributes:
        differences: largest difference of any number from the model in memory, by task name; empty if not compared.
        agreement: fraction of real images, in 0..1, with the same prediction as by the model, by task name; empty without any.
        folder: that was written.
    """

    differences: dict[str, float]
    agreement: dict[str, float]
    folder: Path


def export(
    format: str,
    tasks: Sequence[BoundTask],
    output: str | Path,
    quantize: str = "none",
    *,
    verify: bool = False,
    data: str | None = None,
    versioned: bool = False,
) -> Verified:
    """Writes tasks in a format, into a new folder: complete and verified, or not at all.

    Files compute in float32, tasks of half precision too (see `BoundTask.in_float32`).

    Args:
        format: one of `FORMATS`.
        tasks: at least one.
        output: folder to make; it must not exist.
        quantize: one of `QUANTIZE`.
        verify: compare with the models in memory, see `check`.
        data: compare on real images, too, see `check_on`.
        versioned: write the next version, `output/1`, `output/2` and so on, as TensorFlow Serving takes them.

    Raises:
        ModelPatchError: the folder exists or cannot be made, the format is unknown, cannot be quantized or cannot hold one
            of the tasks, Keras runs on another backend than TensorFlow, or as `check` and `check_on`.
        RuntimeError: as `check`.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if quantize not in QUANTIZE:
        raise unknown("quantize", quantize, QUANTIZE)
    if quantize != "none" and not FORMATS[format].quantizes:
        can = ", ".join(name for name, each in FORMATS.items() if each.quantizes)
        raise ModelPatchError(f"--format={format} is not quantized: leave --quantize={quantize} out, or take {can}")
    if versioned and not FORMATS[format].versioned:
        can = ", ".join(name for name, each in FORMATS.items() if each.versioned)
        raise ModelPatchError(f"--format={format} has no versions: leave --versioned out, or take {can}")
    if not tasks:
        raise ModelPatchError("there is no task to export: give at least one patch")
    if "SavedModel" in FORMATS[format].summary:
        require_no_pattern(output)
    tasks = [bound.in_float32() for bound in tasks]
    options = {"quantize": quantize} if FORMATS[format].quantizes else {}
    output = next_version(output) if versioned else as_path(output)
    started = FORMATS[format].clean_process() if verify or data else contextlib.nullcontext()
    with new_folder(output) as folder, started as run:
        FORMATS[format].load().export(tasks, folder, **options)
        # Under its own name the folder appears only when all is done: an interrupt leaves nothing in the way.
        return Verified(
            check(format, tasks, folder, quantize, run) if verify else {},
            check_on(data, format, tasks, folder, run) if data else {},
            output,
        )


def next_version(base: str | Path) -> Path:
    """Returns the path of a version that a folder does not have yet: the largest number in it plus one, or 1."""
    base = as_path(base)
    names = [entry.name for entry in listing(base, stamps=False)] if base.is_dir() else []
    return base / str(max((int(name) for name in names if name.isdecimal()), default=0) + 1)


def check(
    format: str, tasks: Sequence[BoundTask], output: str | Path, quantize: str = "none", run: Run | None = None
) -> dict[str, float]:
    """Runs what `export` wrote in a process without this package, and compares with the models in memory, in float32.

    Arguments as `export`; `run` is what `Format.clean_process` yielded, by default that of a new process. Returns the
    largest difference of any number in the predictions, by task name.

    Raises:
        ModelPatchError: `ai-edge-litert`, which runs LiteRT files, is not installed.
        RuntimeError: the files do not run, or their predictions differ.
    """
    tasks = [bound.in_float32() for bound in tasks]
    started = contextlib.nullcontext(run) if run else FORMATS[format].clean_process()
    with started as run, local_copy(output) as local:
        return differences(FORMATS[format].load().predictions, run, local, tasks, exact=quantize == "none")


def check_on(
    data: str, format: str, tasks: Sequence[BoundTask], output: str | Path, run: Run | None = None
) -> dict[str, float]:
    """Runs what `export` wrote on real images; returns the fraction with the same prediction as by the model, see `Task.agrees`.

    Args:
        data: spec of the images, see `open_data`; the first `MAX_IMAGES` of its test part are taken.
        format, tasks, output, run: as for `check`.

    Returns:
        The part of the images by task name, in 0..1.

    Raises:
        ModelPatchError: the data cannot be opened, or a task has not one output for each label.
    """
    from model_patch.data import open_data
    from model_patch.data.pipeline import batches
    from model_patch.tasks import require_one_output_per_label

    test = open_data(data).test
    images = []
    for bound in tasks:
        require_one_output_per_label(bound.task, "a comparison on images")
        resized = dataclasses.replace(bound.task.preprocessing, mode="none")
        ((batch, _),) = batches(test, resized, MAX_IMAGES, max_images=MAX_IMAGES).as_numpy_iterator()
        images.append(batch)
    started = contextlib.nullcontext(run) if run else FORMATS[format].clean_process()
    with started as run, local_copy(output) as local:
        return agreement(FORMATS[format].load().predictions, run, local, tasks, images)
