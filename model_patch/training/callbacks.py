"""Keras callbacks of every training."""

import math

import keras
from tqdm import tqdm

from model_patch.errors import TrainingError


class Progress(keras.callbacks.Callback):
    """A progress bar over all steps of a training or a test, with the running loss and metrics."""

    def __init__(self, num_steps: int, description: str, finished: int = 0):
        super().__init__()
        self.bar = tqdm(total=num_steps, initial=finished, desc=description, unit="step", leave=False)

    def on_train_batch_end(self, batch, logs=None):
        shown = {name: str(v) if isinstance(v, int) else f"{v:.3f}" for name, v in (logs or {}).items()}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def on_train_end(self, logs=None):
        self.bar.close()

    on_test_batch_end = on_train_batch_end
    on_test_end = on_train_end


class StopAtNaN(keras.callbacks.Callback):
    """Raises a `TrainingError` as soon as the loss is no number.

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
