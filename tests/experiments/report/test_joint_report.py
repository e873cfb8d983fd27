import numpy as np
import pytest
from PIL import Image

from model_patch.experiments.report.joint import joint_table, summarise, write_joint_report
from model_patch.experiments.report.sample import Sample


def rows(share, seed, accuracies, total):
    return [
        {
            "share": share,
            "seed": seed,
            "task": task,
            "image_size": size,
            "test_accuracy": accuracy,
            "total_parameters": total,
            "trained_parameters": total - 100,
            "train_seconds": 10.0 + seed,
        }
        for (task, size), accuracy in zip((("a", 32), ("b", 64)), accuracies, strict=True)
    ]


@pytest.fixture
def results():
    each = rows("nothing", 0, (0.5, 0.75), 4000) + rows("trunk", 0, (0.25, 0.5), 1000)
    each += rows("nothing", 1, (0.75, 0.75), 4000) + rows("trunk", 1, (0.5, 0.5), 1000)
    given = {
        "trunk": "bundled",
        "data": ["x", "y"],
        "train": "scale_bias+last",
        "resolutions": [],
        "versions": {"k": "3"},
    }
    return given | {"rows": each}


def test_tasks_and_their_mean_are_averaged_over_seeds(results):
    nothing, trunk = summarise(results["rows"])
    assert (nothing["tasks"]["a"], nothing["image_sizes"]["a"]) == (Sample((0.5, 0.75)), 32)
    assert nothing["mean"].values == (0.625, 0.75)
    assert (trunk["mean"].mean, trunk["total_parameters"], trunk["train_seconds"]) == (0.4375, 1000, 10.5)


def test_numbers_of_values_are_compared_with_separate_nets_where_there_are_some(results):
    header, lines = joint_table(summarise(results["rows"]))
    assert header[:4] == ["share", "a", "b", "mean"]
    assert lines[1] == ["trunk", "0.3750", "0.5000", "0.4375", "0.1250", "1,000", "25.0 %", "900", "2", "10.5"]
    _, (alone,) = joint_table(summarise(results["rows"][2:4]))
    assert alone[6] == ""


@pytest.mark.parametrize("resolutions", [[], [32, 64]])
def test_a_report_is_a_table_and_a_picture(results, resolutions, tmp_path, capsys):
    write_joint_report(results | {"resolutions": resolutions}, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "# x, y on bundled: scale_bias+last" in text and "| nothing | 0.6250 | 0.7500 |" in text
    assert "nothing" in capsys.readouterr().out
    with Image.open(tmp_path / "accuracy_by_task.png") as picture:
        assert picture.format == "PNG" and len(np.unique(picture)) > 10
