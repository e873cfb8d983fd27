"""Transfer: train one task on a frozen trunk in several ways, and compare them."""

import logging
import shlex
from pathlib import Path

from ml_collections import ConfigDict

import model_patch as mp
from model_patch.experiments.best_patch import choose
from model_patch.experiments.binder import Binder
from model_patch.experiments.cluster import rows_in_any_order
from model_patch.experiments.evaluate import evaluate_task, splits_of
from model_patch.experiments.report.page import REPORT
from model_patch.experiments.report.transfer import write_transfer_report
from model_patch.experiments.run import PATCHES, facts_of, identity, open_run
from model_patch.experiments.workdir import Workdir
from model_patch.files import as_path, write_bytes

_logger = logging.getLogger(__name__)

BEST = "best.safetensors"
"""Name of the copy of the chosen patch in the workdir."""


def patch_path(workdir: Path, train: str, seed: int) -> Path:
    """Returns where `transfer` writes the patch of one row."""
    return as_path(workdir) / PATCHES / f"{train}-seed{seed}.safetensors"


def transfer(config: ConfigDict, workdir: str | Path, binder: Binder | None = None) -> dict:
    """Trains every row of a comparison: each of `config.train` with each of `config.seeds`.

    Writes, after each row, `results.json` and the row's patch file; at the end tables and plots as `results.md` and
    `report.html`, the patch to ship as `best.safetensors`, see `best_patch.choose`, and what was found of it in
    `evaluation.json`. Rows that are finished are not trained again, and one that was interrupted resumes after its last
    complete epoch.

    Args:
        config: see `configs/transfer.py`.
        workdir: folder for all files.
        binder: binds to the trunk that the configuration names, if it is open already.

    Returns:
        The contents of `results.json`: `trunk`, `data`, `image_size`, `images` (their number by split), `versions`, `machine`
        and a list of `rows` with `train`, `seed`, `trained_parameters`, `trained_fraction` (0..1), `reused_fraction` (of the trunk, 0..1),
        `patch_bytes`, `figure`, the name of what rows are compared by, `accuracy` or another of `Task.figures`, all of which are
        in the row as `test_accuracy` and so on, `train_seconds` and `input_wait` (0..1), the share of them spent waiting for
        a batch; with validation images `validation_accuracy` and, where epochs are trained, `best_epoch`, the number
        of the one kept, from 0, and the `curves` by epoch; with `config.folds` `fold_accuracy`, a list, of a training each
        on the other folds.

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the workdir holds another run.
    """
    run = open_run(config, binder.trunk if binder else None)
    folder = Workdir(workdir, identity(config))
    for note in run.notes():
        _logger.warning(note)
    rows_of = binder or Binder(run.trunk, remat=config.remat)

    def name_of(train: str, seed: int) -> str:
        return f"{train}-seed{seed}"

    def train_row(train: str, seed: int) -> list[dict]:
        return [run.train_row(rows_of, folder, name_of(train, seed), train, seed, config.patch_dtype)]

    used = run.used()
    keys = [{"train": train, "seed": seed} for seed in config.seeds for train in run.train_specs]
    facts = {
        "trunk": config.trunk,
        "data": config.data,
        "images": {part: split.num_images for part, split in splits_of(used).items()},
        **facts_of(run.trunk),
    }
    results = folder.run_rows(
        facts, keys, train_row, rows_in_any_order(config, folder, lambda key: config.data, name_of)
    )
    choice = choose(results["rows"], facts["images"], run.task)
    best = folder.path / BEST
    write_bytes(best, patch_path(folder.path, choice.train, choice.seed).read_bytes())
    evaluation = evaluate_task(mp.bind_patch(run.trunk, mp.Patch.load(best)), used)
    write_transfer_report(results, choice, evaluation, used, folder.path, config.report_images)
    _print_commands(config, best)
    return results


def _print_commands(config: ConfigDict, best: Path):
    """Prints the commands that use the chosen patch."""
    trunk, best_ = shlex.quote(f"--trunk={config.trunk}"), shlex.quote(f"--patches={best}")
    output = shlex.quote(f"--output={best.with_name('saved_model')}")
    print(f"Report: {best.with_name(REPORT)}")
    print(f"Predict: python scripts/predict.py {trunk} {best_} --images=IMAGES")
    print(f"Export:  python scripts/export.py {trunk} {best_} {output}")
