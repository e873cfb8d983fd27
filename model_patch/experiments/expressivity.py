"""What biases alone can do: a two-layer net with fixed random weights fits functions of one variable.

The paper's toy for why a patch, which leaves the weights unchanged, can carry a task: f(x) = sum_j v_j relu(w_j x + b_j) + c with
w and v random and fixed; b and c are trained. More hidden units give more kinks to place.
"""

import itertools
import logging
import time
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

from model_patch.errors import require_each_once, require_known, require_seeds
from model_patch.experiments.report.output import named, new_axes, write_report
from model_patch.experiments.report.sample import Sample, grouped
from model_patch.experiments.report.table import Table, print_table, table
from model_patch.experiments.workdir import Workdir, versions

_logger = logging.getLogger(__name__)

FUNCTIONS = {
    "sine": lambda x: np.sin(np.pi * x),
    "absolute": lambda x: 2 * np.abs(x) - 1,
    "step": lambda x: np.sign(x),
    "two_waves": lambda x: 0.5 * np.sin(2 * np.pi * x) + 0.5 * np.cos(5 * np.pi * x),
}
"""Functions of numbers in -1..1 to numbers in -1..1, by name."""

FIGURE = "expressivity"
"""Name of the plot, without its ending."""


def net(width: int, seed: int = 0) -> keras.Model:
    """Builds the toy: numbers `(batch, 1)` to numbers `(batch, 1)`, of which the biases alone are trainable.

    Args:
        width: hidden units.
        seed: determines the fixed weights: w normal; v normal with standard deviation 2 / sqrt(width), so that the sum does not
            grow with the width. The biases begin at random, too, or all kinks would begin at 0.
    """
    normal = keras.initializers.RandomNormal
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(
                width,
                "relu",
                kernel_initializer=normal(stddev=1.0, seed=seed),
                bias_initializer=normal(stddev=1.0, seed=seed + 1),
            ),
            keras.layers.Dense(1, kernel_initializer=normal(stddev=2.0 / np.sqrt(width), seed=seed + 2)),
        ]
    )
    for layer in model.layers:
        layer.kernel.trainable = False
    return model


def fit_function(name: str, width: int, config: ConfigDict, seed: int = 0) -> tuple[float, np.ndarray]:
    """Fits one function by training biases; returns the root mean square error and the fitted values `(num_points,)`.

    Raises:
        ModelPatchError: the function is unknown.
    """
    require_known("function", [name], FUNCTIONS)
    x = points(config)
    y = FUNCTIONS[name](x)
    model = net(width, seed)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(config.learning_rate, config.steps)), loss="mse"
    )
    # Every step takes all points. They are repeated, as an epoch per step would cost Keras more than the step.
    repeated = (np.tile(values, (config.steps, 1)) for values in (x, y))
    model.fit(*repeated, batch_size=len(x), shuffle=False, verbose=0)
    learnt = model.predict_on_batch(x)
    return float(np.sqrt(np.mean((learnt - y) ** 2))), learnt[:, 0]


def points(config: ConfigDict) -> np.ndarray:
    """Returns where the functions are given, float32 `(num_points, 1)` in -1..1."""
    return np.linspace(-1, 1, config.num_points, dtype="float32")[:, None]


def expressivity(config: ConfigDict, workdir: str | Path) -> dict:
    """Fits each function with nets of each width, and writes `results.json`, a table and `expressivity.png`.

    Rows that are finished are not trained again.

    Args:
        config: see `configs/expressivity.py`.
        workdir: folder for all files.

    Returns:
        The contents of `results.json`: `versions`, and a list of `rows` with `function`, `width`, `seed`, `trained_parameters`,
        `error` (root mean square; the functions lie in -1..1), `learnt` (the fitted values at the points) and `train_seconds`.

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the workdir holds another run.
    """
    require_seeds(config.seeds)
    for name in ("functions", "widths"):
        require_each_once(name, config[name])
    require_known("function", config.functions, FUNCTIONS)
    folder = Workdir(workdir, config.to_dict())

    def train_row(function: str, width: int, seed: int) -> list[dict]:
        start = time.perf_counter()
        error, fitted = fit_function(function, width, config, seed)
        seconds = time.perf_counter() - start
        _logger.info("%s, %d units, seed %d: error %.4f", function, width, seed, error)
        learnt = [round(float(value), 4) for value in fitted]
        return [{"trained_parameters": width + 1, "error": error, "learnt": learnt, "train_seconds": seconds}]

    every = itertools.product(config.functions, config.widths, config.seeds)
    keys = [dict(zip(("function", "width", "seed"), each, strict=True)) for each in every]
    results = folder.run_rows({"versions": versions()}, keys, train_row)
    _write_report(results, config, folder.path)
    return results


def dry_run(config: ConfigDict) -> list[dict]:
    """Counts what `expressivity` would train, and trains one step with each width; writes nothing.

    Args:
        config: see `configs/expressivity.py`.

    Returns:
        For each width `width`, the numbers of `fixed` and `learnt` parameters and the `error` after the step; also printed
        as a table.

    Raises:
        ModelPatchError: a function is unknown.
    """
    rows = []
    for width in config.widths:
        model = net(width)
        learnt = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        error, _ = fit_function(config.functions[0], width, ConfigDict(config.to_dict() | {"steps": 1}))
        rows.append({"width": width, "fixed": model.count_params() - learnt, "learnt": learnt, "error": error})
    columns = {
        "units": "{width:,}",
        "fixed": "{fixed:,}",
        "learnt": "{learnt:,}",
        "error after one step": "{error:.3f}",
    }
    print_table(f"dry run: {len(config.functions)} functions, {len(config.seeds)} seeds", *table(rows, columns))
    return rows


def errors_table(rows: list[dict]) -> Table:
    """Returns a table of errors: a row per function, a column per width, mean over seeds and spread."""
    widths = dict.fromkeys(row["width"] for row in rows)
    cells = []
    for name, group in grouped(rows, "function").items():
        by_width = grouped(group, "width")
        cells.append([name, *(str(Sample.of(by_width[width], "error")) for width in widths)])
    return ["function", *(f"{width} units" for width in widths)], cells


def plot(rows: list[dict], config: ConfigDict):
    """Returns a matplotlib figure: each function, and its fits by nets of each width, first seed."""
    x, by_function = points(config)[:, 0], grouped(rows, "function")
    figure, _ = new_axes(3.2 * len(by_function), 3.2, 1, len(by_function), sharey=True)
    for axes, (name, group) in zip(figure.axes, by_function.items(), strict=True):
        axes.plot(x, FUNCTIONS[name](x), color="black", linewidth=2.5, alpha=0.4, label="function")
        for row in group:
            if row["seed"] == config.seeds[0]:
                axes.plot(x, row["learnt"], linewidth=1, label=f"{row['trained_parameters']} biases")
        axes.set(title=name, xlabel="x")
    axes.legend(fontsize=7)
    return figure


def _write_report(results: dict, config: ConfigDict, folder: Path):
    title = "A fixed random net of two layers with trained biases: root mean square error"
    notes = "The functions are in -1..1. Mean over seeds; in brackets worst minus best seed."
    parts: list[str | Table] = [errors_table(results["rows"]), f"{notes} {named(results['versions'])}."]
    write_report(folder, title, parts, **{FIGURE: plot(results["rows"], config)})
