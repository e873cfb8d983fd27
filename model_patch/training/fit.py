"""Training and testing: one bound task of any type, or joined tasks."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.data import pipeline
from model_patch.data.balance import class_weights, resampled
from model_patch.data.epochs import in_epochs, shuffled
from model_patch.data.images import ImageData, Split, bad_images_named
from model_patch.detection.data import DetectionData
from model_patch.detection.data import pipeline as detection_pipeline
from model_patch.detection.evaluation import evaluate_detector
from model_patch.errors import ModelPatchError, require_seed
from model_patch.join import JoinedTasks
from model_patch.training import replicated
from model_patch.training.callbacks import InputWait
from model_patch.training.joint import fit_joined
from model_patch.training.last_layer import LEAST_SPREAD, learn_last_layer
from model_patch.training.loop import Fitted, run_epochs, tester
from model_patch.training.recipe import Recipe
from model_patch.training.statistics import estimate_statistics, moves_statistics


def fit(
    trained: BoundTask | JoinedTasks,
    data: ImageData | DetectionData | Mapping[str, ImageData],
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    log_dir: Path | None = None,
    checkpoint: Path | None = None,
    **joint,
) -> Fitted:
    """Trains what a bound task, or joined tasks learn, and then re-estimates the statistics that they own.

    Where the data have validation images, see `ImageData.with_validation`, the values of the best epoch on them are kept.

    Keras' own `model.fit` trains the same values. It does not re-estimate statistics, for which there is the callback
    `EstimateStatistics`, nor does it choose a learning rate, cache features, stop at NaN or write a checkpoint.

    The last layer of a task with an output for each label is solved first, on features of the unaugmented images: it is the convex
    problem of `training.last_layer`, and alone needs no epochs, rate or seed. Patches start from it, and keep its weight
    decay. They start from a random one where the recipe says so (`Recipe.learns_last_layer_first`), and where the trunk's
    features hardly differ between images (`last_layer.LEAST_SPREAD`).

    Args:
        trained: changes in its patches, and in its heads where they are trained; joined tasks also in a trunk that they
            train. Nothing else changes.
        data: its training and validation images are used; for joined tasks a dict by task name.
        recipe: how; by default `Recipe()`.
        seed: seed of the order of the images and of augmentation.
        log_dir: folder for TensorBoard's files; without it none are written.
        checkpoint: file that is written after each epoch, and from which an interrupted training continues; without it none
            is written. Whoever gives it deletes it.
        **joint: for joined tasks, further arguments of `fit_joined`.

    Returns:
        What it took.

    Raises:
        ModelPatchError: the checkpoint, a name in the recipe, or the seed cannot be used, or an image cannot be read.
        TrainingError: the loss became NaN.
    """
    require_seed(seed)
    fit_one = fit_joined if isinstance(trained, JoinedTasks) else fit_task
    options = {"seed": seed, "log_dir": log_dir, "checkpoint": checkpoint, **joint}
    of_tasks = [
        each for each in (data.values() if isinstance(data, Mapping) else [data]) if isinstance(each, ImageData)
    ]
    splits = [split for each in of_tasks for split in (each.train, each.validation) if split]
    with bad_images_named(*splits):
        return fit_one(trained, data, recipe or Recipe(), **options)  # type: ignore[arg-type]


def fit_task(
    bound: BoundTask,
    data: ImageData | DetectionData,
    recipe: Recipe,
    *,
    seed: int = 0,
    log_dir: Path | None = None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Trains one bound task. Arguments, result and errors as `fit`."""
    start, wait = time.perf_counter(), InputWait()
    num_images = data.train.take(recipe.max_train_images or None)
    batches = functools.partial(_batches, bound, data, recipe, seed)

    def unaugmented(shuffle: bool):
        return wait.measured(replicated.read_together(functools.partial(batches, "none", shuffle=shuffle, cache=False)))

    validation = data.validation if isinstance(data, ImageData) else None
    weights = _class_weights(bound, data, recipe)
    spec, is_linear, decays = bound.train_spec, bound.task.link is not None, {}

    def estimate():
        if moves_statistics(bound.model):
            estimate_statistics(bound, unaugmented(shuffle=True))

    if is_linear and recipe.learns_last_layer_first(spec):
        if spec.kinds:
            estimate()  # Features are those of the statistics that training begins with.
        images = unaugmented(shuffle=False)
        features = replicated.features_and_labels(bound, images, num_images, recipe.batch_size)
        decay = learn_last_layer(bound, *features, weights, least_spread=LEAST_SPREAD if spec.kinds else 0.0)
        decays = {} if decay is None else {bound.head.kernel.path: decay}
        if not spec.kinds:
            seconds = time.perf_counter() - start
            return Fitted(seconds, {}, min(1.0, wait.seconds / seconds))
    tested = _whole_batches(validation, bound, recipe) if validation else None
    if is_linear and not spec.kinds:
        import tensorflow as tf

        images = unaugmented(shuffle=False)
        drawn = weights if recipe.balance == "sampling" else None
        train, head = features_and_head(bound, images, recipe.batch_size, num_images, seed, drawn)
        if validation:
            features = replicated.features_and_labels(bound, tested, validation.num_images, recipe.batch_size)
            tested = tf.data.Dataset.from_tensor_slices(features).batch(recipe.batch_size)
        options: dict[str, Any] = {"one_call_per_epoch": True, "validation": tested, "class_weights": weights}
        kept = run_epochs(bound, head, train, num_images, recipe, log_dir, checkpoint, wait, **options)
    else:
        options = {"class_weights": weights} if recipe.balance == "sampling" else {}
        train = functools.partial(batches, recipe.augmentation, share=replicated.own_share(), **options)
        options = {
            "relative": is_linear and recipe.is_relative(spec),
            "decays": decays,
            "validation": tested,
            "class_weights": weights,
        }
        kept = run_epochs(bound, bound.model, train, num_images, recipe, log_dir, checkpoint, wait, **options)
        estimate()
    seconds = time.perf_counter() - start
    best_epoch = kept.best.best_epoch if kept.best else None
    return Fitted(kept.earlier_seconds + seconds, kept.history, min(1.0, wait.seconds / seconds), best_epoch)


