"""Many threads call a bank, its export, and a SavedModel of several tasks, while tasks come and go: every prediction is right."""

import threading
import time

import numpy as np
import tensorflow as tf

from model_patch.bank.bank import Bank
from model_patch.experiments.benchmark.timing import resident_bytes
from model_patch.export import export
from model_patch.export.bank import export_bank
from tests.bank.test_bank import bound_task, tasks_of

THREADS = 32
CALLS_EACH = 3
TOLERANCE = 1e-4


def under_load(ask, change, calls_each: int = 1, seconds: float = 0.0) -> tuple[int, list[str], list[int]]:
    """Calls `ask(random)` in many threads, so often and for so long in each, and `change()` in one more until they end.

    Returns:
        How many calls there were, what went wrong (`ask` returns it, or raises), and the memory that the process held, in bytes,
        ten times in the second half of the seconds.
    """
    end, calls, wrong, memory = time.monotonic() + seconds, [0] * THREADS, [], []

    def work(k):
        random = np.random.default_rng(k)
        while (calls[k] < calls_each or time.monotonic() < end) and not wrong:
            try:
                problem = ask(random)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            calls[k] += 1
            if problem:
                wrong.append(problem)

    def keep_changing():
        change()
        while any(thread.is_alive() for thread in threads):
            change()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(THREADS)]
    changing = threading.Thread(target=keep_changing)
    for thread in (*threads, changing):
        thread.start()
    time.sleep(seconds / 2)
    for _ in range(10):
        memory.append(resident_bytes())
        time.sleep(seconds / 20)
    for thread in (*threads, changing):
        thread.join()
    return sum(calls), wrong, memory


class Load:
    """What is asked, and what changes meanwhile.

    Attributes:
        stay: tasks that are asked for all the time.
        expected: their logits for the images, by name, from their models in memory.
        bank: holds them, and others that come and go.
    """

    def __init__(self, trunk, images):
        self.images = images
        self.pixels = (images + 1) * 127.5
        self.stay = tasks_of(trunk)
        self.names = [bound.task.name for bound in self.stay]
        self.expected = {bound.task.name: np.array(bound.model(images, training=False)) for bound in self.stay}
        self.bank = Bank(trunk, capacity=16, classes=7)
        for bound in self.stay:
            self.bank.add(bound)
        self.passing = [bound_task(trunk, f"passing{k}", 3, "scale_bias+last", 10 + k).patch() for k in range(3)]

    def change(self):
        """Adds, replaces and removes tasks of the bank."""
        for patch in self.passing:
            self.bank.add(patch)
        for patch in self.passing:
            self.bank.add(patch, replace=True)
            self.bank.remove(patch.task.name)

    def ask_bank(self, random) -> str | None:
        """Predicts with a task per image; returns what is wrong with a prediction."""
        names = random.choice(self.names, len(self.images))
        return self._wrong(names, np.array(self.bank(self.images, list(names))))

    def exported_bank(self, folder):
        """Returns a function that calls the bank's current export."""
        export_bank(self.bank, folder)
        serve = tf.saved_model.load(folder).signatures["serving_default"]

        def ask(random):
            names = random.choice(self.names, len(self.images))
            return self._wrong(names, serve(images=self.pixels, tasks=tf.constant(names))["logits"].numpy())

        return ask

    def saved_model(self, folder):
        """Returns what asks one SavedModel of all tasks, a signature each."""
        export("signatures", self.stay, folder)
        signatures = tf.saved_model.load(folder).signatures

        def ask(random):
            name = random.choice(self.names)
            return self._wrong([name] * len(self.images), signatures[name](images=self.pixels)["logits"].numpy())

        return ask

    def _wrong(self, names, logits: np.ndarray) -> str | None:
        for i, name in enumerate(names):
            right = self.expected[name][i]
            if not np.abs(logits[i, : len(right)] - right).max() < TOLERANCE:
                return f"{name}: {logits[i]} instead of {right}"
        return None


def test_all_at_once(trunk, images, tmp_path):
    load = Load(trunk, images[:5])
    ways = (load.ask_bank, load.exported_bank(tmp_path / "bank"), load.saved_model(tmp_path / "all"))
    calls, wrong, _ = under_load(lambda random: ways[random.integers(3)](random), load.change, CALLS_EACH)
    assert not wrong and calls == THREADS * CALLS_EACH and load.bank.capacity == 16
