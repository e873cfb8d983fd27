"""The bench of real nets and pictures, on small files of the forms that its packages have; nothing is fetched."""

import json
import pickle
import sys
import types

import numpy as np
import pytest
import scipy.special
from PIL import Image

from model_patch.data import open_data
from model_patch.detection.data import open_detection_data
from model_patch.experiments import converted_nets, real_bench
from tests.experiments.dinov2_file import write_dinov2


class Tensor:
    """What a PyTorch tensor is to a pickle: a call of `rebuild` on a part of a storage."""

    def __init__(self, array, storages, types):
        self.array, self.types, self.key = array, types, str(len(storages))
        storages[self.key] = array

    def __reduce__(self):
        strides = tuple(each // self.array.itemsize for each in self.array.strides)
        return self.types["rebuild"], (("storage", self.key), 0, self.array.shape, strides, False, None)


@pytest.fixture
def write_pth(monkeypatch):
    """A function that writes arrays as PyTorch did before version 1.6, without PyTorch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    kinds = {name: type(name, (), {"__module__": "torch"}) for name in ("FloatStorage", "LongStorage")}

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("no code of a file may run")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    torch.__dict__.update(kinds)
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def write(path, arrays):
        storages = {}
        tensors = {name: Tensor(array, storages, {"rebuild": _rebuild_tensor_v2}) for name, array in arrays.items()}

        class Pickler(pickle.Pickler):
            def persistent_id(self, item):
                if not (isinstance(item, tuple) and len(item) == 2 and item[0] == "storage"):
                    return None
                array = storages[item[1]]
                kind = kinds["FloatStorage" if array.dtype == "float32" else "LongStorage"]
                return ("storage", kind, item[1], "cpu", array.size, None)

        with path.open("wb") as file:
            for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                pickle.dump(header, file, 2)
            Pickler(file, 2).dump(tensors)
            pickle.dump(list(storages), file, 2)
            for array in storages.values():
                file.write(np.int64(array.size).tobytes() + array.tobytes())

    return write


def test_tensors_of_a_pytorch_file_are_read_without_running_code_in_it(write_pth, tmp_path):
    random = np.random.default_rng(0)
    arrays = {"a.weight": random.normal(size=(4, 3, 2)).astype("float32"), "b": np.arange(3), "c": np.array(7)}
    write_pth(tmp_path / "x.pth", arrays)
    found = converted_nets._state_dict(tmp_path / "x.pth")
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_a_pytorch_file_with_other_classes_in_it_is_refused(tmp_path):
    with (tmp_path / "x.pth").open("wb") as file:
        for _ in range(3):
            pickle.dump(1, file, 2)
        pickle.dump({"evil": print}, file, 2)
    with pytest.raises(pickle.UnpicklingError, match="print is not expected"):
        converted_nets._state_dict(tmp_path / "x.pth")


def images(folder, names, size=(20, 30), mode="RGBA"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = np.random.default_rng(abs(hash((str(folder), name))) % 2**32).integers(0, 256, (*size, 4), "uint8")
        pixels[:2] = (i, 0, 0, 0)
        Image.fromarray(pixels).convert(mode).save(folder / name)


def test_the_eight_largest_subjects_are_split_by_every_fourth_image(tmp_path):
    root = tmp_path / "packages" / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    for k in range(9):
        images(root / f"subject{k}", [f"{i}.png" for i in range(4 + k)])
    real_bench._write(real_bench.stamps(tmp_path / "packages"), tmp_path / "stamps")
    data = open_data(f"folder:{tmp_path}/stamps")
    assert data.labels == tuple(f"subject{k}" for k in range(1, 9))
    assert data.test.num_images == sum((4 + k) // 4 for k in range(1, 9))
    assert data.train.num_images + data.test.num_images == sum(4 + k for k in range(1, 9))


def test_views_of_a_figure_stay_on_one_side_and_copies_are_left_out(tmp_path):
    root = tmp_path / "wesnoth-1.16-data/usr/share/games/wesnoth/1.16/data/core/images/units"
    for people in ("elves", "orcs"):
        images(root / people, [f"unit{u}-{view}.png" for u in range(5) for view in range(3)])
    classes = real_bench.sprites(tmp_path)
    assert {name: [len(views) for views in of] for name, of in classes.items()} == dict.fromkeys(
        ("elves", "orcs"), [3] * 5
    )
    real_bench._write(classes, tmp_path / "sprites")
    sides = {}
    for path in (tmp_path / "sprites").rglob("*.png"):
        sides.setdefault((path.parent.name, path.name[:4]), set()).add(path.parent.parent.name)
    assert set(map(len, sides.values())) == {1} and {next(iter(each)) for each in sides.values()} == {"train", "test"}
    root = tmp_path / "oxygen-icon-theme/usr/share/icons/oxygen/base/128x128"
    for name in real_bench.ICONS:
        images(root / name, ["a.png", "b.png"])
        (root / name / "link.png").write_bytes((root / name / "a.png").read_bytes())
    assert {len(each) for each in real_bench.icons(tmp_path).values()} == {2}


def test_photographs_are_cut_into_parts_and_large_pictures_reduced(tmp_path):
    root = tmp_path / "mate-backgrounds/usr/share/backgrounds/mate/nature"
    images(root, ["Wood.jpg", "Sky.jpg"], (60, 80), "RGB")
    parts = real_bench.photographs(tmp_path)
    assert {name: (len(of), of[0].size) for name, of in parts.items()} == dict.fromkeys(("Sky", "Wood"), (48, (10, 10)))
    real_bench._write({"a": [Image.new("RGBA", (1024, 600))]}, tmp_path / "large")
    (path,) = (tmp_path / "large").rglob("*.png")
    assert Image.open(path).size == (512, 300)


def test_boxes_of_collages_hold_what_was_pasted(tmp_path):
    for split in ("train", "test"):
        for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            stamp = Image.new("RGBA", (50, 40))
            stamp.paste((*colour, 255), (10, 5, 40, 35))
            (tmp_path / f"stamps/{split}/{label}").mkdir(parents=True)
            stamp.save(tmp_path / f"stamps/{split}/{label}/x.png")
        (tmp_path / f"photographs/{split}/grass").mkdir(parents=True)
        Image.new("RGB", (100, 90), (0, 200, 0)).save(tmp_path / f"photographs/{split}/grass/x.png")
    real_bench._write_collages(tmp_path, tmp_path / "collages", {"train": 12, "test": 3})
    data = open_detection_data(f"coco:{tmp_path}/collages")
    assert data.labels == ("blue", "red") and data.train.num_images == 12 and data.test.num_images == 3
    annotations = json.loads((tmp_path / "collages/train.json").read_text())["annotations"]
    for each in annotations:
        left, top, width, height = each["bbox"]
        image = np.asarray(Image.open(tmp_path / f"collages/train/{each['image_id']:04}.png"))
        pasted = image[top : top + height, left : left + width]
        assert pasted.shape[:2] == (height, width) and (pasted[..., 1] < 50).all()
        assert (pasted[..., {1: 2, 2: 0}[each["category_id"]]] > 200).all()
    covered = sum(each["area"] for each in annotations)
    pixels = [np.asarray(Image.open(path)) for path in (tmp_path / "collages/train").glob("*.png")]
    assert covered == sum(int((image[..., 1] < 50).sum()) for image in pixels)


@pytest.mark.slow
def test_efficientnet_lite0_takes_every_value_from_its_pytorch_names(write_pth, tmp_path):
    random, values = np.random.default_rng(0), {}

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            values[f"{name}.{part}"] = random.uniform(0.5, 1.5, channels).astype("float32")

    def conv(name, *shape):
        values[f"{name}.weight"] = (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype("float32")

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    block, before = 0, 32
    rows = ((1, 16, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 80, 3, 3), (6, 112, 3, 5), (6, 192, 4, 5), (6, 320, 1, 3))
    for expansion, channels, repeats, kernel in rows:
        for _ in range(repeats):
            wide = before * expansion
            if expansion > 1:
                conv(f"_blocks.{block}._expand_conv", wide, before, 1, 1)
                norm(f"_blocks.{block}._bn0", wide)
            conv(f"_blocks.{block}._depthwise_conv", wide, 1, kernel, kernel)
            norm(f"_blocks.{block}._bn1", wide)
            conv(f"_blocks.{block}._project_conv", channels, wide, 1, 1)
            norm(f"_blocks.{block}._bn2", channels)
            block, before = block + 1, channels
    conv("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    write_pth(tmp_path / "lite0.pth", values)
    model = converted_nets.efficientnet_lite0(tmp_path / "lite0.pth", size=32)
    assert sum(int(np.prod(v.shape)) for v in model.variables) == sum(each.size for each in values.values())
    kernel = model.get_layer("blocks_3_depthwise_conv").get_weights()[0]
    assert np.array_equal(kernel[1, 2, 5, 0], values["_blocks.3._depthwise_conv.weight"][5, 0, 1, 2])
    kernel = model.get_layer("blocks_3_project_conv").get_weights()[0]
    assert np.array_equal(kernel[0, 0], values["_blocks.3._project_conv.weight"][..., 0, 0].T)
    assert np.array_equal(model.get_layer("bn1").get_weights()[3], values["_bn1.running_var"])


def test_dinov2_takes_every_value_from_the_names_of_its_onnx_file(tmp_path):
    values = write_dinov2(tmp_path / "net.onnx")
    block = "backbone.encoder.layer.0"
    model = converted_nets.dinov2_small(tmp_path / "net.onnx", blocks=1)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * values[f"{name}.weight"] + values[f"{name}.bias"]

    def dense(x, name):
        return x @ values[f"matrix {name}"] + values[f"{name}.bias"]

    image = np.random.default_rng(1).normal(size=(70, 70, 3)).astype("float32")
    patches = image.reshape(5, 14, 5, 14, 3).transpose(0, 2, 4, 1, 3).reshape(25, -1)
    projection = "backbone.embeddings.patch_embeddings.projection"
    patches = patches @ values[f"{projection}.weight"].reshape(64, -1).T + values[f"{projection}.bias"]
    first = values["backbone.embeddings.cls_token"] + values["position of the class token"]
    x = np.concatenate([first[0], patches + values["positions"][0]])
    query, key, value = (
        dense(norm(x, f"{block}.norm1"), f"{block}.attention.attention.{part}") for part in ("query", "key", "value")
    )
    scores = np.exp(query @ key.T / 8)  # One head of 64.
    attended = dense(scores / scores.sum(-1, keepdims=True) @ value, f"{block}.attention.output.dense")
    x = x + values[f"{block}.layer_scale1.lambda1"] * attended
    hidden = dense(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
    hidden = hidden * (1 + scipy.special.erf(hidden / np.sqrt(2))) / 2
    x = x + values[f"{block}.layer_scale2.lambda1"] * dense(hidden, f"{block}.mlp.fc2")
    np.testing.assert_allclose(model(image[None])[0], norm(x, "backbone.layernorm"), rtol=1e-3, atol=1e-4)
