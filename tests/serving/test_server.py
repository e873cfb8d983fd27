"""The server without Ray: every address, over a real folder, in this process."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from starlette.requests import Request

from model_patch import Task, bind, open_trunk
from model_patch.serving.metrics import MAX_LABELS, Metrics
from model_patch.serving.server import TaskServer
from tests.conftest import small_net

TOKEN = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("trunk") / "trunk.keras"
    small_net().save(path)
    return f"file:{path}"


@pytest.fixture(scope="module")
def patches(spec):
    trunk = open_trunk(spec)
    first = bind(trunk, Task("any", tuple("abcdefghij"), trunk.preprocessing), "scale_bias+last").patch()
    made = {}
    for i in range(4):
        random = np.random.default_rng(i)
        values = {
            key: value * random.uniform(0.5, 1.5, value.shape).astype("float32") for key, value in first.values.items()
        }
        made[f"task{i}"] = dataclasses.replace(first, values=values)
    return made


@pytest.fixture(scope="module")
def folder(patches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    for name, patch in patches.items():
        patch.save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(spec, folder):
    server = TaskServer(spec, str(folder), token="secret", max_tasks=3, max_batch_size=4, max_queue=64, max_body_mb=0.5)
    yield server
    server.close()


def called(server, *requests, **options) -> list:
    """Sends requests at once, each a method, a path and what httpx takes besides; returns their responses."""

    async def app(scope, receive, send):
        response = await server(Request(scope, receive, send))
        await response(scope, receive, send)

    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", **options) as client:
            return await asyncio.gather(*(client.request(method, path, **more) for method, path, more in requests))

    return asyncio.run(send())


def predict(name: str, *images: bytes) -> tuple:
    instances = [{"b64": base64.b64encode(image).decode()} for image in images]
    return "POST", f"/v1/models/{name}:predict", {"json": {"instances": instances}}


def png(seed: int = 0, height: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, 50, 3)).astype("uint8")).save(file, "PNG")
    return file.getvalue()


def test_tasks_are_answered_together_and_each_by_its_own_patch(server, folder):
    tasks = [f"task{i % 4}" for i in range(24)]
    together = called(server, *(predict(name, png(), png(1)) for name in tasks))
    alone = {name: called(server, predict(name, png(), png(1)))[0].json() for name in set(tasks)}
    assert len({json.dumps(each) for each in alone.values()}) == 4
    for name, response in zip(tasks, together, strict=True):
        assert response.status_code == 200
        for row, other in zip(response.json()["predictions"], alone[name]["predictions"], strict=True):
            np.testing.assert_allclose(row["logits"], other["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("method", "path", "more", "status"),
    [
        ("POST", "/v1/models/nobody:predict", {"json": {"instances": [{"b64": "AAAA"}]}}, 404),
        ("POST", "/v1/models/%2e%2e%2ftask0:predict", {"json": {"instances": [{"b64": "AAAA"}]}}, 404),
        ("POST", "/v1/models/ta%00sk:predict", {"json": {"instances": [{"b64": "AAAA"}]}}, 404),
        ("POST", "/v1/models/task0:predict", {"json": {"instances": [{"b64": "AAAA"}]}}, 400),
        ("POST", "/v1/models/task0:predict", {"content": b"x" * 2**20}, 413),
        ("POST", "/v1/models/task0:predict", {"content": b"", "headers": {"content-encoding": "gzip"}}, 415),
        (
            "POST",
            "/v1/models/task0:predict",
            {"json": {"instances": [{"b64": base64.b64encode(png()).decode()}] * 65}},
            413,
        ),
        ("GET", "/v1/models/task0:predict", {}, 405),
        ("POST", "/v1/models/task0", {}, 405),
        ("GET", "/v1/models/nobody", {}, 404),
        ("GET", "/v1/models/nobody/metadata", {}, 404),
        ("GET", "/v2", {}, 404),
        ("PUT", "/v1/models/new", {"content": b""}, 401),
        ("DELETE", "/v1/models/task0", {"headers": {"authorization": "Bearer wrong"}}, 401),
        ("PUT", "/v1/models/.hidden", {"content": b"", "headers": TOKEN}, 400),
        ("PUT", "/v1/models/%C3%A4", {"content": b"", "headers": TOKEN}, 400),
        ("PUT", "/v1/models/new", {"content": b"rubbish", "headers": TOKEN}, 400),
        ("DELETE", "/v1/models/nobody", {"headers": TOKEN}, 404),
    ],
)
def test_errors_have_the_form_and_the_status_of_tensorflow_serving(server, method, path, more, status):
    (response,) = called(server, (method, path, more))
    assert response.status_code == status
    assert response.json()["error"]


def test_tasks_are_put_and_deleted(server, patches, folder):
    contents = patches["task1"].to_bytes()
    added, state, answer = (
        called(server, request)[0]
        for request in (
            ("PUT", "/v1/models/new", {"content": contents, "headers": TOKEN}),
            ("GET", "/v1/models/new", {}),
            predict("new", png()),
        )
    )
    assert added.status_code == state.status_code == answer.status_code == 200
    assert (folder / "new.safetensors").read_bytes() == contents
    np.testing.assert_allclose(
        answer.json()["predictions"][0]["logits"],
        called(server, predict("task1", png()))[0].json()["predictions"][0]["logits"],
        atol=1e-4,
    )
    assert called(server, ("DELETE", "/v1/models/new", {"headers": TOKEN}))[0].status_code == 200
    assert called(server, ("GET", "/v1/models/new", {}))[0].status_code == 404
    assert not (folder / "new.safetensors").exists()


def test_a_queue_that_is_full_refuses(server):
    responses = called(server, *(predict("task0", *[png()] * 20) for _ in range(12)))
    assert {response.status_code for response in responses} == {200, 503}


def test_state_metadata_health_and_metrics(server):
    state, metadata, models, health = called(
        server,
        *(("GET", path, {}) for path in ("/v1/models/task0", "/v1/models/task0/metadata", "/v1/models", "/healthz")),
    )
    assert state.json()["model_version_status"][0]["state"] == "AVAILABLE"
    assert metadata.json()["metadata"]["labels"] == list("abcdefghij")
    assert {"name": "task0"} in models.json()["models"]
    assert health.status_code == 200
    (metrics,) = called(server, ("GET", "/metrics", {}))
    for line in (
        'model_patch_requests_total{interface="http",method="POST",status="200"}',
        "model_patch_batch_size_count",
        "model_patch_tasks 4.0",
    ):
        assert line in metrics.text


def test_a_slow_body_is_given_up(server):
    async def drip():
        for _ in range(20):
            yield b"{"
            await asyncio.sleep(0.05)

    server._read_seconds, before = 0.2, server._read_seconds
    try:
        (response,) = called(server, ("POST", "/v1/models/task0:predict", {"content": drip()}))
    finally:
        server._read_seconds = before
    assert response.status_code == 408
    assert server._room == 16 * 2**19


def test_counts_by_task_are_bounded():
    metrics = Metrics()
    for i in range(2 * MAX_LABELS):
        metrics.request("http", "POST", 200, f"task{i}", 0.1)
    text = metrics.text().decode()
    assert text.count("model_patch_task_requests_total{") == MAX_LABELS + 1
    assert f'model_patch_task_requests_total{{task="(other)"}} {float(MAX_LABELS)}' in text


def test_grpc_is_the_same(server, patches):
    grpc = pytest.importorskip("grpc")
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason="needs tensorflow-serving-api")
    import tensorflow as tf
    from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

    from model_patch.serving.grpc_server import GrpcServer

    listening = GrpcServer(server.Predict, "127.0.0.1:18517", 2**20, 64)
    with contextlib.closing(listening), grpc.insecure_channel("127.0.0.1:18517") as channel:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "task1"
        request.inputs["contents"].CopyFrom(tf.make_tensor_proto([png(), png(1)]))
        outputs = PredictionServiceStub(channel).Predict(request, timeout=60).outputs
        rest = called(server, predict("task1", png(), png(1)))[0].json()["predictions"]
        np.testing.assert_allclose(tf.make_ndarray(outputs["logits"]), [row["logits"] for row in rest], atol=1e-4)
        assert [label.decode() for label in tf.make_ndarray(outputs["label"])] == [row["label"] for row in rest]
        for name, contents, code in (("nobody", b"", "NOT_FOUND"), ("task0", b"", "INVALID_ARGUMENT")):
            request.model_spec.name = name
            request.inputs["contents"].CopyFrom(tf.make_tensor_proto([contents]))
            with pytest.raises(grpc.RpcError) as raised:
                PredictionServiceStub(channel).Predict(request, timeout=60)
            assert raised.value.code().name == code
