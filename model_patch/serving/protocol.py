"""TensorFlow Serving's predict messages, REST (JSON) and gRPC (protocol buffers), to images and back.

Neither TensorFlow Serving nor Ray is imported: gRPC messages are given by who received them.
"""

import base64
import binascii
import dataclasses
import hmac
import json
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from model_patch.tasks import Task

SIGNATURES = ("", "serving_default", "encoded")
"""Names of signatures in requests: as in an exported SavedModel, and none. What an instance holds decides in any case."""

VERSION = "1"
"""A task has one version: the one that serves."""

NAMES_OF_FILES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
"""What a task may be called that is added by a request, as its name names a file."""

ENCODED, IMAGES = "contents", "images"
"""Inputs of the two signatures."""


_URL = re.compile(r"/v1/models/([^/]+?)(?:/versions/(\d+))?(?:/(metadata)|:(predict))?")

_GRPC = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 413: "INVALID_ARGUMENT", 503: "RESOURCE_EXHAUSTED"}


class RejectedError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status

    @property
    def grpc_code(self) -> str:
        """The name of the gRPC status code."""
        return _GRPC.get(self.status, "INTERNAL")

    def body(self) -> bytes:
        """Returns TensorFlow Serving's JSON form of an error."""
        return json.dumps({"error": str(self)}).encode()


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may hold.

    Attributes:
        max_body_bytes: largest size of its body.
        max_images: instances in it.
        max_pixels: height times width of an image.
    """

    max_body_bytes: int = 16 * 2**20
    max_images: int = 256
    max_pixels: int = 2**24


@dataclasses.dataclass(frozen=True)
class Target:
    """What a URL names.

    Attributes:
        name: name of a task as the client sent it: to look up, never to open.
        verb: `predict`, `metadata`, or empty for the task itself.
    """

    name: str
    verb: str


@dataclasses.dataclass(frozen=True)
class Query:
    """Images to predict.

    Attributes:
        images: each an encoded file, or float32 `(height, width, 3)` in 0..255.
        by_row: whether the reply has a dict per image (`predictions`) instead of one of lists (`outputs`).
    """

    images: Sequence[bytes | np.ndarray]
    by_row: bool = True


def target(path: str) -> Target:
    """Parses the path of a URL, percent-decoded.

    Raises:
        RejectedError: it names nothing.
    """
    match = _URL.fullmatch(path)
    if not match:
        raise RejectedError(404, "expected /v1/models/TASK, with /metadata or :predict after it")
    if match[2] not in (None, VERSION):
        raise unknown_task(f"{match[1]}, version {match[2]}")
    return Target(match[1], match[3] or match[4] or "")


def unknown_task(name: str, why: str = "") -> RejectedError:
    """Returns the error for a task that is not served."""
    return RejectedError(404, f"Servable not found for request: {name[:100]!r}{f' ({why})' if why else ''}")


def query(body: bytes, limits: Limits) -> Query:
    """Parses the body of a REST predict request.

    `{"instances": [...]}` (or `{"inputs": ...}`, answered by columns), each `{"b64": TEXT}`, or rows of pixels `(height,
    width, 3)`, or a dict of one of them by the name of its input, `contents` or `images`.

    Raises:
        RejectedError: it is something else, or exceeds a limit.
    """
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RejectedError(400, f"the body is not JSON ({type(error).__name__})") from None
    if not isinstance(message, dict) or len({"instances", "inputs"} & message.keys()) != 1:
        raise RejectedError(400, "expected a JSON object with either instances or inputs")
    _check_signature(message.get("signature_name", ""))
    by_row = "instances" in message
    given = message["instances"] if by_row else _columns(message["inputs"])
    if not isinstance(given, list) or not given:
        raise RejectedError(400, "expected a list of at least one image")
    _check_count(len(given), limits)
    return Query([_image(each, limits) for each in given], by_row)


def _columns(inputs) -> list:
    if isinstance(inputs, dict) and len(inputs) == 1 and inputs.keys() <= {ENCODED, IMAGES}:
        (inputs,) = inputs.values()
    return [inputs] if isinstance(inputs, dict) else inputs


def _check_signature(name):
    if name not in SIGNATURES:
        raise RejectedError(400, f"unknown signature_name {str(name)[:100]!r}: expected serving_default or encoded")


def _check_count(number: int, limits: Limits):
    if number > limits.max_images:
        raise RejectedError(413, f"{number} images in one request: send at most {limits.max_images}")


def _image(instance, limits: Limits) -> bytes | np.ndarray:
    if isinstance(instance, dict) and len(instance) == 1 and instance.keys() <= {ENCODED, IMAGES}:
        (instance,) = instance.values()
    if isinstance(instance, dict) and instance.keys() == {"b64"} and isinstance(instance["b64"], str):
        try:
            return base64.b64decode(instance["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise RejectedError(400, "b64 is not base64") from None
    if not isinstance(instance, list):
        raise RejectedError(400, 'expected an image as {"b64": TEXT} or as rows of pixels (height, width, 3)')
    try:
        pixels = np.array(instance)
    except (ValueError, OverflowError, TypeError):
        pixels = np.array(None)
    if pixels.dtype.kind not in "iuf":
        raise RejectedError(400, "an image is not rows of pixels (height, width, 3) of numbers")
    return _pixels(pixels, limits)


def _pixels(pixels: np.ndarray, limits: Limits) -> np.ndarray:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise RejectedError(400, f"an image has the shape {pixels.shape[:8]}: expected (height, width, 3)")
    if math.prod(pixels.shape[:2]) > limits.max_pixels:
        raise RejectedError(413, f"an image has {math.prod(pixels.shape[:2])} pixels: send at most {limits.max_pixels}")
    if not (pixels.min() >= 0 and pixels.max() <= 255):
        raise RejectedError(400, "pixels are outside of 0..255")
    return pixels.astype("float32")


def reply(query: Query, logits: np.ndarray, task: Task) -> bytes:
    """Returns the JSON reply.

    Args:
        query: the question.
        logits: outputs of the task's head, float32 `(images, classes)`.
        task: its labels are those of the classes.
    """
    columns = outputs(logits, task)
    if not query.by_row:
        return json.dumps({"outputs": {name: column.tolist() for name, column in columns.items()}}).encode()
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return json.dumps({"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}).encode()


def outputs(logits: np.ndarray, task: Task) -> dict[str, np.ndarray]:
    """Returns what the reply holds: what `Task.decode` says, `(images, classes)` each, and the label as text, `(images,)`."""
    found = task.read(logits)
    return {**found, "label": np.array(task.texts(found), dtype=object)}


def state(error: str, available: bool) -> bytes:
    """Returns the JSON state of a task.

    Args:
        error: why its present file was refused; empty if it was not.
        available: whether it can be predicted with, perhaps by an earlier file.
    """
    versions = [_version(VERSION, "AVAILABLE", "OK", "")] if available else []
    if error:
        refused = _version(str(int(VERSION) + 1) if available else VERSION, "END", "INVALID_ARGUMENT", error)
        versions.insert(0, refused)
    return json.dumps({"model_version_status": versions}).encode()


def _version(version: str, state: str, code: str, message: str) -> dict:
    return {"version": version, "state": state, "status": {"error_code": code, "error_message": message}}


def names(tasks: Sequence[str]) -> bytes:
    """Returns the JSON list of all tasks."""
    return json.dumps({"models": [{"name": name} for name in tasks]}).encode()


def metadata(name: str, task: Task) -> bytes:
    """Returns the JSON metadata of a task: TensorFlow Serving's signatures, and besides them its labels and image size."""

    def tensor(dtype: str, *shape: int) -> dict:
        sizes = [{"size": str(size), "name": ""} for size in shape]
        return {"dtype": dtype, "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": ""}

    of_one = outputs(np.zeros((1, len(task.labels)), "float32"), task)
    found = {
        name: tensor("DT_STRING" if each.dtype == object else "DT_FLOAT", -1, *each.shape[1:])
        for name, each in of_one.items()
    }
    signatures = {
        "serving_default": {IMAGES: tensor("DT_FLOAT", -1, -1, -1, 3)},
        "encoded": {ENCODED: tensor("DT_STRING", -1)},
    }
    method = "tensorflow/serving/predict"
    return json.dumps(
        {
            "model_spec": {"name": name, "signature_name": "", "version": VERSION},
            "metadata": {
                "signature_def": {
                    "signature_def": {
                        signature: {"inputs": inputs, "outputs": found, "method_name": method}
                        for signature, inputs in signatures.items()
                    }
                },
                "labels": list(task.labels),
                "image_size": task.preprocessing.image_size,
            },
        }
    ).encode()


