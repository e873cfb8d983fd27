"""Evaluating a patch, or an exported file, on labelled images."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

import model_patch as mp
from model_patch.data.balance import imbalance
from model_patch.data.images import Split, bad_images_named
from model_patch.data.pipeline import batches
from model_patch.data.rows import REGRESSION
from model_patch.errors import require_known
from model_patch.experiments.findings import (
    LISTED,
    MOST_CHECKED,
    Predictions,
    cross_validated,
    duplicates,
    measure,
    measure_task,
    mislabelled,
    paths_of,
)
from model_patch.experiments.report.evaluation import evaluation_sections, listed_paths
from model_patch.experiments.report.page import Section, thumbnail, write_page
from model_patch.experiments.report.table import print_table, table
from model_patch.export import onnx_file
from model_patch.export.litert_file import read_manifest
from model_patch.export.saved_model import read_task
from model_patch.files import new_folder, write_json
from model_patch.predict import open_tasks
from model_patch.progress import progress
from model_patch.tasks import CLASSIFICATION, require_one_output_per_label
from model_patch.training.replicated import outputs_and_labels, predictor, read_together

EVALUATION = "evaluation.json"
"""Name of the file with the figures of an evaluation."""

BATCH = 64


class TooInaccurate(mp.ModelPatchError):
    """A model is less accurate than required."""

    exit_status = 1


def evaluate_task(bound: mp.BoundTask, data: mp.ImageData) -> dict:
    """Evaluates a task on the images that it was trained for.

    Args:
        bound: any task but a detection.
        data: its training, validation and test images, as they were used.

    Returns:
        JSON values: `test`, as `findings.measure` or `findings.measure_task`; `counts`, images of each label by split;
        `duplicates`, and of a classification `mislabelled`, as the functions of `findings` with these names; `notes`, sentences.
    """
    task, forward = bound.task, predictor(bound.features)
    is_class, parts, found = task.type == CLASSIFICATION, {}, {}
    for part, split in splits_of(data).items() if is_class else [("test", data.test)]:
        split = split.first(MOST_CHECKED) if part == "train" else split
        features, labels, paths = _features(bound, forward, split, part)
        if part == "train":
            parts[part] = Predictions(paths, labels, cross_validated(features, labels, len(task.labels)))
            continue
        predictions = _read(bound, features)
        if part == "test":
            found["test"] = _measured(task, labels, predictions, paths)
        if is_class:
            parts[part] = Predictions(paths, labels, predictions["probabilities"])
    if is_class:
        found["mislabelled"] = mislabelled(list(parts.values()), task.labels)
    return {**found, **_of_data(data, task.labels)}


def _measured(task: mp.Task, labels: np.ndarray, predictions: Mapping[str, np.ndarray], paths: Sequence[str]) -> dict:
    """Returns the figures of a task of any type; of one with a temperature that is not used, how calibrated it would be, too."""

    def measured(predictions: Mapping[str, np.ndarray]) -> dict:
        if task.type != CLASSIFICATION:
            return measure_task(task, labels, predictions, paths)
        return measure(Predictions(paths, labels, predictions["probabilities"]), task.labels)

    found = measured(predictions)
    if task.temperature is not None and not task.use_temperature:
        calibrated = measured(dataclasses.replace(task, use_temperature=True).read(predictions["logits"]))
        error = calibrated["expected_calibration_error"]
        found |= {"temperature": task.temperature, "error_with_temperature": error}
    return found


def evaluate_models(
    models: Sequence[str],
    data: str,
    folder: str | Path,
    *,
    trunk: str = "",
    part: str = "test",
    thumbnails: int = LISTED,
    max_images: int | None = None,
    accuracy_at_least: float = 0.0,
    calibrated: bool = False,
) -> dict[str, dict]:
    """Evaluates models on labelled images, and writes for each a folder of its own, or for a single one the folder itself.

    Args:
        models: patch files, folders with a SavedModel of one task, LiteRT and ONNX files.
        data: spec of the images; its classes are found among a model's labels by their names.
        folder: for what `write_evaluation` writes; it must not exist.
        trunk: spec of the trunk of the patch files.
        part: the split to evaluate on: `test`, `validation` or `train`, or `all` for all images of the data.
        thumbnails: how many are shown of each list at most.
        max_images: use at most this many images of each split, the first ones; None for all.
        accuracy_at_least: what every model must reach; of other types of task the first of their figures.
        calibrated: whether the probabilities of patches are those of their temperatures.

    Returns:
        The evaluation of each model, as of `evaluate_task`, by its name.

    Raises:
        TooInaccurate: after all is written, a model is less accurate than `accuracy_at_least`.
        ModelPatchError: a model or the data cannot be opened, do not have the same classes, or the split does not exist.
    """
    opened = mp.open_data(data)
    splits = splits_of(opened)
    require_known("split", [part], [*splits, "all"])
    used = {name: split.first(max_images) for name, split in splits.items() if part in (name, "all")}
    runners = {_name_of(path): _open(path, trunk, calibrated) for path in models}
    if len(runners) < len(models):
        raise mp.ModelPatchError(f"two of {', '.join(models)} have the same name: expected different ones")
    for name, (task, _) in runners.items():
        if task.type != opened.type:
            raise mp.ModelPatchError(f"{data} has labels for {opened.type}, and {name} is a {task.type} task")
        unknown_ = [label for label in opened.labels if label not in task.labels]
        if unknown_:
            raise mp.ModelPatchError(
                f"{data} has the class {unknown_[0]!r}, which {name} does not predict: it knows {', '.join(task.labels)}"
            )
        if opened.type == REGRESSION and len(opened.labels) < len(task.labels):
            raise mp.ModelPatchError(f"{data} has numbers of {', '.join(opened.labels)}, not all that {name} predicts")
    evaluations, rows, (figure, *further) = {}, [], next(iter(runners.values()))[0].figures
    with new_folder(folder) as written:
        for name, (task, predict) in runners.items():
            found = [predict(split, each) for each, split in used.items()]
            given = _joined([each for each, _, _ in found])
            true = [_known_to(task, opened, labels) for _, labels, _ in found]
            paths = [path for _, _, each in found for path in each]
            evaluation = {
                "test": _measured(task, np.concatenate(true), given, paths),
                **_of_data(opened, opened.labels),
            }
            if "train" not in used and task.type == CLASSIFICATION:
                parts = [
                    Predictions(paths, labels, each["probabilities"])
                    for (each, _, paths), labels in zip(found, true, strict=True)
                ]
                evaluation["mislabelled"] = mislabelled(parts, task.labels)
            own = written if len(runners) == 1 else written / name
            write_evaluation(evaluation, opened, own, f"{name} on {data}, {part} images", thumbnails)
            evaluations[name] = evaluation
            rows.append({"name": name, **evaluation["test"]})
    columns = {"model": "{name}", "images": "{images:,}"}
    columns |= {each.replace("_", " "): f"{{{each}:.4f}}" for each in (figure, *further)}
    if "expected_calibration_error" in rows[0]:
        columns["calibration error"] = "{expected_calibration_error:.4f}"
    print_table(f"{data}, {part} images", *table(rows, columns))
    low = [row for row in rows if row[figure] < accuracy_at_least]
    if low:
        named = ", ".join(f"{row['name']} ({row[figure]:.4f})" for row in low)
        raise TooInaccurate(f"the {figure} of {named} is below {accuracy_at_least}: see {folder}")
    return evaluations


def _known_to(task: mp.Task, data: mp.ImageData, labels: np.ndarray) -> np.ndarray:
    """Returns the labels of images of data, which may lack some of a task's, as that task has them."""
    position = np.array([task.labels.index(label) for label in data.labels])
    if labels.ndim == 1:
        return position[labels]
    known = np.zeros((len(labels), len(task.labels)), labels.dtype)
    known[:, position] = labels
    return known


