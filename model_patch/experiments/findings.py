"""What a model's predictions on labelled images say: figures by class, calibration, mistakes, and images worth a second look."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model_patch.data.images import Split

BINS = 10
"""Number of intervals of confidence, of equal width, whose accuracy is compared with it."""

LISTED = 24
"""Mistakes, and uncertain images, that are listed at most."""

FOLDS = 5
"""Folds of the cross-validation that looks for wrong labels."""

MOST_CHECKED = 5000
"""At most this many training images, the first ones, are checked for wrong labels, and at most this many images in all, the
first of each split, are compared for duplicates."""

LISTED_SHARE = 0.1
"""Share of the images that are listed as perhaps mislabelled, at most."""

LEAST_SIDE = 32
"""Smaller images have too few details for a perceptual hash to distinguish them."""

NEAR = 6
"""Perceptual hashes of 64 bits that differ in at most this many are of near duplicates: in `textures` no two pictures differ
in less than 8, and none from its resized and compressed copy in more than 6."""


MOST_PAIRS = 1000
"""At most this many values, the first ones, are drawn."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions on the images of a split.

    Attributes:
        paths: paths of the images; those without a file are numbered, as in `test 17`.
        labels: the true ones, int64 `(images,)`.
        probabilities: float32 `(images, classes)`.
    """

    paths: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The most probable classes, int64 `(images,)`."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidences(self) -> np.ndarray:
        """Their probabilities, float32 `(images,)`."""
        return self.probabilities.max(axis=1)


def paths_of(split: Split, name: str) -> list[str]:
    """Returns a path for each image of a split; a name and a number for images that are not files."""
    return list(split.paths) if split.paths is not None else [f"{name} {i}" for i in range(split.num_images)]


def measure(predictions: Predictions, names: Sequence[str]) -> dict:
    """Returns figures of a classification.

    Args:
        predictions: for at least one image.
        names: the class names.

    Returns:
        JSON values: `images`, `accuracy`, `macro_accuracy` (the mean over classes of their recall, 0..1), `log_loss`,
        `expected_calibration_error` (0..1), `classes` (objects with `label`, `images`, `precision`, `recall` and `f1`),
        `confusion` (counts, a row per true class), `reliability` (bins with `confidence`, `accuracy` and `images`), and of
        `LISTED` single images at most `mistakes`, the most confident first, and `uncertain`, the least confident first (objects with `path`,
        `label`, `predicted` and `confidence`).
    """
    from sklearn import metrics

    true, predicted, confidences = predictions.labels, predictions.predicted, predictions.confidences
    classes = np.arange(len(names))
    precision, recall, f1, images = metrics.precision_recall_fscore_support(
        true, predicted, labels=classes, zero_division=0.0
    )
    right = predicted == true
    exact = predictions.probabilities.astype("float64")
    exact /= exact.sum(axis=1, keepdims=True)
    order = np.argsort(confidences, kind="stable")

    def some(positions):
        return [
            {
                "path": predictions.paths[i],
                "label": names[true[i]],
                "predicted": names[predicted[i]],
                "confidence": float(confidences[i]),
            }
            for i in positions[:LISTED]
        ]

    return {
        "images": len(true),
        "accuracy": float(right.mean()),
        "macro_accuracy": float(recall[images > 0].mean()),
        "log_loss": float(metrics.log_loss(true, exact, labels=classes)),
        **calibration(confidences, right),
        "classes": [
            {"label": name, "images": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
            for name, n, p, r, f in zip(names, images, precision, recall, f1, strict=True)
        ],
        "confusion": metrics.confusion_matrix(true, predicted, labels=classes).tolist(),
        "mistakes": some(order[::-1][~right[order[::-1]]]),
        "uncertain": some(order),
    }


def calibration(probabilities: np.ndarray, happened: np.ndarray) -> dict:
    """Compares probabilities with how often what they are of happened.

    Args:
        probabilities: float `(n,)` in 0..1.
        happened: bool or 0 and 1 `(n,)`.

    Returns:
        JSON values: `reliability`, a list of bins with `confidence`, `accuracy` and `images`, their number; and
        `expected_calibration_error` (0..1).
    """
    bins = np.clip((probabilities * BINS).astype(int), 0, BINS - 1)
    reliability = [
        {
            "confidence": float(probabilities[bins == i].mean()),
            "accuracy": float(happened[bins == i].mean()),
            "images": int((bins == i).sum()),
        }
        for i in range(BINS)
        if (bins == i).any()
    ]
    error = sum(each["images"] * abs(each["accuracy"] - each["confidence"]) for each in reliability) / len(happened)
    return {"reliability": reliability, "expected_calibration_error": float(error)}


def measure_task(task: Any, labels: np.ndarray, predictions: Mapping[str, np.ndarray], paths: Sequence[str]) -> dict:
    """Returns figures of a task other than classification.

    Args:
        task: multi-label, regression, or another that has `per_label` and `errors`.
        labels: the true ones, as data have them, of at least one image.
        predictions: as `Task.decode` returns them.
        paths: paths of the images.

    Returns:
        JSON values: `images`; the task's `figures` by name; `labels`, its `per_label`; of probabilities `reliability` and
        `expected_calibration_error`; of values `pairs`, `[true, predicted]` of the first label for up to `MOST_PAIRS` images;
        and `mistakes`, the most wrong images, `LISTED` at most (objects with `path`, `label`, `predicted` and `error`).
    """
    true, predicted, errors = task.true_texts(labels), task.texts(predictions), task.errors(labels, predictions)
    found: dict = {}
    if "probabilities" in predictions:
        found = calibration(predictions["probabilities"].ravel(), labels.ravel())
    if "values" in predictions:
        pairs = np.stack([labels[:, 0], predictions["values"][:, 0]], axis=1)[:MOST_PAIRS]
        found["pairs"] = [[float(f"{value:.6g}") for value in pair] for pair in pairs]
    return {
        "images": len(labels),
        **task.measure(labels, predictions),
        "labels": task.per_label(labels, predictions),
        **found,
        "mistakes": [
            {"path": paths[i], "label": true[i], "predicted": predicted[i], "error": float(errors[i])}
            for i in np.argsort(-errors, kind="stable")[:LISTED]
        ],
    }


def cross_validated(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the probabilities that logistic regression on the images of other folds gives each image.

    Args:
        features: float32 `(images, channels)`.
        labels: int64 `(images,)`; a class needs two images to be predicted.
        num_classes: how many classes there are.

    Returns:
        float32 `(images, num_classes)`; zeros of images in classes with one image, and where there are too few images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probabilities = np.zeros((len(labels), num_classes), "float32")
    folds = min(FOLDS, np.bincount(labels).max())
    if folds < 2:
        return probabilities
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of classes smaller than the folds, and of iterations that end early.
        for train, test in StratifiedKFold(folds).split(features, labels):
            # Few iterations from 0, on features of equal scale, are as good as a penalty: the fit need not be exact.
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=100))
            model.fit(features[train], labels[train])
            probabilities[np.ix_(test, model.classes_)] = model.predict_proba(features[test])
    return probabilities


def mislabelled(predictions: Sequence[Predictions], names: Sequence[str]) -> dict:
    """Lists the images whose labels contradict their predictions, by confident learning (Northcutt et al. 2021).

    Args:
        predictions: predictions of models that were not trained on those images.
        names: the class names.

    Returns:
        JSON values: `checked`, the number of images; `suspected`, that of labels estimated to be wrong; `images`, objects
        with `path`, `label`, `predicted`, `probability` (of the label, 0..1) and `suspected`, the least probable first, at
        most `LISTED_SHARE` of all.
    """
    from cleanlab.filter import find_label_issues

    labels = np.concatenate([each.labels for each in predictions])
    probabilities = np.concatenate([each.probabilities for each in predictions]).astype("float64")
    paths = [path for each in predictions for path in each.paths]
    known = probabilities.sum(axis=1) > 0
    positions = np.flatnonzero(known)
    labels, probabilities = labels[known], probabilities[known]
    present = np.unique(labels)
    suspected = np.zeros(len(labels), bool)
    if len(present) > 1:
        kept = probabilities[:, present] + 1e-9
        kept /= kept.sum(axis=1, keepdims=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of classes with few images.
            suspected = find_label_issues(np.searchsorted(present, labels), kept, n_jobs=1)
    own = probabilities[np.arange(len(labels)), labels]
    order = np.argsort(own, kind="stable")[: int(np.ceil(LISTED_SHARE * len(labels)))]
    return {
        "checked": len(labels),
        "suspected": int(suspected.sum()),
        "images": [
            {
                "path": paths[positions[i]],
                "label": names[labels[i]],
                "predicted": names[probabilities[i].argmax()],
                "probability": float(own[i]),
                "suspected": bool(suspected[i]),
            }
            for i in order
        ],
    }


def duplicates(splits: Mapping[str, Split]) -> dict:
    """Finds images that are in two splits.

    Pixels are compared by a content hash, and, of images that are not too small, by a perceptual one, which resizing and
    compression change little.

    Args:
        splits: by name.

    Returns:
        JSON values: `checked`, the number of images; `hashed`, how many of them were large enough for a perceptual hash;
        `pairs`, objects with `path`, `other`, of another split, and `distance`, the number of bits in which the perceptual
        hashes differ, of 64, or -1 for equal pixels; the most alike first.
    """
    import hashlib

    import imagehash
    from PIL import Image

    most = MOST_CHECKED // max(1, len(splits))
    hashes: dict[str, list] = {}
    for name, split in splits.items():
        paths = paths_of(split, name)
        hashes[name] = []
        for path, (image, _) in zip(paths, split.dataset(most).as_numpy_iterator(), strict=False):
            content = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
            large = min(image.shape[:2]) >= LEAST_SIDE
            # A picture of one colour has no details to compare.
            hashed = imagehash.phash(Image.fromarray(image)).hash.ravel() if large and np.ptp(image) else None
            hashes[name].append((path, content, hashed))
    pairs = []
    names = list(hashes)
    for at, name in enumerate(names):
        others = [each for other in names[at + 1 :] for each in hashes[other]]
        contents = {content: path for path, content, _ in others}
        perceptual = [(path, bits) for path, _, bits in others if bits is not None]
        table = np.array([bits for _, bits in perceptual]).reshape(-1, 64)
        for path, content, bits in hashes[name]:
            if content in contents:
                pairs.append({"path": path, "other": contents[content], "distance": -1})
            elif bits is not None and len(table):
                distances = np.count_nonzero(table != bits, axis=1)
                nearest = int(distances.argmin())
                if distances[nearest] <= NEAR:
                    pairs.append({"path": path, "other": perceptual[nearest][0], "distance": int(distances[nearest])})
    every = [each for of_split in hashes.values() for each in of_split]
    return {
        "checked": len(every),
        "hashed": sum(bits is not None for _, _, bits in every),
        "pairs": sorted(pairs, key=lambda pair: (pair["distance"], pair["path"])),
    }
