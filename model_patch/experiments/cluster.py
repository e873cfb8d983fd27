"""Rows of results as tasks of a Ray cluster: on this machine, or on the one that `RAY_ADDRESS` names."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

import model_patch as mp
from model_patch.errors import ModelPatchError
from model_patch.experiments.binder import Binder
from model_patch.experiments.run import open_run
from model_patch.experiments.workdir import Workdir

RETRIES = 5
"""How often a row is started again whose worker died; it resumes from its checkpoint."""


def rows_in_any_order(
    config: ConfigDict, folder: Workdir, data_of: Callable[[dict], str], name_of: Callable[..., str]
) -> Callable[[Sequence[dict]], Iterator[tuple[dict, list[dict]]]] | None:
    """Returns what `Workdir.run_rows` takes as `in_any_order`; None where rows are trained here, one after the other.

    Args:
        config: see `configs/transfer.py`; `runner` and `cores_per_row` are used.
        folder: the run's workdir, which all workers can read and write.
        data_of: returns the spec of a row's data, given its key.
        name_of: returns the name of a row's files, given its key as keyword arguments.

    Raises:
        ModelPatchError: Ray is not installed.
    """
    if config.get("runner", "local") == "local":
        return None
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ModelPatchError(
            "--runner=ray needs Ray, which is not installed: pip install 'model_patch[ray]'"
        ) from None

    workdir = str(folder.path.absolute())

    def trained(keys: Sequence[dict]) -> Iterator[tuple[dict, list[dict]]]:
        ray.init(os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False, log_to_driver=False)
        try:
            remote = ray.remote(num_cpus=config.cores_per_row, max_retries=RETRIES)(_train_row)
            waiting = {}
            for key in keys:
                of_row = {**config.to_dict(), "data": data_of(key)}
                waiting[remote.remote(of_row, workdir, name_of(**key), key["train"], key["seed"])] = key
            while waiting:
                (done,), _ = ray.wait(list(waiting))
                key = waiting.pop(done)
                try:
                    yield key, [ray.get(done)]
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.WorkerCrashedError:
                    raise ModelPatchError(
                        f"the worker of row {key} died {RETRIES + 1} times, for example out of memory: use fewer at once by a higher "
                        "--cores_per_row"
                    ) from None
        finally:
            ray.shutdown()

    return trained


def _train_row(config: dict, workdir: str, name: str, train: str, seed: int) -> dict:
    opened = ConfigDict(config)
    binder = _binder(opened.trunk, opened.image_size, opened.remat)
    run = open_run(opened, binder.trunk)
    return run.train_row(binder, Workdir.of_worker(workdir), name, train, seed, opened.patch_dtype)


@functools.cache
def _binder(trunk: str, image_size: int, remat: bool) -> Binder:
    """Once for all rows of a worker."""
    return Binder(mp.open_trunk(trunk, image_size or None), remat=remat)
