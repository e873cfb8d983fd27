"""Multi-task: several tasks, or one task at several image sizes, trained together and compared with nets of their own."""

import dataclasses
import logging
import math
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

import model_patch as mp
from model_patch.data.sampling import Sampler
from model_patch.errors import require_each_once, require_known, require_seeds
from model_patch.experiments.choices import HEADS
from model_patch.experiments.report.joint import write_joint_report
from model_patch.experiments.report.sample import Sample, figure_of_all
from model_patch.experiments.run import PATCHES, image_preprocessing, make_recipe, recommended_augmentation
from model_patch.experiments.workdir import Workdir, versions
from model_patch.files import as_path
from model_patch.join import check_join
from model_patch.patch import check_dtype
from model_patch.training.joint import fit_joined
from model_patch.trunks.saving import saved_spec

_logger = logging.getLogger(__name__)

TRUNKS = "trunks"
"""Folder of the trained trunks in the workdir."""


def patch_path(workdir: Path, share: str, task: str, seed: int) -> Path:
    """Returns where `multitask` writes the patch of one row."""
    return as_path(workdir) / PATCHES / f"{share}-{task}-seed{seed}.safetensors"


def trunk_stem(workdir: str | Path, share: str, seed: int) -> Path:
    """Returns where `multitask` writes the trunk that was trained for one row, without the ending."""
    return as_path(workdir) / TRUNKS / f"{share}-seed{seed}"


@dataclasses.dataclass(frozen=True)
class Run:
    """What all rows of one run have in common.

    Attributes:
        tasks: in the order of the configuration; `data` and `weights` by their names.
        head: a task trained before, whose head all tasks use; None for new heads.
    """

    config: ConfigDict
    recipe: mp.Recipe
    sampler: Sampler
    tasks: tuple[mp.Task, ...]
    data: dict[str, mp.ImageData]
    weights: dict[str, float]
    share_head: bool
    head: mp.BoundTask | None

    def join(self, share: str, seed: int, tasks: tuple[mp.Task, ...]) -> mp.JoinedTasks:
        """Joins tasks on a trunk that is opened again, so that no row starts from what another has trained."""
        trunks = _open_trunks(self.config.trunk, [task.preprocessing.image_size for task in tasks])
        return mp.join(trunks, tasks, seed=seed, **self.options(share))

    def options(self, share: str) -> dict:
        """Returns the options of `join` for one way of sharing."""
        config, train = self.config, "full" if share == "nothing" else self.config.train
        return {
            "train": train if config.norm_statistics == "auto" else mp.TrainSpec.parse(train, config.norm_statistics),
            "share": share,
            "share_head": self.share_head,
            "head_of": self.head,
            "train_trunk": config.train_trunk,
        }

    def sizes(self) -> np.ndarray:
        """Returns how many images of each task come in each step, `(steps, tasks)`: one plan for all rows."""
        most = self.recipe.max_train_images or None
        num_images = [self.data[task.name].train.take(most) for task in self.tasks]
        return self.sampler.plan(num_images, self.recipe.batch_size, self.recipe.epochs)

    def augmentation(self) -> dict[str, str]:
        """Returns the augmentation of each task, by name."""
        given = self.config.augmentation
        return {
            name: recommended_augmentation(self.config, data) if given == "auto" else given
            for name, data in self.data.items()
        }


