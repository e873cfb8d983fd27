"""Resuming a training that was interrupted, with the same values to the last bit.

Keras' `BackupAndRestore` writes weights and the epoch's number as two files, which a kill can leave apart, and knows neither
the best epoch so far nor where the data are. Here all of it is one file, written whole or not at all.
"""

import json
import time
from pathlib import Path

import keras
import numpy as np
import safetensors
import safetensors.numpy

from model_patch.errors import ModelPatchError
from model_patch.files import local_copy, write_bytes
from model_patch.training.callbacks import KeepBest

METADATA_KEY = "training"


class Checkpoint(keras.callbacks.Callback):
    """Writes after each epoch what the next one begins with; must be the last of the callbacks.

    That is every variable of the model, its random generators' included, of the optimizer, and the best epoch's values where
    they are kept. The order of the images is a function of seed and epoch and need not be written, see `data.epochs`.

    Attributes:
        history: the logs of all finished epochs by name, as in Keras' `History`.
        earlier_seconds: time spent in finished epochs by processes before this one.

    Args:
        model: compiled.
        path: path of the file; None writes none.
        best: its state is kept, too.
    """

    def __init__(self, model: keras.Model, path: Path | None = None, best: KeepBest | None = None):
        super().__init__()
        self.trained_model, self.path, self.best = model, path, best
        self.history: dict[str, list[float]] = {}
        self.earlier_seconds = 0.0
        self.start = time.perf_counter()

    def restore(self) -> int:
        """Takes over the values of the file, if there is one; returns how many epochs are finished.

        Raises:
            ModelPatchError: the file is damaged, or was written by another version of the program.
        """
        self.trained_model.optimizer.build(self.trained_model.trainable_variables)
        if self.path is None or not self.path.exists():
            return 0
        try:
            with local_copy(self.path) as local, safetensors.safe_open(local, framework="numpy") as file:
                state = json.loads(file.metadata()[METADATA_KEY])
                values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            best = [values.pop(f"best/{i}") for i in range(state["best_values"])]
            variables = self._variables()
            if {key: v.shape for key, v in values.items()} != {key: tuple(v.shape) for key, v in variables.items()}:
                raise ValueError("its variables are others")
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelPatchError(
                f"the checkpoint {self.path} cannot be used ({error}): delete it, and its row restarts"
            ) from None
        for key, variable in variables.items():
            variable.assign(values[key])
        if self.best and state["best"]:
            self.best.best_epoch, self.best.score, self.best.values = state["best"][0], tuple(state["best"][1]), best
        self.history, self.earlier_seconds = state["history"], state["seconds"]
        return state["epochs"]

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        if self.path is None:
            return
        values = {key: _copy(variable) for key, variable in self._variables().items()}
        best = [_copy(value) for value in self.best.values] if self.best else []
        state = {
            "epochs": epoch + 1,
            "seconds": self.earlier_seconds + time.perf_counter() - self.start,
            "history": self.history,
            "best": [self.best.best_epoch, self.best.score] if self.best else None,
            "best_values": len(best),
        }
        tensors = values | {f"best/{i}": value for i, value in enumerate(best)}
        write_bytes(self.path, safetensors.numpy.save(tensors, {METADATA_KEY: json.dumps(state)}))

    def _variables(self) -> dict[str, keras.Variable]:
        """Returns every variable by its place: paths of nested or renamed layers need not be unique."""
        model, optimizer = self.trained_model.variables, self.trained_model.optimizer.variables
        named = {f"model/{i}": variable for i, variable in enumerate(model)}
        return named | {f"optimizer/{i}": variable for i, variable in enumerate(optimizer)}


def _copy(value) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value), order="C")
