"""Compares ways to train: test accuracy against trained parameters, and against the learning rate."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from model_patch.experiments.report.output import named, new_axes, write_report
from model_patch.experiments.report.sample import Sample, grouped
from model_patch.experiments.report.table import Table, table

COLUMNS = {
    "train": "{train}",
    "trained parameters": "{trained_parameters:,}",
    "share": "{trained_fraction:.1%}",
    "patch file": lambda row: f"{row['patch_bytes'] / 1000:,.0f} kB",
    "test accuracy": "{accuracy.mean:.4f}",
    "spread": "{accuracy.spread:.4f}",
    "validation": "{validation.mean:.4f}",
    "cross-validation": "{folds}",
    "seeds": "{seeds}",
    "seconds": "{train_seconds:.1f}",
}
"""`spread` is best minus worst seed, as in brackets of the folds. Columns without values, of splits that a run does not have, are left out."""


def summarise(rows: list[dict]) -> list[dict]:
    """Averages the rows of `results.json` over seeds.

    Returns:
        One object per value of `train`, in order of first appearance: the fields of its first row, `accuracy` (a `Sample`,
        in 0..1), `seeds` (their number), and `train_seconds` (mean); where they were measured the samples `validation` and
        `folds`, the latter of all folds of all seeds.
    """
    return [
        group[0]
        | ({"validation": Sample.of(group, "validation_accuracy")} if "validation_accuracy" in group[0] else {})
        | (
            {"folds": Sample(sum((tuple(row["fold_accuracies"]) for row in group), ()))}
            if "fold_accuracies" in group[0]
            else {}
        )
        | {
            "accuracy": Sample.of(group),
            "seeds": len(group),
            "train_seconds": float(np.mean([row["train_seconds"] for row in group])),
        }
        for group in grouped(rows, "train").values()
    ]


def comparison_table(rows: list[dict]) -> Table:
    """Returns the comparison of ways to train."""
    header, cells = table(summarise(rows), COLUMNS)
    used = [i for i in range(len(header)) if any(row[i] for row in cells)]
    return [header[i] for i in used], [[row[i] for i in used] for row in cells]


def write_comparison(results: dict, folder: Path):
    """Prints the comparison of ways to train and writes it to `results.md` and `accuracy_vs_parameters.png`."""
    summary = summarise(results["rows"])
    title = f"{results['data']} on {results['trunk']} at {results['image_size']} px"
    figure, axes = new_axes()
    for row in summary:
        x, y = max(row["trained_parameters"], 1), row["accuracy"].mean
        axes.errorbar(x, y, yerr=[[bar] for bar in row["accuracy"].bars], fmt="o", capsize=3, color="tab:blue")
        axes.annotate(row["train"], (x, y), xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.margins(x=0.2, y=0.15)
    axes.set(xscale="log", xlabel="trained parameters", ylabel="test accuracy", title=title)
    # Runs of earlier versions did not record what they reuse.
    reused = [f"{row['train']} {100 * row['reused_fraction']:.1f} %" for row in summary if "reused_fraction" in row]
    unchanged = f"Trunk weights left unchanged: {', '.join(reused)}." if reused else ""
    notes = " ".join(filter(None, ["`spread`: best minus worst seed.", unchanged, f"{named(results['versions'])}."]))
    write_report(folder, title, [comparison_table(results["rows"]), notes], accuracy_vs_parameters=figure)
    if unchanged:
        print(unchanged)


def by_rate(rows: Iterable[dict]) -> dict[str, dict[float, Sample]]:
    """Returns the test accuracies over the seeds, by what was trained and by learning rate."""
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
    axes.set(xscale="log", xlabel="learning rate", ylabel="test accuracy", title=title)
    axes.legend(title="trained", fontsize=8)
    notes = f"Mean over seeds; in brackets best minus worst seed. {named(results['versions'])}."
    write_report(folder, title, [rates_table(results["rows"]), notes], accuracy_vs_learning_rate=figure)
