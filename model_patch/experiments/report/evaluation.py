"""The sections of a report on a model's predictions, and on the images they were made for."""

from collections.abc import Mapping, Sequence

import numpy as np

from model_patch.experiments.report.output import new_axes
from model_patch.experiments.report.page import Figure, Gallery, Section
from model_patch.experiments.report.table import table

MOST_DRAWN = 30
"""Confusion matrices of more classes are not drawn."""

MOST_CONFUSIONS = 20
"""Pairs of classes in the table of confusions, at most."""

MOST_PAIRS = 50
"""Duplicates that the page lists, at most; the JSON file has all."""


def evaluation_sections(evaluation: dict, thumbnails: Mapping[str, bytes]) -> list[Section]:
    """Returns the sections of an evaluation.

    Args:
        evaluation: as `experiments.evaluate.evaluate_model` returns it.
        thumbnails: JPEG files by the path of the image; a list of images without any is a table.
    """
    test = evaluation["test"]
    sections = [Section("Test images", [_summary(test), *(f"Note: {note}" for note in evaluation["notes"])])]
    if "classes" in test:
        sections += [Section("Classes", _classes(evaluation)), Section("Confusions", _confusions(test))]
    else:
        sections.append(Section("Labels", _labels(evaluation)))
    if "pairs" in test:
        sections.append(Section("Values", [_scatter(test)]))
    if "reliability" in test:
        sections.append(Section("Calibration", _calibration(test)))
    if "error" in (test["mistakes"] or [{}])[0]:
        rows = [
            (e["path"], e["label"] or "none", e["predicted"] or "none", f"{e['error']:.3f}") for e in test["mistakes"]
        ]
        header = ("path", "label", "predicted", "error")
        text = "With the highest cross-entropy." if "reliability" in test else "In standard deviations."
        sections.append(Section("Largest errors", [text, *_listed(header, rows, thumbnails)]))
    galleries = {
        "Most confident mistakes": ("mistakes", "Predicted wrongly, with the highest probability."),
        "Least certain images": ("uncertain", "With the lowest probability of the predicted class."),
    }
    for title, (field, text) in galleries.items() if "classes" in test else ():
        rows = [(e["path"], e["label"], e["predicted"], f"{e['confidence']:.3f}") for e in test[field]]
        header = ("path", "label", "predicted", "probability")
        sections.append(Section(title, [text, *_listed(header, rows, thumbnails)] if rows else ["None."]))
    if "mislabelled" in evaluation:
        sections.append(Section("Labels that may be wrong", _mislabelled(evaluation["mislabelled"], thumbnails)))
    if "duplicates" in evaluation:
        sections.append(Section("Duplicates between splits", _duplicates(evaluation["duplicates"], thumbnails)))
    return sections


def listed_paths(evaluation: dict, most: int) -> list[str]:
    """Returns the paths of the images that the sections show, up to a number of each list."""
    test, wrong, pairs = evaluation["test"], evaluation.get("mislabelled"), evaluation.get("duplicates")
    paths = [each["path"] for field in ("mistakes", "uncertain") for each in test.get(field, [])[:most]]
    paths += [each["path"] for each in (wrong["images"][:most] if wrong else ())]
    paths += [each["path"] for each in (pairs["pairs"][:most] if pairs else ())]
    return list(dict.fromkeys(paths))


def _listed(header: Sequence[str], rows: Sequence[Sequence[str]], thumbnails: Mapping[str, bytes]) -> list[Gallery]:
    """Returns the first images with thumbnails, and those after them as a table."""
    shown = next((i for i, row in enumerate(rows) if row[0] not in thumbnails), len(rows))
    parts = [Gallery(header, rows[:shown], [thumbnails[row[0]] for row in rows[:shown]]), Gallery(header, rows[shown:])]
    return [part for part in parts if part.rows]


def _summary(test: dict) -> str:
    """Returns one sentence with the figures that are single numbers."""
    left_out = ("images", "expected_calibration_error", "temperature", "error_with_temperature")
    figures = [
        f"{name.replace('_', ' ')} {value:.4f}"
        for name, value in test.items()
        if isinstance(value, float) and name not in left_out
    ]
    return f"{test['images']} images: {', '.join(figures)}."


def _labels(evaluation: dict):
    """Returns a table of what a task other than classification says of each label."""
    rows = evaluation["test"]["labels"]
    columns: dict = {"label": "{label}"} | {
        f"{part} images": lambda row, of=of: f"{of.get(row['label'], 0):,}"
        for part, of in evaluation.get("counts", {}).items()
        if part != "test"
    }
    for name in rows[0]:
        if name not in ("label", "images"):
            columns[name] = f"{{{name}:.4g}}"
        elif name == "images":
            columns["test images"] = "{images:,}"
    return [table(rows, columns)]


