"""Training joined tasks."""

import collections
import contextlib
import functools
import time
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.data.images import ImageData, Split
from model_patch.data.pipeline import batches
from model_patch.data.sampling import Sampler, joint_batches
from model_patch.errors import ModelPatchError
from model_patch.join import JoinedTasks
from model_patch.kinds import TrainSpec
from model_patch.training.adam import keys
from model_patch.training.callbacks import InputWait, KeepBest, Logs, Progress, StopAtNaN
from model_patch.training.last_layer import LEAST_SPREAD, learn_last_layer
from model_patch.training.loop import Fitted, build_metrics, fit_epochs, tester
from model_patch.training.recipe import Recipe
from model_patch.training.replicated import features_and_labels, own_share, read_together
from model_patch.training.resume import Checkpoint
from model_patch.training.statistics import estimate_statistics, moves_statistics


def fit_joined(
    joined: JoinedTasks,
    data: Mapping[str, ImageData],
    recipe: Recipe,
    sizes: np.ndarray | None = None,
    *,
    sampler: Sampler | None = None,
    augmentation: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    log_dir: Path | None = None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Trains what joined tasks learn, keeps the best epoch, and re-estimates the statistics that training moved.

    After each epoch every task that has validation images is evaluated on them (`ImageData.with_validation` holds some out).
    The values of the epoch with the best mean of the tasks' figures (accuracy, mAP or R2) are the ones that stay; without validation those of
    the last.

    Args:
        joined: changes in what it trains, and nowhere else.
        data: the images of each task, by name.
        recipe: how; its augmentation is used where `augmentation` is not given.
        sizes: images of each task in each step, int `(steps, tasks)`, the tasks in the order of `joined.tasks`; by default
            what the sampler plans for the recipe's epochs and batch size, the latter per task on average.
        sampler: by default `Sampler()`.
        augmentation: by task name.
        weights: what a task's mean loss counts in the sum, by task name; 1 each by default.
        seed: seed of the order of the images and of augmentation.
        log_dir: folder for TensorBoard's files; none are written without.
        checkpoint: file to resume from and to write after each epoch, as for `fit`.

    Returns:
        What it took, testing on validation images included.

    Raises:
        ModelPatchError: the recipe balances classes, which joint training does not.
        TrainingError: the loss became NaN.
    """
    if recipe.balance != "none":
        raise ModelPatchError(
            f"balance is {recipe.balance}: expected none for joined tasks, whose images a sampler draws"
        )
    start, wait = time.perf_counter(), InputWait()
    most = recipe.max_train_images or None
    if sizes is None:
        num_images = [data[name].train.take(most) for name in joined.tasks]
        sizes = (sampler or Sampler()).plan(num_images, recipe.batch_size, recipe.epochs)
    train = {name: data[name].train.first(most) for name in joined.tasks}
    augmentation = augmentation or dict.fromkeys(train, recipe.augmentation)
    preprocessing = {name: bound.task.preprocessing for name, bound in joined.tasks.items()}

    def estimate():
        if moves_statistics(joined.model):
            plain = functools.partial(joint_batches, train, preprocessing, sizes[-50:], seed=seed, cache=False)
            estimate_statistics(joined, read_together(plain))

    spec = _trained(joined)
    solves = recipe.learns_last_layer_first(spec) and all(bound.train_spec.last for bound in joined.tasks.values())
    if solves and spec.kinds:
        estimate()  # Features are those of the statistics that training begins with.
    decays = _learn_last_layers(joined, train, recipe, LEAST_SPREAD if spec.kinds else 0.0) if solves else {}
    takes_steps = bool(joined.model.trainable_variables) and (bool(spec.kinds) or not solves)
    best = _keep_best(joined, data, recipe) if takes_steps else None
    kept = Checkpoint(joined.model, checkpoint, best)
    if takes_steps:
        _compile(joined, spec, recipe, len(sizes), weights, decays)
        finished, steps = kept.restore(), len(sizes) // recipe.epochs
        if finished < recipe.epochs and not (best and best.is_over(finished)):
            images = joint_batches(
                train,
                preprocessing,
                sizes,
                augmentation=augmentation,
                seed=seed,
                first_step=finished * steps,
                share=own_share(),
            )
            callbacks = _callbacks(joined, sizes, steps, finished, kept, log_dir)
            epochs = range(finished, recipe.epochs)
            metrics = joined.metrics()
            with contextlib.nullcontext() if joined.train_trunk else joined.trunk.unchanged():
                fit_epochs(joined.model, images, epochs, steps, callbacks, metrics=metrics, weights=weights, wait=wait)
        if best:
            best.go_back(joined.model)
    estimate()
    seconds = time.perf_counter() - start
    wait_share, best_epoch = min(1.0, wait.seconds / seconds), best.best_epoch if best else None
    return Fitted(kept.earlier_seconds + seconds, kept.history, wait_share, best_epoch)


class CountImages(keras.callbacks.Callback):
    """Adds to the logs how many images of each task were trained on so far, `<task>_images`.

    Args:
        names: names of the tasks.
        sizes: images of each task in each step, int `(steps, tasks)`.
        steps_per_epoch: after how many steps Keras counts from 0 again.
    """

    def __init__(self, names: list[str], sizes: np.ndarray, steps_per_epoch: int):
        super().__init__()
        self.names, self.seen, self.steps_per_epoch = names, np.cumsum(sizes, axis=0), steps_per_epoch
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        seen = self.seen[self.epoch * self.steps_per_epoch + batch]
        logs |= {f"{name}_images": int(number) for name, number in zip(self.names, seen, strict=True)}

    def on_epoch_end(self, epoch, logs=None):
        self.on_train_batch_end(self.steps_per_epoch - 1, logs)


def _keep_best(joined: JoinedTasks, data: Mapping[str, ImageData], recipe: Recipe) -> KeepBest | None:
    """Returns what tests the tasks that have validation images; None where none has."""

    def on_validation(bound: BoundTask, split: Split):
        make = functools.partial(batches, split, bound.task.preprocessing, recipe.batch_size)
        test, images = tester(bound), read_together(make)
        return lambda: test(images)

    testers = {
        name: on_validation(bound, validation)
        for name, bound in joined.tasks.items()
        if (validation := data[name].validation)
    }
    metrics = {name: joined.tasks[name].task.figures[0] for name in testers}
    return KeepBest(testers, metrics, recipe.patience) if testers else None


def _callbacks(joined: JoinedTasks, sizes, steps_per_epoch: int, finished: int, kept: Checkpoint, log_dir: Path | None):
    """Returns the callbacks in their order: what adds to the logs comes before what writes them."""
    names = list(joined.tasks)
    callbacks: list[keras.callbacks.Callback] = [
        CountImages(names, sizes, steps_per_epoch),
        Progress(len(sizes), f"training {', '.join(names)}", finished * steps_per_epoch),
        StopAtNaN(f"{', '.join(names)} (share={joined.share})"),
    ]
    if kept.best:
        callbacks.append(kept.best)
    if log_dir:
        callbacks.append(Logs(log_dir))
    return [*callbacks, kept]


def _trained(joined: JoinedTasks) -> TrainSpec:
    """Returns what is trained: all weights where the trunk is, as its kernels need a rate of theirs."""
    spec = next(iter(joined.tasks.values())).train_spec
    return TrainSpec.parse("full", spec.norm_statistics) if joined.train_trunk else spec


def _learn_last_layers(
    joined: JoinedTasks, train: Mapping[str, Split], recipe: Recipe, least_spread: float
) -> dict[str, np.ndarray]:
    """Solves the tasks' last layers, see `training.last_layer`; one that tasks share on the features of all of them.

    Returns:
        The weight decays that were chosen, by the key of a variable, see `training.adam.keys`.
    """

    def found(bound: BoundTask, split: Split) -> tuple[np.ndarray, np.ndarray]:
        images = read_together(
            functools.partial(batches, split, bound.task.preprocessing, recipe.batch_size, cache=False)
        )
        return features_and_labels(bound, images, split.num_images, recipe.batch_size)

    sharing: dict[int, list[BoundTask]] = collections.defaultdict(list)
    for bound in joined.tasks.values():
        sharing[id(bound.head)].append(bound)
    of_kernel: dict[int, np.ndarray] = {}
    for bounds in sharing.values():
        each = [found(bound, train[bound.task.name]) for bound in bounds]
        features, labels = (np.concatenate(parts) for parts in zip(*each, strict=True))
        decay = learn_last_layer(bounds[0], features, labels, least_spread=least_spread)
        if decay is not None:
            of_kernel[id(bounds[0].head.kernel)] = decay
    variables = joined.model.trainable_variables
    return {key: of_kernel[id(v)] for key, v in zip(keys(variables), variables, strict=True) if id(v) in of_kernel}


def _compile(
    joined: JoinedTasks,
    spec: TrainSpec,
    recipe: Recipe,
    num_steps: int,
    weights: Mapping[str, float] | None,
    decays: Mapping[str, np.ndarray],
):
    steps_per_epoch, width = num_steps // recipe.epochs, joined.trunk.width()
    # XLA makes a convolutional step several times slower on CPUs, and Keras' own choice ("auto") knows that.
    joined.model.compile(
        recipe.make_optimizer(spec, steps_per_epoch, recipe.is_relative(spec), decays, width, joined.train_trunk),
        loss=joined.losses(),
        loss_weights=dict(weights) if weights else None,
        metrics=joined.metrics(),
    )
    build_metrics(joined.model, {name: bound.task for name, bound in joined.tasks.items()})
