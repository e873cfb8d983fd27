"""From images to batches that a trunk takes."""

from collections.abc import Callable

import numpy as np

from model_patch.data.augment import augmenter
from model_patch.data.autograph import without_autograph
from model_patch.data.balance import resampled
from model_patch.data.epochs import batch_sizes, in_epochs, numbered, of_equal_sizes, shuffled
from model_patch.data.images import Split
from model_patch.data.share import Share
from model_patch.errors import require_number
from model_patch.preprocessing import Preprocessing

CACHE_BYTES = 2 * 2**30
"""Images are cached in memory between epochs if they need at most this much."""

SHUFFLE_BYTES = 2**30
"""Images that are not cached are shuffled in their stored form, this much at a time; paths of files always fit."""


@without_autograph
def batches(
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    max_images: int | None = None,
    augmentation: str = "none",
    shuffle_seed: int | None = None,
    epochs: range = range(1),
    class_weights: np.ndarray | None = None,
    cache: bool = True,
    shuffle_bytes: int = SHUFFLE_BYTES,
    share: Share | None = None,
    sizes: np.ndarray | None = None,
    skip: int = 0,
    finish: Callable | None = None,
):
    """Returns preprocessed batches; every image comes once per epoch, in batches of nearly equal size.

    Without augmentation an image is exactly `preprocessing(image)`. What is cached between epochs are resized
    images, or where they are augmented decoded ones, up to `CACHE_BYTES`.

    Args:
        split: where the images come from.
        preprocessing: image size and scaling.
        batch_size: the most images per batch, at least 1; see `model_patch.data.epochs.batch_sizes`.
        max_images: use at most this many images, the first of the split; None for all.
        augmentation: names joined by `+`, see `model_patch.data.augment`; differs in every epoch.
        shuffle_seed: reshuffles in every epoch; None keeps the split's order. The batches of an epoch are a function
            of this seed and of the epoch's number, whichever epochs come before it.
        epochs: numbers of the epochs, whose batches follow one another.
        class_weights: how often the images of each class come in an epoch, on average, see `data.balance.resampled`; by
            default once.
        cache: whether images are cached. Otherwise only requested images are decoded.
        shuffle_bytes: images that are not cached are shuffled in their stored form, in a buffer of this many bytes.
        share: the part of every batch that this process trains on; None for all. Only images of that part are decoded, and
            cached ones once. An image that is left out of a test has the label -1, or NaN.
        sizes: number of images of each batch, instead of `batch_size` in all.
        skip: how many images of the first epoch are left out; only with `sizes`.
        finish: from an image, its label and a seed to the resized image and what a model is trained on; by default the image is
            augmented and resized, and the label stays.

    Returns:
        `tf.data.Dataset` of `(images, labels)`, float32 `(batch, image_size, image_size, 3)` and int64 `(batch,)`; with a
        share `(images, labels, number)` of its rows, and the int64 size of the whole batch.

    Raises:
        ModelPatchError: an augmentation is unknown.
    """
    import tensorflow as tf

    require_number("batch_size", batch_size, 1, whole=True)
    augment = augmenter(augmentation)
    plain = augmentation == "none" and finish is None
    finish = finish or (lambda image, label, seed: (preprocessing.resize(augment(image, seed)), label))
    number = split.take(max_images)
    kept_bytes = _kept_bytes(split, preprocessing, plain, number)
    cache = cache and kept_bytes is not None and kept_bytes <= CACHE_BYTES

    resize = preprocessing.resize if plain else lambda image: image
    leaves_out = bool(split.skips) and shuffle_seed is None and plain

    def load(form):
        return resize(split.load_or_other(form, *preprocessing.decoding))

    def load_all(stored):
        return stored.map(lambda form, label: (load(form), label), tf.data.AUTOTUNE)

    def load_or_leave_out(form, label):
        image = split.load_or_empty(form, *preprocessing.decoding)
        blank = tf.zeros((preprocessing.image_size, preprocessing.image_size, 3))
        missing = tf.ones_like(label) * (float("nan") if label.dtype.is_floating else -1)
        return tf.cond(tf.size(image) > 0, lambda: (resize(image), label), lambda: (blank, missing))

    def shuffle(images, buffer: int, epoch):
        return images if shuffle_seed is None else shuffled(images, buffer, shuffle_seed, epoch)

    images = split.stored(number)
    if share:
        images = images.enumerate().map(lambda i, image: ((i, image[0]), image[1]))
    elif cache:
        images = load_all(images).cache()

    def one_epoch(epoch):
        each = images if class_weights is None else resampled(images, class_weights, shuffle_seed or 0, epoch)
        if cache:
            # A buffer of all images reads the cache to its end at once: stopping early never leaves it half filled.
            chosen = shuffle(each, number, epoch)
        else:
            at_once = split.num_images * shuffle_bytes // max(1, split.stored_bytes)
            chosen = shuffle(each, max(1, min(number, at_once)), epoch)
            chosen = chosen if share else load_all(chosen)
        if share:
            chosen = numbered(chosen, shuffle_seed or 0, epoch)
        elif not plain:
            chosen = numbered(chosen, shuffle_seed or 0, epoch).map(lambda x, seed: finish(*x, seed), tf.data.AUTOTUNE)
        return chosen if class_weights is None else chosen.repeat().take(number)

    in_order = plain and shuffle_seed is None and class_weights is None and len(epochs) == 1
    if leaves_out and not share:
        chosen = split.readable(split.stored(number), resize, preprocessing.decoding).batch(batch_size)
    elif in_order and not share:
        # What `in_epochs` gives, without its functions, which take longer to trace than few images to read.
        chosen = of_equal_sizes((images if cache else load_all(images)).batch(batch_size), 1, number, batch_size)
    else:
        chosen = in_epochs(one_epoch, epochs, number, batch_size)
    if sizes is not None:
        chosen = chosen.unbatch().skip(skip).batch(batch_size).rebatch(sizes).take(len(sizes))
    if share:
        once = _decoded_once(load, "float32" if plain else "uint8") if cache else None

        def example_of(example, seed):
            (i, form), label = example
            if leaves_out:
                return load_or_leave_out(form, label)
            image = once(i, form) if once else load(form)
            return (image, label) if plain else finish(image, label, seed)

        chosen = share.of_batches(
            chosen, *((batch_sizes(number, batch_size), len(epochs)) if sizes is None else (sizes, 1)), example_of
        )
    return chosen.map(lambda x, *y: (preprocessing.scale(x), *y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _decoded_once(decode: Callable, dtype: str) -> Callable:
    """Returns a function from an image's number and its stored form to its pixels, which decodes each image once."""
    import tensorflow as tf

    held: dict[int, np.ndarray] = {}
    traced = tf.function(decode, autograph=False)

    def pixels(i, form):
        if int(i) not in held:
            held[int(i)] = traced(tf.constant(form)).numpy()
        return held[int(i)]

    def looked_up(i, form):
        return tf.ensure_shape(tf.numpy_function(pixels, [i, form], dtype), (None, None, 3))

    return looked_up


def _kept_bytes(split: Split, preprocessing: Preprocessing, plain: bool, number: int) -> int | None:
    """Returns the size of what a cache would hold, resized float32 images or decoded ones; None if it is not known."""
    if plain:
        return number * preprocessing.image_size**2 * 3 * 4
    return split.image_bytes and split.image_bytes(preprocessing.decoding[1]) * number // split.num_images
