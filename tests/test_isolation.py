"""A task that is trained or added changes nothing of the trunk and of the tasks before it, to the last bit."""

import keras
import numpy as np
import pytest

from model_patch import Bank, Preprocessing, Task, Trunk, bind, join
from model_patch.kinds import TrainSpec
from tests.conftest import SIZE, same, small_net, snapshot, train_steps

OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "weight decay": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1),
    "decay in adam": lambda: keras.optimizers.Adam(0.05, weight_decay=0.1),
    "average": lambda: keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=1),
}


@pytest.fixture(scope="module")
def kept():
    """Tasks on one trunk that were trained before, and that all tests leave as they are."""
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
    images = np.random.default_rng(1).uniform(-1, 1, (12, SIZE, SIZE, 3)).astype("float32")
    kept = []
    for i, train in enumerate(("scale_bias+last", "depthwise+last", "full")):
        task = Task(f"task {i}", ("circle", "square", "star"), trunk.preprocessing)
        kept.append(bind(trunk, task, train, seed=i))
        train_steps(kept[-1], images, np.arange(12) % 3)
    return kept


@pytest.fixture
def undisturbed(kept, images):
    """Checks at the end that trunk, patches, files and predictions are what they were at the beginning, to the last bit."""
    trunk = kept[0].trunk
    before = [snapshot(bound.patch_variables | bound.head_variables) for bound in kept]
    files = [bound.patch().to_bytes() for bound in kept]
    trunk_before, predictions = snapshot(trunk.variables()), [bound.model.predict_on_batch(images) for bound in kept]
    yield trunk
    assert same(trunk_before, snapshot(trunk.variables()))
    for bound, values, file, prediction in zip(kept, before, files, predictions, strict=True):
        assert same(values, snapshot(bound.patch_variables | bound.head_variables))
        assert bound.patch().to_bytes() == file
        assert bound.model.predict_on_batch(images).tobytes() == prediction.tobytes()


REGIMES = ["last", "scale_bias+last", "depthwise+last", "statistics+last", "bias", "full"]


@pytest.mark.parametrize(
    ("train", "optimizer"),
    [
        *(("scale_bias+last", optimizer) for optimizer in OPTIMIZERS),
        *((train, "decay in adam") for train in REGIMES if train != "scale_bias+last"),
        *(("full", optimizer) for optimizer in ("weight decay", "average")),
    ],
)
def test_another_task_leaves_trunk_and_patches_as_they_were(undisturbed, task, images, labels, train, optimizer):
    added = bind(undisturbed, task, TrainSpec.parse(train, "batch"), seed=7)
    start = snapshot(added.patch_variables | added.head_variables)
    added.model.compile(OPTIMIZERS[optimizer](), task.loss(), run_eagerly=True)  # Tracing takes longer.
    added.model.fit(images, labels, batch_size=6, epochs=1, verbose=0)
    assert not same(start, snapshot(added.patch_variables | added.head_variables)), "the new task did learn"


@pytest.mark.parametrize(("train", "optimizer"), [*zip(REGIMES, [*OPTIMIZERS, *OPTIMIZERS], strict=False)])
def test_so_do_two_that_are_joined(undisturbed, images, labels, train, optimizer):
    tasks = [Task(name, ("a", "b", "c"), undisturbed.preprocessing) for name in ("one", "other")]
    share = "nothing" if train == "full" else "trunk"
    joined = join(undisturbed, tasks, TrainSpec.parse(train, "batch"), share=share, seed=7)
    start = snapshot({str(i): v for i, v in enumerate(joined.model.trainable_variables)})
    joined.model.compile(OPTIMIZERS[optimizer](), joined.losses(), run_eagerly=True)
    of_each = dict.fromkeys(("one", "other"), images)
    joined.model.fit(of_each, dict.fromkeys(of_each, labels), batch_size=6, epochs=1, verbose=0)
    assert not same(start, snapshot({str(i): v for i, v in enumerate(joined.model.trainable_variables)}))


def test_so_does_one_that_a_bank_takes_in_and_gives_away(undisturbed, kept, task, images):
    bank, names = (
        Bank(undisturbed, "scale_bias+depthwise", capacity=3, classes=3),
        [kept[i % 2].task.name for i in range(12)],
    )
    for bound in kept[:2]:
        bank.add(bound)
    predictions = np.array(bank(images, names))
    added = bind(undisturbed, task, "scale_bias+depthwise+last", seed=7)
    for change in (lambda: bank.add(added), lambda: bank.add(added, replace=True), lambda: bank.remove(task.name)):
        change()
        assert np.array(bank(images, names)).tobytes() == predictions.tobytes()
