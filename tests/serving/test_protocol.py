"""TensorFlow Serving's messages: what is understood, and what is refused with which status."""

import base64
import json

import numpy as np
import pytest
import tensorflow as tf

from model_patch import Preprocessing, Task
from model_patch.serving import protocol
from model_patch.serving.protocol import Limits, Query, RejectedError

LIMITS = Limits(max_body_bytes=10_000, max_images=4, max_pixels=100)
FILE = {"b64": base64.b64encode(b"file").decode()}
PIXELS = [[[0, 1, 2.5], [3, 4, 255]]]


@pytest.mark.parametrize(
    ("message", "number", "by_row"),
    [
        ({"instances": [FILE]}, 1, True),
        ({"instances": [FILE, {"contents": FILE}], "signature_name": "encoded"}, 2, True),
        ({"instances": [PIXELS, {"images": PIXELS}], "signature_name": "serving_default"}, 2, True),
        ({"inputs": [FILE, FILE]}, 2, False),
        ({"inputs": {"contents": [FILE]}}, 1, False),
        ({"inputs": {"contents": FILE}}, 1, False),
        ({"inputs": {"images": [PIXELS] * 3}}, 3, False),
    ],
)
def test_all_forms_of_tensorflow_serving_are_understood(message, number, by_row):
    query = protocol.query(json.dumps(message).encode(), LIMITS)
    assert len(query.images) == number and query.by_row == by_row
    for image in query.images:
        assert image == b"file" if isinstance(image, bytes) else image.tolist() == PIXELS


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 5000, 400),
        (b'{"instances": ' + b"9" * 9000 + b"}", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"instances": []}', 400),
        (b'{"instances": {"b64": "AAAA"}}', 400),
        (b'{"instances": [1], "inputs": [1]}', 400),
        (b'{"instances": [null]}', 400),
        (b'{"instances": ["AAAA"]}', 400),
        (b'{"instances": [{"b64": 1}]}', 400),
        (b'{"instances": [{"b64": "\xc3\xa4"}]}', 400),
        (b'{"instances": [{"b64": "A"}]}', 400),
        (b'{"instances": [{"b64": "AAAA", "more": 1}]}', 400),
        (b'{"instances": [[[1, 2, 3]]]}', 400),
        (b'{"instances": [[[[1, 2]]]]}', 400),
        (b'{"instances": [[[[1, 2, 3], [1, 2]]]]}', 400),
        (b'{"instances": [[[["1", "2", "3"]]]]}', 400),
        (b'{"instances": [[[[1, 2, 256]]]]}', 400),
        (b'{"instances": [[[[1, 2, NaN]]]]}', 400),
        (b'{"instances": [[[[1, 2, 1e999]]]]}', 400),
        (b'{"instances": [[[[true, false, true]]]]}', 400),
        (b'{"instances": [{"b64": "AAAA"}], "signature_name": "other"}', 400),
        (b'{"instances": [{"b64": "AAAA"}], "signature_name": []}', 400),
        (json.dumps({"instances": [FILE] * 5}).encode(), 413),
        (json.dumps({"instances": [[[[1, 2, 3]] * 101]]}).encode(), 413),
    ],
)
def test_everything_else_is_refused(body, status):
    with pytest.raises(RejectedError) as raised:
        protocol.query(body, LIMITS)
    assert raised.value.status == status
    assert json.loads(raised.value.body())["error"]


def test_replies_have_the_form_that_was_asked_for():
    task = Task("pets", ("cat", "dog"), Preprocessing(32, "tf"))
    logits = np.array([[0.0, np.log(3)], [1000.0, 0.0]], "float32")
    rows = json.loads(protocol.reply(Query([], True), logits, task))["predictions"]
    assert [row["label"] for row in rows] == ["dog", "cat"]
    assert rows[0]["probabilities"] == pytest.approx([0.25, 0.75])
    columns = json.loads(protocol.reply(Query([], False), logits, task))["outputs"]
    assert columns == {name: [row[name] for row in rows] for name in ("logits", "probabilities", "label")}


