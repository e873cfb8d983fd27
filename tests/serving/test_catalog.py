"""The catalog: an engine follows what is in a folder, local or remote."""

import dataclasses

import fsspec
import numpy as np
import pytest

from model_patch import ModelPatchError, PatchError, Preprocessing, Task, Trunk, bind
from model_patch.serving.catalog import Catalog, PatchFolder, needs_of, parse
from model_patch.serving.engine import Engine
from tests.conftest import SIZE, small_net

IMAGE = np.random.default_rng(0).uniform(0, 255, (SIZE, SIZE, 3)).astype("float32")


@pytest.fixture(scope="module")
def trunk():
    return Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))


@pytest.fixture(scope="module")
def files(trunk):
    """Contents of two patch files, and of one that belongs to another trunk."""
    made = [
        bind(trunk, Task("any", ("a", "b", "c")[: 3 - i], trunk.preprocessing), "scale_bias+last", seed=i).patch()
        for i in range(2)
    ]
    return [patch.to_bytes() for patch in (*made, dataclasses.replace(made[0], fingerprint="0" * 64))]


@pytest.fixture(scope="module")
def engine(trunk):
    engine = Engine(trunk, classes=3, max_tasks=3, max_batch_size=2)
    yield engine
    engine.close()


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path, engine):
    for name in engine.tasks:
        engine.drop(name)
    if request.param == "local":
        return PatchFolder(str(tmp_path))
    fsspec.filesystem("memory").makedirs(f"/{tmp_path.name}")
    return PatchFolder(f"memory://{tmp_path.name}")


def answer(engine, name: str) -> np.ndarray:
    return engine.submit(name, [IMAGE]).result(60)[0]


def test_files_that_come_change_and_go_are_followed(folder, engine, files):
    catalog = Catalog(folder, engine)
    folder.save("one", files[0])
    catalog.scan()
    assert catalog.names() == ["one"] and len(answer(engine, "one")) == 3
    folder.save("one", files[1])
    folder.save(".hidden", files[1])
    catalog.scan()
    assert catalog.names() == ["one"] and len(answer(engine, "one")) == 2
    folder.delete("one")
    catalog.scan()
    assert not catalog.names() and not engine.tasks


def test_a_bad_file_is_refused_with_the_reason_and_the_old_patch_goes_on(folder, engine, files):
    catalog = Catalog(folder, engine)
    folder.save("one", files[0])
    catalog.scan()
    before = answer(engine, "one")
    for bad, why in ((b"rubbish", "damaged, or is not a patch file"), (files[2], "another trunk")):
        folder.save("one", bad)
        catalog.scan()
        assert why in catalog.error("one")
        assert answer(engine, "one").tobytes() == before.tobytes()
    folder.save("one", files[0])
    catalog.scan()
    assert not catalog.error("one")


def test_more_tasks_than_fit_come_when_they_are_needed(folder, engine, files):
    for i in range(6):
        folder.save(f"task{i}", files[i % 2])
    folder.save("bad", b"rubbish")
    catalog = Catalog(folder, engine)
    catalog.scan(load=False)
    assert len(catalog) == 7 and not engine.tasks
    catalog.load_waiting()
    assert len(engine.tasks) == 3
    for i in (5, 0, 4):
        assert catalog.ensure(f"task{i}") and len(answer(engine, f"task{i}")) == 3 - i % 2
    assert not catalog.ensure("bad") and catalog.error("bad")
    assert not catalog.ensure("nobody")
    assert len(engine.tasks) == 3


def test_added_tasks_are_in_the_folder_and_deleted_ones_are_not(folder, engine, files):
    catalog = Catalog(folder, engine)
    catalog.put("new", files[0])
    with pytest.raises(PatchError, match="^'new' is damaged"):
        catalog.put("new", b"rubbish")
    assert list(folder.list()) == ["new"] and folder.load("new").task.labels == ("a", "b", "c")
    catalog.scan()
    assert len(answer(engine, "new")) == 3
    catalog.delete("new")
    assert not folder.list() and not engine.tasks and "new" not in catalog


def test_a_thread_follows_the_folder(folder, engine, files):
    catalog = Catalog(folder, engine)
    catalog.watch(0.01)
    folder.save("one", files[0])
    while not engine.task("one"):
        pass
    folder.delete("one")
    while engine.task("one"):
        pass
    catalog.close()


def test_what_a_folder_needs_is_read_off_its_headers(folder, files):
    assert needs_of(folder, 10) == ("scale_bias", 10, "auto")
    folder.save("one", files[1])
    folder.save("two", files[0])
    folder.save("bad", b"rubbish")
    assert needs_of(folder, 10) == ("scale_bias", 3, "auto")


def test_folders_that_are_not_there_are_errors(tmp_path):
    for location in (str(tmp_path / "none"), "nothing://bucket"):
        with pytest.raises(ModelPatchError, match="none|nothing|known"):
            PatchFolder(location)
    with pytest.raises(PatchError, match="'name'"):
        parse(b"", "name")
