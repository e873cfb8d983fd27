"""Dry runs of the paper's configurations: full-size nets, and the counts that are known for them."""

import importlib

import pytest

from model_patch import ModelPatchError, Task, bind
from model_patch.experiments import expressivity
from model_patch.experiments.dry_run import (
    dry_run_detector,
    dry_run_multitask,
    dry_run_pretrain,
    dry_run_transfer,
    random_data,
    random_trunk,
)
from model_patch.trunks import open_trunk
from tests.scripts.run_script import error_of, run_script


def config(name: str, *arguments, **values):
    config = importlib.import_module(f"configs.{name}").get_config(*arguments)
    config.update(values)
    return config


def trained(rows):
    """What is trained of each row: in the trunk's slots, and in the head."""
    return {(row.name, row.task): (row.counts.patch, row.counts.head, row.counts.trained) for row in rows}


@pytest.mark.parametrize(
    ("data", "last"),
    [
        ("flowers", 208_998),
        pytest.param("cars", 401_604, marks=pytest.mark.soak),
        pytest.param("aircraft", 204_900, marks=pytest.mark.soak),
    ],
)
def test_the_transfer_table_of_the_paper(data, last):
    rows = dry_run_transfer(config("paper.transfer_inception", data, train=("last", "scale_bias+last")), step=False)
    assert trained(rows) == {
        ("last", data): (0, last, last),
        ("scale_bias+last", data): (34_432, last, last + 34_432),
    }
    assert rows[0].counts.shared == 21_802_784


@pytest.mark.slow
def test_full_fine_tuning_of_inception_leaves_nothing_shared():
    (row,) = dry_run_transfer(config("paper.transfer_inception", train=("full",)), step=False)
    assert (row.counts.patch, row.counts.statistics, row.counts.shared) == (21_768_352, 34_432, 0)


@pytest.mark.slow
def test_the_patches_of_the_figure_on_mobilenet():
    rows = dry_run_transfer(config("paper.transfer_mobilenet"), step=False)
    assert {row.name: row.counts.patch for row in rows} == {
        "last": 0,
        "scale_bias": 34_112,
        "scale_bias+last": 34_112,
        "depthwise": 64_224,
        "depthwise+last": 64_224,
        "scale_bias+depthwise+last": 98_336,
        "full": 2_223_872,
    }
    assert {row.counts.head for row in rows} == {12_810}


@pytest.mark.parametrize(
    "name", [pytest.param("paper.ssd_to_imagenet", marks=pytest.mark.slow), "paper.random_to_imagenet"]
)
def test_imagenet_reuses_98_percent_of_the_trunk(name):
    (row,) = dry_run_transfer(config(name, train=("scale_bias",)), step=False)
    assert (row.counts.patch, row.counts.head, row.counts.statistics) == (34_112, 1_281_000, 34_112)
    assert row.counts.trained / 2_223_872 < 0.016


def test_statistics_alone_learn_nothing_and_are_kept():
    rows = dry_run_transfer(config("paper.statistics_only", train=("statistics+last",)), step=False)
    assert (rows[0].counts.patch, rows[0].counts.statistics, rows[0].counts.trained) == (0, 34_112, 12_810)


def test_imagenet_and_places_at_once():
    rows = dry_run_multitask(config("paper.imagenet_places", share=("trunk",)), step=False)
    assert [(row.task, row.counts.patch, row.counts.head) for row in rows] == [
        ("imagenet", 34_112, 1_281_000),
        ("places", 34_112, 467_565),
    ]
    assert rows[0].counts.shared == 2_257_984 - 2 * 34_112


@pytest.mark.slow
def test_five_resolutions_have_a_patch_each_and_one_head():
    rows = dry_run_multitask(config("paper.resolutions", share=("trunk",)), step=False)
    assert [row.task for row in rows] == [f"random-{size}px" for size in (224, 192, 160, 128, 96)]
    assert {(row.counts.patch, row.counts.head) for row in rows} == {(34_112, 1_281_000)}


@pytest.mark.slow
def test_a_detector_of_coco_at_the_papers_scale():
    (row,) = dry_run_detector(config("detect_coco"), step=False)
    assert (row.task, row.counts.patch, row.counts.statistics >= 34_112) == ("coco", 2_223_872, True)


@pytest.mark.slow
def test_one_step_is_trained_of_each_kind_of_run():
    small = {"trunk": "keras:MobileNetV2?alpha=0.35&weights=imagenet", "image_size": 48}
    rows = dry_run_transfer(config("transfer", train=("statistics", "scale_bias+last"), **small))
    assert [row.counts.trained for row in rows] == [0, 14_080 + 12_810]
    assert dry_run_pretrain(config("pretrain_fashion_mnist"))[0].counts.trained == 396_128 + 12_810
    detector = config("detect_scenes", trunk=small["trunk"], data="tfds:coco/2017", train="scale_bias+last")
    assert dry_run_detector(detector)[0].counts.patch == 14_080
    rows = dry_run_multitask(config("multitask", data=("digits", "tfds:cifar100"), share=("trunk",)))
    assert [row.counts.head for row in rows] == [12_810, 128_100]


PAPER = {
    0.35: (410_208, 14_080, 23_472),
    0.5: (706_224, 18_544, 32_544),
    0.75: (1_382_064, 26_640, 49_032),
    1.0: (2_257_984, 34_112, 64_224),
    1.3: (3_766_048, 44_256, 83_304),
    1.4: (4_363_712, 47_936, 90_288),
}
"""By width of MobileNetV2: parameters of a trunk without its top, of an S/B patch and of a DW patch."""


@pytest.mark.parametrize("alpha", [pytest.param(alpha, marks=[pytest.mark.slow][: alpha != 1.0]) for alpha in PAPER])
def test_every_width_of_mobilenet_has_the_counts_of_the_paper(alpha):
    trunk = open_trunk(f"keras:MobileNetV2?alpha={alpha}&weights=none", 32)
    task = Task("shapes", ("circle", "square"), trunk.preprocessing)
    patches = (bind(trunk, task, kind).counts().patch for kind in ("scale_bias", "depthwise"))
    assert (trunk.num_parameters(), *patches) == PAPER[alpha]


def test_the_toy_has_a_dry_run_of_its_own():
    rows = expressivity.dry_run(config("expressivity", widths=(8, 32)))
    assert [(row["fixed"], row["learnt"]) for row in rows] == [(16, 9), (64, 33)]


def test_specs_without_weights_and_data():
    assert random_trunk("keras:MobileNetV2?alpha=0.5&weights=imagenet") == "keras:MobileNetV2?alpha=0.5&weights=none"
    assert random_trunk("bundled") == "bundled"
    assert random_data("tfds:coco/2017") == "random:80"
    assert random_data("folder:/nowhere/fgvc_aircraft") == "random:100"
    assert random_data("scenes:faces?size=96") == "random:2?type=classification"
    with pytest.raises(ModelPatchError, match="the number of classes of 'folder:nowhere' is not known"):
        random_data("folder:nowhere")


@pytest.mark.slow
def test_the_script_writes_nothing(tmp_path):
    flags = ("--trunk=keras:MobileNetV2?alpha=0.35", "--image_size=32", "--train=last", "--data=tfds:cars196")
    ran = run_script("transfer", "--dry_run", *flags)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "251,076" in ran.stdout  # 1280 * 196 + 196
    assert "give --workdir=FOLDER, or --dry_run" in error_of(run_script("transfer", *flags))
    assert "expects --workdir=FOLDER, or --dry_run" in error_of(run_script("detect", "train"))
