"""Training and testing one bound task."""

import dataclasses
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.data.epochs import in_epochs, shuffled
from model_patch.data.images import ImageData
from model_patch.data.pipeline import batches
from model_patch.progress import progress
from model_patch.tasks import Task
from model_patch.training import replicated, strategies
from model_patch.training.callbacks import InputWait, Logs, Progress, StopAtNaN
from model_patch.training.recipe import Recipe
from model_patch.training.resume import Checkpoint
from model_patch.training.statistics import estimate_statistics


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a training took.

    Attributes:
        seconds: feature extraction and statistics included, and finished epochs of earlier processes too.
        input_wait: share of this process' seconds, in 0..1, in which nothing was computed because no batch was there.
    """

    seconds: float
    input_wait: float


def fit(
    bound: BoundTask,
    data: ImageData,
    recipe: Recipe,
    *,
    seed: int = 0,
    log_dir: Path | None = None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Trains what a bound task learns, then re-estimates the statistics that it owns.

    Where the last layer alone is trained, the trunk runs over each image once and its features are kept: augmentation
    does not apply then.

    Args:
        bound: changes in its patch, and in its head where that is learnt; nowhere else.
        data: its training images are used, its test images only to report progress.
        recipe: how.
        seed: of the order of the images and of augmentation.
        log_dir: folder for TensorBoard's files; none are written without.
        checkpoint: file that is written after each epoch, and from which a training that was cut off goes on; None for
            none. Who gives it deletes it.

    Returns:
        What it took.

    Raises:
        TrainingError: the loss became NaN.
    """
    start = time.perf_counter()
    num_images = _num_images(data.train.num_images, recipe.max_train_images)
    train, model, earlier_seconds = _training_batches(bound, data, recipe, seed), bound.model, 0.0
    wait, features = InputWait(), not bound.train_spec.kinds
    if features:
        train, model = features_and_head(bound, wait.measured(train(range(1))), recipe.batch_size, num_images, seed)
    if model.trainable_variables:
        kept = run_epochs(
            bound, model, train, num_images, recipe, log_dir, checkpoint, wait=wait, one_call_per_epoch=features
        )
        earlier_seconds = kept.earlier_seconds
    if bound.train_spec.kinds:
        plain = batches(
            data.train,
            bound.task.preprocessing,
            recipe.batch_size,
            max_images=recipe.max_train_images or None,
            shuffle_seed=seed,
            cache=False,
        )
        estimate_statistics(bound, wait.measured(plain))
    seconds = time.perf_counter() - start
    return Fitted(earlier_seconds + seconds, min(1.0, wait.seconds / seconds))


