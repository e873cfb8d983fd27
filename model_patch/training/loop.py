"""The training loop and the test loop, whatever is trained: epochs, callbacks, checkpoints, devices."""

import dataclasses
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.graph.keras_private import has_free_axis
from model_patch.tasks import Task
from model_patch.training import replicated, strategies
from model_patch.training.adam import RelativeAdam, Scaled
from model_patch.training.balanced import Weighted
from model_patch.training.callbacks import InputWait, KeepBest, Logs, Progress, StopAtNaN
from model_patch.training.recipe import Recipe
from model_patch.training.resume import Checkpoint


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a training took.

    Attributes:
        seconds: feature extraction and statistics included, and finished epochs of earlier processes too.
        history: the logs of all epochs by name, as in Keras' `History`; empty where no gradient was taken.
        input_wait: share of this process' seconds, in 0..1, in which nothing was computed because no batch was there.
        best_epoch: number, from 0, of the epoch that was kept; None where none was chosen.
    """

    seconds: float
    history: dict[str, list[float]]
    input_wait: float
    best_epoch: int | None = None


def run_epochs(
    bound: BoundTask,
    model: keras.Model,
    train: Callable,
    num_images: int,
    recipe: Recipe,
    log_dir: Path | None = None,
    checkpoint: Path | None = None,
    wait: InputWait | None = None,
    *,
    one_call_per_epoch: bool = False,
    relative: bool = False,
    decays: Mapping[str, np.ndarray] | None = None,
    validation=None,
    class_weights: np.ndarray | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Checkpoint:
    """Trains the model of a bound task, or the part of it that is trained, with its task's loss.

    With validation batches the values of the best epoch on them are the ones that stay.

    Args:
        bound: says what is trained.
        model: `bound.model`, or a model of its head alone.
        train: from a range of epochs to a `tf.data.Dataset` of their batches, one after the other: of what `model` takes,
            and of what the loss compares with.
        num_images: how many come in an epoch.
        recipe: how.
        log_dir: folder for TensorBoard's files; none are written without.
        checkpoint: file to resume from and to write, as for `fit`.
        wait: what measures the waiting for `train`; a new one by default.
        one_call_per_epoch: all steps of an epoch are one call of TensorFlow's, for steps so short that Keras' own work around
            each would be most of it. The same is computed; the bar moves, and a NaN loss is seen, once per epoch.
        relative, decays: as for `Recipe.make_optimizer`.
        validation: batches of `(x, y)` as in training, that can be gone through more than once; None for none.
        class_weights: by class, of a task whose classes the recipe balances; with `balance=weights` the loss is weighted.
        callbacks: further ones.

    Returns:
        The checkpoint, which has the history of all epochs; an empty one where nothing of `model` is trained by gradient.

    Raises:
        ModelPatchError: the checkpoint cannot be used.
        TrainingError: the loss became NaN, or the trunk did not stay unchanged.
    """
    if not model.trainable_variables:
        return Checkpoint(model)
    steps_per_epoch = math.ceil(num_images / recipe.batch_size)
    in_one_call = one_call_per_epoch and keras.backend.backend() == "tensorflow"
    optimizer = recipe.make_optimizer(bound.train_spec, steps_per_epoch, relative, decays, bound.trunk.width())
    weights = class_weights if recipe.balance == "weights" else None
    compile_for(model, bound.task, optimizer, steps_per_epoch if in_one_call else 1, weights)
    best = None
    if validation is not None:
        test = tester(bound, on_features=model is not bound.model)
        chosen_by = bound.task.figures[0 if recipe.balance == "none" else 1]
        best = KeepBest({"": lambda: test(validation)}, {"": chosen_by}, recipe.patience)
    kept = Checkpoint(model, checkpoint, best)
    finished = kept.restore()
    all_callbacks: list[keras.callbacks.Callback] = [
        *callbacks,
        Progress(recipe.epochs * steps_per_epoch, f"training {bound.train_spec}", finished * steps_per_epoch),
        StopAtNaN(f"{bound.task.name!r} ({bound.train_spec})"),
    ]
    if best:
        all_callbacks.append(best)
    if log_dir:
        all_callbacks.append(Logs(log_dir))
    all_callbacks.append(kept)
    epochs = range(finished, recipe.epochs)
    metrics = bound.task.metrics()
    if epochs and not (best and best.is_over(finished)):
        with bound.trunk.unchanged():
            fit_epochs(model, train(epochs), epochs, steps_per_epoch, all_callbacks, metrics=metrics, wait=wait)
    if best:
        best.go_back(model)
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
        measured = wait.measured(batches)
        replicated.fit(model, measured, epochs, steps_per_epoch, callbacks, metrics=metrics, weights=weights)
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


def tester(bound: BoundTask, on_features: bool = False) -> Callable:
    """Returns a function from batches to the loss and the task's figures by name, in inference mode.

    It can be called again and again; its further arguments are those of `replicated.outputs_and_labels`. It runs the functions
    of `replicated.predictor` for the features and the head, so that nothing is traced where these have run before. Of several
    workers each tests on all batches.

    Args:
        bound: a task with an output for each label.
        on_features: whether batches hold features in place of images.
    """
    features, head = replicated.predictor(bound.features), replicated.predictor(bound.head)
    task, loss = bound.task, bound.task.loss()

    def test(batches, what: str = "", num_batches: int | None = None) -> dict[str, float]:
        forward = head if on_features else lambda x: head(features(x))
        outputs, labels = replicated.outputs_and_labels(forward, batches, what, num_batches)
        of_images = keras.ops.convert_to_numpy(loss.call(labels, outputs))
        return {"loss": float(np.mean(of_images)), **task.measure(labels, task.read(outputs))}

    return test


def _restart(optimizer: keras.optimizers.Optimizer | None, like: keras.optimizers.Optimizer) -> bool:
    """Sets an optimizer to the state of a new one; returns False where the new one is of another kind.

    On other backends than TensorFlow schedules are constants of what was traced, so that none fits.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    if optimizer is None or type(optimizer) is not type(like) or _frame(optimizer) != _frame(like):
        return False
    if not isinstance(optimizer, RelativeAdam) and any(map(has_free_axis, optimizer._trainable_variables)):
        return False
    decays = getattr(like, "decays", {})
    if decays.keys() != getattr(optimizer, "decays", {}).keys() or not optimizer.built:
        return False
    for variable in optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))
    rate, new_rate = optimizer._learning_rate, like._learning_rate
    rate.restart(new_rate) if isinstance(rate, Scaled) else rate.assign(new_rate)
    if isinstance(optimizer, RelativeAdam):
        optimizer.restart(decays)
    return True


