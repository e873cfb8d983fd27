"""From images to batches that a trunk takes."""

import numpy as np

from model_patch.data.augment import augmenter
from model_patch.data.balance import resampled
from model_patch.data.epochs import in_epochs, numbered, shuffled
from model_patch.data.images import Split
from model_patch.errors import require_number
from model_patch.preprocessing import Preprocessing

CACHE_BYTES = 2 * 2**30
"""Images are kept in memory between epochs if they need at most this much."""

SHUFFLE_BYTES = 2**30
"""Images that are not kept are shuffled in their stored form, this much at a time; paths of files always fit."""


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
):
    """Returns preprocessed batches; every image comes once per epoch, in batches of nearly equal size.

    Without augmentation an image is exactly `preprocessing(image)`. What is kept in memory between epochs are resized
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

    Returns:
        `tf.data.Dataset` of `(images, labels)`, float32 `(batch, image_size, image_size, 3)` and int64 `(batch,)`.

    Raises:
        ModelPatchError: an augmentation is unknown.
    """
    import tensorflow as tf

    require_number("batch_size", batch_size, 1, whole=True)
    augment = augmenter(augmentation)
    plain = augmentation == "none"
    number = split.take(max_images)
    kept_bytes = _kept_bytes(split, preprocessing, plain, number)
    cache = cache and kept_bytes is not None and kept_bytes <= CACHE_BYTES

    def load(stored):
        return split.loaded(stored, *([preprocessing.resize] if plain else []), alpha=preprocessing.alpha)

    def augment_and_resize(loaded, seed):
        image, label = loaded
        return preprocessing.resize(augment(image, seed)), label

    def shuffle(images, buffer: int, epoch):
        return images if shuffle_seed is None else shuffled(images, buffer, shuffle_seed, epoch)

    images = split.stored(number)
    if cache:
        images = load(images).cache()
    repeats = split.skips or class_weights is not None

    def one_epoch(epoch):
        each = images if class_weights is None else resampled(images, class_weights, shuffle_seed or 0, epoch)
        if cache:
            # A buffer of all images reads the cache to its end at once: stopping early never leaves it half filled.
            chosen = shuffle(each, number, epoch)
        else:
            at_once = split.num_images * shuffle_bytes // max(1, split.stored_bytes)
            chosen = load(shuffle(each, max(1, min(number, at_once)), epoch))
        if not plain:
            chosen = numbered(chosen, shuffle_seed or 0, epoch).map(augment_and_resize, tf.data.AUTOTUNE)
        # Others come a second time in the place of images that are left out, so that an epoch keeps its length.
        return chosen.repeat().take(number) if repeats else chosen

    if split.skips and shuffle_seed is None and plain:
        chosen = load(split.stored(number)).batch(batch_size)  # Each once, as many as there are.
    else:
        chosen = in_epochs(one_epoch, epochs, number, batch_size)
    return chosen.map(lambda x, y: (preprocessing.scale(x), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _kept_bytes(split: Split, preprocessing: Preprocessing, plain: bool, number: int) -> int | None:
    """Returns the size of what a cache would hold, resized float32 images or decoded ones; None if it is not known."""
    if plain:
        return number * preprocessing.image_size**2 * 3 * 4
    return split.image_bytes and split.image_bytes * number // split.num_images
