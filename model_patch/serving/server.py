"""One server of many tasks: TensorFlow Serving's REST and gRPC interfaces over an engine and a folder of patches."""

import asyncio
import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from model_patch.errors import ModelPatchError
from model_patch.serving import protocol
from model_patch.serving.catalog import Catalog, PatchFolder, needs_of
from model_patch.serving.engine import Engine, NotLoadedError, OverloadedError, single_threaded_operations
from model_patch.serving.grpc_server import GrpcServer
from model_patch.serving.images import BadImageError, LargeImageError
from model_patch.serving.metrics import Metrics
from model_patch.serving.protocol import Limits, Query, RejectedError
from model_patch.trunks import open_trunk

_logger = logging.getLogger("ray.serve.model_patch")
"""Below Ray Serve's own, whose handlers and form (text or JSON) it takes."""

LARGE_BODY = 2**16
"""Bytes from which a body is parsed by a thread, so that the event loop goes on."""

LOADERS = 2
"""Threads that load patches, and parse large bodies."""


class TaskServer:
    """Serves the patch files of a folder on one trunk. An instance is an HTTP handler, and `Predict` a gRPC one.

    The constructor returns when every batch size has been run; patches are then loaded in the background, and at once when
    they are needed.

    | request | reply |
    |---|---|
    | `POST /v1/models/TASK:predict` | predictions, see `protocol.query` |
    | `GET /v1/models/TASK` | its state, and why its present file was refused |
    | `GET /v1/models/TASK/metadata` | inputs, outputs, labels |
    | `GET /v1/models` | names of all tasks |
    | `PUT`, `DELETE /v1/models/TASK` | adds or replaces a task by the patch file in the body, or removes it |
    | `GET /healthz`, `GET /metrics` | for supervisors, and Prometheus |
    """

    def __init__(
        self,
        trunk: str,
        patches: str,
        *,
        kinds: str = "",
        classes: int = 0,
        pooling: str = "",
        image_size: int | None = None,
        max_tasks: int = 1000,
        max_batch_size: int = 64,
        max_wait_ms: float = 5.0,
        max_queue: int = 1024,
        max_body_mb: float = 16.0,
        max_pixels: int = 2**24,
        read_seconds: float = 30.0,
        poll_seconds: float = 2.0,
        token: str = "",
        grpc_address: str = "",
    ):
        """Opens trunk and folder, and warms up.

        Args:
            trunk: spec of the trunk that the patches were made on.
            patches: folder of the patch files, a path or a URL; each is the task of its name.
            kinds: patch kinds that tasks may have, joined by `+`; by default those of the first `max_tasks` files.
            classes: number of classes of the widest head; by default that of the first `max_tasks` files.
            pooling: how all tasks pool, where the trunk gives tokens; by default that of the first file.
            image_size: height and width in pixels; by default the trunk's.
            max_tasks, max_batch_size, max_wait_ms, max_queue, max_pixels: as for `Engine`.
            max_body_mb: largest size of a request, in MiB. All bodies together may take 16 times as much at one moment.
            read_seconds: in which a body must have arrived.
            poll_seconds: from one look at the folder to the next.
            token: that `PUT` and `DELETE` must show; without one they are off.
            grpc_address: `HOST:PORT` to listen on for gRPC; without one there is none.

        Raises:
            ModelPatchError: the trunk or the folder cannot be opened, or as `Engine`.
        """
        single_threaded_operations()
        start = time.perf_counter()
        self._folder = PatchFolder(patches)
        opened = open_trunk(trunk, image_size)
        if not kinds or not classes or not pooling:
            needed = needs_of(self._folder, max_tasks)
            kinds, classes, pooling = kinds or needed[0], classes or needed[1], pooling or needed[2]
        self._limits = Limits(int(max_body_mb * 2**20), max_queue, max_pixels)
        self._read_seconds, self._token = read_seconds, token
        self._room = 16 * self._limits.max_body_bytes
        self.metrics = Metrics()
        self.engine: Engine = Engine(
            opened,
            kinds,
            classes=classes,
            max_tasks=max_tasks,
            max_batch_size=max_batch_size,
            max_wait_ms=max_wait_ms,
            max_queue=max_queue,
            max_pixels=max_pixels,
            pooling=pooling,
            on_batch=self._on_batch,
        )
        self.engine.warm()
        self.catalog = Catalog(self._folder, self.engine)
        self.catalog.scan(load=False)
        self.catalog.watch(poll_seconds)
        self._loaders = ThreadPoolExecutor(LOADERS, "loaders")
        self._grpc = (
            GrpcServer(self.Predict, grpc_address, self._limits.max_body_bytes, max_queue) if grpc_address else None
        )
        seconds = time.perf_counter() - start
        facts = {"tasks": len(self.catalog), "kinds": kinds, "classes": classes, "seconds": round(seconds, 1)}
        _logger.info("ready in %.1f s", seconds, extra=facts)

    async def __call__(self, request: Request) -> Response:
        """Answers one HTTP request."""
        start, name = time.perf_counter(), ""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        try:
            if path == "/healthz":
                self.check_health()
                return Response(b"ok")
            if path == "/metrics":
                self._on_batch()
                return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")
            if path == "/v1/models" and request.method == "GET":
                return _json(protocol.names(self.catalog.names()))
            target = protocol.target(path)
            name = target.name if target.name in self.catalog else ""
            response = _json(await self._reply(request, target))
        except RejectedError as error:
            response = _json(error.body(), error.status)
        except ClientDisconnect:
            response = Response(status_code=400)
        except Exception:
            _logger.exception("request failed", extra={"path": path[:200]})
            response = _json(RejectedError(500, "internal error, see the server's log").body(), 500)
        self.metrics.request("http", request.method, response.status_code, name, time.perf_counter() - start)
        return response

    async def Predict(self, request: Any, grpc_context: Any) -> Any:
        """Answers TensorFlow Serving's `PredictionService.Predict`."""
        from grpc import StatusCode
        from tensorflow import make_tensor_proto
        from tensorflow_serving.apis.predict_pb2 import PredictResponse

        start, name, status = time.perf_counter(), request.model_spec.name, 200
        response = PredictResponse()
        try:
            if request.model_spec.HasField("version") and request.model_spec.version.value != int(protocol.VERSION):
                raise protocol.unknown_task(f"{name}, version {request.model_spec.version.value}")
            query = protocol.query_of_tensors(request.inputs, request.model_spec.signature_name, self._limits)
            task, logits = await self._predict(name, query)
            for output, values in protocol.outputs(logits, task).items():
                if not request.output_filter or output in request.output_filter:
                    response.outputs[output].CopyFrom(make_tensor_proto(values))
            response.model_spec.name = name
            response.model_spec.version.value = int(protocol.VERSION)
        except RejectedError as error:
            status = error.status
            grpc_context.set_code(StatusCode[error.grpc_code])
            grpc_context.set_details(str(error))
        name = name if name in self.catalog else ""
        self.metrics.request("grpc", "Predict", status, name, time.perf_counter() - start)
        return response

    def _on_batch(self, size: int = 0):
        if size:
            self.metrics.batch_size.observe(size)
        self.metrics.show(self.engine.num_waiting, self.engine.num_tasks, len(self.catalog))

    def check_health(self):
        """Raises an error where this server can answer no more; Ray Serve then replaces it."""
        if not self.engine.is_healthy:
            raise RuntimeError("a thread of the engine has ended")

    def close(self):
        """Answers what waits, and ends all threads."""
        if self._grpc:
            self._grpc.close()
        self.catalog.close()
        self.engine.close()
        self._loaders.shutdown()

    def __del__(self):
        if hasattr(self, "_grpc"):
            self.close()

    async def _reply(self, request: Request, target: protocol.Target) -> bytes:
        match request.method, target.verb:
            case "POST", "predict":
                with contextlib.ExitStack() as held:
                    query = await self._parsed(await self._body(request, held))
                    task, logits = await self._predict(target.name, query)
                    return protocol.reply(query, logits, task)
            case "GET", "metadata":
                return protocol.metadata(target.name, await self._task(target.name))
            case "GET", "":
                self._require(target.name)
                error = self.catalog.error(target.name)
                return protocol.state(error, not error or self.engine.task(target.name) is not None)
            case ("PUT" | "DELETE") as method, "":
                return await self._change(request, method, target.name)
        raise RejectedError(405, f"{request.method} is not for this address")

    async def _body(self, request: Request, held: contextlib.ExitStack) -> bytes:
        """Returns the body; until `held` closes, its size counts against what all requests may take together."""
        most = self._limits.max_body_bytes
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RejectedError(415, "compressed bodies are not read: send it uncompressed")
        too_large = RejectedError(413, f"the body has more than {most} bytes: send fewer or smaller images")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._read_seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most:
                        raise too_large
                    if len(chunk) > self._room:
                        raise RejectedError(503, "other requests fill the memory for bodies: try again later")
                    self._take(len(chunk), held)
                    body += chunk
        except TimeoutError:
            raise RejectedError(408, f"the body did not arrive in {self._read_seconds:g} s") from None
        return bytes(body)

    def _take(self, size: int, held: contextlib.ExitStack):
        self._room -= size
        held.callback(self._give_back, size)

    def _give_back(self, size: int):
        self._room += size

    async def _parsed(self, body: bytes) -> Query:
        if len(body) < LARGE_BODY:
            return protocol.query(body, self._limits)
        return await asyncio.get_running_loop().run_in_executor(self._loaders, protocol.query, body, self._limits)

    async def _predict(self, name: str, query: Query):
        """Returns the task, and the logits `(images, classes)`."""
        try:
            while True:
                task = await self._task(name)
                with contextlib.suppress(NotLoadedError):  # It may have left again already.
                    return task, await asyncio.wrap_future(self.engine.submit(name, query.images))
        except OverloadedError as error:
            raise RejectedError(503, str(error)) from None
        except LargeImageError as error:
            raise RejectedError(413, str(error)) from None
        except BadImageError as error:
            raise RejectedError(400, str(error)) from None

    async def _task(self, name: str):
        """Returns a task, loaded if it was not."""
        task = self.engine.task(name)
        while not task:
            self._require(name)
            try:
                if self._loaders._work_queue.qsize() > self.engine.max_queue:
                    raise OverloadedError("too many tasks wait to be loaded: try again later")
                loaded = await asyncio.get_running_loop().run_in_executor(self._loaders, self.catalog.ensure, name)
            except OverloadedError as error:
                raise RejectedError(503, str(error)) from None
            if not loaded:
                raise protocol.unknown_task(name, self.catalog.error(name))
            task = self.engine.task(name)
        return task

    def _require(self, name: str):
        if name not in self.catalog:
            raise protocol.unknown_task(name)

    async def _change(self, request: Request, method: str, name: str) -> bytes:
        if not self._token:
            raise RejectedError(403, "this server takes no changes: start it with a token")
        if not protocol.is_allowed(request.headers.get("authorization", ""), self._token):
            raise RejectedError(401, "expected the header Authorization: Bearer TOKEN")
        run = asyncio.get_running_loop().run_in_executor
        if method == "DELETE":
            self._require(name)
            with contextlib.suppress(FileNotFoundError):
                await run(self._loaders, self.catalog.delete, name)
            return b"{}"
        if not protocol.NAMES_OF_FILES.fullmatch(name):
            raise RejectedError(400, "a task is named by up to 100 of A-Z a-z 0-9 _ . + -, the first a letter or digit")
        with contextlib.ExitStack() as held:
            try:
                await run(self._loaders, self.catalog.put, name, await self._body(request, held))
            except OverloadedError as error:
                raise RejectedError(503, str(error)) from None
            except ModelPatchError as error:
                raise RejectedError(400, str(error)) from None
        _logger.info("task added", extra={"task": name})
        return protocol.state("", True)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, {"retry-after": "1"} if status == 503 else None, "application/json")
