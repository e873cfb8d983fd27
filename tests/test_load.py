"""Many threads ask a bank, and a SavedModel of several tasks, while tasks come and go: every answer is right."""

import threading
import time

import numpy as np
import tensorflow as tf

from model_patch.bank import Bank
from model_patch.benchmark.timing import resident_bytes
from model_patch.export import export
from tests.test_bank import bound_task, tasks_of

THREADS = 32
SECONDS = 3.0
TOLERANCE = 1e-4


def under_load(ask, seconds: float, change=lambda: None) -> tuple[int, list[str], list[int]]:
    """Calls `ask(random)` in many threads, and `change()` in one more, for some seconds.

    Returns:
        How many calls there were, what went wrong (`ask` returns it, or raises), and the memory that the process held, in bytes,
        ten times in the second half.
    """
    end, calls, wrong, memory = time.monotonic() + seconds, [0] * THREADS, [], []

    def work(k):
        random = np.random.default_rng(k)
        while time.monotonic() < end and not wrong:
            try:
                problem = ask(random)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            calls[k] += 1
            if problem:
                wrong.append(problem)

    def keep_changing():
        while time.monotonic() < end:
            change()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(THREADS)]
    threads.append(threading.Thread(target=keep_changing))
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    for _ in range(10):
        memory.append(resident_bytes())
        time.sleep(seconds / 20)
    for thread in threads:
        thread.join()
    return sum(calls), wrong, memory


def check_bank(trunk, images, seconds: float):
    """Tasks that stay are asked for while others are added, replaced and removed; returns what `under_load` does."""
    stay = tasks_of(trunk)
    expected = [np.array(bound.model(images, training=False)) for bound in stay]
    bank = Bank(trunk, capacity=16, classes=7)
    for bound in stay:
        bank.add(bound)
    passing = [bound_task(trunk, f"passing{k}", 3, "scale_bias+last", 10 + k).patch() for k in range(3)]

    def ask(random):
        chosen = random.integers(0, len(stay), len(images))
        logits = np.array(bank(images, [stay[k].task.name for k in chosen]))
        for i, k in enumerate(chosen):
            own = expected[k].shape[1]
            if not np.abs(logits[i, :own] - expected[k][i]).max() < TOLERANCE:
                return f"{stay[k].task.name}: {logits[i]} instead of {expected[k][i]}"
        return None

    def change():
        for patch in passing:
            bank.add(patch)
        for patch in passing:
            bank.add(patch, replace=True)
            bank.remove(patch.task.name)

    return under_load(ask, seconds, change), bank.capacity


def check_saved_model(trunk, pixels, folder, seconds: float):
    """All tasks of one SavedModel are asked for at once; returns what `under_load` does."""
    tasks = tasks_of(trunk)
    export("signatures", tasks, folder)
    signatures = tf.saved_model.load(folder).signatures
    scaled = trunk.preprocessing.scale(pixels)
    expected = {bound.task.name: np.array(bound.model(scaled, training=False)) for bound in tasks}

    def ask(random):
        name = tasks[random.integers(len(tasks))].task.name
        logits = signatures[name](images=pixels)["logits"].numpy()
        return (
            None
            if np.abs(logits - expected[name]).max() < TOLERANCE
            else f"{name}: {logits} instead of {expected[name]}"
        )

    return under_load(ask, seconds)


def test_a_bank(trunk, images):
    (calls, wrong, _), capacity = check_bank(trunk, images[:5], SECONDS)
    assert not wrong and calls > THREADS and capacity == 16


def test_one_saved_model(trunk, images, tmp_path):
    calls, wrong, _ = check_saved_model(trunk, (images[:5] + 1) * 127.5, tmp_path / "out", SECONDS)
    assert not wrong and calls > THREADS
