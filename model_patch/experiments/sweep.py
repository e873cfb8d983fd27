"""A sweep: the same comparison of what can be trained at several learning rates."""

import math
from pathlib import Path

from ml_collections import ConfigDict

import model_patch as mp
from model_patch.errors import ModelPatchError, require_each_once
from model_patch.experiments.binder import Binder
from model_patch.experiments.report.comparison import write_rates
from model_patch.experiments.transfer import transfer
from model_patch.experiments.workdir import Workdir, versions


def sweep(config: ConfigDict, workdir: str | Path) -> dict:
    """Runs `transfer` at each of `config.learning_rates` on one trunk, and compares. Each way to train is traced once.

    Each rate has a folder of its own in the workdir, `rate-0.01`, with all that `transfer` writes; the workdir itself gets
    `results.json`, a table and a plot of accuracy against learning rate. Rows that are finished are not trained again.

    Args:
        config: see `configs/transfer.py`; `learning_rate` is ignored.
        workdir: folder for all files.

    Returns:
        The contents of `results.json`: those of `transfer`, with `learning_rate` in each row.

    Raises:
        ModelPatchError: a rate is not positive or is given twice, or as `transfer`.
    """
    rates = tuple(config.learning_rates)
    require_each_once("learning_rates", rates)
    if not all(0 < rate < math.inf for rate in rates):
        raise ModelPatchError(f"learning_rates are {', '.join(map(str, rates))}: expected positive numbers")
    binder = Binder(mp.open_trunk(config.trunk, config.image_size or None), remat=config.remat)
    folder, rows, results = Workdir(workdir, config.to_dict()), [], {}
    for rate in rates:
        at_rate = ConfigDict(config.to_dict() | {"learning_rate": rate, "learning_rates": ()})
        results = transfer(at_rate, folder.path / f"rate-{rate:g}", binder)
        rows += [row | {"learning_rate": rate} for row in results["rows"]]
    results = results | {"versions": versions(), "rows": rows}
    folder.write_results(results)
    write_rates(results, folder.path)
    return results
