"""The report of a comparison of ways to train: what was compared, what was chosen, and what the chosen patch gets wrong."""

from pathlib import Path

from model_patch.data.images import ImageData
from model_patch.experiments.best_patch import Choice
from model_patch.experiments.evaluate import write_evaluation
from model_patch.experiments.report.comparison import comparison_parts, comparison_table, title_of
from model_patch.experiments.report.output import legend_below, new_axes
from model_patch.experiments.report.page import Figure, Section
from model_patch.experiments.report.sample import figure_of
from model_patch.experiments.report.table import print_table


def write_transfer_report(
    results: dict, choice: Choice, evaluation: dict, data: ImageData, folder: Path, thumbnails: int
):
    """Prints the comparison and writes it, with the evaluation of the chosen patch, as `write_evaluation` does."""
    curves = learning_curves(results["rows"])
    before = [
        Section("Ways to train", comparison_parts(results)),
        Section("Which patch", [choice.reason]),
        *([Section("Learning curves", curves)] if curves else []),
    ]
    write_evaluation(evaluation, data, folder, title_of(results), thumbnails, before)
    print_table(title_of(results), *comparison_table(results["rows"]))
    print(choice.reason)


def learning_curves(rows: list[dict]) -> list[Figure]:
    """Returns the loss and the figure of the task, such as accuracy, by epoch of the rows that have epochs: dashed on training images, solid on validation."""
    rows, figures = [row for row in rows if row.get("curves")], []
    colours = {train: f"C{i}" for i, train in enumerate(dict.fromkeys(row["train"] for row in rows))}
    figure_name = figure_of(rows[0]) if rows else ""
    for name in ("loss", figure_name) if rows else ():
        figure, axes = new_axes(6.5, 4.5)
        for row in rows:
            for prefix, style in (("", "--"), ("val_", "-")):
                values = row["curves"].get(prefix + name, [])
                axes.plot(range(1, len(values) + 1), values, style, color=colours[row["train"]])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="epoch", ylabel=name)
        if name == figure_name:
            axes.set(ylim=(None, 1.0))
        for train, colour in colours.items():
            axes.plot([], [], color=colour, label=train)
        axes.plot([], [], "--", color="grey", label="on training images")
        legend_below(figure)
        text = f"{name[0].upper()}{name[1:]} by epoch, on validation images and, dashed, on training images"
        figures.append(Figure(f"learning_curves_{name}", figure, text))
    return figures
