"""What a server counts, for Prometheus."""

import os
import re
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MAX_LABELS = 100
"""Tasks that are counted by name: the first ones requested. All others are counted together."""

OTHER = "(other)"

_LIVE = re.compile(r"gauge_live\w*_(\d+)\.db")


class Metrics:
    """Counts requests, batches and tasks.

    Where `PROMETHEUS_MULTIPROC_DIR` is set, `text` sums over all processes that write there, ended ones included.
    """

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        self._shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        prefix = "model_patch"
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
        self._requests = Counter(
            f"{prefix}_requests", "Requests.", ("interface", "method", "status"), registry=registry
        )
        self._of_task = Counter(f"{prefix}_task_requests", "Requests by task.", ("task",), registry=registry)
        self._seconds = Histogram(
            f"{prefix}_request_seconds", "Time to answer.", ("interface",), buckets=seconds, registry=registry
        )
        self.batch_size = Histogram(
            f"{prefix}_batch_size", "Images in a batch.", buckets=[2**i for i in range(10)], registry=registry
        )
        gauges = {
            "queue": "Images that wait.",
            "tasks_in_memory": "Tasks in memory.",
            "tasks": "Tasks in the folder.",
        }
        self._gauges = [
            Gauge(f"{prefix}_{name}", text, registry=registry, multiprocess_mode="livesum")
            for name, text in gauges.items()
        ]
        self._named: set[str] = set()

    def request(self, interface: str, method: str, status: int, task: str, seconds: float):
        """Counts a request.

        Args:
            interface: `http` or `grpc`.
            method: HTTP or gRPC method.
            status: HTTP status.
            task: its name; empty if it named none that there is.
            seconds: that it took.
        """
        method = method if method in ("GET", "POST", "PUT", "DELETE", "Predict") else "other"
        self._requests.labels(interface, method, status).inc()
        self._seconds.labels(interface).observe(seconds)
        if task:
            if task not in self._named and len(self._named) < MAX_LABELS:
                self._named.add(task)
            self._of_task.labels(task if task in self._named else OTHER).inc()

    def show(self, *values: int):
        """Sets the gauges: images that wait, tasks in memory, tasks in the folder."""
        for gauge, value in zip(self._gauges, values, strict=True):
            gauge.set(value)

    def text(self) -> bytes:
        """Returns all of it in Prometheus' text format."""
        if not self._shared:
            return generate_latest(self._registry)
        for file in Path(self._shared).iterdir():
            match = _LIVE.fullmatch(file.name)
            if match and not Path(f"/proc/{match[1]}").exists():
                mark_process_dead(int(match[1]), self._shared)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self._shared)
        return generate_latest(registry)