def _name_of(model: str) -> str:
    path = Path(model)
    return path.stem if path.is_file() else path.resolve().name


def _open(model: str, trunk: str, calibrated: bool) -> tuple[mp.Task, Callable]:
    """Returns a model's task, and what predicts a split: what `Task.decode` returns, labels, and paths of its images."""
    path = Path(model)
    if path.is_dir():
        return _open_saved_model(path)
    if path.suffix in _OPEN_FILE:
        return _open_file(*_OPEN_FILE[path.suffix](path))
    if not trunk:
        raise mp.ModelPatchError(f"{model} is a patch, which is evaluated on its trunk: give --trunk=SPEC")
    (bound,) = open_tasks(trunk, [model], calibrated)
    require_one_output_per_label(bound.task, "this evaluation")

    forward = predictor(bound.features)

    def predict(split: Split, name: str):
        features, labels, paths = _features(bound, forward, split, name)
        return _read(bound, features), labels, paths

    return bound.task, predict


def _open_saved_model(folder: Path):
    import tensorflow as tf

    try:
        task = read_task(folder)
        model = tf.saved_model.load(str(folder))
    except OSError:
        raise mp.ModelPatchError(
            f"{folder} is no SavedModel of one task: expected what scripts/export.py --format=saved_model writes"
        ) from None

    def predict(split: Split, name: str):
        # Images keep their sizes: those after one another with the same are a batch.
        given: list[dict[str, np.ndarray]] = []
        true = []
        batch: list[np.ndarray] = []

        def flush():
            if batch:
                pixels = tf.constant(np.stack(batch), tf.float32)
                outputs = model.signatures["serving_default"](images=pixels)
                given.append({key: each.numpy() for key, each in outputs.items() if each.dtype == tf.float32})
                batch.clear()

        with bad_images_named(split):
            for image, label in progress(split.dataset().as_numpy_iterator(), name, split.num_images, "image"):
                if len(batch) == BATCH or (batch and batch[0].shape != image.shape):
                    flush()
                batch.append(image)
                true.append(label)
        flush()
        return _joined(given), np.array(true), _readable(split, name, len(true))

    return task, predict


