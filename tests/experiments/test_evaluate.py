"""Planted faults in real pictures, and every sort of model on the same images."""

import json

import numpy as np
import pytest
from PIL import Image

import model_patch as mp
from model_patch.experiments.evaluate import TooInaccurate, evaluate_models, evaluate_task, write_evaluation
from model_patch.training.recipe import Recipe


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Textures with 5 % of the training labels swapped, 20 training images in the test split, and a class of 3 images."""
    root, random, data = tmp_path_factory.mktemp("textures"), np.random.RandomState(0), mp.open_data("textures")
    examples = list(data.train.dataset().as_numpy_iterator())
    swapped = set(random.choice(len(examples), 19, replace=False).tolist())
    wrong = set()
    for i, (image, label) in enumerate(examples):
        path = root / "train" / data.labels[(label + 1) % 3 if i in swapped else label] / f"{i}.png"
        save(image, path)
        if i in swapped:
            wrong.add(str(path))
    for i, (image, label) in enumerate(data.test.dataset().as_numpy_iterator()):
        save(image, root / "test" / data.labels[label] / f"{i}.png")
    right = [i for i in range(len(examples)) if i not in swapped]
    copies = set()
    for k, i in enumerate(random.choice(right, 20, replace=False)):
        image, label = examples[i]
        larger = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC))
        path = root / "test" / data.labels[label] / f"copy{i}.{'png' if k % 2 else 'jpg'}"
        save(image if k % 2 else larger, path)
        copies.add(str(path))
    for k in range(4):
        noise = random.randint(0, 256, (32, 32, 3), "uint8")
        save(noise, root / ("train" if k < 3 else "test") / "noise" / f"{k}.png")
    return root, wrong, copies


@pytest.fixture(scope="module")
def trained(planted):
    """The last layer of the bundled trunk, learnt on the faulty images."""
    data = mp.open_data(f"folder:{planted[0]}")
    trunk = mp.open_trunk("bundled")
    bound = mp.bind(trunk, mp.Task("textures", data.labels, trunk.preprocessing), "last")
    mp.fit(bound, data, Recipe())
    return bound, data


@pytest.mark.slow
def test_planted_faults_are_found(planted, trained, tmp_path):
    _, wrong, copies = planted
    bound, data = trained
    evaluation = evaluate_task(bound, data)
    listed = [each["path"] for each in evaluation["mislabelled"]["images"]]
    assert len(listed) <= 1 + 0.1 * (data.train.num_images + data.test.num_images)
    assert len(wrong & set(listed)) >= len(wrong) / 2
    pairs = evaluation["duplicates"]["pairs"]
    assert {pair["other"] for pair in pairs} == copies and len(pairs) == 20
    assert any("'noise' only 3" in note for note in evaluation["notes"])
    assert evaluation["counts"]["train"]["noise"] == 3

    again = evaluate_task(bound, data)
    for name, each in (("one", evaluation), ("two", again)):
        write_evaluation(each, data, tmp_path / name, "textures", thumbnails=6)
    for name in ("report.html", "results.md", "evaluation.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert (tmp_path / "one" / "report.html").read_text().count("data:image/jpeg") >= 4 * 6


@pytest.mark.slow
def test_a_patch_a_saved_model_a_litert_and_an_onnx_file_give_one_evaluation(planted, trained, tmp_path):
    bound, data = trained
    bound.patch().save(tmp_path / "patch.safetensors")
    for format in ("saved_model", "litert", "onnx"):
        mp.export(format, [bound], tmp_path / format)
    (tmp_path / "onnx" / "textures.onnx").rename(tmp_path / "by_onnx.onnx")  # Names of models differ.
    names = ("patch.safetensors", "saved_model", "litert/textures.tflite", "by_onnx.onnx")
    models = [str(tmp_path / name) for name in names]
    spec, options = f"folder:{planted[0]}", {"trunk": "bundled", "max_images": 40, "thumbnails": 0}
    found = evaluate_models(models, spec, tmp_path / "all", **options)
    patch, *exported = (found[name]["test"] for name in ("patch", "saved_model", "textures", "by_onnx"))
    for each in exported:
        assert each["confusion"] == patch["confusion"]
        assert each["log_loss"] == pytest.approx(patch["log_loss"], abs=1e-4)
    assert json.loads((tmp_path / "all" / "patch" / "evaluation.json").read_text()) == found["patch"]
    with pytest.raises(TooInaccurate, match=r"the accuracy of patch \(0\.\d+\) is below 0.999: see"):
        evaluate_models(models[:1], spec, tmp_path / "one", accuracy_at_least=0.999, **options)
    assert (tmp_path / "one" / "report.html").exists()
    with pytest.raises(mp.ModelPatchError, match="digits has the class '0', which patch does not predict"):
        evaluate_models(models[:1], "digits", tmp_path / "other", **options)
    with pytest.raises(mp.ModelPatchError, match="is a patch, which is evaluated on its trunk: give --trunk"):
        evaluate_models(models[:1], spec, tmp_path / "other")
