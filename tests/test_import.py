"""The public names, and what importing the package loads."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

import model_patch as mp
from model_patch import Preprocessing, Task, Trunk, bind
from tests.conftest import SIZE, small_net

ROOT = Path(__file__).parent.parent

LIGHT = """
import sys
import model_patch as mp
from model_patch import errors, files, patch_files, preprocessing, progress, spec
assert {"fit", "open_trunk", "Recipe"} <= set(dir(mp))
for name in ("Patch", "Task", "TrainSpec", "Preprocessing", "ModelPatchError"):
    getattr(mp, name)
patch = mp.Patch.load(sys.argv[1])
print(patch.task.name, patch.train_spec, [each.name for each in patch_files.summarise(patch)])
loaded = {"tensorflow", "keras", "tf_keras", "jax"} & set(sys.modules)
assert not loaded, loaded
"""


def test_reading_a_patch_imports_neither_keras_nor_tensorflow(tmp_path):
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
    path = tmp_path / "shapes.safetensors"
    bind(trunk, Task("shapes", ("circle", "square"), trunk.preprocessing), "bias").patch().save(path)
    for command in (["-c", LIGHT, str(path)], ["-X", "importtime", "scripts/patch.py", "info", str(path)]):
        ran = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert "shapes" in ran.stdout and "bias" in ran.stdout
        modules = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if "|" in line}
        assert not {"tensorflow", "keras"} & modules


def test_every_public_name_is_what_it_is_called():
    assert set(mp.__all__) == set(dir(mp)) and {"fit", "evaluate", "predict", "export", "open_data"} <= set(mp.__all__)
    for name in mp.__all__:
        public = getattr(mp, name)
        assert public.__name__ == name and public.__doc__


def test_a_verb_stays_a_function_when_its_module_is_imported():
    import model_patch.export.verify
    import model_patch.join  # noqa: F401 (Python now binds the submodule's name in the package)

    for name in ("bind", "join", "fold", "predict", "export"):
        assert isinstance(getattr(mp, name), types.FunctionType)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="opne_trunk"):
        mp.opne_trunk  # noqa: B018
