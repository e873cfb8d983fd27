"""The engine: the answers of each task's own model, whatever comes, goes and waits beside it."""

import dataclasses
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from model_patch import ModelPatchError, Preprocessing, Task, Trunk, bind, bind_patch
from model_patch.predict import predict
from model_patch.serving.catalog import PatchFolder, needs_of
from model_patch.serving.engine import Engine, NotLoadedError, OverloadedError
from model_patch.serving.images import BadImageError, LargeImageError
from tests import token_nets
from tests.conftest import SIZE, small_net

MAX_TASKS = 3


@pytest.fixture(scope="module")
def trunk():
    return Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))


@pytest.fixture(scope="module")
def patches(trunk):
    """Patches of two and of three classes, each with values of its own."""
    made = {}
    for i, labels in enumerate([("cat", "dog"), ("a", "b", "c")] * 2):
        bound = bind(trunk, Task(f"task{i}", labels, trunk.preprocessing), "scale_bias+last", seed=i)
        random, first = np.random.default_rng(i), bound.patch()
        values = {
            key: value * random.uniform(0.8, 1.2, value.shape).astype("float32") for key, value in first.values.items()
        }
        made[f"task{i}"] = dataclasses.replace(first, values=values)
    return made


@pytest.fixture(scope="module")
def engine(trunk):
    engine = Engine(trunk, classes=3, max_tasks=MAX_TASKS, max_batch_size=4, max_queue=40, max_pixels=10_000)
    engine.warm()
    yield engine
    engine.close()


@pytest.fixture
def loaded(engine, patches):
    for name in list(patches)[:MAX_TASKS]:
        engine.put(name, patches[name])
    return engine


def encoded(seed: int, size: tuple[int, int] = (40, 50)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype("uint8")).save(file, "PNG")
    return file.getvalue()


def expected(trunk, patch, pixels) -> np.ndarray:
    bound = bind_patch(trunk, patch)
    return np.asarray(bound.model(np.asarray(bound.task.preprocessing(pixels))[None], training=False))[0]


def test_each_task_answers_as_predict_does(trunk, patches, loaded, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
        logits = loaded.submit(f"task{i}", [encoded(i)]).result(60)
        (answer,) = predict(bind_patch(trunk, patches[f"task{i}"]), str(tmp_path / f"{i}.png"))
        exponentials = np.exp(logits[0])
        np.testing.assert_allclose(
            exponentials / exponentials.sum(), list(answer.probabilities.values()), rtol=1e-4, atol=1e-6
        )


def test_pixels_and_files_of_several_sizes_are_one_request(trunk, patches, loaded):
    pixels = [np.random.default_rng(i).uniform(0, 255, (20 + i, 30, 3)).astype("float32") for i in range(6)]
    logits = loaded.submit("task1", [*pixels, encoded(0)]).result(60)
    assert logits.shape == (7, 3)
    for image, row in zip(pixels, logits, strict=False):
        np.testing.assert_allclose(row, expected(trunk, patches["task1"], image), rtol=1e-4, atol=1e-5)


def test_a_bad_image_is_an_error_of_its_request_alone(loaded):
    good, bad, damaged, large = (
        loaded.submit("task0", images)
        for images in ([encoded(0)], [b"no image"], [encoded(0), encoded(1)[:-40]], [encoded(0, (101, 100))])
    )
    assert good.result(60).shape == (1, 2)
    for future in (bad, damaged):
        with pytest.raises(BadImageError, match="cannot be read"):
            future.result(60)
    with pytest.raises(LargeImageError, match="10100 pixels: send one of at most 10000"):
        large.result(60)


def test_unknown_tasks_and_full_queues_are_refused(loaded):
    with pytest.raises(NotLoadedError, match="'nobody'"):
        loaded.submit("nobody", [encoded(0)])
    with pytest.raises(OverloadedError, match="try again later"):
        loaded.submit("task0", [encoded(0)] * 41)


def test_the_least_recently_used_task_leaves(patches, loaded):
    for name in ("task0", "task2"):
        loaded.submit(name, [encoded(0)]).result(60)
    loaded.put("task3", patches["task3"])
    assert set(loaded.tasks) == {"task0", "task2", "task3"}
    loaded.drop("task3")
    assert set(loaded.tasks) == {"task0", "task2"}


def test_a_refused_patch_changes_nothing(patches, loaded):
    before = loaded.submit("task0", [encoded(0)]).result(60)
    foreign = dataclasses.replace(patches["task0"], fingerprint="0" * 64)
    wide = dataclasses.replace(patches["task0"].task, labels=("a", "b", "c", "d"))
    for patch, why in (
        (foreign, "another trunk"),
        (dataclasses.replace(patches["task0"], task=wide), "'task0' has 4 classes"),
    ):
        with pytest.raises(ModelPatchError, match=why):
            loaded.put("task0", patch)
    assert loaded.submit("task0", [encoded(0)]).result(60).tobytes() == before.tobytes()


def test_requests_are_answered_by_one_version_while_tasks_change(trunk, patches, loaded):
    """Each answer is that of one of the two patches that take turns under the name, and none is lost."""
    image = np.random.default_rng(0).uniform(0, 255, (SIZE, SIZE, 3)).astype("float32")
    first, second = (expected(trunk, patches[name], image) for name in ("task0", "task2"))
    done = threading.Event()

    def change():
        for i in range(30):
            loaded.put("task0", patches["task2" if i % 2 else "task0"])
            loaded.put("other", patches["task3"])
            loaded.drop("other")
        done.set()

    def ask(_):
        answers = []
        while not done.is_set():
            answers.append(loaded.submit("task0", [image]).result(60)[0])
        return answers

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, i) for i in range(7)]
        pool.submit(change).result()
        answers = [answer for each in asked for answer in each.result()]
    assert len(answers) > 7
    for answer in answers:
        assert min(np.abs(answer - first).max(), np.abs(answer - second).max()) < 1e-4


