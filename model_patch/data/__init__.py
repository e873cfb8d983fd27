"""Where images come from: one spec opens the training and the test images of a task.

Spec           | Images
---------------|-------
`digits`, `mnist`, `faces`, `textures` | built-in, small and real, see `model_patch.data.builtin`
`folder:PATH`  | class folders of JPEG, PNG, BMP, GIF or WebP files, or `train/` and `test/` above them
`csv:FILE`     | files named in a table with a path, a label and perhaps a split in each row
`idx:PATH`     | a folder with the four files of MNIST's format
`tfrecord:PATTERN` | TFRecord files with `image/encoded` and `image/class/label`
`hf:NAME`      | a data set of Hugging Face: a name on the Hub, a saved folder, or a folder of Parquet files
`tfds:NAME`    | a TensorFlow Datasets data set
`random:CLASSES` | random pixels and labels, for dry runs
"""

from model_patch.data import builtin, folder, huggingface, idx, noise, records, table, tfds
from model_patch.data.images import ImageData, Split
from model_patch.errors import unknown
from model_patch.spec import parse

__all__ = ["ImageData", "Split", "open_data"]

_SOURCES = {
    **dict.fromkeys(builtin.BUILTIN, builtin.open_builtin),
    "idx": idx.open_idx,
    "tfds": tfds.open_tfds,
    "random": noise.open_random,
}
_SOURCES_OF_FILES = {
    "csv": table.open_table,
    "folder": folder.open_folder,
    "hf": huggingface.open_huggingface,
    "tfrecord": records.open_records,
}
"""Those whose images may be bad."""


def open_data(text: str, skip_bad_images: bool = False, verify_images: bool = False) -> ImageData:
    """Opens images by their spec.

    Args:
        text: for example `digits`, `folder:flowers`, `csv:flowers.csv`, `idx:fashion-mnist` or `tfds:beans?data_dir=/data`.
        skip_bad_images: leave out images that cannot be read, and say so in the notes, instead of failing.
        verify_images: decode every image file now, unless an earlier process did, see `data.folder_index`.

    Raises:
        ModelPatchError: the spec names no source, or the source cannot be opened as its module describes.
    """
    spec = parse(text)
    known = _SOURCES | _SOURCES_OF_FILES
    if spec.scheme not in known:
        raise unknown("data", spec.scheme, known)
    if spec.scheme in _SOURCES_OF_FILES:
        return _SOURCES_OF_FILES[spec.scheme](spec, skip_bad_images, verify_images)
    return _SOURCES[spec.scheme](spec)
