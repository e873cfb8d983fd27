import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from model_patch import ModelPatchError, Preprocessing
from model_patch.data.decoding import decode, decode_file, reduction


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "gif", "webp"])
def test_files_of_every_format_become_three_channels(extension, tmp_path):
    Image.new("L" if extension != "gif" else "P", (6, 4), 128).save(tmp_path / f"x.{extension}")
    image = decode((tmp_path / f"x.{extension}").read_bytes())
    assert image.shape == (4, 6, 3) and image.dtype == "uint8"


def test_what_is_no_image_is_refused_by_name(tmp_path):
    with pytest.raises(ModelPatchError, match="the image .*nowhere.png does not exist"):
        decode_file(str(tmp_path / "nowhere.png"))
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ModelPatchError, match="text.png is not a readable image"):
        decode_file(str(tmp_path / "text.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("big_endian", [False, True])
def test_a_photograph_is_turned_as_its_exif_says(orientation, big_endian):
    exif = Image.Exif()
    exif.endian = ">" if big_endian else "<"
    exif[0x010F], exif[0x0112] = "a camera", orientation
    pixels = np.zeros((16, 32, 3), "uint8")
    pixels[:8, :16], pixels[8:, :16] = (250, 30, 30), (30, 30, 250)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    given = decode(tf.constant(file.getvalue())).numpy()
    assert given.shape == expected.shape and np.abs(given.astype(int) - expected).max() <= 4
    assert np.array_equal(tf.function(decode)(tf.constant(file.getvalue())), given)


@pytest.mark.parametrize("note", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_a_damaged_exif_turns_nothing(note):
    file = io.BytesIO()
    Image.new("RGB", (32, 16)).save(file, "JPEG", exif=note)
    assert decode(tf.constant(file.getvalue())).shape == (16, 32, 3)


def bmp(image, **fields) -> bytes:
    """Returns a BMP file, some bytes of its header set to others: their place is that in the file."""
    file = io.BytesIO()
    image.save(file, "BMP")
    contents = bytearray(file.getvalue())
    for place, value in fields.items():
        contents[int(place[2:])] = value
    return bytes(contents)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "RGBA"])
def test_a_bmp_has_its_own_colours_in_graphs_too(mode):
    pixels = np.random.default_rng(0).integers(0, 255, (7, 5, 3)).astype("uint8")
    image = Image.fromarray(pixels).quantize(16) if mode == "P" else Image.fromarray(pixels).convert(mode)
    contents = tf.constant(bmp(image))
    assert np.array_equal(decode(contents), image.convert("RGB"))
    assert np.array_equal(tf.function(decode)(contents), image.convert("RGB"))


@pytest.mark.parametrize(
    ("mode", "fields"), [("P", {"at30": 1}), ("RGB", {"at14": 12}), ("1", {}), ("RGB", {"at28": 16})]
)
def test_a_bmp_that_would_be_read_wrongly_is_refused(mode, fields, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype("uint8"))
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    (tmp_path / "x.bmp").write_bytes(bmp(image, **fields))
    with pytest.raises(ModelPatchError, match=r"x\.bmp is not a readable image"):
        decode_file(str(tmp_path / "x.bmp"))
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.function(decode)(tf.io.read_file(str(tmp_path / "x.bmp")))


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_a_bmp_that_ends_in_its_header_is_refused(cut):
    contents = bmp(Image.new("RGB", (8, 8)).quantize(4))[:cut]
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(contents))


def encoded(image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


PIXELS = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 100, 200, 51]]], "uint8")


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_is_laid_on_a_colour_or_dropped(format):
    contents = encoded(Image.fromarray(PIXELS), format, lossless=True, exact=True)
    white, grey, dropped = (decode(contents, alpha).numpy()[0].tolist() for alpha in ("white", "#806000", "drop"))
    assert white == [[255, 255, 255], [10, 20, 30], [204, 224, 244]]
    assert grey == [[128, 96, 0], [10, 20, 30], [102, 97, 40]]
    assert dropped == [[10, 20, 30], [10, 20, 30], [0, 100, 200]]


def files_with_and_without_transparency():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 4)).astype("uint8")
    colours, grey = Image.fromarray(pixels).convert("RGB"), Image.fromarray(pixels[..., 0].copy())
    for palette in (2, 12, 200):
        image = colours.quantize(palette)
        yield f"palette of {palette}", encoded(image)
        yield f"palette of {palette}, a transparent colour", encoded(image, transparency=1)
        yield f"palette of {palette}, translucent", encoded(image, transparency=bytes([0, 90]))
    yield "grey, a transparent shade", encoded(grey, transparency=int(pixels[0, 0, 0]))
    yield "a transparent colour", encoded(colours, transparency=tuple(map(int, pixels[0, 0, :3])))
    yield "grey and alpha", encoded(Image.fromarray(pixels).convert("LA"))
    for lossless in (False, True):
        yield f"WebP, lossless {lossless}", encoded(colours, "WEBP", lossless=lossless)
        yield f"WebP, alpha, lossless {lossless}", encoded(Image.fromarray(pixels), "WEBP", lossless=lossless)


@pytest.mark.parametrize(
    "contents", [pytest.param(file, id=name) for name, file in files_with_and_without_transparency()]
)
def test_transparent_palettes_and_colours_are_seen_in_every_format(contents):
    image = Image.open(io.BytesIO(contents)).convert("RGBA")
    expected = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "#808080"), image).convert("RGB"))
    for function in (decode, tf.function(decode)):
        given = function(tf.constant(contents), "#808080").numpy().astype(int)
        assert np.abs(given - expected).max() <= 1


def jpeg(width: int, height: int, **options) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype("uint8"))
    return encoded(coarse.resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=95, **options)


@pytest.mark.parametrize(
    ("size", "least_side", "divisor"),
    [((400, 300), 0, 1), ((400, 300), 151, 1), ((400, 300), 150, 2), ((407, 301), 75, 4), ((1600, 300), 30, 8)],
)
def test_large_photographs_are_decoded_at_a_fraction_of_their_size(size, least_side, divisor):
    contents = tf.constant(jpeg(*size))
    image = decode(contents, "white", least_side).numpy()
    assert int(reduction(contents, least_side)) == divisor
    assert image.shape == (-(-size[1] // divisor), -(-size[0] // divisor), 3)
    whole = decode(contents)
    first, second = (Preprocessing(20, "none").resize(each) for each in (image, whole))
    assert np.abs(first - second).mean() < 3  # Of 255.


def test_a_turned_photograph_is_turned_at_a_fraction_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(jpeg(400, 304, exif=exif), "white", 100).shape == (200, 152, 3)
    png = encoded(Image.new("RGB", (400, 300)))
    assert decode(png, "white", 10).shape == (300, 400, 3)
