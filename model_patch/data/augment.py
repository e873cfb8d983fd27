"""Augmentation: random changes of training images that keep their labels.

Names are joined by `+` and applied in that order, on decoded images before they are resized. Every function is pure:
the same image and seed give the same result, whatever else runs.
"""

from collections.abc import Callable, Mapping

from model_patch.errors import unknown

MAX_SHIFT = 0.1
"""Largest shift, as a fraction of the side."""

CROP_AREA = (0.35, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
"""Area and aspect ratio of random crops (Szegedy et al. 2015, "Going deeper with convolutions", section 6). They go
down to an area of 0.08, for far longer training than a patch gets."""


def shift(image, seed):
    """Moves the image by up to `MAX_SHIFT` of each side, at least one pixel, and repeats its edge in the gap."""
    import tensorflow as tf

    for axis in (0, 1):
        side = tf.shape(image)[axis]
        most = tf.maximum(1, tf.cast(tf.cast(side, "float32") * MAX_SHIFT, "int32"))
        distance = tf.random.stateless_uniform((2,), seed, -most, most + 1, "int32")[axis]
        image = tf.gather(image, tf.clip_by_value(tf.range(side) + distance, 0, side - 1), axis=axis)
    return image


def flip(image, seed):
    """Mirrors every second image, left to right."""
    import tensorflow as tf

    return tf.image.stateless_random_flip_left_right(image, seed)


def crop(image, seed):
    """Cuts out a random part, of `CROP_AREA` of the image's area and of `CROP_ASPECT` in width over height."""
    import tensorflow as tf

    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        aspect_ratio_range=CROP_ASPECT,
        area_range=CROP_AREA,
    )
    return tf.ensure_shape(tf.slice(image, begin, size), (None, None, 3))


def colour(image, seed):
    """Changes brightness by up to a tenth of the range and contrast by up to a fifth."""
    import tensorflow as tf

    image = tf.image.stateless_random_brightness(image, 0.1, seed)
    return tf.image.stateless_random_contrast(image, 0.8, 1.2, seed)


AUGMENTATIONS = {"none": lambda image, seed: image, "shift": shift, "flip": flip, "crop": crop, "colour": colour}
"""Augmentations by name: functions of an image, uint8 `(height, width, 3)`, and a seed, int64 `(2,)`; they return an
image of that dtype and rank."""


def augmenter(names: str, known: Mapping[str, Callable] | None = None, noun: str = "augmentation") -> Callable:
    """Returns a function that applies all the named augmentations to what they take, with an int64 scalar seed last.

    Args:
        names: names in `known` joined by `+`.
        known: functions by name, of an image, what belongs to it, and a seed; by default `AUGMENTATIONS`.
        noun: what errors call them.

    Raises:
        ModelPatchError: a name is unknown.
    """
    known = AUGMENTATIONS if known is None else known
    steps = []
    for name in names.split("+"):
        if name not in known:
            raise unknown(noun, name, known)
        steps.append(known[name])

    def augment(*parts_and_seed):
        import tensorflow as tf

        *parts, seed = parts_and_seed
        for i, step in enumerate(steps):
            changed = step(*parts, tf.stack([seed, tf.constant(i, "int64")]))
            parts = changed if isinstance(changed, tuple) else (changed,)
        return parts if len(parts) > 1 else parts[0]

    return augment