def _scatter(test: dict) -> Figure:
    true, predicted = np.array(test["pairs"]).T
    figure, axes = new_axes(4.5, 4.5)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, "--", color="grey", label="equal")
    axes.plot(true, predicted, ".", alpha=0.5, label="images")
    axes.set(xlabel=f"true {test['labels'][0]['label']}", ylabel="predicted")
    axes.legend(fontsize=8)
    return Figure("values", figure, "Predicted values by true values")


def _classes(evaluation: dict):
    counts = evaluation.get("counts", {})
    parts = [part for part in counts if part != "test"]
    rows = [
        each | {part: counts[part].get(each["label"], 0) for part in parts} for each in evaluation["test"]["classes"]
    ]
    columns = (
        {"class": "{label}"} | {f"{part} images": f"{{{part}:,}}" for part in parts} | {"test images": "{images:,}"}
    )
    return [table(rows, columns | {each: f"{{{each}:.3f}}" for each in ("precision", "recall", "f1")})]


def _confusions(test: dict):
    names, counts = [each["label"] for each in test["classes"]], np.array(test["confusion"])
    parts: list = []
    if len(names) <= MOST_DRAWN:
        side = 2.5 + 0.32 * len(names)
        figure, axes = new_axes(side, side)
        axes.grid(False)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, counts[i, j], ha="center", va="center", fontsize=7, color=colour)
        axes.set(xlabel="predicted", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
        axes.set_xticklabels(names, rotation=90, fontsize=8)
        axes.set_yticklabels(names, fontsize=8)
        parts.append(Figure("confusion", figure, "Confusion matrix: counts of test images by true and predicted class"))
    off = counts - np.diag(np.diag(counts))
    order = np.argsort(-off, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, off.shape), strict=True) if off[i, j]]
    if pairs:
        rows = [(names[i], names[j], str(off[i, j]), f"{100 * off[i, j] / counts[i].sum():.1f} %") for i, j in pairs]
        parts.append((("true class", "predicted", "images", "of the class"), rows))
    return parts or ["None."]


def _calibration(test: dict):
    bins = test["reliability"]
    figure, axes = new_axes(4.5, 4.5)
    axes.plot([0, 1], [0, 1], "--", color="grey", label="perfectly calibrated")
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-", label="predictions")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean predicted probability", ylabel="accuracy")
    axes.legend(fontsize=8)
    columns = {"probability": "{confidence:.3f}", "accuracy": "{accuracy:.3f}", "images": "{images:,}"}
    fitted = (
        f" With the temperature {test['temperature']:.3f}, fitted on validation images, it is "
        f"{test['error_with_temperature']:.4f}: `--calibrated` uses it."
        if "temperature" in test
        else ""
    )
    return [
        f"Expected calibration error: {test['expected_calibration_error']:.4f}, the mean difference between probability and "
        f"accuracy over bins of predictions.{fitted}",
        Figure("calibration", figure, "Reliability diagram: accuracy by predicted probability"),
        table(bins, columns),
    ]


def _mislabelled(found: dict, thumbnails: Mapping[str, bytes]):
    text = (
        f"{found['checked']} labels were compared with predictions of models that had not seen them: of training images, "
        f"cross-validated ones. {found['suspected']} contradict these by confident learning (cleanlab). Listed are the "
        "images whose labels are the least probable."
    )
    rows = [
        (e["path"], e["label"], e["predicted"], f"{e['probability']:.3f}", "yes" if e["suspected"] else "")
        for e in found["images"]
    ]
    header = ("path", "label", "predicted", "probability of the label", "suspected")
    return [text, *_listed(header, rows, thumbnails)]


def _duplicates(found: dict, thumbnails: Mapping[str, bytes]):
    pairs = found["pairs"]
    text = f"{found['checked']} images were compared by content, {found['hashed']} of them by perceptual hash, too. "
    text += f"{len(pairs)} are in two splits, or nearly so." if pairs else "None is in two splits."
    if not pairs:
        return [text]
    rows = [
        (p["path"], p["other"], "equal" if p["distance"] < 0 else f"{p['distance']} of 64 bits")
        for p in pairs[:MOST_PAIRS]
    ]
    return [text, *_listed(("path", "also in another split", "difference"), rows, thumbnails)]