def query_of_tensors(tensors: Mapping, signature_name: str, limits: Limits) -> Query:
    """Returns the images of a gRPC `PredictRequest`.

    Args:
        tensors: its `inputs`: `TensorProto` by name, `contents`, strings `(images,)`, or `images`, numbers `(images, height,
            width, 3)`.
        signature_name: as given.
        limits: what a request may ask for.

    Raises:
        RejectedError: there is something else, or too much.
    """
    from tensorflow import make_ndarray

    _check_signature(signature_name)
    if len(tensors) != 1 or not set(tensors) <= {ENCODED, IMAGES}:
        raise RejectedError(400, f"expected one input, {ENCODED} or {IMAGES}")
    ((name, proto),) = tensors.items()
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or len(shape) != (1 if name == ENCODED else 4) or min(shape) < 1:
        raise RejectedError(400, f"{name} has the shape {tuple(shape[:8])}: expected that of the signature")
    _check_count(shape[0], limits)
    # A message of a few bytes may claim any shape: it is made an array only if it may be as large.
    if name == IMAGES and math.prod(shape[1:3]) > limits.max_pixels:
        raise RejectedError(413, f"an image has {math.prod(shape[1:3])} pixels: send at most {limits.max_pixels}")
    if name == IMAGES and (shape[3] != 3 or math.prod(shape) > limits.max_body_bytes):
        raise RejectedError(413, f"{name} has the shape {tuple(shape)}: expected 3 channels, and fewer images at once")
    try:
        array = make_ndarray(proto)
    except Exception:  # Whatever a message that contradicts itself makes of the parser.
        raise RejectedError(400, f"{name} is not a tensor of its shape") from None
    if name == ENCODED:
        if not all(isinstance(each, bytes) for each in array):
            raise RejectedError(400, f"{name} is not of strings")
        return Query(list(array))
    if array.dtype.kind not in "iuf":
        raise RejectedError(400, f"{name} is not of numbers")
    return Query([_pixels(image, limits) for image in array])


def is_allowed(authorization: str, token: str) -> bool:
    """Whether an `Authorization` header carries the token."""
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
