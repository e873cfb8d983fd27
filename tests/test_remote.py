"""Remote paths: what is promised of local files holds in a store, in memory and on a real S3 server."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest
from PIL import Image

from configs import transfer as transfer_config
from model_patch import ModelPatchError, Patch, bind_patch, export, open_data, open_trunk, predict
from model_patch.experiments import locks
from model_patch.experiments.locks import lock
from model_patch.experiments.predictions import PredictionFile
from model_patch.experiments.transfer import patch_path, transfer
from model_patch.experiments.workdir import Workdir
from model_patch.files import (
    as_path,
    listing,
    local_copy,
    matching,
    new_folder,
    read_json,
    store_error,
    write_bytes,
    write_json,
)
from model_patch.trunks.reusable import load_module
from model_patch.trunks.slim import read_checkpoint
from model_patch.trunks.weights import load_weights, save_weights
from tests.conftest import smaller_net
from tests.s3_server import ROOT, Server
from tests.scripts.run_script import error_of, run_script

BUCKET = "model-patch-tests"


@pytest.fixture(scope="module")
def server():
    missing = [name for name in ("moto", "s3fs", "werkzeug") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install s3fs 'moto[server]'")
    from s3fs import S3FileSystem

    server = Server()
    S3FileSystem.clear_instance_cache()  # Clients of an earlier server, of this or another module.
    server.make_bucket(BUCKET)
    yield server
    for release in list(locks._leases.values()):
        release()  # Else their renewals would be repeated for as long as the tests run.
    server.stop()


@pytest.fixture
def s3(server, monkeypatch):
    """A new folder on the S3 server, as a URL."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield f"s3://{BUCKET}/{uuid.uuid4().hex}"
    server.switch()


@pytest.fixture(params=["memory", "s3"])
def place(request):
    """A new remote folder, as a URL."""
    return request.getfixturevalue("s3") if request.param == "s3" else f"memory://{uuid.uuid4().hex}"


def test_files_are_written_read_listed_and_found(place):
    for i in range(3):
        write_bytes(f"{place}/photos/inner/{i}.png", bytes(i + 1))
    write_json(f"{place}/photos/notes.json", {"a": [1]})
    assert read_json(f"{place}/photos/notes.json") == {"a": [1]}
    assert as_path(f"{place}/photos").is_dir() and not as_path(f"{place}/nothing").exists()
    entries = listing(as_path(f"{place}/photos"))
    assert [(each.name, each.is_folder) for each in entries] == [("inner", True), ("notes.json", False)]
    assert [each.num_bytes for each in listing(as_path(f"{place}/photos/inner"))] == [1, 2, 3]
    expected = [f"{place}/photos/inner/{i}.png" for i in range(3)]
    assert matching([f"{place}/photos/*/*.png"]) == expected == matching([f"{place}/**/*.png"])
    assert matching(expected[:1]) == expected[:1]
    with pytest.raises(ModelPatchError, match="nowhere.png does not exist"):
        matching([f"{place}/nowhere.png"])


def test_a_folder_is_uploaded_whole_and_copied_back(place):
    with new_folder(f"{place}/model") as folder:
        (folder / "variables").mkdir()
        (folder / "variables" / "data").write_bytes(b"weights")
        (folder / "saved_model.pb").write_bytes(b"graph")
        assert not as_path(f"{place}/model").exists()
    with local_copy(f"{place}/model") as copy:
        assert (copy / "variables" / "data").read_bytes() == b"weights"
        assert sorted(each.name for each in copy.iterdir()) == ["saved_model.pb", "variables"]
    with pytest.raises(ModelPatchError, match="exists: choose another --output"), new_folder(f"{place}/model"):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(f"{place}/failed") as folder:
        (folder / "a").write_bytes(b"")
        1 / 0  # noqa: B018
    assert not as_path(f"{place}/failed").exists()


def test_an_interrupted_upload_is_refused_and_made_again(server, s3):
    def write():
        with new_folder(f"{s3}/model") as folder:
            (folder / "variables").mkdir()
            for name in ("variables/a", "variables/b", "fingerprint.pb", "saved_model.pb"):
                (folder / name).write_bytes(name.encode())

    server.switch(uploads=3)
    with pytest.raises(ModelPatchError, match="model cannot be written"):
        write()
    server.switch()
    there = {each.name for each in listing(as_path(f"{s3}/model"))}
    assert "variables" in there and "saved_model.pb" not in there
    with pytest.raises(ModelPatchError, match="was interrupted"), local_copy(f"{s3}/model"):
        pass
    write()
    with local_copy(f"{s3}/model") as copy:
        assert (copy / "saved_model.pb").read_bytes() == b"saved_model.pb"


def test_a_file_whose_upload_fails_stays_what_it_was(server, s3):
    write_bytes(f"{s3}/results.json", b"old")
    server.switch(uploads=0)
    with pytest.raises(ModelPatchError, match="results.json cannot be written"):
        write_bytes(f"{s3}/results.json", b"new")
    server.switch()
    assert as_path(f"{s3}/results.json").read_bytes() == b"old"


