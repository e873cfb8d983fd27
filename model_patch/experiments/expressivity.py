"""What biases alone can do: a net of two layers whose random weights stay fixed learns functions of one number.

The paper's toy for why a patch, which moves no weight either, can carry a task: f(x) = sum_j v_j relu(w_j x + b_j) + c with
w and v random and fixed; b and c are learnt. The more hidden units, the more kinks there are to place.
"""

import itertools
import logging
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from model_patch.errors import ModelPatchError, require_each_once, require_seeds, unknown
from model_patch.experiments.report.comparison import save_figure
from model_patch.experiments.report.sample import Sample
from model_patch.experiments.report.table import markdown, print_table
from model_patch.experiments.workdir import Workdir, versions
from model_patch.files import write_bytes

_logger = logging.getLogger(__name__)

FUNCTIONS = {
    "sine": lambda x: np.sin(np.pi * x),
    "absolute": lambda x: 2 * np.abs(x) - 1,
    "step": lambda x: np.sign(x),
    "two_waves": lambda x: 0.5 * np.sin(2 * np.pi * x) + 0.5 * np.cos(5 * np.pi * x),
}
"""Functions of numbers in -1..1 to numbers in -1..1, by name."""

FIGURE = "expressivity.png"


def net(width: int, seed: int = 0) -> keras.Model:
    """Builds the toy: numbers `(batch, 1)` to numbers `(batch, 1)`, of which the biases alone are trainable.

    Args:
        width: hidden units.
        seed: of the fixed weights: w normal; v normal with standard deviation 2 / sqrt(width), so that the sum does not
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
    """Learns one function by biases; returns the root of the mean squared error and the learnt values `(num_points,)`.

    Raises:
        ModelPatchError: the function is unknown.
    """
    if name not in FUNCTIONS:
        raise unknown("function", name, FUNCTIONS)
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
    """Learns each function with nets of each width, and writes `results.json`, a table and `expressivity.png`.

    A row that is there already is not trained again.

    Args:
        config: see `configs/expressivity.py`.
        workdir: folder for all files.

    Returns:
        What `results.json` holds: `versions`, and a list of `rows` with `function`, `width`, `seed`, `trained_parameters`,
        `error` (root mean square; the functions lie in -1..1) and `learnt` (the values at the points).

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the workdir holds another run.
    """
    require_seeds(config.seeds)
    for name in ("functions", "widths"):
        require_each_once(name, config[name])
    for name in config.functions:
        if name not in FUNCTIONS:
            raise unknown("function", name, FUNCTIONS)
    folder = Workdir(workdir, config.to_dict())
    results = folder.results() or {"versions": versions(), "rows": []}
    done = {(row["function"], row["width"], row["seed"]) for row in results["rows"]}
    every = list(itertools.product(config.functions, config.widths, config.seeds))
    for name, width, seed in tqdm(every, "learning functions", unit="net", leave=False):
        if (name, width, seed) in done:
            continue
        error, learnt = fit_function(name, width, config, seed)
        results["rows"].append(
            {
                "function": name,
                "width": width,
                "seed": seed,
                "trained_parameters": width + 1,
                "error": error,
                "learnt": [round(float(value), 4) for value in learnt],
            }
        )
        _logger.info("%s, %d units, seed %d: error %.4f", name, width, seed, error)
        folder.write_results(results)
    _write_report(results, config, folder.path)
    return results


def dry_run(config: ConfigDict) -> list[dict]:
    """Counts what `expressivity` would train, and takes one step with each width; writes nothing.

    Args:
        config: see `configs/expressivity.py`.

    Returns:
        For each width `width`, the `fixed` and the `learnt` values and the `error` after the step; printed as a table, too.

    Raises:
        ModelPatchError: a function is unknown, or the net has other values than two layers of this width have.
    """
    rows = []
    for width in config.widths:
        model = net(width)
        learnt = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        fixed = model.count_params() - learnt
        if (fixed, learnt) != (2 * width, width + 1):
            raise ModelPatchError(
                f"the net of {width} units has {fixed} fixed and {learnt} learnt values where {2 * width} and {width + 1} are known"
            )
        error, _ = fit_function(config.functions[0], width, ConfigDict(config.to_dict() | {"steps": 1}))
        rows.append({"width": width, "fixed": fixed, "learnt": learnt, "error": error})
    header = ("units", "fixed", "learnt", "error after one step")
    cells = [[f"{row['width']:,}", f"{row['fixed']:,}", f"{row['learnt']:,}", f"{row['error']:.3f}"] for row in rows]
    print_table(f"dry run: {len(config.functions)} functions, {len(config.seeds)} seeds", header, cells)
    return rows


def errors_table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the errors: a row per function, a column per width, mean over seeds and spread."""
    names, widths = (list(dict.fromkeys(row[field] for row in rows)) for field in ("function", "width"))
    cells = []
    for name in names:
        errors = [
            Sample(tuple(r["error"] for r in rows if (r["function"], r["width"]) == (name, width))) for width in widths
        ]
        cells.append([name, *map(str, errors)])
    return ["function", *(f"{width} units" for width in widths)], cells


def plot(rows: list[dict], config: ConfigDict):
    """Returns a matplotlib figure: each function, and what nets of each width make of it, first seed."""
    from matplotlib.figure import Figure

    x, names = points(config)[:, 0], list(dict.fromkeys(row["function"] for row in rows))
    figure = Figure(figsize=(3.2 * len(names), 3.2), dpi=120, layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        axes.plot(x, FUNCTIONS[name](x), color="black", linewidth=2.5, alpha=0.4, label="function")
        for row in rows:
            if row["function"] == name and row["seed"] == config.seeds[0]:
                axes.plot(x, row["learnt"], linewidth=1, label=f"{row['trained_parameters']} biases")
        axes.set(title=name, xlabel="x")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _write_report(results: dict, config: ConfigDict, folder: Path):
    header, rows = errors_table(results["rows"])
    title = "A fixed random net of two layers, its biases learnt: root mean square error"
    print_table(title, header, rows)
    named = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    explained = "The functions lie in -1..1. Mean over seeds; in brackets worst less best seed."
    write_bytes(folder / "results.md", f"# {title}\n\n{markdown(header, rows)}\n{explained} {named}.\n".encode())
    save_figure(plot(results["rows"], config), folder / FIGURE)