def test_a_cancelled_request_frees_its_task(patches, loaded):
    futures = [loaded.submit("task0", [encoded(0)]) for _ in range(20)]
    for future in futures:
        future.cancel()
    loaded.drop("task0")
    for i in range(
        3 * MAX_TASKS + 64
    ):  # More than there are rows: those of versions that are not needed are used again.
        loaded.put(f"task{i % 5}", patches["task0"])
    assert loaded.num_tasks == MAX_TASKS


def test_closing_answers_what_waits(trunk, patches):
    engine = Engine(trunk, classes=3, max_tasks=1, max_batch_size=4)
    engine.put("task", patches["task0"])
    waiting = [engine.submit("task", [encoded(i)]) for i in range(9)]
    engine.close()
    assert all(future.result(0).shape == (1, 2) for future in waiting)
    assert not engine.is_healthy
    with pytest.raises(OverloadedError):
        engine.submit("task", [encoded(0)])


def test_tasks_pool_tokens_as_their_files_say(tmp_path):
    trunk = Trunk(token_nets.small_vit(), "vit", Preprocessing(token_nets.SIZE, "tf"), prefix_tokens=1)
    patch = bind(trunk, Task("one", ("a", "b"), trunk.preprocessing, pooling="mean"), "scale_bias+last").patch()
    patch.save(tmp_path / "one.safetensors")
    kinds, classes, pooling = needs_of(PatchFolder(str(tmp_path)), 10)
    engine = Engine(trunk, kinds, classes=classes, pooling=pooling, max_tasks=1, max_batch_size=1)
    engine.put("one", patch)
    pixels = np.asarray(Image.open(io.BytesIO(encoded(0, (16, 16)))))
    np.testing.assert_allclose(
        engine.submit("one", [encoded(0, (16, 16))]).result(60)[0], expected(trunk, patch, pixels), atol=1e-5
    )
    with pytest.raises(ModelPatchError, match="pools tokens by class"):
        engine.put("two", bind(trunk, Task("two", ("a", "b"), trunk.preprocessing, pooling="class"), kinds).patch())
    engine.close()