def _frame(optimizer: keras.optimizers.Optimizer) -> dict:
    """Returns an optimizer's configuration without what is in variables: its rate, and its weight decays."""
    rest = {
        key: value for key, value in optimizer.get_config().items() if key not in ("learning_rate", "decays", "name")
    }
    rate = optimizer._learning_rate
    return rest | {"schedule": rate.kind if isinstance(rate, Scaled) else None}


_COMPILED: weakref.WeakKeyDictionary[keras.Model, keras.losses.Loss] = weakref.WeakKeyDictionary()
"""The losses that models were given by `compile_for`."""


def compile_for(
    model: keras.Model,
    task: Task,
    optimizer: keras.optimizers.Optimizer,
    steps_per_execution: int = 1,
    class_weights: np.ndarray | None = None,
):
    """Compiles a model with the loss and the metrics of a task.

    A model that was compiled here before, with an optimizer of the same kind and number of steps, is not compiled again:
    the optimizer's state is reset, and what Keras has traced of training is used again.

    Args:
        model: from what the task takes to what its loss takes.
        task: whose.
        optimizer: to train with.
        steps_per_execution: steps in one call.
        class_weights: how much an image of each class counts in the loss; by default 1 each.
    """
    is_same = model.compiled and _COMPILED.get(model) is model.loss
    if is_same and class_weights is None and steps_per_execution == 1 and _restart(model.optimizer, optimizer):
        return
    # XLA makes a convolutional step several times slower on CPUs, and Keras' own choice ("auto") knows that.
    loss = task.loss() if class_weights is None else Weighted(task.loss(), class_weights)
    model.compile(optimizer, loss=loss, metrics=task.metrics(), steps_per_execution=steps_per_execution)
    if task.link is not None:
        build_metrics(model, task)
    if class_weights is None:
        _COMPILED[model] = model.loss


def build_metrics(model: keras.Model, tasks: Task | Mapping[str, Task]):
    """Builds the losses and metrics of a compiled model of a task, or of joined ones: Keras would trace all of it to do so."""
    outputs = keras.tree.map_structure(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), model.output)

    def like(task: Task, output: np.ndarray) -> np.ndarray:
        return np.zeros(1, "int64") if task.link == "softmax" else np.zeros_like(output)

    if isinstance(tasks, Task):
        labels: Any = like(tasks, outputs)
    else:
        labels = {name: like(tasks[name], each) for name, each in outputs.items()}
    model.compute_loss(y=labels, y_pred=outputs)
    model.compute_metrics(None, labels, outputs)
    model.reset_metrics()
