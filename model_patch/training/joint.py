"""Training joined tasks."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.data.images import ImageData, Split
from model_patch.data.pipeline import batches
from model_patch.data.sampling import Sampler, hold_out, joint_batches
from model_patch.errors import ModelPatchError, require_number
from model_patch.join import JoinedTasks
from model_patch.kinds import TrainSpec
from model_patch.training.callbacks import InputWait, Logs, Progress, StopAtNaN
from model_patch.training.loop import Fitted, fit_epochs, tester
from model_patch.training.recipe import Recipe
from model_patch.training.resume import Checkpoint
from model_patch.training.statistics import estimate_statistics

VALIDATION = "val_accuracy"
"""Name in the logs of the mean of the tasks' accuracies on the validation split."""


def fit_joined(
    joined: JoinedTasks,
    data: Mapping[str, ImageData],
    recipe: Recipe,
    sizes: np.ndarray | None = None,
    *,
    sampler: Sampler | None = None,
    augmentation: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    log_dir: Path | None = None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Trains what joined tasks learn, keeps the best epoch, and re-estimates the statistics that training moved.

    After each epoch every task is evaluated on a validation split of its training images. The values of the epoch with the best
    mean of the tasks' accuracies are the ones that stay.

    Args:
        joined: changes in what it learns, and nowhere else.
        data: the images of each task, by name.
        recipe: how; its augmentation is used where `augmentation` is not given.
        sizes: images of each task in each step, int `(steps, tasks)`, the tasks in the order of `joined.tasks`; by default
            what the sampler plans for the recipe's epochs and batch size, the latter per task on average.
        sampler: by default `Sampler()`.
        augmentation: by task name.
        weights: what a task's mean loss counts in the sum, by task name; 1 each by default.
        validation_fraction: share of the training images in the validation split, in 0..1; with 0 the last epoch is kept.
        seed: of the order of the images and of augmentation.
        log_dir: folder for TensorBoard's files; none are written without.
        checkpoint: file to resume from and to write after each epoch, as for `fit`.

    Returns:
        What it took, testing on held-out images included.

    Raises:
        ModelPatchError: too few images are there to hold some out.
        TrainingError: the loss became NaN.
    """
    require_number("validation_fraction", validation_fraction, 0, 1)
    start, wait = time.perf_counter(), InputWait()
    if sizes is None:
        num_images = [data[name].train.take(recipe.max_train_images or None) for name in joined.tasks]
        sizes = (sampler or Sampler()).plan(num_images, recipe.batch_size, recipe.epochs)
    train, held_out = {}, {}
    for name in joined.tasks:
        train[name], held_out[name] = held_out_parts(name, data[name], recipe, validation_fraction)
    augmentation = augmentation or dict.fromkeys(train, recipe.augmentation)
    preprocessing = {name: bound.task.preprocessing for name, bound in joined.tasks.items()}
    best = _keep_best(joined, held_out, recipe) if validation_fraction else None
    kept = Checkpoint(joined.model, checkpoint, best)
    if joined.model.trainable_variables:
        _compile(joined, recipe, len(sizes), weights)
        finished, steps = kept.restore(), len(sizes) // recipe.epochs
        if finished < recipe.epochs:
            images = joint_batches(
                train, preprocessing, sizes, augmentation=augmentation, seed=seed, first_step=finished * steps
            )
            callbacks = _callbacks(joined, sizes, steps, finished, kept, log_dir)
            epochs = range(finished, recipe.epochs)
            metrics = joined.metrics()
            with contextlib.nullcontext() if joined.train_trunk else joined.trunk.unchanged():
                fit_epochs(joined.model, images, epochs, steps, callbacks, metrics=metrics, weights=weights, wait=wait)
        if best:
            best.go_back(joined.model)
    plain = joint_batches(train, preprocessing, sizes[-50:], seed=seed, cache=False)
    estimate_statistics(joined, plain)
    seconds = time.perf_counter() - start
    return Fitted(kept.earlier_seconds + seconds, kept.history, min(1.0, wait.seconds / seconds))


def held_out_parts(name: str, data: ImageData, recipe: Recipe, fraction: float) -> tuple[Split, Split]:
    """Splits a task's training images into a training and a validation split.

    Args:
        name: of the task.
        data: its images; at most `recipe.max_train_images` of them are looked at.
        recipe: how it is trained.
        fraction: share to hold out, in 0..1; at least one image unless it is 0.

    Raises:
        ModelPatchError: none would be left to train on.
    """
    most = recipe.max_train_images or None
    total = data.train.take(most)
    number = max(1, round(total * fraction)) if fraction else 0
    if number >= total:
        raise ModelPatchError(
            f"of {total} training images of {name!r}, {number} cannot be held out: use a lower validation_fraction"
        )
    return hold_out(data.train, number, most)


class CountImages(keras.callbacks.Callback):
    """Adds to the logs how many images of each task were trained on so far, `<task>_images`.

    Args:
        names: of the tasks.
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


class KeepBest(keras.callbacks.Callback):
    """Tests every task after each epoch, and keeps the values of the epoch with the best mean accuracy.

    Adds to the logs `val_<task>_<metric>` and `VALIDATION`.

    Args:
        tasks: by name.
        images: batches to test on, by task name.
    """

    def __init__(self, tasks: Mapping[str, BoundTask], images: Mapping):
        super().__init__()
        self.tasks, self.images = tasks, images
        self.best = -1.0
        self.values: list = []
        self.testers: dict = {}

    def on_train_begin(self, logs=None):
        self.testers = {name: tester(bound) for name, bound in self.tasks.items()}

    def on_epoch_end(self, epoch, logs=None):
        accuracies = []
        for name, bound in self.tasks.items():
            tested = self.testers[name](self.images[name])
            logs |= {f"val_{name}_{metric}": value for metric, value in tested.items()}
            accuracies.append(tested[bound.task.metrics()[0].name])
        logs[VALIDATION] = float(np.mean(accuracies))
        if logs[VALIDATION] > self.best:
            self.best, self.values = (
                logs[VALIDATION],
                [np.array(keras.ops.convert_to_numpy(v)) for v in self.model.weights],
            )

    def go_back(self, model: keras.Model):
        """Sets the model that was trained to the best epoch's values."""
        for variable, value in zip(model.weights, self.values, strict=True):
            variable.assign(value)


def _keep_best(joined: JoinedTasks, held_out: Mapping[str, Split], recipe: Recipe) -> KeepBest:
    images = {
        name: batches(held_out[name], bound.task.preprocessing, recipe.batch_size)
        for name, bound in joined.tasks.items()
    }
    return KeepBest(joined.tasks, images)


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


def _compile(joined: JoinedTasks, recipe: Recipe, num_steps: int, weights: Mapping[str, float] | None):
    train_spec = next(iter(joined.tasks.values())).train_spec
    # Where the trunk is trained, its rate is the one that goes: a patch would bear a higher one, the kernels would not.
    rate_of = TrainSpec.parse("full", train_spec.norm_statistics) if joined.train_trunk else train_spec
    # XLA makes a convolutional step several times slower on CPUs, and Keras' own choice ("auto") knows that.
    joined.model.compile(
        recipe.make_optimizer(rate_of, num_steps // recipe.epochs),
        loss=joined.losses(),
        loss_weights=dict(weights) if weights else None,
        metrics=joined.metrics(),
    )