def multitask(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains every row of a comparison: each of `config.share` with each of `config.seeds`, all tasks at once.

    A row with `share=nothing` is one net per task, each trained alone on the same number of images. Writes, after each row,
    `results.json`, a patch file per task and, if the trunk is trained, the trunk; at the end a table and a plot. Rows that
    are finished are not trained again.

    Args:
        config: see `configs/multitask.py` and `configs/resolutions.py`.
        workdir: folder for all files.

    Returns:
        The contents of `results.json`: `trunk`, `data`, `train`, `resolutions`, `versions` and a list of `rows`, one per
        `share`, `seed` and `task`, with `image_size`, `figure`, `test_accuracy` or another figure, `patch_bytes`, `trunk` (the spec that
        opens the trunk that the patch belongs to), and for all tasks of the row together `total_parameters`,
        `trained_parameters` and `train_seconds`.

    Raises:
        ModelPatchError: something in the configuration cannot be used, or the workdir holds another run.
    """
    # Every mistake is found before the first file is written.
    run = open_run(config)
    for share in config.share:
        saved_spec(config.trunk, trunk_stem(workdir, share, config.seeds[0]))
    folder = Workdir(workdir, config.to_dict())
    for note in dict.fromkeys(note for data in run.data.values() for note in data.notes):
        _logger.warning(note)

    facts = {"trunk": config.trunk, "data": list(config.data), "train": config.train}
    facts |= {"resolutions": list(config.resolutions), "versions": versions()}
    keys = [{"share": share, "seed": seed} for seed in config.seeds for share in config.share]
    results = folder.run_rows(facts, keys, lambda share, seed: _train_row(run, share, seed, folder))
    write_joint_report(results, folder.path)
    return results


def _train_row(run: Run, share: str, seed: int, folder: Workdir) -> list[dict]:
    """Trains the tasks with one way of sharing; returns one object per task for `results.json`."""
    sizes, workdir, total, trained, seconds, rows = run.sizes(), folder.path, 0, 0, 0.0, []
    together = [[k] for k in range(len(run.tasks))] if share == "nothing" else [list(range(len(run.tasks)))]
    for columns in together:
        keras.utils.set_random_seed(seed)
        tasks = tuple(run.tasks[k] for k in columns)
        joined = run.join(share, seed, tasks)
        name = f"{share}-seed{seed}" + (f"-{tasks[0].name}" if share == "nothing" else "")
        trained += sum(int(np.prod(v.shape)) for v in joined.model.trainable_variables)
        total += joined.num_parameters()
        seconds += fit_joined(
            joined,
            run.data,
            run.recipe,
            sizes[:, columns],
            augmentation=run.augmentation(),
            weights={task.name: run.weights[task.name] for task in tasks},
            seed=seed,
            log_dir=workdir / "tensorboard" / name,
            checkpoint=folder.checkpoint(name),
        ).seconds
        joined.freeze()
        trunk = (
            mp.save_trunk(joined.trunk, trunk_stem(workdir, share, seed)) if joined.train_trunk else run.config.trunk
        )
        rows += [_test(run, share, seed, bound, trunk, workdir) for bound in joined.tasks.values()]
    mean = Sample.of(rows).mean
    _logger.info("share=%s, seed %d: mean test %s %.4f in %.1f s", share, seed, figure_of_all(rows), mean, seconds)
    return [row | {"total_parameters": total, "trained_parameters": trained, "train_seconds": seconds} for row in rows]


def _test(run: Run, share: str, seed: int, bound: mp.BoundTask, trunk: str, workdir: Path) -> dict:
    bound = mp.calibrate(bound, run.data[bound.task.name], run.recipe)
    metrics = mp.evaluate(bound, run.data[bound.task.name], run.recipe)
    path = patch_path(workdir, share, bound.task.name, seed)
    dataclasses.replace(bound.patch(metrics), trunk=trunk).save(path, run.config.patch_dtype)
    return {
        "task": bound.task.name,
        "image_size": bound.task.preprocessing.image_size,
        "figure": bound.task.figures[0],
        f"test_{bound.task.figures[0]}": metrics[bound.task.figures[0]],
        "patch_bytes": path.stat().st_size,
        "trunk": trunk,
    }


def open_run(config: ConfigDict) -> Run:
    """Opens what a configuration names, and checks all of it; errors as `multitask`."""
    if not config.data:
        raise mp.ModelPatchError("data is empty, so there is nothing to run: give at least one")
    require_seeds(config.seeds)
    require_each_once("share", config.share)
    check_dtype(config.patch_dtype)
    require_known("head", [config.head], HEADS)
    sampler = Sampler(config.sampler, config.sampler_power)
    names, data, image_sizes = _sources(config)
    trunks = {trunk.preprocessing.image_size: trunk for trunk in _open_trunks(config.trunk, image_sizes)}
    own_size = next(iter(trunks))
    tasks = tuple(
        mp.Task.of(each, image_preprocessing(config, trunks[size or own_size]), name, pooling=config.pooling)
        for name, each, size in zip(names, data, image_sizes, strict=True)
    )
    share_head = config.head == "shared" or (config.head == "auto" and bool(config.resolutions))
    recipe = make_recipe(config, "none")
    data = [each.with_validation(config.validation_fraction, config.max_train_images or None) for each in data]
    for each in data:
        make_recipe(config, each.augmentation)
    weights = _weights(config, names)
    head = _head(config) if config.head_from else None
    run = Run(config, recipe, sampler, tasks, dict(zip(names, data, strict=True)), weights, share_head, head)
    for share in config.share:
        check_join(list(trunks.values()), tasks, **run.options(share))
    return run


def _sources(config: ConfigDict) -> tuple[list[str], list[mp.ImageData], list[int]]:
    """Returns the tasks' names, images and image sizes; 0 is the trunk's own size."""
    data = [
        mp.open_data(text, skip_bad_images=config.skip_bad_images, verify_images=config.verify_images)
        for text in config.data
    ]
    if config.resolutions:
        if len(data) > 1:
            raise mp.ModelPatchError(
                f"resolutions with {len(data)} data sets: give one, which is trained at every resolution"
            )
        if config.image_sizes or config.task_names:
            raise mp.ModelPatchError(
                "resolutions name the tasks and their image sizes: leave task_names and image_sizes out"
            )
        require_each_once("resolutions", config.resolutions)
        sizes = list(config.resolutions)
        return [f"{data[0].name}-{size}px" for size in sizes], data * len(sizes), sizes
    for field in ("task_names", "image_sizes"):
        if config[field] and len(config[field]) != len(data):
            raise mp.ModelPatchError(
                f"{field} has {len(config[field])} values for {len(data)} data sets: give one for each"
            )
    names = list(config.task_names) or [each.name for each in data]
    for name in names:
        if names.count(name) > 1:
            raise mp.ModelPatchError(f"two tasks are named {name!r}: give them other names with --task_names")
    return names, data, list(config.image_sizes) or [0] * len(data)


def _open_trunks(spec: str, sizes: list[int]) -> list[mp.Trunk]:
    """Opens a trunk once for each different image size; 0 is its own."""
    return [mp.open_trunk(spec, size or None) for size in dict.fromkeys(sizes)]


def _weights(config: ConfigDict, names: list[str]) -> dict[str, float]:
    weights = list(config.task_weights) or [1.0] * len(names)
    if len(weights) != len(names) or not all(0 < weight < math.inf for weight in weights):
        given = ", ".join(map(str, weights))
        raise mp.ModelPatchError(
            f"task_weights {given} do not match {len(names)} tasks: give a positive number for each"
        )
    return dict(zip(names, weights, strict=True))


def _head(config: ConfigDict) -> mp.BoundTask:
    """Opens the task whose head the others use, frozen."""
    if config.train_trunk or any(share != "trunk" for share in config.share) or mp.TrainSpec.parse(config.train).last:
        raise mp.ModelPatchError(
            "head_from needs a frozen trunk and head: give it with --share=trunk, --notrain_trunk and a --train "
            "without last"
        )
    patch = mp.Patch.load(config.head_from)
    return mp.bind_patch(mp.open_trunk(config.trunk, patch.task.preprocessing.image_size), patch)
