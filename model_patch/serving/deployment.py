"""A `TaskServer` on Ray Serve: on one machine, or a cluster.

    from ray import serve
    from model_patch.serving.deployment import PatchServer

    app = PatchServer.options(num_replicas=2).bind(trunk="bundled", patches="s3://bucket/patches")
    serve.run(app)

The module is imported only where Ray is installed (`pip install 'model_patch[serve]'`).
"""

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator

from model_patch.errors import ModelPatchError

FAST = {
    # HAProxy, which is a part of ray[serve], hands requests straight to replicas; Ray's own proxy, in Python, takes several
    # times as long for each request as a replica does.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own choice, 15, leaves a server hardly any time beside other programs.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # On a busy machine a process takes longer than 5 s to start.
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of a server that `running` starts; variables that are set already stay. Ray reads them when it is imported."""

for _name, _value in FAST.items():
    os.environ.setdefault(_name, _value)

try:
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.schema import LoggingConfig
except ImportError as error:
    raise ModelPatchError(
        f"serving needs Ray Serve, which is not installed ({error}): pip install 'model_patch[serve]'"
    ) from None

from model_patch.serving.server import TaskServer  # After Ray: it needs packages that come with it.

NAME = "model_patch"
"""Name of the application."""

MAX_ONGOING = 4096
"""Requests that a replica has at one moment. The engine's queue is what refuses requests; slow bodies should not."""

STORE = 100 * 2**20
"""Bytes of Ray's object store, through which no request goes."""

START_SECONDS = 300
"""After which a server that has replicas but does not answer is given up."""

LOGS = LoggingConfig(encoding="JSON", enable_access_log=False)
"""JSON lines; a line per request would cost more than its answer."""

PatchServer = serve.deployment(
    TaskServer,
    name="PatchServer",
    max_ongoing_requests=MAX_ONGOING,
    max_queued_requests=MAX_ONGOING,
    graceful_shutdown_timeout_s=30,
    health_check_period_s=2,
    health_check_timeout_s=10,
)
"""The deployment. `bind` takes the arguments of `TaskServer`."""


@contextlib.contextmanager
def running(
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    grpc_port: int = 0,
    replicas: int = 1,
    address: str = "",
    **options,
) -> Iterator[None]:
    """Starts Ray, if it does not run, and the application; within the context it serves. At its end requests are finished.

    Args:
        host: address to listen on; replicas listen there, too, on ports of their own.
        port: HTTP port.
        grpc_port: gRPC port on each machine with replicas; 0 for none.
        replicas: processes that answer.
        address: address of a Ray cluster to run on, such as `auto`; by default this process starts one of its own.
        **options: options of `TaskServer`.

    Raises:
        ModelPatchError: the application does not start; the reason is in the log.
    """
    with tempfile.TemporaryDirectory(prefix="model_patch-metrics-") as metrics:
        environment = {"PROMETHEUS_MULTIPROC_DIR": metrics, "TF_CPP_MIN_LOG_LEVEL": "2"}
        if address:
            ray.init(address, logging_level=logging.WARNING)
        else:
            cores = max(os.cpu_count() or 1, replicas)
            # Not one that happens to run here.
            ray.init(
                "local",
                include_dashboard=False,
                num_cpus=cores,
                object_store_memory=STORE,
                logging_level=logging.WARNING,
            )
        try:
            with contextlib.suppress(TimeoutError):  # Of a slow machine; what counts is `_wait_for` below.
                serve.start(
                    proxy_location=ProxyLocation.EveryNode,
                    http_options=HTTPOptions(host=host, port=port),
                    logging_config=LOGS,
                )
            app = PatchServer.options(
                num_replicas=replicas,
                logging_config=LOGS,
                ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": environment}},
            ).bind(**options, grpc_address=f"{host}:{grpc_port}" if grpc_port else "")
            try:
                serve.run(app, name=NAME)
            except RuntimeError as error:
                raise ModelPatchError(f"the server does not start: {error}") from None
            _wait_for(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/healthz")
            yield
        finally:
            serve.shutdown()
            ray.shutdown()


def _wait_for(url: str):
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise ModelPatchError(f"{url} does not answer ({error}): see the log") from None
            time.sleep(0.1)


def run_until_signalled(**options):
    """Serves until SIGTERM or Ctrl-C, then finishes what it has accepted. Arguments and errors as `running`."""
    ended = threading.Event()
    with running(**options):
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray, as it starts, sets handlers that end the process at once.
            signal.signal(number, lambda *_: ended.set())
        host, port = options.get("host", "127.0.0.1"), options.get("port", 8501)
        print(f"serving on http://{host}:{port}", flush=True)
        ended.wait()
        print("finishing", flush=True)
