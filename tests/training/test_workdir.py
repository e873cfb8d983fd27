import json

import pytest

from model_patch import ModelPatchError
from model_patch.training.workdir import Workdir, versions

CONFIG = {"trunk": "bundled", "epochs": 3, "train": ["last"]}


def test_a_new_folder_is_made_and_the_same_run_goes_on_in_it(tmp_path):
    folder = Workdir(tmp_path / "a" / "b", CONFIG)
    assert folder.results() == {}
    folder.write_results({"rows": [1]})
    assert Workdir(tmp_path / "a" / "b", CONFIG).results() == {"rows": [1]}


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    Workdir(tmp_path / "run", CONFIG)
    with pytest.raises(ModelPatchError, match=r"holds another run \(epochs 3 there and 4 here\): choose another"):
        Workdir(tmp_path / "run", CONFIG | {"epochs": 4})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ModelPatchError, match="is not empty and holds no run"):
        Workdir(tmp_path, CONFIG)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelPatchError, match="is a file: expected a folder"):
        Workdir(tmp_path / "file", CONFIG)


def test_damaged_results_are_refused(tmp_path):
    folder = Workdir(tmp_path / "run", CONFIG)
    (folder.path / Workdir.RESULTS).write_text('{"rows": [')
    with pytest.raises(ModelPatchError, match="is not a readable JSON file"):
        folder.results()


def test_versions_name_what_computes():
    assert {"python", "model_patch", "keras", "tensorflow", "numpy", "backend"} <= versions().keys()
