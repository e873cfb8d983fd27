"""Compares ways to train: test accuracy against trained parameters, and against the learning rate."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from model_patch.experiments.report.output import accuracy_limits, legend_below, named, new_axes, write_report
from model_patch.experiments.report.page import Figure
from model_patch.experiments.report.sample import Sample, figure_of, grouped
from model_patch.experiments.report.table import Table, table


def _columns(summary: list[dict]) -> dict:
    """Returns the columns of the comparison.

    `spread` is best minus worst seed, as in brackets of the folds. Columns without values, of splits that a run does not have,
    are left out.
    """
    further = summary[0].get("further", {})
    return {
        "train": "{train}",
        "trained parameters": "{trained_parameters:,}",
        "share": "{trained_fraction:.1%}",
        "patch file": lambda row: f"{row['patch_bytes'] / 1000:,.0f} kB",
        f"test {figure_of(summary[0])}": "{accuracy.mean:.4f}",
        "spread": "{accuracy.spread:.4f}",
        **{name.replace("_", " "): f"{{further[{name}].mean:.4f}}" for name in further},
        "validation": "{validation.mean:.4f}",
        "cross-validation": "{folds}",
        "seeds": "{seeds}",
        "seconds": "{train_seconds:.1f}",
    }


MARKERS = "osD^vP*Xph"


def summarise(rows: list[dict]) -> list[dict]:
    """Averages the rows of `results.json` over seeds.

    Returns:
        One object per value of `train`, in order of first appearance: the fields of its first row, `accuracy` (a `Sample` of it
        or of the figure in its place), `further` (samples of what else was measured, by name), `seeds` (their number), and
        `train_seconds` (mean); where they were measured the samples `validation` and `folds`, the last of all folds of all seeds.
    """
    summary = []
    for group in grouped(rows, "train").values():
        first, figure = group[0], figure_of(group[0])
        further = [name for name in first if name.startswith("test_") and name != f"test_{figure}"]
        optional = {}
        if f"validation_{figure}" in first:
            optional["validation"] = Sample.of(group, f"validation_{figure}")
        if f"fold_{figure}" in first:
            optional["folds"] = Sample(sum((tuple(row[f"fold_{figure}"]) for row in group), ()))
        summary.append(
            {
                **first,
                **optional,
                "accuracy": Sample.of(group),
                "further": {name.removeprefix("test_"): Sample.of(group, name) for name in further},
                "seeds": len(group),
                "train_seconds": float(np.mean([row["train_seconds"] for row in group])),
            }
        )
    return summary


def comparison_table(rows: list[dict]) -> Table:
    """Returns the comparison of ways to train."""
    summary = summarise(rows)
    header, cells = table(summary, _columns(summary))
    used = [i for i in range(len(header)) if any(row[i] for row in cells)]
    return [header[i] for i in used], [[row[i] for i in used] for row in cells]


def comparison_parts(results: dict) -> list[str | Table | Figure]:
    """Returns the comparison of ways to train: a table, notes, and accuracy against trained parameters."""
    summary = summarise(results["rows"])
    figure, axes = new_axes(6.5, 5)
    for i, row in enumerate(summary):
        x, y = max(row["trained_parameters"], 1), row["accuracy"].mean
        bars = [[bar] for bar in row["accuracy"].bars]
        axes.errorbar(x, y, yerr=bars, fmt=MARKERS[i % len(MARKERS)], capsize=3, label=row["train"])
    lowest, figure_name = min(min(row["accuracy"].values) for row in summary), figure_of(summary[0])
    axes.margins(x=0.1)
    axes.set(xscale="log", xlabel="trained parameters", ylabel=f"test {figure_name}", ylim=accuracy_limits(lowest))
    legend_below(figure)
    # Runs of earlier versions did not record what they reuse.
    reused = [f"{row['train']} {100 * row['reused_fraction']:.1f} %" for row in summary if "reused_fraction" in row]
    notes = ["`spread`: best minus worst seed."]
    if any("folds" in row for row in summary):
        notes.append("`cross-validation`: mean over folds, in brackets best minus worst fold.")
    if reused:
        notes.append(f"Trunk weights left unchanged: {', '.join(reused)}.")
    notes.append(f"{named(results['versions'])}.")
    plot = Figure("accuracy_vs_parameters", figure, f"Test {figure_name} by number of trained parameters")
    return [comparison_table(results["rows"]), " ".join(notes), plot]


def title_of(results: dict) -> str:
    """Returns the heading of a report on ways to train."""
    return f"{results['data']} on {results['trunk']} at {results['image_size']} px"


def by_rate(rows: Iterable[dict]) -> dict[str, dict[float, Sample]]:
    """Returns the test figures over the seeds, by what was trained and by learning rate."""
    return {
        train: {rate: Sample.of(each) for rate, each in sorted(grouped(group, "learning_rate").items())}
        for train, group in grouped(rows, "train").items()
    }


def best_rate(accuracies: dict[float, Sample]) -> float:
    """Returns the learning rate with the best mean accuracy; of two equal ones the lower."""
    return max(accuracies, key=lambda rate: (accuracies[rate].mean, -rate))


def rates_table(rows: list[dict]) -> Table:
    """Returns a table with a column per learning rate: the mean over the seeds, and the spread in brackets."""
    trained = by_rate(rows)
    rates = sorted({rate for each in trained.values() for rate in each})
    cells = [
        [train, *(str(each.get(rate, "")) for rate in rates), f"{best_rate(each):g}"] for train, each in trained.items()
    ]
    return ["train", *(f"{rate:g}" for rate in rates), "best rate"], cells


def write_rates(results: dict, folder: Path):
    """Prints the comparison of learning rates and writes it to `results.md` and `accuracy_vs_learning_rate.png`."""
    title = f"{results['data']} on {results['trunk']} at {results['image_size']} px, by learning rate"
    figure, axes = new_axes()
    for train, each in by_rate(results["rows"]).items():
        means = [accuracies.mean for accuracies in each.values()]
        bars = list(zip(*(accuracies.bars for accuracies in each.values()), strict=True))
        axes.errorbar(list(each), means, yerr=bars, fmt="o-", capsize=3, label=train)
    lowest = min(min(each.values) for rates in by_rate(results["rows"]).values() for each in rates.values())
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"test {figure_of(results['rows'][0])}")
    axes.set(title=title, ylim=accuracy_limits(lowest))
    axes.legend(title="trained", fontsize=8)
    notes = f"Mean over seeds; in brackets best minus worst seed. {named(results['versions'])}."
    write_report(folder, title, [rates_table(results["rows"]), notes], accuracy_vs_learning_rate=figure)