@pytest.mark.parametrize(
    ("path", "name", "verb"),
    [
        ("/v1/models/pets", "pets", ""),
        ("/v1/models/pets:predict", "pets", "predict"),
        ("/v1/models/pets/versions/1:predict", "pets", "predict"),
        ("/v1/models/pets/metadata", "pets", "metadata"),
        ("/v1/models/haustiere ä:b:predict", "haustiere ä:b", "predict"),
        ("/v1/models/..:predict", "..", "predict"),
    ],
)
def test_addresses_name_tasks(path, name, verb):
    assert protocol.target(path) == protocol.Target(name, verb)


@pytest.mark.parametrize(
    "path", ["", "/", "/v1/models/", "/v1/models/a/b", "/v1/models/../etc/passwd", "/v1/models/a/versions/2"]
)
def test_other_addresses_are_not_found(path):
    with pytest.raises(RejectedError) as raised:
        protocol.target(path)
    assert raised.value.status == 404


def test_tensors_are_understood():
    files = {"contents": tf.make_tensor_proto([b"one", b"two"])}
    assert list(protocol.query_of_tensors(files, "", LIMITS).images) == [b"one", b"two"]
    for dtype in ("float32", "uint8"):
        pixels = {"images": tf.make_tensor_proto(np.array([PIXELS]), dtype)}
        (image,) = protocol.query_of_tensors(pixels, "serving_default", LIMITS).images
        assert image.shape == (1, 2, 3) and image.dtype == "float32"


def claiming(tensor: tf.Tensor, *shape: int):
    """A message whose shape is not that of its contents."""
    proto = tf.make_tensor_proto(tensor)
    proto.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    return proto


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ({}, "INVALID_ARGUMENT"),
        ({"other": tf.make_tensor_proto([b"one"])}, "INVALID_ARGUMENT"),
        ({"contents": tf.make_tensor_proto(b"one")}, "INVALID_ARGUMENT"),
        ({"contents": tf.make_tensor_proto([1.0])}, "INVALID_ARGUMENT"),
        ({"contents": tf.make_tensor_proto([b"one"] * 5)}, "INVALID_ARGUMENT"),
        ({"contents": claiming([b"one"], 10**9)}, "INVALID_ARGUMENT"),
        ({"images": tf.make_tensor_proto([[[[b"a", b"b", b"c"]]]])}, "INVALID_ARGUMENT"),
        ({"images": tf.make_tensor_proto(np.zeros((1, 2, 2, 4)))}, "INVALID_ARGUMENT"),
        ({"images": tf.make_tensor_proto(np.full((1, 2, 2, 3), -1.0))}, "INVALID_ARGUMENT"),
        ({"images": claiming(np.zeros(1), 1, 10**5, 10**5, 3)}, "INVALID_ARGUMENT"),
        ({"images": claiming(np.zeros((1, 1, 1, 3)), 4, 10, 10, 3)}, "INVALID_ARGUMENT"),
    ],
)
def test_other_tensors_are_refused(tensors, code):
    with pytest.raises(RejectedError) as raised:
        protocol.query_of_tensors(tensors, "", LIMITS)
    assert raised.value.grpc_code == code


def test_states_and_metadata():
    assert json.loads(protocol.state("", True))["model_version_status"][0]["state"] == "AVAILABLE"
    refused, old = json.loads(protocol.state("damaged", True))["model_version_status"]
    assert refused["state"] == "END" and refused["status"]["error_message"] == "damaged" and old["state"] == "AVAILABLE"
    (only,) = json.loads(protocol.state("damaged", False))["model_version_status"]
    assert only["state"] == "END"
    task = Task("pets", ("cat", "dog"), Preprocessing(32, "tf"))
    found = json.loads(protocol.metadata("pets", task))
    assert found["model_spec"]["name"] == "pets" and found["metadata"]["labels"] == ["cat", "dog"]
    assert set(found["metadata"]["signature_def"]["signature_def"]) == {"serving_default", "encoded"}