def run_epochs(
    bound: BoundTask,
    model: keras.Model,
    train: Callable,
    num_images: int,
    recipe: Recipe,
    log_dir: Path | None = None,
    checkpoint: Path | None = None,
    *,
    wait: InputWait | None = None,
    one_call_per_epoch: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Checkpoint:
    """Trains the model of a bound task, or the part of it that learns, with its task's loss.

    Args:
        bound: says what is trained.
        model: `bound.model`, or a model of its head alone.
        train: from a range of epochs to a `tf.data.Dataset` of their batches, one after the other: of what `model` takes,
            and of what the loss compares with.
        num_images: how many come in an epoch.
        recipe: how.
        log_dir: folder for TensorBoard's files; none are written without.
        checkpoint: file to go on from and to write, as for `fit`.
        wait: what measures the waiting for `train`; a new one by default.
        one_call_per_epoch: all steps of an epoch are one call of TensorFlow's, for steps so short that Keras' own work around
            each would be most of it. The same is computed; the bar moves, and a loss that is no number is seen, once per epoch.
        callbacks: further ones.

    Returns:
        The checkpoint, which has the history of all epochs.

    Raises:
        ModelPatchError: the checkpoint cannot be used.
        TrainingError: the loss became NaN.
    """
    steps_per_epoch = math.ceil(num_images / recipe.batch_size)
    in_one_call = one_call_per_epoch and keras.backend.backend() == "tensorflow"
    optimizer = recipe.make_optimizer(bound.train_spec, steps_per_epoch)
    compile_for(model, bound.task, optimizer, steps_per_execution=steps_per_epoch if in_one_call else 1)
    kept = Checkpoint(model, checkpoint)
    finished = kept.restore()
    if finished == recipe.epochs:
        return kept
    all_callbacks = [
        *callbacks,
        Progress(recipe.epochs * steps_per_epoch, f"training {bound.train_spec}", finished * steps_per_epoch),
        StopAtNaN(f"{bound.task.name!r} ({bound.train_spec})"),
    ]
    if log_dir:
        all_callbacks.append(Logs(log_dir))
    all_callbacks.append(kept)
    epochs = range(finished, recipe.epochs)
    fit_epochs(model, train(epochs), epochs, steps_per_epoch, all_callbacks, metrics=bound.task.metrics(), wait=wait)
    return kept


def fit_epochs(
    model: keras.Model,
    batches,
    epochs: range,
    steps_per_epoch: int,
    callbacks: Sequence[keras.callbacks.Callback],
    *,
    metrics,
    weights: Mapping[str, float] | None = None,
    wait: InputWait | None = None,
):
    """Trains a compiled model on the devices of the current strategy.

    Arguments as `replicated.fit`; `metrics` and `weights` are those that the model was compiled with, and `wait` measures the
    waiting for batches, a new one by default.
    """
    wait = wait or InputWait()
    callbacks = [wait, *callbacks]
    if strategies.current():
        synchronise = strategies.synchronises()
        replicated.fit(
            model,
            wait.measured(batches),
            epochs,
            steps_per_epoch,
            callbacks,
            metrics=metrics,
            weights=weights,
            synchronise=synchronise,
        )
        return
    if strategies.num_devices() > 1:
        batches = replicated.filled_up(batches, strategies.num_devices())
    model.fit(
        wait.measured(batches),
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        steps_per_epoch=steps_per_epoch,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )


def evaluate(bound: BoundTask, data: ImageData, recipe: Recipe) -> dict[str, float]:
    """Returns the task's loss and metrics on its test images, by name, in inference mode."""
    images = batches(
        data.test, bound.task.preprocessing, recipe.batch_size, max_images=recipe.max_test_images or None, cache=False
    )
    num_steps = math.ceil(_num_images(data.test.num_images, recipe.max_test_images) / recipe.batch_size)
    return tester(bound)(images, [Progress(num_steps, f"testing {bound.train_spec}")])


def tester(bound: BoundTask) -> Callable:
    """Returns a function from batches, and callbacks, to the task's loss and metrics by name, in inference mode.

    It can be called again and again, and is traced once; as is all testing of one bound task.
    """
    if strategies.num_devices() > 1:
        forward = replicated.predictor(bound.model)
        return lambda images, callbacks=(): replicated.evaluate_on_worker(
            forward, images, bound.task.loss(), bound.task.metrics(), callbacks
        )

    compile_for(bound.model, bound.task)

    def test(images, callbacks=()):
        metrics = bound.model.evaluate(images, verbose=0, return_dict=True, callbacks=list(callbacks))
        return {name: float(value) for name, value in metrics.items()}

    return test


_COMPILED: weakref.WeakKeyDictionary[keras.Model, keras.losses.Loss] = weakref.WeakKeyDictionary()
"""The losses that models were given by `compile_for`."""


def compile_for(
    model: keras.Model, task: Task, optimizer: keras.optimizers.Optimizer | None = None, steps_per_execution: int = 1
):
    """Compiles a model with the loss and the metrics of a task.

    Without an optimizer, for testing, a model that was compiled here before stays as it is: Keras traces its test graph once,
    and every further test takes the same.

    Args:
        model: from what the task takes to what its loss takes.
        task: whose.
        optimizer: to train with; None to test only.
        steps_per_execution: steps in one call.
    """
    if optimizer is None and model.compiled and _COMPILED.get(model) is model.loss:
        return
    # XLA makes a convolutional step several times slower on CPUs, and Keras' own choice ("auto") knows that.
    model.compile(optimizer, loss=task.loss(), metrics=task.metrics(), steps_per_execution=steps_per_execution)
    _COMPILED[model] = model.loss


def _training_batches(bound: BoundTask, data: ImageData, recipe: Recipe, seed: int) -> Callable:
    """Returns a function from a range of epochs to their batches."""
    learns_from_pixels = bool(bound.train_spec.kinds)
    return lambda epochs: batches(
        data.train,
        bound.task.preprocessing,
        recipe.batch_size,
        max_images=recipe.max_train_images or None,
        augmentation=recipe.augmentation if learns_from_pixels else "none",
        shuffle_seed=seed if learns_from_pixels else None,
        epochs=epochs,
        cache=learns_from_pixels,
        multiple=strategies.num_devices(),
    )


def features_and_head(bound: BoundTask, images, batch_size: int, num_images: int, seed: int):
    """Runs the trunk once over the images.

    Args:
        bound: the task whose last layer alone is learnt.
        images: batches of `(images, labels)`, of one epoch.
        batch_size: of the batches that are returned.
        num_images: how many there are, for the progress bar.
        seed: of the order.

    Returns:
        A function from a range of epochs to batches of `(features, labels)`, and the head as a model of its own.
    """
    import tensorflow as tf

    forward = replicated.predictor(bound.features)
    # As arrays: under another backend than TensorFlow, Keras takes none of its tensors.
    outputs = [
        (np.asarray(forward(x.numpy())), y)
        for x, y in progress(images, "features", math.ceil(num_images / batch_size), "batch")
    ]
    features, labels = (np.concatenate(part) for part in zip(*outputs, strict=True))
    cached = tf.data.Dataset.from_tensor_slices((features, labels))

    def train(epochs: range):
        def one_epoch(epoch):
            return shuffled(cached, len(labels), seed, epoch)

        return in_epochs(one_epoch, epochs, len(labels), batch_size).prefetch(tf.data.AUTOTUNE)

    inputs = keras.Input(features.shape[1:])
    return train, keras.Model(inputs, bound.head(inputs))


def _num_images(available: int, most: int) -> int:
    return min(available, most) if most else available
