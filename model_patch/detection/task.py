"""Detection as a task: its head, on feature maps within a trunk, its loss, and its predictions."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import keras

from model_patch.detection import CONFIDENCES
from model_patch.detection.boxes import DefaultBoxes
from model_patch.detection.head import SSDLiteHead
from model_patch.detection.loss import FOCAL_PRIOR, MultiboxLoss
from model_patch.errors import ModelPatchError, unknown
from model_patch.graph.rewrite import Graph, functional, nodes, output_of, outputs_at
from model_patch.preprocessing import Preprocessing
from model_patch.tasks import HEAD, Task
from model_patch.trunk import Trunk

EXTRA_CHANNELS = (512, 256, 256, 128)
"""Channels of the maps after the trunk's last one (Sandler et al. 2018; Object Detection API, ssdlite_mobilenet_v2)."""

LEAST_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class DetectionTask(Task):
    """An object detection task: boxes and their classes, by an SSDLite head. Make it with `DetectionTask.on`.

    The model bound to it gives for an image the codes and logits of all default boxes, see `SSDLiteHead`.

    Attributes:
        layers: paths of the trunk's layers whose outputs the head takes, finest map first.
        default_boxes: one grid per feature map.
        extra_channels: number of channels of the maps that the head makes after the trunk's last one.
        confidence: one of `model_patch.detection.CONFIDENCES`.

    Raises:
        ModelPatchError: as for `Task`, but one label is enough; the confidence is unknown.
    """

    layers: tuple[str, ...]
    default_boxes: DefaultBoxes
    extra_channels: tuple[int, ...]
    confidence: str = "softmax"

    type: ClassVar[str] = "detection"
    min_labels: ClassVar[int] = 1
    link: ClassVar[str | None] = None
    figures: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.confidence not in CONFIDENCES:
            raise unknown("confidence", self.confidence, CONFIDENCES)
        if self.preprocessing.resizing != "squash":
            raise ModelPatchError(
                f"the detection task {self.name!r} resizes images by {self.preprocessing.resizing}: its boxes are those of "
                "squashed images, so expected squash"
            )

    @classmethod
    def on(
        cls,
        trunk: Trunk,
        name: str,
        labels: Sequence[str],
        *,
        layers: Sequence[str] = (),
        num_maps: int = 6,
        width: float = 1.0,
        confidence: str = "softmax",
        **default_boxes,
    ) -> "DetectionTask":
        """Returns the task for a trunk.

        Args:
            trunk: at the image size of the task.
            name: see `Task`.
            labels: class names.
            layers: paths of layers of the trunk, finest map first; by default those that `feature_layers` finds.
            num_maps: how many maps there are at most, the trunk's and those after them; they end at one cell.
            width: what the channels of the further maps are multiplied by, such as MobileNet's alpha.
            confidence: see the class.
            **default_boxes: fields of `DefaultBoxes` other than the grids.

        Raises:
            ModelPatchError: a layer does not exist, does not give a square map, or is not coarser than the one before it.
        """
        layers = tuple(layers) or feature_layers(trunk)
        grids = [_grid(trunk, layer) for layer in layers]
        for layer, finer, grid in zip(layers[1:], grids, grids[1:], strict=False):
            if grid >= finer:
                raise ModelPatchError(
                    f"the map of {layer} has {grid} cells along a side, the one before it {finer}: name finer maps first"
                )
        extra_channels: list[int] = []
        while len(grids) < num_maps and grids[-1] > 1 and len(extra_channels) < len(EXTRA_CHANNELS):
            extra_channels.append(max(LEAST_CHANNELS, round(EXTRA_CHANNELS[len(extra_channels)] * width)))
            grids.append(-(-grids[-1] // 2))
        boxes = DefaultBoxes(tuple(grids), **default_boxes)
        return cls(name, tuple(labels), trunk.preprocessing, layers, boxes, tuple(extra_channels), confidence)

    def features(self, model: keras.Model) -> keras.Model:
        """Returns the part of a trunk's graph before the head: images to the list of feature maps, finest first."""
        return outputs_at(model, self.layers)

    def head(self, seed: int) -> keras.Layer:
        """Returns a new SSDLite head, random by `seed`."""
        boxes_per_cell = [len(shapes) for shapes in self.default_boxes.shapes()]
        num_logits = len(self.labels) + (self.confidence == "softmax")
        bias = 0.0 if self.confidence == "softmax" else math.log(FOCAL_PRIOR / (1 - FOCAL_PRIOR))
        return SSDLiteHead(num_logits, boxes_per_cell, self.extra_channels, bias, seed, name=HEAD)

    def loss(self) -> keras.losses.Loss:
        """Returns the loss between true boxes `(batch, most, 5)` and predictions, see `MultiboxLoss`."""
        return MultiboxLoss(self.default_boxes.corners(), self.confidence)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns no metrics: a detector is measured over all images at once, by `model_patch.detection.evaluation`."""
        return []

    def predictions(self, outputs, labels=None, constants=None) -> dict:
        """Returns the detections: `boxes` `(batch, 100, 4)`, `scores`, `classes` and `labels` `(batch, 100)`, `count` `(batch,)`.

        The first `count` rows of an image are its detections, best first. Boxes are `(ymin, xmin, ymax, xmax)` in 0..1.
        """
        import tensorflow as tf

        from model_patch.detection.nms import detections

        logits = outputs[..., 4:]
        scores = tf.nn.softmax(logits)[..., 1:] if self.confidence == "softmax" else tf.sigmoid(logits)
        boxes, scores, classes, count = detections(outputs[..., :4], scores, self.default_boxes.corners())
        labels = tf.gather(self.labels if labels is None else labels, classes)
        return {"boxes": boxes, "scores": scores, "classes": classes, "labels": labels, "count": count}

    @classmethod
    def _from_json(cls, fields: dict) -> "DetectionTask":
        boxes: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields["default_boxes"].items()
        }
        return cls(
            fields["name"],
            tuple(fields["labels"]),
            Preprocessing.from_json(fields["preprocessing"]),
            tuple(fields["layers"]),
            DefaultBoxes(**boxes),
            tuple(fields["extra_channels"]),
            fields["confidence"],
        )


def feature_layers(trunk: Trunk, number: int = 2) -> tuple[str, ...]:
    """Returns the layers whose outputs are a trunk's last map of each of its coarsest resolutions, finest first.

    For MobileNetV2 they are `block_13_expand_relu`, at stride 16, and `out_relu`, at stride 32 (Sandler et al. 2018,
    section 6.2). Maps of one cell do not count where there are larger ones.

    Args:
        trunk: its nested graphs are searched, too.
        number: how many resolutions.

    Raises:
        ModelPatchError: the trunk has too few resolutions.
    """
    last = {grid: path for path, grid in _maps(trunk.model)}
    grids = sorted((grid for grid in last if grid > 1 or len(last) == 1), reverse=True)
    if len(grids) < number:
        raise ModelPatchError(
            f"the trunk {trunk.name} has feature maps of {len(grids)} sizes: name the layers to detect on"
        )
    return tuple(last[grid] for grid in grids[-number:])


def _maps(model: keras.Model, prefix: str = "", is_computed: bool = False) -> Iterator[tuple[str, int]]:
    """Yields path and side of every square map that one layer gives once, computed with weights; padded maps left out.

    Args:
        model: a graph.
        prefix: the path of the model inside an outer one, ending in `/`.
        is_computed: whether what it takes was computed with weights. An image that was only scaled is no feature map.
    """
    graph = Graph(functional(model))
    computed = {id(x) for x in functional(model).inputs if is_computed}
    for node in nodes(functional(model)):
        if getattr(node.operation, "weights", None) or any(id(x) in computed for x in node.input_tensors):
            computed |= {id(x) for x in node.output_tensors}
    for layer in functional(model).layers:
        uses = graph.nodes[id(layer)]
        if len(uses) > 1 or isinstance(layer, keras.layers.InputLayer | keras.layers.ZeroPadding2D):
            continue
        path, outputs = prefix + layer.name, uses[0].output_tensors
        if isinstance(layer, keras.Model):
            yield from _maps(layer, f"{path}/", any(id(x) in computed for x in uses[0].input_tensors))
        elif len(outputs) == 1 and id(outputs[0]) in computed and _is_square_map(outputs[0]):
            yield path, outputs[0].shape[1]


def _is_square_map(output: keras.KerasTensor) -> bool:
    return len(output.shape) == 4 and output.shape[1] == output.shape[2]


def _grid(trunk: Trunk, layer: str) -> int:
    shape = output_of(trunk.model, layer).shape
    if len(shape) != 4 or shape[1] != shape[2]:
        raise ModelPatchError(f"the layer {layer} of {trunk.name} gives {tuple(shape)}: expected a square feature map")
    return shape[1]
