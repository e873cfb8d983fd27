"""The comparison of what can be trained: accuracy against trained parameters."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from model_patch.experiments.report.sample import Sample
from model_patch.experiments.report.table import markdown, print_table
from model_patch.files import write_bytes

HEADER = ("train", "trained parameters", "share", "patch file", "test accuracy", "spread", "seeds", "seconds")


def summarise(rows: list[dict]) -> list[dict]:
    """Averages the rows of `results.json` over seeds.

    Returns:
        One object per value of `train`, in order of first appearance: the row's counts, `accuracy` (a `Sample`, in 0..1),
        and `train_seconds` (mean).
    """
    grouped = defaultdict(list)
    for row in rows:
        grouped[row["train"]].append(row)
    summary = []
    for train, group in grouped.items():
        summary.append(
            {
                "train": train,
                **{key: group[0][key] for key in ("trained_parameters", "trained_fraction", "patch_bytes")},
                "reused_fraction": group[0].get("reused_fraction"),  # Runs of earlier versions do not have it.
                "accuracy": Sample(tuple(row["test_accuracy"] for row in group)),
                "train_seconds": float(np.mean([row["train_seconds"] for row in group])),
            }
        )
    return summary


def table_rows(summary: list[dict]) -> list[list[str]]:
    """Formats a summary for `HEADER`. `spread` is best minus worst seed."""
    return [
        [
            row["train"],
            f"{row['trained_parameters']:,}",
            f"{100 * row['trained_fraction']:.1f} %",
            f"{row['patch_bytes'] / 1000:,.0f} kB",
            f"{row['accuracy'].mean:.4f}",
            f"{row['accuracy'].spread:.4f}",
            str(len(row["accuracy"].values)),
            f"{row['train_seconds']:.1f}",
        ]
        for row in summary
    ]


def reuse(summary: list[dict]) -> str:
    """Reports the fraction of trunk weights that each row leaves unchanged; empty if the run did not record it."""
    parts = [
        f"{row['train']} {100 * row['reused_fraction']:.1f} %" for row in summary if row["reused_fraction"] is not None
    ]
    return f"Trunk weights left unchanged: {', '.join(parts)}." if parts else ""


def plot(summary: list[dict], title: str):
    """Returns a matplotlib figure: test accuracy against trained parameters (log scale), bars from worst to best seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for row in summary:
        x, y = max(row["trained_parameters"], 1), row["accuracy"].mean
        axes.errorbar(x, y, yerr=[[bar] for bar in row["accuracy"].bars], fmt="o", capsize=3, color="tab:blue")
        axes.annotate(row["train"], (x, y), xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.2, y=0.15)
    axes.set(xlabel="trained parameters", ylabel="test accuracy", title=title)
    axes.grid(alpha=0.3)
    return figure


def save_figure(figure, path: Path):
    """Writes a matplotlib figure as PNG, whole or not at all."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def write_report(results: dict, folder: Path):
    """Prints the comparison and writes it to `results.md` and `accuracy_vs_parameters.png` in a folder."""
    summary = summarise(results["rows"])
    title = f"{results['data']} on {results['trunk']} at {results['image_size']} px"
    rows = table_rows(summary)
    print_table(title, HEADER, rows)
    reused = reuse(summary)
    if reused:
        print(reused)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    sentences = " ".join(filter(None, ["`spread`: best minus worst seed.", reused, f"{versions}."]))
    text = f"# {title}\n\n{markdown(HEADER, rows)}\n{sentences}\n"
    write_bytes(folder / "results.md", text.encode())
    save_figure(plot(summary, title), folder / "accuracy_vs_parameters.png")
