"""The head of a detector: SSDLite predictors on feature maps, and further, coarser maps."""

import keras
import numpy as np

INITIAL_DEVIATION = 0.03
"""Standard deviation of the kernels' truncated normal distribution, as in the Object Detection API's SSD configurations."""


@keras.saving.register_keras_serializable(package="model_patch")
class SSDLiteHead(keras.layers.Layer):
    """Predicts, for each default box, four box codes and the logits of the classes.

    1. After the trunk's last map, coarser ones are made, each by a 1x1 convolution to half the channels and a depthwise
       separable convolution of stride 2 (Liu et al. 2016, "extra feature layers").
    2. On each map, a 3x3 depthwise and a 1x1 convolution give the codes, and two others the logits: SSDLite (Sandler et
       al. 2018, section 6.2), with depthwise separable convolutions where SSD has full ones.

    Batch normalisation and ReLU6 follow every convolution but those that give the predictions. All of it belongs to the
    task, its means and variances too.

    Args:
        num_logits: per default box.
        boxes_per_cell: how many default boxes a cell of each map has, the trunk's maps first, then the further ones.
        extra_channels: number of channels of each further map.
        class_bias: what the logits begin at.
        seed: seed of the initial values.
        **kwargs: options of `keras.layers.Layer`.

    Input: a list of feature maps `(batch, rows, columns, channels)`, finest first. Output: float32 `(batch, default boxes,
    4 + num_logits)`, in the order of `DefaultBoxes.corners`.
    """

    def __init__(self, num_logits, boxes_per_cell, extra_channels=(), class_bias=0.0, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.num_logits = num_logits
        self.boxes_per_cell = tuple(boxes_per_cell)
        self.extra_channels = tuple(extra_channels)
        self.class_bias = class_bias
        self.seed = seed
        seeds = iter(np.random.default_rng(seed).integers(2**31, size=100).tolist())

        def kernel():
            return keras.initializers.TruncatedNormal(stddev=INITIAL_DEVIATION, seed=next(seeds))

        def norm(name):
            return [keras.layers.BatchNormalization(name=f"{name}_bn"), keras.layers.ReLU(6.0)]

        def depthwise(strides=1):
            layer = keras.layers.DepthwiseConv2D(
                3, strides, padding="same", use_bias=False, depthwise_initializer=kernel(), name="depthwise"
            )
            return [layer, *norm("depthwise")]

        def pointwise(channels, name):
            layer = keras.layers.Conv2D(channels, 1, use_bias=False, kernel_initializer=kernel(), name=name)
            return [layer, *norm(name)]

        def predictor(channels, name, bias=0.0):
            last = keras.layers.Conv2D(
                channels,
                1,
                kernel_initializer=kernel(),
                bias_initializer=keras.initializers.Constant(bias),
                name="predict",
                dtype="float32",
            )
            return keras.Sequential([*depthwise(), last], name=name)

        self.extras = [
            keras.Sequential(
                [*pointwise(channels // 2, "squeeze"), *depthwise(strides=2), *pointwise(channels, "expand")],
                name=f"extra_{i}",
            )
            for i, channels in enumerate(self.extra_channels)
        ]
        self.box_predictors = [predictor(4 * number, f"boxes_{i}") for i, number in enumerate(self.boxes_per_cell)]
        self.class_predictors = [
            predictor(num_logits * number, f"classes_{i}", class_bias) for i, number in enumerate(self.boxes_per_cell)
        ]

    def build(self, input_shape):
        shapes = [tuple(shape) for shape in input_shape]
        for extra in self.extras:
            extra.build(shapes[-1])
            shapes.append(tuple(extra.compute_output_shape(shapes[-1])))
        for shape, *predictors in zip(shapes, self.box_predictors, self.class_predictors, strict=True):
            for predictor in predictors:
                predictor.build(shape)

    def call(self, maps, training=None):
        maps = list(maps)
        for extra in self.extras:
            maps.append(extra(maps[-1], training=training))
        predictions = []
        for x, boxes, classes in zip(maps, self.box_predictors, self.class_predictors, strict=True):
            cells = x.shape[1] * x.shape[2]
            parts = [boxes(x, training=training), classes(x, training=training)]
            number = parts[0].shape[-1] // 4
            predictions.append(
                keras.ops.concatenate(
                    [keras.ops.reshape(y, (-1, cells * number, y.shape[-1] // number)) for y in parts], -1
                )
            )
        return keras.ops.concatenate(predictions, axis=1)

    def compute_output_shape(self, input_shape):
        shapes = [tuple(shape) for shape in input_shape]
        for extra in self.extras:
            shapes.append(tuple(extra.compute_output_shape(shapes[-1])))
        cells = [rows * columns for _, rows, columns, _ in shapes]
        number = sum(cell * boxes for cell, boxes in zip(cells, self.boxes_per_cell, strict=True))
        return (input_shape[0][0], number, 4 + self.num_logits)

    def compute_output_spec(self, maps, training=None):
        # The last convolutions compute in float32 whatever the others do.
        return keras.KerasTensor(self.compute_output_shape([x.shape for x in maps]), "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "num_logits": self.num_logits,
            "boxes_per_cell": list(self.boxes_per_cell),
            "extra_channels": list(self.extra_channels),
            "class_bias": self.class_bias,
            "seed": self.seed,
        }
