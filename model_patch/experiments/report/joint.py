"""Compares ways to share: the accuracy of every task against the total number of parameters."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from model_patch.experiments.report.comparison import save_figure
from model_patch.experiments.report.sample import Sample
from model_patch.experiments.report.table import markdown, print_table
from model_patch.files import write_bytes

INDEPENDENT = "nothing"
"""The row whose parameter count the others are compared with."""

WIDTH = 0.8
"""Part of the room of a task that its bars take, in 0..1."""


def summarise(rows: list[dict]) -> list[dict]:
    """Averages the rows of `results.json` over seeds.

    Returns:
        One object per value of `share`, in order of first appearance: `tasks`, by name the `accuracy` (a `Sample`, in 0..1)
        and `image_size`; `mean`, the `Sample` of the tasks' mean accuracies; `total_parameters`, `trained_parameters` and
        `train_seconds` (mean).
    """
    shares = defaultdict(list)
    for row in rows:
        shares[row["share"]].append(row)
    summary = []
    for share, group in shares.items():
        by_task, by_seed = defaultdict(list), defaultdict(list)
        for row in group:
            by_task[row["task"], row["image_size"]].append(row["test_accuracy"])
            by_seed[row["seed"]].append(row["test_accuracy"])
        summary.append(
            {
                "share": share,
                "tasks": {
                    task: {"accuracy": Sample(tuple(each)), "image_size": size}
                    for (task, size), each in by_task.items()
                },
                "mean": Sample(tuple(float(np.mean(accuracies)) for accuracies in by_seed.values())),
                "total_parameters": group[0]["total_parameters"],
                "trained_parameters": group[0]["trained_parameters"],
                "train_seconds": float(np.mean([row["train_seconds"] for row in group])),
            }
        )
    return summary


def table(summary: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the comparison. `of separate models` is empty if these were not trained."""
    tasks = list(summary[0]["tasks"])
    separate = next((row["total_parameters"] for row in summary if row["share"] == INDEPENDENT), None)
    header = ["share", *tasks, "mean", "spread", "parameters", "of separate models", "trained", "seeds", "seconds"]
    return header, [
        [
            row["share"],
            *(f"{row['tasks'][task]['accuracy'].mean:.4f}" for task in tasks),
            f"{row['mean'].mean:.4f}",
            f"{row['mean'].spread:.4f}",
            f"{row['total_parameters']:,}",
            f"{100 * row['total_parameters'] / separate:.1f} %" if separate else "",
            f"{row['trained_parameters']:,}",
            str(len(row["mean"].values)),
            f"{row['train_seconds']:.1f}",
        ]
        for row in summary
    ]


def plot(summary: list[dict], title: str, resolutions: bool):
    """Returns a matplotlib figure: accuracy against image size, a line per row, or bars of every task.

    Error bars reach from the worst to the best seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = list(summary[0]["tasks"])
    for i, row in enumerate(summary):
        tasks = list(row["tasks"].values())
        means = [task["accuracy"].mean for task in tasks]
        bars = list(zip(*(task["accuracy"].bars for task in tasks), strict=True))
        label = f"{row['share']}: {row['total_parameters'] / 1e6:.2f} M values"
        if resolutions:
            sizes = [task["image_size"] for task in tasks]
            axes.errorbar(sizes, means, yerr=bars, fmt="o-", capsize=3, label=label)
            continue
        places = np.arange(len(names)) + WIDTH * ((i + 0.5) / len(summary) - 0.5)
        axes.bar(places, means, WIDTH / len(summary), yerr=bars, capsize=3, label=label)
    if resolutions:
        axes.set(xlabel="image size in pixels", xticks=[task["image_size"] for task in summary[0]["tasks"].values()])
    else:
        lowest = min(min(task["accuracy"].values) for row in summary for task in row["tasks"].values())
        axes.set(xticks=range(len(names)), xticklabels=names, ylim=(max(0.0, lowest - 0.1), None))
    axes.set(ylabel="test accuracy", title=title)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(title="shared by the tasks", fontsize=8, loc="lower right")
    return figure


def write_joint_report(results: dict, folder: Path):
    """Prints the comparison and writes it to `results.md` and `accuracy_by_task.png` in a folder."""
    summary = summarise(results["rows"])
    title = f"{', '.join(results['data'])} on {results['trunk']}: {results['train']}"
    header, rows = table(summary)
    print_table(title, header, rows)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    explained = "`spread`: best less worst seed, of the mean. `all values`: of all tasks together, each counted once."
    write_bytes(folder / "results.md", f"# {title}\n\n{markdown(header, rows)}\n{explained} {versions}.\n".encode())
    save_figure(plot(summary, title, bool(results["resolutions"])), folder / "accuracy_by_task.png")
