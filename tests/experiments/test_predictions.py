"""Files of predictions: appended image by image, and complete after any interrupt."""

import csv
import json

import pytest

from model_patch import ModelPatchError
from model_patch.experiments.predictions import PredictionFile, paths_from

PATHS = ["a.png", 'odd, "quoted"\nname.png', "über.png", "d.png"]
TASKS = ("shapes", "colours")


VALUES = ("label", "probability")


def write(path, paths=PATHS, more=None):
    """Writes predictions of the paths that are missing; returns these."""
    file = PredictionFile(path, TASKS, [*VALUES, *([] if more is None else ["more"])])
    missing = list(file.missing(paths))
    for each in missing:
        file.append([(each, task, "y", 0.75, *([] if more is None else [more])) for task in TASKS])
    return missing


@pytest.fixture(params=["csv", "jsonl"])
def path(request, tmp_path):
    return tmp_path / f"predictions.{request.param}"


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def test_a_line_per_image_and_task_with_the_most_probable_label(path):
    assert write(path) == PATHS
    rows = read(path)
    assert [(row["path"], row["task"]) for row in rows] == [(p, task) for p in PATHS for task in TASKS]
    assert all(row["label"] == "y" and float(row["probability"]) == 0.75 for row in rows)


@pytest.mark.parametrize("more", [{"x": 0.25, "y": 0.75}, [], [{"label": "x", "box": [0, 0.5, 1, 1]}]])
def test_values_of_several_parts_are_json(path, more):
    write(path, more=more)
    for row in read(path):
        assert (json.loads(row["more"]) if path.suffix == ".csv" else row["more"]) == more


def test_wherever_a_run_was_cut_off_the_next_one_completes_the_file(path):
    write(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        write(path)
        assert path.read_bytes() == whole, length
    assert write(path) == []


def test_a_file_of_other_tasks_or_columns_is_refused_and_left_alone(path):
    write(path)
    before = path.read_bytes()
    with pytest.raises(ModelPatchError, match="other columns or tasks"):
        PredictionFile(path, ["others"], VALUES)
    with pytest.raises(ModelPatchError, match="other columns or tasks"):
        PredictionFile(path, TASKS, [*VALUES, "more"])
    assert path.read_bytes() == before


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(ModelPatchError, match=r"--output=.*\.txt is no table: expected .*\.csv or \.jsonl"):
        PredictionFile(tmp_path / "x.txt", TASKS, VALUES)
    (tmp_path / "x.jsonl").write_text("not JSON\n")
    with pytest.raises(ModelPatchError, match="other columns or tasks"):
        PredictionFile(tmp_path / "x.jsonl", TASKS, VALUES)


def test_lines_of_standard_input_are_paths():
    assert list(paths_from(["a b.png\n", "\n", "c[1].png\r\n", "last.png"])) == ["a b.png", "c[1].png", "last.png"]