def test_a_server_that_fails_now_and_then_is_asked_again(server, s3):
    server.switch(every=4)
    for i in range(6):
        write_bytes(f"{s3}/{i:02}", str(i).encode())
    assert [as_path(f"{s3}/{each.name}").read_bytes() for each in listing(as_path(s3))] == [
        str(i).encode() for i in range(6)
    ]


LOCK = """
import sys
from model_patch.experiments.locks import lock
print(lock(sys.argv[1]), flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_has_ended(s3, monkeypatch):
    monkeypatch.setattr(locks, "RENEWAL_SECONDS", 0.5)
    program = LOCK.replace("print", "import model_patch.experiments.locks as f; f.RENEWAL_SECONDS = 0.2\nprint")
    first = subprocess.Popen(
        [sys.executable, "-c", program, f"{s3}/.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "True\n"
        assert not lock(f"{s3}/.lock")
        first.kill()  # It cannot give the lock back.
        first.wait()
        assert as_path(f"{s3}/.lock").exists() and lock(f"{s3}/.lock") and lock(f"{s3}/.lock")
    finally:
        first.kill()


def test_a_lock_of_another_host_is_taken_over_if_nobody_renews_it(place, monkeypatch):
    monkeypatch.setattr(locks, "RENEWAL_SECONDS", 0.1)
    held = {"host": f"not-{socket.gethostname()}", "process": os.getpid(), "time": 0.0}
    write_json(f"{place}/.lock", held)
    assert lock(f"{place}/.lock")
    assert json.loads(as_path(f"{place}/.lock").read_bytes())["host"] == socket.gethostname()
    write_bytes(f"{place}/other", b"something else")
    assert not lock(f"{place}/other")


def test_a_folder_and_a_table_of_images_are_the_same_there(place, tmp_path):
    random = np.random.default_rng(0)
    rows = ["path,label"]
    for name in ("blue", "red"):
        for i in range(6):
            (tmp_path / "paints" / name).mkdir(parents=True, exist_ok=True)
            file = tmp_path / "paints" / name / f"{i}.png"
            Image.fromarray(random.integers(0, 256, (8, 9, 3), "uint8")).save(file)
            write_bytes(f"{place}/paints/{name}/{i}.png", file.read_bytes())
            rows.append(f"paints/{name}/{i}.png,{name}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    write_bytes(f"{place}/table.csv", "\n".join(rows).encode())

    def contents(spec):
        data = open_data(spec, verify_images=True)
        splits = (split.dataset().as_numpy_iterator() for split in (data.train, data.test))
        return data.labels, [[(image.tobytes(), int(label)) for image, label in split] for split in splits]

    assert contents(f"folder:{place}/paints") == contents(f"folder:{tmp_path}/paints")
    assert contents(f"csv:{place}/table.csv") == contents(f"csv:{tmp_path}/table.csv")
    write_bytes(f"{place}/paints/red/3.png", b"no image")
    with pytest.raises(ModelPatchError, match="1 of 12 images in .* cannot be read: red/3.png"):
        open_data(f"folder:{place}/paints")


@pytest.mark.parametrize("place", ["memory", pytest.param("s3", marks=pytest.mark.soak)], indirect=True)
def test_a_run_in_a_store_ends_as_on_disk(place, tmp_path):
    """Trunk, workdir, patches, export and predictions; the run is resumed after its first row."""
    smaller_net().save(tmp_path / "trunk.keras")
    write_bytes(f"{place}/trunk.keras", (tmp_path / "trunk.keras").read_bytes())
    config = transfer_config.get_config()
    config.update(train=("last",), seeds=(0, 1), max_train_images=96, max_test_images=50)
    values, rows = {}, {}
    for where in (place, str(tmp_path)):
        config.trunk = f"file:{where}/trunk.keras"
        results = transfer(config, f"{where}/run")
        if where == place:
            write_json(f"{where}/run/{Workdir.RESULTS}", results | {"rows": results["rows"][:1]})
            patch_path(f"{where}/run", "last", 1).unlink()
            results = transfer(config, f"{where}/run")
        assert read_json(f"{where}/run/results.json") == results
        rows[where] = [(row["train"], row["test_accuracy"], row["patch_bytes"]) for row in results["rows"]]
        patch = Patch.load(f"{where}/run/patches/last-seed1.safetensors")
        values[where] = patch.values
    assert rows[place] == [
        (train, accuracy, pytest.approx(size, abs=200)) for train, accuracy, size in rows[str(tmp_path)]
    ]
    for key, value in values[place].items():
        np.testing.assert_array_equal(value, values[str(tmp_path)][key])

    bound = bind_patch(open_trunk(f"file:{place}/trunk.keras"), patch)
    assert export("litert", [bound], f"{place}/exported", verify=True).differences
    with local_copy(f"{place}/exported") as copy:
        assert any(copy.rglob("*.tflite"))
    for i in range(3):
        Image.new("RGB", (20 + i, 30), (200, 30 * i, 0)).save(tmp_path / f"{i}.png")
        write_bytes(f"{place}/images/{i}.png", (tmp_path / f"{i}.png").read_bytes())
    remote, local = predict(bound, f"{place}/images"), predict(bound, f"{tmp_path}/*.png")
    for one, other in zip(remote, local, strict=True):
        assert one.file.startswith(place) and one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_predictions_in_a_store_resume(place):
    def write(paths):
        file = PredictionFile(f"{place}/found.csv", ["task"], ["label"])
        missing = list(file.missing(paths))
        for path in missing:
            file.append([(path, "task", "x")])
        file.upload()
        return missing

    assert write(["a", "b"]) == ["a", "b"]
    assert write(["a", "b", "c"]) == ["c"]
    assert as_path(f"{place}/found.csv").read_bytes() == b"path,task,label\na,task,x\nb,task,x\nc,task,x\n"


def test_a_store_whose_package_is_missing_is_one_sentence():
    with pytest.raises(ModelPatchError, match="nothing://x cannot be opened"):
        as_path("nothing://x")


@pytest.mark.parametrize(
    ("keys", "why"),
    [({}, "NoCredentialsError: Unable to locate"), ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect")],
)
def test_a_store_that_cannot_be_reached_is_one_sentence(server, monkeypatch, keys, why):
    """Whatever the class of the error: those of botocore are none of the operating system's."""
    from s3fs import S3FileSystem

    environment = server.environment | {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"} | keys
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not keys:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, os.devnull)
    place = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    said = error_of(run_script("patch", "info", f"{place}/x.safetensors"))
    assert said.startswith(f"{place}/x.safetensors cannot be reached") and why in said and "credentials and" in said
    S3FileSystem.clear_instance_cache()
    calls = [
        lambda: open_data(f"folder:{place}"),
        lambda: matching([f"{place}/*.jpg"]),
        lambda: listing(as_path(place)),
    ]
    for call in calls:
        with pytest.raises(Exception) as caught:
            call()
        assert place in str(store_error(caught.value)) and why in str(store_error(caught.value))
    S3FileSystem.clear_instance_cache()


