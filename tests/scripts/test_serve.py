"""scripts/serve.py as a process: Ray Serve, HTTP and gRPC clients, an orderly end."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray.serve", reason="needs the extra `serve`")
predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason="needs tensorflow-serving-api")

from model_patch import Task, bind, open_trunk, predict
from tests.conftest import small_net

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def call(url: str, body: bytes | None = None, method: str | None = None, **headers) -> dict:
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=60) as response:
        return json.load(response)


@pytest.mark.slow
def test_a_folder_is_served_until_the_process_is_ended(tmp_path):
    import grpc
    import tensorflow as tf
    from PIL import Image
    from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

    small_net().save(tmp_path / "trunk.keras")
    spec = f"file:{tmp_path / 'trunk.keras'}"
    trunk = open_trunk(spec)
    tasks = {
        name: bind(trunk, Task(name, ("a", "b", "c"), trunk.preprocessing), "scale_bias+last", seed=i)
        for i, name in enumerate(("one", "other"))
    }
    (tmp_path / "patches").mkdir()
    tasks["one"].patch().save(tmp_path / "patches" / "one.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype("uint8")).save(tmp_path / "image.png")
    (tmp_path / "token").write_text("secret\n")
    expected = {name: next(predict(bound, str(tmp_path / "image.png"))).probabilities for name, bound in tasks.items()}

    port, grpc_port = free_port(), free_port()
    flags = {
        "trunk": spec,
        "patches": tmp_path / "patches",
        "port": port,
        "grpc_port": grpc_port,
        "token_file": tmp_path / "token",
        "max_batch_size": 4,
    }
    command = [sys.executable, ROOT / "scripts" / "serve.py", *(f"--{name}={value}" for name, value in flags.items())]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("serving on") for line in process.stdout), "it ended before it served"
        image = (tmp_path / "image.png").read_bytes()
        url = f"http://127.0.0.1:{port}/v1/models"
        body = json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}]}).encode()

        def answer(name: str) -> list[float]:
            return call(f"{url}/{name}:predict", body)["predictions"][0]["probabilities"]

        np.testing.assert_allclose(answer("one"), list(expected["one"].values()), atol=1e-5)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            answer("other")
        call(f"{url}/other", tasks["other"].patch().to_bytes(), "PUT", Authorization="Bearer secret")
        np.testing.assert_allclose(answer("other"), list(expected["other"].values()), atol=1e-5)
        tasks["other"].patch().save(tmp_path / "patches" / "one.safetensors")
        until = time.monotonic() + 60
        while np.abs(np.array(answer("one")) - list(expected["other"].values())).max() > 1e-5:
            assert time.monotonic() < until, "the file that changed was not followed"

        request = predict_pb2.PredictRequest()
        request.model_spec.name = "other"
        request.inputs["contents"].CopyFrom(tf.make_tensor_proto([image]))
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            outputs = PredictionServiceStub(channel).Predict(request, timeout=60).outputs
        np.testing.assert_allclose(
            tf.make_ndarray(outputs["probabilities"])[0], list(expected["other"].values()), atol=1e-5
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
