"""Files of predictions: appended image by image, and complete after any interrupt."""

import csv
import json

import pytest

from model_patch import ModelPatchError
from model_patch.experiments.predictions import PredictionFile, paths_from
from model_patch.predict import Answer

PATHS = ["a.png", 'odd, "quoted"\nname.png', "über.png", "d.png"]
TASKS = ("shapes", "colours")


def answers(path):
    of_labels = {"x": 0.25, "y": 0.75}
    return [Answer(path, task, (("y", 0.75),), of_labels) for task in TASKS]


def write(path, paths=PATHS, **options):
    """Writes predictions of the paths that are missing; returns these."""
    file = PredictionFile(path, TASKS, **options)
    missing = list(file.missing(paths))
    for each in missing:
        file.append(answers(each))
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


def test_all_probabilities_are_written_if_asked_for(path):
    write(path, all_probabilities=True)
    for row in read(path):
        held = row["probabilities"]
        assert (json.loads(held) if isinstance(held, str) else held) == {"x": 0.25, "y": 0.75}


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
        PredictionFile(path, ["others"])
    with pytest.raises(ModelPatchError, match="other columns or tasks"):
        PredictionFile(path, TASKS, all_probabilities=True)
    assert path.read_bytes() == before


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(ModelPatchError, match=r"--output=.*\.txt is no table: expected .*\.csv or \.jsonl"):
        PredictionFile(tmp_path / "x.txt", TASKS)
    (tmp_path / "x.jsonl").write_text("not JSON\n")
    with pytest.raises(ModelPatchError, match="other columns or tasks"):
        PredictionFile(tmp_path / "x.jsonl", TASKS)


def test_lines_of_standard_input_are_paths():
    assert list(paths_from(["a b.png\n", "\n", "c[1].png\r\n", "last.png"])) == ["a b.png", "c[1].png", "last.png"]
