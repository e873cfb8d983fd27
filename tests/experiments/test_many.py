"""Many data sets in one process: the same patches as from runs of their own, by models that are used again."""

import keras
import numpy as np
import pytest
from PIL import Image

from configs import transfer as config_file
from model_patch import ModelPatchError, Patch
from model_patch.experiments.many import data_specs, is_many, transfer_many
from model_patch.experiments.transfer import transfer
from model_patch.graph.fused_norm import FusedNormModel
from tests.conftest import small_net

CLASSES = {"ann": 2, "bob": 2, "eve": 3}
"""Number of classes of each data set: two have the same, one has more."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a trunk, and a folder of data sets."""
    work = tmp_path_factory.mktemp("work")
    small_net().save(work / "trunk.keras")
    random = np.random.default_rng(0)
    for name, classes in CLASSES.items():
        for part, number in (("train", 10), ("test", 4)):
            for label in range(classes):
                folder = work / "customers" / name / part / f"class{label}"
                folder.mkdir(parents=True)
                for i in range(number):
                    pixels = random.integers(0, 128, (36, 36, 3)) + 40 * label
                    Image.fromarray(pixels.astype("uint8")).save(folder / f"{i}.png")
    return work


def config_of(work, data: str, **options):
    config = config_file.get_config()
    config.update(trunk=f"file:{work}/trunk.keras", data=data, train=("scale_bias+last",), epochs=2, batch_size=8)
    config.update(options)
    return config


def values_of(path) -> dict[str, bytes]:
    return {key: value.tobytes() for key, value in Patch.load(path).values.items()}


@pytest.mark.slow
def test_patches_are_those_of_separate_runs_to_the_last_bit(work, tmp_path, monkeypatch):
    steps = []
    traced = FusedNormModel.train_step
    monkeypatch.setattr(FusedNormModel, "train_step", lambda self, data: steps.append(self) or traced(self, data))
    results = transfer_many(config_of(work, f"folder:{work}/customers/*"), tmp_path / "many")
    assert [row["task"] for row in results["rows"]] == list(CLASSES)
    assert len(steps) == len({id(model) for model in steps}) == 1, "one trace, whatever the number of classes"
    for name in CLASSES:
        keras.utils.set_random_seed(1)  # What a process of its own starts with does not matter.
        transfer(config_of(work, f"folder:{work}/customers/{name}"), tmp_path / name)
        one, other = (
            tmp_path / "many/patches" / f"{name}.safetensors",
            tmp_path / name / "patches/scale_bias+last-seed0.safetensors",
        )
        assert values_of(one) == values_of(other)
        assert Patch.load(one).task.name == name
    assert "| ann" in (tmp_path / "many/results.md").read_text()


def test_rows_that_are_there_are_not_trained_again(work, tmp_path):
    config = config_of(
        work, f"folder:{work}/customers/ann, folder:{work}/customers/bob", train=("last",), validation_fraction=0.0
    )
    first = transfer_many(config, tmp_path / "run")
    paths = sorted((tmp_path / "run/patches").iterdir())
    assert [path.stem for path in paths] == ["ann", "bob"]
    times = [path.stat().st_mtime_ns for path in paths]
    assert transfer_many(config, tmp_path / "run") == first
    assert [path.stat().st_mtime_ns for path in paths] == times


@pytest.mark.slow
def test_seeds_and_best_epochs_are_those_of_separate_runs(work, tmp_path):
    data = f"folder:{work}/customers/ann"
    both = transfer(config_of(work, data, seeds=(0, 1), validation_fraction=0.25), tmp_path / "both")
    for seed in (0, 1):
        alone = transfer(config_of(work, data, seeds=(seed,), validation_fraction=0.25), tmp_path / f"alone{seed}")
        name = f"patches/scale_bias+last-seed{seed}.safetensors"
        assert values_of(tmp_path / "both" / name) == values_of(tmp_path / f"alone{seed}" / name)
        assert alone["rows"][0]["best_epoch"] == both["rows"][seed]["best_epoch"]


def test_specs_are_lists_patterns_and_files(work, tmp_path):
    folders = [f"folder:{work}/customers/{name}" for name in CLASSES]
    (tmp_path / "specs").write_text(f"# customers\n{folders[0]}\n\nfolder:{work}/customers/[be]*\n")
    assert data_specs(f"folder:{work}/customers/*") == data_specs(",".join(folders)) == folders
    assert data_specs(f"@{tmp_path}/specs") == folders
    assert data_specs("digits") == ["digits"] and not is_many("digits") and is_many("digits,faces")
    assert data_specs(folders[0]) == folders[:1] and not is_many(folders[0])


def test_what_cannot_be_trained_is_refused_before_anything_is_written(work, tmp_path):
    for data, options, why in (
        (f"folder:{work}/customers/none*", {}, "no folder matches"),
        (f"@{tmp_path}/none", {}, "cannot be read"),
        ("digits,digits", {}, "two data sets are named 'digits'"),
        ("digits,faces", {"task_name": "one"}, "named after their data"),
        ("digits,faces", {"learning_rates": (0.1, 0.01)}, "for one data set"),
    ):
        with pytest.raises(ModelPatchError, match=why):
            transfer_many(config_of(work, data, **options), tmp_path / "run")
        assert not (tmp_path / "run").exists()
