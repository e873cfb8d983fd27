"""Evaluating a patch, or an exported file, on labelled images."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

import model_patch as mp
from model_patch.data.balance import imbalance
from model_patch.data.images import Split, bad_images_named
from model_patch.data.pipeline import batches
from model_patch.errors import require_known
from model_patch.experiments.findings import (
    LISTED,
    MOST_CHECKED,
    Predictions,
    cross_validated,
    duplicates,
    measure,
    mislabelled,
    paths_of,
)
from model_patch.experiments.report.evaluation import evaluation_sections, listed_paths
from model_patch.experiments.report.page import Section, thumbnail, write_page
from model_patch.experiments.report.table import print_table, table
from model_patch.export import onnx_file
from model_patch.export.litert_file import read_manifest
from model_patch.files import new_folder, write_json
from model_patch.predict import open_tasks
from model_patch.progress import progress
from model_patch.tasks import CLASSIFICATION
from model_patch.training.fit import features_and_labels
from model_patch.training.replicated import predictor, read_together

EVALUATION = "evaluation.json"
"""Name of the file with the figures of an evaluation."""

BATCH = 64


class TooInaccurate(mp.ModelPatchError):
    """A model is less accurate than asked for."""

    exit_status = 1


def evaluate_task(bound: mp.BoundTask, data: mp.ImageData) -> dict:
    """Evaluates a task on the images that it was trained for.

    Args:
        bound: a classification.
        data: its training, validation and test images, as they were used.

    Returns:
        JSON values: `test`, as `findings.measure`; `counts`, images of each class by split; `mislabelled` and
        `duplicates`, as the functions of `findings` with these names; `notes`, sentences.
    """
    names, parts, forward = bound.task.labels, {}, predictor(bound.features)
    for part, split in splits_of(data).items():
        split = split.first(MOST_CHECKED) if part == "train" else split
        features, labels, paths = _features(bound, forward, split, part)
        probabilities = (
            cross_validated(features, labels, len(names)) if part == "train" else _probabilities(bound, features)
        )
        parts[part] = Predictions(paths, labels, probabilities)
    return {
        "test": measure(parts["test"], names),
        "mislabelled": mislabelled(list(parts.values()), names),
        **_of_data(data, names),
    }


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
        accuracy_at_least: what every model must reach.

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
    runners = {_name_of(path): _open(path, trunk) for path in models}
    if len(runners) < len(models):
        raise mp.ModelPatchError(f"two of {', '.join(models)} have the same name: expected different ones")
    for name, (labels, _) in runners.items():
        unknown_ = [label for label in opened.labels if label not in labels]
        if unknown_:
            raise mp.ModelPatchError(
                f"{data} has the class {unknown_[0]!r}, which {name} does not predict: it knows {', '.join(labels)}"
            )
    evaluations = {}
    with new_folder(folder) as written:
        for name, (labels, predict) in runners.items():
            position = np.array([labels.index(label) for label in opened.labels])
            found = [predict(split, each) for each, split in used.items()]
            parts = [Predictions(paths, position[true], given) for given, true, paths in found]
            whole = Predictions(
                [path for each in parts for path in each.paths],
                np.concatenate([each.labels for each in parts]),
                np.concatenate([each.probabilities for each in parts]),
            )
            evaluation = {"test": measure(whole, labels), **_of_data(opened, opened.labels)}
            if "train" not in used:
                evaluation["mislabelled"] = mislabelled(parts, labels)
            own = written if len(runners) == 1 else written / name
            write_evaluation(evaluation, opened, own, f"{name} on {data}, {part} images", thumbnails)
            evaluations[name] = evaluation
    columns = {"model": "{name}", "images": "{images:,}", "accuracy": "{accuracy:.4f}"}
    columns |= {"macro accuracy": "{macro_accuracy:.4f}", "calibration error": "{expected_calibration_error:.4f}"}
    rows = [each["test"] | {"name": name} for name, each in evaluations.items()]
    print_table(f"{data}, {part} images", *table(rows, columns))
    low = [row for row in rows if row["accuracy"] < accuracy_at_least]
    if low:
        named = ", ".join(f"{row['name']} ({row['accuracy']:.4f})" for row in low)
        raise TooInaccurate(f"the accuracy of {named} is below {accuracy_at_least}: see {folder}")
    return evaluations


def _name_of(model: str) -> str:
    path = Path(model)
    return path.stem if path.is_file() else path.resolve().name


def _open(model: str, trunk: str) -> tuple[tuple[str, ...], Callable]:
    """Returns a model's labels, and what predicts a split: probabilities, labels, and paths of its images."""
    path = Path(model)
    if path.is_dir():
        return _open_saved_model(path)
    if path.suffix in _OPEN_FILE:
        return _open_file(*_OPEN_FILE[path.suffix](path))
    if not trunk:
        raise mp.ModelPatchError(f"{model} is a patch, which is evaluated on its trunk: give --trunk=SPEC")
    (bound,) = open_tasks(trunk, [model])
    if bound.task.type != CLASSIFICATION:
        raise mp.ModelPatchError(f"{model} is a {bound.task.type} task: expected a {CLASSIFICATION}")

    forward = predictor(bound.features)

    def predict(split: Split, name: str):
        features, labels, paths = _features(bound, forward, split, name)
        return _probabilities(bound, features), labels, paths

    return bound.task.labels, predict