def test_an_error_from_elsewhere_is_none_of_a_store():
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert store_error(caught.value) is None


def test_checkpoints_weights_and_modules_are_read_there(place, tmp_path, trunk):
    import tensorflow as tf

    tf.train.Checkpoint(a=tf.Variable([1.0, 2.0])).write(str(tmp_path / "model.ckpt"))
    for file in tmp_path.glob("model.ckpt.*"):
        write_bytes(f"{place}/{file.name}", file.read_bytes())
    assert any(np.array_equal(value, [1, 2]) for value in read_checkpoint(f"{place}/model.ckpt").values())
    with pytest.raises(ModelPatchError, match="other.ckpt cannot be read: it does not exist"):
        read_checkpoint(f"{place}/other.ckpt")

    save_weights(trunk, f"{place}/weights.safetensors")
    load_weights(trunk, f"{place}/weights.safetensors")
    with pytest.raises(ModelPatchError, match="cannot be read"):
        load_weights(trunk, f"{place}/other.safetensors")

    module = tf.train.Checkpoint()
    module.variables = [tf.Variable(2.0)]
    module.__call__ = tf.function(lambda x: x * module.variables[0], [tf.TensorSpec((None,))])
    with new_folder(f"{place}/module") as folder:
        tf.saved_model.save(module, str(folder))
    assert load_module(as_path(f"{place}/module"))(tf.constant([3.0])).numpy() == [6.0]


@pytest.mark.slow
def test_a_killed_script_resumes_on_a_server(server, s3, tmp_path):
    smaller_net().save(tmp_path / "trunk.keras")
    flags = (f"--trunk=file:{tmp_path}/trunk.keras", "--data=digits", "--train=scale_bias+last,full", "--epochs=40")
    flags += ("--max_train_images=160", "--max_test_images=50")
    command = [sys.executable, str(ROOT / "scripts" / "transfer.py"), *flags, f"--workdir={s3}/run"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = as_path(f"{s3}/run/checkpoints/full-seed0.safetensors")
    while started.poll() is None and not checkpoint.exists():
        time.sleep(0.1)
    started.kill()
    started.wait()
    assert len(read_json(f"{s3}/run/results.json")["rows"]) == 1, "it ended too early to tell"
    server.switch(every=10)
    ran = run_script("transfer", *flags, f"--workdir={s3}/run")
    assert ran.returncode == 0, ran.stderr[-2000:]
    server.switch()
    assert run_script("transfer", *flags, f"--workdir={tmp_path}/run").returncode == 0
    assert as_path(f"{s3}/run/tensorboard/full-seed0/train").is_dir()
    for train in ("scale_bias+last", "full"):
        one, other = (Patch.load(patch_path(where, train, 0)).values for where in (f"{s3}/run", f"{tmp_path}/run"))
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key])
