"""From predictions to detections: non-maximum suppression, by TensorFlow's own operations."""

from model_patch.detection.boxes import decode

IOU_THRESHOLD = 0.6
SCORE_THRESHOLD = 0.01
MAX_DETECTIONS = 100
"""If two boxes of one class overlap by more than the first, the one with the higher score stays; scores below the second are
nothing; an image has at most this many detections, COCO's number. The Object Detection API's SSDs have the same IoU."""


def detections(codes, scores, default_boxes):
    """Returns the detections of each image, per class and then over the classes the best.

    Args:
        codes: float32 `(batch, defaults, 4)`, box codes.
        scores: float32 `(batch, defaults, classes)`, in 0..1.
        default_boxes: float32 `(defaults, 4)`.

    Returns:
        Boxes float32 `(batch, MAX_DETECTIONS, 4)`, within the image; their scores float32 and classes int32 `(batch,
        MAX_DETECTIONS)`, best first; and how many there are, int32 `(batch,)`. The rows after them are zeros.
    """
    import tensorflow as tf

    boxes = decode(codes, default_boxes)
    found = tf.image.combined_non_max_suppression(
        boxes[:, :, None],
        scores,
        max_output_size_per_class=MAX_DETECTIONS,
        max_total_size=MAX_DETECTIONS,
        iou_threshold=IOU_THRESHOLD,
        score_threshold=SCORE_THRESHOLD,
        clip_boxes=True,
    )
    return found.nmsed_boxes, found.nmsed_scores, tf.cast(found.nmsed_classes, "int32"), found.valid_detections
