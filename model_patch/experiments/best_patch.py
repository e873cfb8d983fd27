"""Which patch to ship: the smallest that is not measurably worse than the best."""

import dataclasses
from collections.abc import Mapping

from model_patch.experiments.report.sample import Sample, grouped
from model_patch.tasks import Task

MEASURES = {"fold": ("cross-validated", "train"), "validation": ("validation", "validation"), "test": ("test", "test")}
"""What rows are chosen by, in order of preference: prefixes of fields, with an adjective and the split that it was measured on."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A row of a comparison.

    Attributes:
        train, seed: what identify it.
        reason: one sentence.
    """

    train: str
    seed: int
    reason: str


def choose(rows: list[dict], num_images: Mapping[str, int], task: Task) -> Choice:
    """Chooses a row.

    Candidates are the ways to train whose accuracy, averaged over seeds, is within a tolerance of the best: the larger of the
    spread over seeds and of the standard error of an accuracy measured on that many images. The candidate with the fewest
    trained parameters is chosen, and its best seed. Accuracies are cross-validated ones if the rows have them, or else
    those on validation images. Only without these is it the test accuracy, which is then too optimistic. Of other types of
    task their own figure takes the place of accuracy.

    Args:
        rows: as in `results.json`, with `trained_parameters` and any of `MEASURES`.
        num_images: number of images of each split.
        task: what was trained.
    """
    figure = task.figures[0]
    measure = next(prefix for prefix in MEASURES if all(f"{prefix}_{figure}" in row for row in rows))
    adjective, part = MEASURES[measure]

    def accuracy(row: dict) -> float:
        value = row[f"{measure}_{figure}"]
        return Sample(tuple(value)).mean if isinstance(value, list) else value

    samples = {train: Sample(tuple(map(accuracy, of))) for train, of in grouped(rows, "train").items()}
    size = {row["train"]: row["trained_parameters"] for row in rows}
    best = max(samples, key=lambda train: (samples[train].mean, -size[train]))
    top = samples[best].mean
    error = task.standard_error(top, num_images[part])
    spread = max(samples[best].spread, error)
    kind = "spread over seeds" if spread > error else "standard error"
    candidates = [train for train, sample in samples.items() if top - sample.mean <= spread]
    chosen = min(candidates, key=lambda train: (size[train], -samples[train].mean))
    seed = max((row for row in rows if row["train"] == chosen), key=accuracy)["seed"]
    if chosen == best:
        why = f"the highest, and no row with fewer trained parameters comes within the {kind} of {spread:.4f}"
    else:
        why = f"within the {kind} of {spread:.4f} of the best, {best} ({top:.4f}), with {size[chosen]:,} trained parameters "
        why += f"instead of {size[best]:,}"
    return Choice(
        chosen, seed, f"{chosen}, seed {seed}: its {adjective} {figure} of {samples[chosen].mean:.4f} is {why}."
    )