def _open_saved_model(folder: Path):
    import tensorflow as tf

    names = folder / "assets" / "labels.txt"
    try:
        labels = tuple(names.read_text("utf-8").splitlines())
        model = tf.saved_model.load(str(folder))
    except OSError:
        raise mp.ModelPatchError(
            f"{folder} is no SavedModel of one classification: expected what scripts/export.py --format=saved_model writes"
        ) from None

    def predict(split: Split, name: str):
        # Images keep their sizes: those after one another with the same are a batch.
        given, true = [], []
        batch: list[np.ndarray] = []

        def flush():
            if batch:
                pixels = tf.constant(np.stack(batch), tf.float32)
                given.append(model.signatures["serving_default"](images=pixels)["probabilities"].numpy())
                batch.clear()

        with bad_images_named(split):
            for image, label in progress(split.dataset().as_numpy_iterator(), name, split.num_images, "image"):
                if len(batch) == BATCH or (batch and batch[0].shape != image.shape):
                    flush()
                batch.append(image)
                true.append(label)
        flush()
        return np.concatenate(given), np.array(true, "int64"), _readable(split, name, len(true))

    return labels, predict


def _open_litert(path: Path) -> tuple[mp.Task, Callable]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    return mp.Task.from_json(read_manifest(path)["task"]), lambda images: runner(images=images)["probabilities"]


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
    return task, lambda images: session.run(["probabilities"], {"images": images})[0]


_OPEN_FILE = {".tflite": _open_litert, ".onnx": _open_onnx}
"""By the ending of a file, what returns its task, and a function from resized images to probabilities."""


def _open_file(task: mp.Task, call: Callable) -> tuple[tuple[str, ...], Callable]:
    resized = dataclasses.replace(task.preprocessing, mode="none")

    def predict(split: Split, name: str):
        given, true = [], []
        with bad_images_named(split):
            for images, labels in batches(split, resized, BATCH, cache=False).as_numpy_iterator():
                given.append(call(images))
                true.append(labels)
        labels = np.concatenate(true)
        return np.concatenate(given), labels, _readable(split, name, len(labels))

    return task.labels, predict


def _probabilities(bound: mp.BoundTask, features: np.ndarray) -> np.ndarray:
    logits = bound.head(keras.ops.convert_to_tensor(features))
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def splits_of(data: mp.ImageData) -> dict[str, Split]:
    """Returns the splits of data by name."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: split for name, split in splits.items() if split}


def _of_data(data: mp.ImageData, names: Sequence[str]) -> dict:
    counts = {}
    for part, split in splits_of(data).items():
        numbers = np.bincount(split.image_labels(), minlength=len(names))
        counts[part] = dict(zip(names, numbers.tolist(), strict=True))
    note = imbalance(data.train.image_labels(), names)
    return {"counts": counts, "duplicates": duplicates(splits_of(data)), "notes": [*data.notes, *filter(None, [note])]}


def _features(bound: mp.BoundTask, forward: Callable, split: Split, name: str):
    """Returns features and labels of a split, and the paths of its images."""
    images = read_together(functools.partial(batches, split, bound.task.preprocessing, BATCH, cache=False))
    with bad_images_named(split):
        features, labels = features_and_labels(bound, images, split.num_images, BATCH, forward)
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
        title: of the page.
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
