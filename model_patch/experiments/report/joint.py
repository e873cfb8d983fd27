"""Compares ways to share: the test figure of every task against the total number of parameters."""

from pathlib import Path

import numpy as np

from model_patch.experiments.report.output import accuracy_limits, named, new_axes, write_report
from model_patch.experiments.report.sample import Sample, figure_of, figure_of_all, grouped
from model_patch.experiments.report.table import Table, table

INDEPENDENT = "nothing"
"""The row whose parameter count the others are compared with."""

BAR_WIDTH = 0.8
"""Share of a task's room on the axis that its bars take, in 0..1."""


def mean_over_tasks(rows: list[dict]) -> Sample:
    """Returns the means of all tasks' test figures, one per seed."""
    return Sample(tuple(Sample.of(each).mean for each in grouped(rows, "seed").values()))


def summarise(rows: list[dict]) -> list[dict]:
    """Averages the rows of `results.json` over seeds.

    Returns:
        One object per value of `share`, in order of first appearance: by the name of each task its test figure (a `Sample`) as
        `tasks`, its heading as `names` and its image size as `image_sizes`; `figures`, the names of all test figures, and
        `figure`, see `figure_of_all`; `mean`, the `Sample` of their means over the tasks; `seeds`, their number;
        `total_parameters`, `trained_parameters` and `train_seconds` (mean).
    """
    summary = []
    for share, group in grouped(rows, "share").items():
        by_task = grouped(group, "task")
        summary.append(
            {
                "share": share,
                "tasks": {task: Sample.of(each) for task, each in by_task.items()},
                "figures": sorted({figure_of(row) for row in group}),
                "figure": figure_of_all(group),
                "names": {task: _named(task, figure_of(each[0])) for task, each in by_task.items()},
                "image_sizes": {task: each[0]["image_size"] for task, each in by_task.items()},
                "mean": mean_over_tasks(group),
                "seeds": len(grouped(group, "seed")),
                **{field: group[0][field] for field in ("total_parameters", "trained_parameters")},
                "train_seconds": float(np.mean([row["train_seconds"] for row in group])),
            }
        )
    return summary


def _named(task: str, figure: str) -> str:
    return task if figure == "accuracy" else f"{task} ({figure})"


def joint_table(summary: list[dict]) -> Table:
    """Returns the comparison of ways to share. `of separate models` is empty if these were not trained."""
    separate = next((row["total_parameters"] for row in summary if row["share"] == INDEPENDENT), None)
    return table(
        summary,
        {
            "share": "{share}",
            **{
                name: lambda row, task=task: f"{row['tasks'][task].mean:.4f}"
                for task, name in summary[0]["names"].items()
            },
            "mean": "{mean.mean:.4f}",
            "spread": "{mean.spread:.4f}",
            "parameters": "{total_parameters:,}",
            "of separate models": lambda row: f"{100 * row['total_parameters'] / separate:.1f} %" if separate else "",
            "trained": "{trained_parameters:,}",
            "seeds": "{seeds}",
            "seconds": "{train_seconds:.1f}",
        },
    )


def plot(summary: list[dict], title: str, resolutions: bool):
    """Returns a matplotlib figure: accuracy against image size, a line per row, or bars of every task.

    Error bars reach from the worst to the best seed.
    """
    figure, axes = new_axes()
    names = list(summary[0]["names"].values())
    for i, row in enumerate(summary):
        samples = row["tasks"].values()
        bars = list(zip(*(sample.bars for sample in samples), strict=True))
        options = {
            "yerr": bars,
            "capsize": 3,
            "label": f"{row['share']}: {row['total_parameters'] / 1e6:.2f} M parameters",
        }
        means = [sample.mean for sample in samples]
        if resolutions:
            axes.errorbar(list(row["image_sizes"].values()), means, fmt="o-", **options)
        else:
            places = np.arange(len(names)) + BAR_WIDTH * ((i + 0.5) / len(summary) - 0.5)
            axes.bar(places, means, BAR_WIDTH / len(summary), **options)
    if resolutions:
        axes.set(xlabel="image size in pixels", xticks=list(summary[0]["image_sizes"].values()))
    else:
        lowest = min(min(sample.values) for row in summary for sample in row["tasks"].values())
        axes.set(xticks=range(len(names)), xticklabels=names, ylim=accuracy_limits(lowest))
    axes.set(ylabel=f"test {summary[0]['figure']}", title=title)
    axes.legend(title="shared by the tasks", fontsize=8, loc="lower right")
    return figure


def write_joint_report(results: dict, folder: Path):
    """Prints the comparison and writes it to `results.md` and `accuracy_by_task.png` in a folder."""
    summary = summarise(results["rows"])
    title = f"{', '.join(results['data'])} on {results['trunk']}: {results['train']}"
    notes = "`spread`: best minus worst seed, of the mean. `parameters`: of all tasks together, each counted once."
    if len(summary[0]["figures"]) > 1:
        notes += f" `mean`: over figures of several types, {', '.join(summary[0]['figures'])}."
    figure = plot(summary, title, bool(results["resolutions"]))
    parts: list[str | Table] = [joint_table(summary), f"{notes} {named(results['versions'])}."]
    write_report(folder, title, parts, accuracy_by_task=figure)
