import numpy as np
import pytest
from PIL import Image

from model_patch.experiments.report.comparison import comparison_parts, summarise
from model_patch.experiments.report.output import prediction_grid, save_figure, write_report
from model_patch.experiments.report.page import Section, write_page
from model_patch.experiments.report.table import markdown, print_table, table


def row(train, seed, accuracy):
    return {
        "train": train,
        "seed": seed,
        "trained_parameters": 1234,
        "trained_fraction": 0.034,
        "reused_fraction": 0.9654,
        "patch_bytes": 56_000,
        "test_accuracy": accuracy,
        "train_seconds": 2.0 + seed,
    }


@pytest.fixture
def results():
    rows = [row("scale_bias+last", 0, 0.75), row("last", 0, 0.5), row("scale_bias+last", 1, 0.875)]
    return {"trunk": "bundled", "data": "digits", "image_size": 48, "versions": {"keras": "3"}, "rows": rows}


def test_rows_are_averaged_over_seeds_in_their_order(results):
    patched, last = summarise(results["rows"])
    assert (patched["train"], patched["accuracy"].values) == ("scale_bias+last", (0.75, 0.875))
    assert patched["train_seconds"] == 2.5
    assert (last["train"], last["accuracy"].values) == ("last", (0.5,))


def test_a_report_of_which_nothing_could_run_says_why_without_a_table(tmp_path):
    write_report(tmp_path, "title", ["`torch`: PyTorch is not installed."], show=-1)
    assert (tmp_path / "results.md").read_text() == "# title\n\n`torch`: PyTorch is not installed.\n"


def test_a_comparison_is_a_table_and_a_picture(results, tmp_path):
    write_page(tmp_path, "title", [Section("Ways to train", comparison_parts(results))])
    text = (tmp_path / "results.md").read_text()
    assert "| scale_bias+last | 1,234 | 3.4 % | 56 kB | 0.8125 | 0.1250 | 2 | 2.5 |" in text
    assert "Trunk weights left unchanged: scale_bias+last 96.5 %, last 96.5 %." in text
    with Image.open(tmp_path / "accuracy_vs_parameters.png") as picture:
        assert picture.format == "PNG" and len(np.unique(picture)) > 10


def test_a_run_that_did_not_note_what_is_reused_is_reported_without(results):
    for each in results["rows"]:
        del each["reused_fraction"]
    assert "left unchanged" not in comparison_parts(results)[1]


def test_accuracies_are_drawn_within_0_and_1_and_named_beside_the_plot(results):
    results["rows"][0]["test_accuracy"] = 1.0
    figure = comparison_parts(results)[2].figure
    low, high = figure.axes[0].get_ylim()
    assert 0 <= low < 0.5 and high == 1.0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["scale_bias+last", "last"]


@pytest.mark.parametrize("columns", ["20", "80"])
def test_names_of_rows_stand_whole_where_output_is_no_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    print_table("title", ("train", "test accuracy"), [("scale_bias+depthwise+last", "0.5")])
    assert "scale_bias+depthwise+last" in capsys.readouterr().out


def test_markdown_aligns_numbers_to_the_right():
    assert markdown(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_cells_are_formatted_fields_and_empty_where_a_row_lacks_one():
    rows = [{"a": 1234.5, "share": 0.034}, {"a": 2.0}]
    columns = {"a": "{a:,.0f}", "share": "{share:.1%}", "twice": lambda row: str(2 * row["a"])}
    assert table(rows, columns) == (["a", "share", "twice"], [["1,234", "3.4 %", "2469.0"], ["2", "", "4.0"]])


def test_a_wrong_prediction_is_red_in_the_grid(tmp_path):
    images = [np.full((8, 8, 3), value, "uint8") for value in (0, 128, 255)]
    figure = prediction_grid([("greys", images, ("black", "grey", "grey"), ("black", "grey", "white"))])
    assert [axes.title.get_color() for axes in figure.axes] == ["black", "black", "red"]
    assert figure.axes[2].title.get_text() == "true: white\npredicted: grey"
    save_figure(figure, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size[0] > picture.size[1]
