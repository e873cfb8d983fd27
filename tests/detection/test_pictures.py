import numpy as np
from PIL import Image, ImageColor

from model_patch.detection.evaluation import Detections
from model_patch.detection.pictures import COLOURS, TRUTH, draw, save_png, sheet

FOUND = Detections(np.array([[0.25, 0.5, 0.75, 1.0]], "float32"), np.array([0.87], "float32"), np.array([1], "int32"))


def test_a_box_is_drawn_where_it_is_on_the_enlarged_image():
    image = np.zeros((50, 100, 3), "uint8")
    picture = draw(image, FOUND, ("cat", "dog"), truth=np.array([[0.1, 0.1, 0.4, 0.4]], "float32"))
    assert picture.size == (800, 400), "enlarged 8 times, to at least 384"
    pixels = np.array(picture)
    colour, white = (np.array(ImageColor.getrgb(each)) for each in (COLOURS[1], TRUTH))
    assert (pixels[200, 400] == colour).all() and (pixels[300, 600] == colour).all()  # Left edge, lower edge.
    assert (pixels[100, 80] == white).all() and not pixels[200, 600].any()
    assert (pixels[90:100, 400:430] == colour).any(), "the label stands above"


def test_pictures_stand_in_rows_and_are_written_as_png(tmp_path):
    pictures = [Image.new("RGB", (20, 10), (i, 0, 0)) for i in range(5)]
    whole = sheet(pictures, columns=3)
    assert whole.size == (60, 20)
    assert [whole.getpixel((x, y))[0] for x, y in ((0, 0), (20, 0), (59, 9), (0, 10), (21, 10), (41, 10))] == [
        0,
        1,
        2,
        3,
        4,
        0,
    ]
    save_png(whole, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as opened:
        assert opened.size == (60, 20)