def _joined(given: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([each[key] for each in given]) for key in given[0]}


def _open_litert(path: Path) -> tuple[mp.Task, Callable]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    return mp.Task.from_json(read_manifest(path)["task"]), lambda images: runner(images=images)


def _open_onnx(path: Path) -> tuple[mp.Task, Callable]:
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        raise mp.ModelPatchError(f"{path} needs onnxruntime, which is not installed: pip install onnxruntime") from None
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    description = session.get_modelmeta().custom_metadata_map.get(onnx_file.MANIFEST)
    if description is None:
        raise mp.ModelPatchError(f"{path} is not an ONNX file of model_patch: export it again")
    task = mp.Task.from_json(json.loads(description)["task"])
    names = [output.name for output in session.get_outputs()]
    return task, lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


_OPEN_FILE = {".tflite": _open_litert, ".onnx": _open_onnx}
"""By the ending of a file, what returns its task, and a function from resized images to what `Task.decode` returns."""


def _open_file(task: mp.Task, call: Callable) -> tuple[mp.Task, Callable]:
    resized = dataclasses.replace(task.preprocessing, mode="none")

    def predict(split: Split, name: str):
        given, true = [], []
        with bad_images_named(split):
            for images, labels in batches(split, resized, BATCH, cache=False).as_numpy_iterator():
                given.append(call(images))
                true.append(labels)
        labels = np.concatenate(true)
        return _joined(given), labels, _readable(split, name, len(labels))

    return task, predict


def _read(bound: mp.BoundTask, features: np.ndarray) -> dict[str, np.ndarray]:
    return bound.task.read(bound.head(keras.ops.convert_to_tensor(features)))


def splits_of(data: mp.ImageData) -> dict[str, Split]:
    """Returns the splits of data by name."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: split for name, split in splits.items() if split}


def _of_data(data: mp.ImageData, names: Sequence[str]) -> dict:
    counts = {}
    for part, split in splits_of(data).items():
        labels = split.image_labels()
        if labels.ndim == 1:
            numbers = np.bincount(labels, minlength=len(names))
        else:  # Of a regression all images have every number.
            numbers = np.count_nonzero(labels if labels.dtype.kind == "i" else np.ones_like(labels), axis=0)
        counts[part] = dict(zip(names, numbers.tolist(), strict=True))
    note = imbalance(data.train.image_labels(), names) if data.type == CLASSIFICATION else ""
    return {"counts": counts, "duplicates": duplicates(splits_of(data)), "notes": [*data.notes, *filter(None, [note])]}


def _features(bound: mp.BoundTask, forward: Callable, split: Split, name: str):
    """Returns features and labels of a split, and the paths of its images."""
    images = read_together(functools.partial(batches, split, bound.task.preprocessing, BATCH, cache=False))
    with bad_images_named(split):
        features, labels = outputs_and_labels(forward, images, "features", math.ceil(split.num_images / BATCH))
    return features, labels, _readable(split, name, len(labels))


def _readable(split: Split, name: str, number: int) -> list[str]:
    """Returns the paths of the images of which a split that skips bad ones gave this number."""
    paths = paths_of(split, name)
    if number < len(paths):
        bad = tuple(split.find_bad()) if split.find_bad else ()
        paths = [path for path in paths if not path.endswith(bad)]
    return paths[:number]


def write_evaluation(
    evaluation: dict, data: mp.ImageData, folder: Path, title: str, thumbnails: int, before: Sequence[Section] = ()
):
    """Writes `evaluation.json`, and as `write_page` does a report on it.

    Args:
        evaluation: as `evaluate_task` returns it.
        data: the images it is of, for thumbnails.
        folder: where to write.
        title: title of the page.
        thumbnails: how many are shown of each list at most; images after them are listed without.
        before: sections that come first.
    """
    write_json(folder / EVALUATION, evaluation)
    pictures = _thumbnails(data, listed_paths(evaluation, thumbnails))
    write_page(folder, title, [*before, *evaluation_sections(evaluation, pictures)])


def _thumbnails(data: mp.ImageData, wanted: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, split in splits_of(data).items():
        positions = {path: i for i, path in enumerate(paths_of(split, name))}
        chosen = sorted(positions[path] for path in wanted if path in positions)
        paths = paths_of(split.select(np.array(chosen)), name) if split.paths else [f"{name} {i}" for i in chosen]
        images = split.select(np.array(chosen)).dataset().as_numpy_iterator() if chosen else ()
        found |= {path: thumbnail(image) for path, (image, _) in zip(paths, images, strict=False)}
    return found
