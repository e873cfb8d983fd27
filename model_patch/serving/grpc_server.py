"""The gRPC interface of a server: TensorFlow Serving's `PredictionService`, in a thread of its own.

Ray Serve's own gRPC servers ignore the host setting and listen on all interfaces.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from model_patch.errors import ModelPatchError

GRACE = 10.0
"""Seconds that calls have to end when the server closes."""


class GrpcServer:
    """Listens until it is closed. Replicas on one machine listen on one port, and the kernel distributes connections across them.

    Args:
        predict: answers `PredictionService.Predict`, given request and context.
        address: `HOST:PORT`.
        max_bytes: largest size of a message.
        max_calls: at one moment; further ones are refused as `RESOURCE_EXHAUSTED`.

    Raises:
        ModelPatchError: a package is missing, or the address cannot be listened on.
    """

    def __init__(self, predict: Callable[[Any, Any], Awaitable], address: str, max_bytes: int, max_calls: int):
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc as service
        except ImportError as error:
            raise ModelPatchError(
                f"gRPC needs a package that is not installed ({error}): pip install 'model_patch[serve]'"
            ) from None

        class Servicer(service.PredictionServiceServicer):
            async def Predict(self, request, context):
                return await predict(request, context)

        self._error: Exception | None = None

        async def serve():
            options = [("grpc.max_receive_message_length", max_bytes)]
            server = grpc.aio.server(options=options, maximum_concurrent_rpcs=max_calls)
            service.add_PredictionServiceServicer_to_server(Servicer(), server)
            self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
            try:
                server.add_insecure_port(address)
                await server.start()
            except RuntimeError as error:
                self._error = error
                return
            finally:
                started.set()
            await self._closing.wait()
            await server.stop(GRACE)

        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), name="grpc", daemon=True)
        self._thread.start()
        started.wait()
        if self._error:
            raise ModelPatchError(f"cannot listen on {address} ({self._error}): choose another grpc_port")

    def close(self):
        """Takes no further calls, and waits for those that run."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
