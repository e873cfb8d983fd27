import keras
import numpy as np

from model_patch.detection.boxes import DefaultBoxes
from model_patch.detection.head import SSDLiteHead

BOXES = DefaultBoxes((5, 3, 2, 1))


def maps(batch=2):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(batch, *shape)).astype("float32") for shape in ((5, 5, 6), (3, 3, 7))]


def head(seed=0):
    return SSDLiteHead(4, [len(shapes) for shapes in BOXES.shapes()], extra_channels=(16, 10), seed=seed, name="head")


def test_there_is_a_row_for_each_default_box():
    layer = head()
    predictions = layer(maps())
    assert predictions.shape == (2, len(BOXES.corners()), 4 + 4) == (2, 25 * 3 + (9 + 4 + 1) * 6, 8)
    assert layer.compute_output_shape([(2, 5, 5, 6), (2, 3, 3, 7)]) == predictions.shape


def test_rows_are_in_the_order_of_the_default_boxes():
    """What changes in one cell of a map changes the rows of that cell and of its neighbours, and no others."""
    layer, inputs = head(), maps(1)
    layer(inputs)  # Builds it.
    changed = [inputs[0].copy(), inputs[1]]
    changed[0][0, 0, 4] += 10.0  # The finest map's cell in the top right corner.
    rows = np.flatnonzero(np.abs(np.array(layer(changed)) - np.array(layer(inputs)))[0].max(axis=-1))
    corners = BOXES.corners()[rows]
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    assert set(map(tuple, np.round(centres.astype("float64"), 1).tolist())) == {
        (0.1, 0.9),
        (0.1, 0.7),
        (0.3, 0.9),
        (0.3, 0.7),
    }
    assert len(rows) == 4 * 3


def test_the_number_of_values_is_that_worked_out_by_hand():
    def separable(channels_in, channels_out, norm_out):
        depthwise = 9 * channels_in + 4 * channels_in
        return depthwise + channels_in * channels_out + (4 * channels_out if norm_out else channels_out)

    def squeeze(channels_in, channels_out):
        return channels_in * channels_out + 4 * channels_out

    extras = squeeze(7, 8) + separable(8, 16, True) + squeeze(16, 5) + separable(5, 10, True)
    predictors = sum(
        separable(channels, (4 + 4) * boxes, False) + 13 * channels
        for channels, boxes in zip((6, 7, 16, 10), (3, 6, 6, 6), strict=True)
    )
    layer = head()
    layer(maps())
    assert layer.count_params() == extras + predictors


def test_equal_seeds_make_equal_heads_and_a_saved_model_predicts_the_same(tmp_path):
    inputs = [keras.Input(x.shape[1:]) for x in maps()]
    models = [keras.Model(inputs, head(seed)(inputs)) for seed in (3, 3, 4)]
    one, same, other = (np.array(model(maps())) for model in models)
    assert np.array_equal(one, same) and not np.allclose(one, other)
    models[0].save(tmp_path / "head.keras")
    assert np.array_equal(keras.models.load_model(tmp_path / "head.keras")(maps()), one)