def evaluate(
    trained: BoundTask | JoinedTasks,
    data: ImageData | DetectionData | Mapping[str, ImageData],
    recipe: Recipe | None = None,
    split: str = "test",
) -> dict:
    """Tests a bound task, or each of joined tasks, on test images, in inference mode.

    Args:
        trained: what to test.
        data: its test images are used; for joined tasks a dict by task name.
        split: `validation` to use the validation images instead, all of them.
        recipe: `batch_size` and `max_test_images` are used; by default those of `Recipe()`.

    Returns:
        The loss and the task's figures by name; of a detector its mean average precisions; for joined tasks, all that by
        task name.
    """
    recipe = recipe or Recipe()
    if isinstance(trained, JoinedTasks):
        return {name: evaluate(bound, data[name], recipe, split) for name, bound in trained.tasks.items()}  # type: ignore[index]
    most = recipe.max_test_images or None
    if isinstance(data, DetectionData):
        together = replicated.read_together
        return evaluate_detector(trained, data.test, batch_size=recipe.batch_size, max_images=most, together=together)
    chosen: Any = data.test.first(most) if split == "test" else data.validation  # type: ignore[union-attr]
    images, num_batches = _once(trained, chosen, recipe)
    with bad_images_named(chosen):
        return tester(trained)(images, f"testing {trained.train_spec}", num_batches)


def calibrate(bound: BoundTask, data: ImageData, recipe: Recipe | None = None) -> BoundTask:
    """Returns a task with what is fitted on validation images: a temperature, and of a multi-label task the thresholds.

    Args:
        bound: trained; its variables are those of the result.
        data: its validation images are used, all of them. Without any the task is returned unchanged.
        recipe: `batch_size` is used; by default that of `Recipe()`.
    """
    if not data.validation:
        return bound
    images, num_batches = _once(bound, data.validation, recipe or Recipe())
    with bad_images_named(data.validation):
        outputs, labels = replicated.outputs_and_labels(
            replicated.predictor(bound.model), images, "calibrating", num_batches
        )
    return dataclasses.replace(bound, task=bound.task.calibrate(labels, outputs))


def _once(bound: BoundTask, split: Split, recipe: Recipe) -> tuple[Any, int]:
    """Returns the batches of a split, to be gone through once, and their number."""
    return _whole_batches(split, bound, recipe, cache=False), math.ceil(split.num_images / recipe.batch_size)


def _whole_batches(split: Split, bound: BoundTask, recipe: Recipe, **options):
    """Returns the batches of a split, see `replicated.read_together`."""
    make = functools.partial(pipeline.batches, split, bound.task.preprocessing, recipe.batch_size, **options)
    return replicated.read_together(make)


def _batches(
    bound: BoundTask,
    data: ImageData | DetectionData,
    recipe: Recipe,
    seed: int,
    augmentation: str,
    epochs: range = range(1),
    shuffle: bool = True,
    **options,
):
    """Returns the batches of some epochs of training images, as a `tf.data.Dataset`."""
    make: Any = detection_pipeline.batches if isinstance(data, DetectionData) else pipeline.batches
    return make(
        data.train,
        bound.task.preprocessing,
        recipe.batch_size,
        max_images=recipe.max_train_images or None,
        augmentation=augmentation,
        shuffle_seed=seed if shuffle else None,
        epochs=epochs,
        **options,
    )


def _class_weights(bound: BoundTask, data: ImageData | DetectionData, recipe: Recipe) -> np.ndarray | None:
    """Returns the weights of the classes where they are balanced."""
    if recipe.balance == "none":
        return None
    if bound.task.link != "softmax":
        raise ModelPatchError(f"balance is {recipe.balance}: expected none for a {bound.task.type} task")
    return class_weights(data.train.image_labels(recipe.max_train_images or None), len(bound.task.labels))


def features_and_head(
    bound: BoundTask, images, batch_size: int, num_images: int, seed: int, drawn: np.ndarray | None = None
):
    """Caches the features of the images.

    Args:
        bound: the task whose last layer alone is trained.
        images: batches of `(images, labels)`, of one epoch.
        batch_size: size of the batches that are returned.
        num_images: how many there are, for the progress bar.
        seed: seed of the order.
        drawn: how often the images of each class come in an epoch, on average; by default once.

    Returns:
        A function from a range of epochs to batches of `(features, labels)`, and the head as a model of its own.
    """
    import tensorflow as tf

    features, labels = replicated.features_and_labels(bound, images, num_images, batch_size)
    cached = tf.data.Dataset.from_tensor_slices((features, labels))

    def train(epochs: range):
        def one_epoch(epoch):
            if drawn is None:
                return shuffled(cached, len(labels), seed, epoch)
            each = resampled(cached, drawn, seed, epoch)
            return shuffled(each, len(labels), seed, epoch).repeat().take(len(labels))

        return in_epochs(one_epoch, epochs, len(labels), batch_size).prefetch(tf.data.AUTOTUNE)

    inputs = keras.Input(features.shape[1:])
    return train, keras.Model(inputs, bound.head(inputs))
