"""`hf:NAME`: data sets of Hugging Face, here from the disk."""

import io

import pytest
from PIL import Image

from model_patch import ModelPatchError
from model_patch.data import open_data
from tests.data.test_folder import COLOURS

datasets = pytest.importorskip("datasets", reason="pip install datasets")
NAMES = tuple(COLOURS)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_PATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(colour):
    contents = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(contents, format="png")
    return {"bytes": contents.getvalue(), "path": None}


def dataset(number, label=None, bad=()):
    images = [{"bytes": b"nothing", "path": None} if i in bad else png(COLOURS[NAMES[i % 3]]) for i in range(number)]
    labels = [i % 3 if label is None else NAMES[i % 3] for i in range(number)]
    feature = datasets.ClassLabel(names=list(NAMES)) if label is None else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), label or "label": feature})
    return datasets.Dataset.from_dict({"image": images, label or "label": labels}, features)


def colours_are_right(data):
    return all(
        tuple(image[0, 0]) == COLOURS[data.labels[label]]
        for split in (data.train, data.test)
        for image, label in split.dataset().as_numpy_iterator()
    )


def test_a_saved_data_set_and_parquet_files_are_opened(tmp_path):
    whole = datasets.DatasetDict({"train": dataset(12), "validation": dataset(6), "test": dataset(3)})
    whole.save_to_disk(tmp_path / "saved")
    for name, each in whole.items():
        each.to_parquet(tmp_path / "parquet" / f"{name}.parquet")
    for place in ("saved", "parquet"):
        data = open_data(f"hf:{tmp_path}/{place}")
        assert (data.name, data.labels) == (place, NAMES)
        assert (data.train.num_images, data.test.num_images, data.validation.num_images) == (12, 3, 6)
        assert colours_are_right(data)


def test_labels_may_be_texts_and_one_split_is_divided(tmp_path):
    dataset(30, "kind").save_to_disk(tmp_path / "saved")
    with pytest.raises(ModelPatchError, match="has the columns image, kind: expected one of images and one of labels"):
        open_data(f"hf:{tmp_path}/saved")
    data = open_data(f"hf:{tmp_path}/saved?label=kind")
    assert data.labels == NAMES and data.train.num_images + data.test.num_images == 30 and colours_are_right(data)


def test_bad_images_are_named_or_left_out(tmp_path):
    dataset(30, bad=(4,)).save_to_disk(tmp_path / "saved")
    with pytest.raises(ModelPatchError, match="1 of 30 images .* cannot be read: train/4"):
        open_data(f"hf:{tmp_path}/saved")
    data = open_data(f"hf:{tmp_path}/saved", skip_bad_images=True)
    assert data.train.num_images + data.test.num_images == 29 and colours_are_right(data)


def test_what_is_no_data_set_is_one_sentence(tmp_path):
    with pytest.raises(ModelPatchError, match="cannot be opened"):
        open_data(f"hf:{tmp_path}/nowhere")
