"""Accuracy against learning rate, for each way to train."""

from collections import defaultdict
from pathlib import Path

from model_patch.experiments.report.comparison import save_figure
from model_patch.experiments.report.sample import Sample
from model_patch.experiments.report.table import markdown, print_table
from model_patch.files import write_bytes


def by_rate(rows: list[dict]) -> dict[str, dict[float, Sample]]:
    """Returns the test accuracies over the seeds, by what was trained and by learning rate."""
    grouped: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        grouped[row["train"]][row["learning_rate"]].append(row["test_accuracy"])
    return {
        train: {rate: Sample(tuple(accuracies)) for rate, accuracies in sorted(rates.items())}
        for train, rates in grouped.items()
    }


def rates_table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: a column per learning rate, the mean over the seeds and in brackets the spread."""
    grouped = by_rate(rows)
    rates = sorted({rate for each in grouped.values() for rate in each})
    cells = [
        [train, *(str(each.get(rate, "")) for rate in rates), f"{best_rate(each):g}"] for train, each in grouped.items()
    ]
    return ["train", *(f"{rate:g}" for rate in rates), "best rate"], cells


def best_rate(accuracies: dict[float, Sample]) -> float:
    """Returns the learning rate with the best mean accuracy; of two equal ones the lower."""
    return max(accuracies, key=lambda rate: (accuracies[rate].mean, -rate))


def plot_rates(rows: list[dict], title: str):
    """Returns a matplotlib figure: accuracy against learning rate, a line per way to train, bars from worst to best seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for train, each in by_rate(rows).items():
        means = [accuracies.mean for accuracies in each.values()]
        bars = list(zip(*(accuracies.bars for accuracies in each.values()), strict=True))
        axes.errorbar(list(each), means, yerr=bars, fmt="o-", capsize=3, label=train)
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="test accuracy", title=title)
    axes.grid(alpha=0.3)
    axes.legend(title="trained", fontsize=8)
    return figure


def write_rates_report(results: dict, folder: Path):
    """Prints the comparison and writes it to `results.md` and `accuracy_vs_learning_rate.png` in a folder."""
    title = f"{results['data']} on {results['trunk']} at {results['image_size']} px, by learning rate"
    header, rows = rates_table(results["rows"])
    print_table(title, header, rows)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    text = f"# {title}\n\n{markdown(header, rows)}\nMean over seeds; in brackets best less worst seed. {versions}.\n"
    write_bytes(folder / "results.md", text.encode())
    save_figure(plot_rates(results["rows"], title), folder / "accuracy_vs_learning_rate.png")
