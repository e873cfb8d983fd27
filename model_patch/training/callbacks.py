"""Keras callbacks of every training."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np

from model_patch.data.autograph import without_autograph
from model_patch.errors import ModelPatchError, TrainingError
from model_patch.files import is_remote, upload
from model_patch.progress import progress

VALIDATION = "val_accuracy"
"""Name in the logs of the accuracy on the validation split; of several tasks the mean."""


class Progress(keras.callbacks.Callback):
    """A progress bar over all steps of a training, with the running loss and metrics."""

    def __init__(self, num_steps: int, description: str, finished: int = 0):
        super().__init__()
        self.bar = progress(None, description, num_steps, initial=finished)
        self.at = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.at = 0

    def on_train_batch_end(self, batch, logs=None):
        shown = {name: str(v) if isinstance(v, int) else f"{v:.3f}" for name, v in (logs or {}).items()}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(batch + 1 - self.at)  # Several steps where they are one call.
        self.at = batch + 1

    def on_train_end(self, logs=None):
        self.bar.close()


class InputWait(keras.callbacks.Callback):
    """Measures how long a training waits for its input, and adds it to the logs; must come before those that write them.

    Per epoch, `seconds` is what its steps took, testing left out, and `input_wait` the share of them, in 0..1, in which a step
    could not begin because its batch was not there yet. Under a strategy of one replica nothing is measured, or added.

    Attributes:
        seconds: waited so far, of all data that are `measured`.
    """

    def __init__(self):
        super().__init__()
        self._measures, self._waited = False, None
        self._waited_in_python = self._start = self._before = 0.0

    @property
    def seconds(self) -> float:
        return self._waited_in_python + (float(self._waited.numpy()) if self._waited is not None else 0.0)

    @without_autograph
    def measured(self, batches):
        """Returns a `tf.data.Dataset` of the same batches, whose reader's waiting is added up.

        Of a Python iterable, and where several replicas compute, whose steps are called from Python, it is an iterator.
        Else, the time of the request is recorded before the batches are requested, and compared when they arrive: all in the reader's
        own thread, 0.05 ms for each.
        """
        import tensorflow as tf

        in_python = tf.distribute.get_strategy().num_replicas_in_sync > 1 or not isinstance(batches, tf.data.Dataset)
        if in_python:
            self._measures = True
            return self._measured_in_python(batches)
        if tf.distribute.has_strategy():
            return batches
        self._measures = True
        if self._waited is None:
            with tf.device("CPU"):
                self._waited = tf.Variable(0.0, dtype="float64", trainable=False)
        waited = self._waited

        def add(requested, batch):
            waited.assign_add(tf.timestamp() - requested)
            return batch

        requested = tf.data.Dataset.counter().map(lambda _: tf.timestamp())
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False  # It would request in the reader's place.
        return tf.data.Dataset.zip(requested, batches).map(add).with_options(options)

    def _measured_in_python(self, batches):
        remaining = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(remaining, None)
            self._waited_in_python += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._before = time.perf_counter(), self.seconds

    def on_epoch_end(self, epoch, logs=None):
        if self._measures and logs is not None:
            seconds = time.perf_counter() - self._start
            logs |= {"seconds": seconds, "input_wait": min(1.0, (self.seconds - self._before) / seconds)}


class StopAtNaN(keras.callbacks.Callback):
    """Raises a `TrainingError` as soon as the loss is NaN or infinite.

    Args:
        what: names what is trained, for the error.
    """

    def __init__(self, what: str):
        super().__init__()
        self.what = what
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()  # Within an epoch the values are not in the variables.
            rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
            raise TrainingError(
                f"the loss of {self.what} became {logs['loss']} in epoch {self.epoch + 1}, step {batch + 1}, at learning "
                f"rate {rate:.3g}: use a lower --learning_rate"
            )


class KeepBest(keras.callbacks.Callback):
    """Tests every task after each epoch, keeps the values of the best epoch, and stops when it stays the best for long.

    The best epoch has the highest mean of the tasks' first figures; of equal ones it has the lowest mean loss. Adds to the
    logs `val_<metric>` of each task, or of several tasks `val_<task>_<metric>` and their mean as `VALIDATION`.

    Attributes:
        best_epoch: its number, from 0; None before the first.
        score: mean metric and negative mean loss of the best epoch.
        values: values of the model's weights after the best epoch.

    Args:
        testers: functions that test a task on its validation images and return its metrics, by the task's name.
        metrics: name of each task's figure.
        patience: epochs without a better one after which training stops; 0 for never.
    """

    def __init__(self, testers: Mapping[str, Callable[[], dict]], metrics: Mapping[str, str], patience: int = 0):
        super().__init__()
        self.testers, self.metrics, self.patience = testers, metrics, patience
        self.best_epoch: int | None = None
        self.score = (-math.inf, -math.inf)
        self.values: list = []

    def on_epoch_end(self, epoch, logs=None):
        scores = []
        for name, test in self.testers.items():
            tested, of_task = test(), f"{name}_" if len(self.testers) > 1 else ""
            logs |= {f"val_{of_task}{metric}": value for metric, value in tested.items()}
            scores.append((tested[self.metrics[name]], -tested["loss"]))
        score = tuple(float(np.mean(part)) for part in zip(*scores, strict=True))
        if len(scores) > 1:
            logs[VALIDATION] = score[0]
        if self.best_epoch is None or score > self.score:
            self.best_epoch, self.score = epoch, score
            self.values = [np.array(keras.ops.convert_to_numpy(v)) for v in self.model.weights]
        if self.is_over(epoch + 1):
            self.model.stop_training = True

    def is_over(self, finished: int) -> bool:
        """Whether patience is at an end after this many epochs."""
        return bool(self.patience) and self.best_epoch is not None and finished - 1 - self.best_epoch >= self.patience

    def go_back(self, model: keras.Model):
        """Sets the model that was trained to the best epoch's values."""
        for variable, value in zip(model.weights, self.values, strict=True):
            variable.assign(value)


def _in_one_sentence(name: str):
    """Returns TensorBoard's method of a name, with TensorFlow's error as one of this package's."""
    inherited = getattr(keras.callbacks.TensorBoard, name)

    def method(self, *args, **kwargs):
        import tensorflow as tf

        try:
            return inherited(self, *args, **kwargs)
        except tf.errors.OpError as error:
            reason = error.message.splitlines()[0].rpartition("; ")[2]
            raise ModelPatchError(
                f"{self.log_dir} cannot be written ({reason}): choose another place or free the disk"
            ) from None

    return method


class Logs(keras.callbacks.TensorBoard):
    """Keras' TensorBoard, which says in one sentence that its files cannot be written, as on a full disk.

    Args:
        folder: for TensorBoard's files; into a remote one they are uploaded when training ends.
    """

    def __init__(self, folder: Path):
        self.folder, self.scratch = folder, tempfile.TemporaryDirectory() if is_remote(folder) else None
        super().__init__(self.scratch.name if self.scratch else str(folder), write_graph=False)

    def on_train_end(self, logs=None):
        self.close(logs)
        if self.scratch:
            upload(Path(self.scratch.name), self.folder)

    close = _in_one_sentence("on_train_end")
    set_model = _in_one_sentence("set_model")
    on_train_begin = _in_one_sentence("on_train_begin")
    on_test_begin = _in_one_sentence("on_test_begin")
    on_test_end = _in_one_sentence("on_test_end")
    on_epoch_end = _in_one_sentence("on_epoch_end")
