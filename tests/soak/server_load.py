"""What a server under load needs beside it: its process, clients that compare answers, changes of tasks, hostile requests."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from model_patch import Patch

ROOT = Path(__file__).parents[2]
TASKS = int(os.environ.get("TASKS", "1000"))
CHANGES = 100
CLIENTS = 64
TOLERANCE = 1e-3
"""Largest difference of a logit from the task's own model, whose sums run in another order."""


class Patches:
    """Patch files with values of their own each, and what their own models say of one image."""

    def __init__(self, own, image: bytes):
        self._own, self._first = own, own.patch()
        pixels = np.asarray(Image.open(io.BytesIO(image)))
        self._pixels = np.asarray(own.task.preprocessing(pixels))[None]

    def contents(self, seed: int) -> bytes:
        spread = np.random.default_rng(seed)
        values = {k: (v * spread.uniform(0.8, 1.2, v.shape)).astype("float32") for k, v in self._first.values.items()}
        return dataclasses.replace(self._first, values=values).to_bytes("float16")

    def expected(self, file: Path) -> np.ndarray:
        self._own.load(Patch.load(file))
        return np.asarray(self._own.model.predict_on_batch(self._pixels))[0]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def process(*command, log: Path):
    """Starts a server and waits until it serves."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as stderr:
        started = subprocess.Popen(
            [sys.executable, *map(str, command)], env=env, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        try:
            assert any(line.startswith("serving on") for line in started.stdout), log.read_text()[-3000:]
            yield started.pid
            started.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(60)
        finally:
            started.kill()


@contextlib.contextmanager
def serving(folder: Path, log: Path, **flags):
    """Yields the port, and the process, of scripts/serve.py."""
    port = free_port()
    token = log.with_suffix(".token")
    token.write_text("secret")
    flags = {"trunk": "bundled", "patches": folder, "port": port, "token_file": token, "max_tasks": 1000, **flags}
    with process(ROOT / "scripts/serve.py", *(f"--{name}={value}" for name, value in flags.items()), log=log) as pid:
        yield port, pid


def replicas(pid: int) -> dict[int, int]:
    """Returns the replicas of a server and the bytes that each holds in memory, by process."""
    parents, found = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    for each in parents:
        above = each
        while above in parents and above != pid:
            above = parents[above]
        with contextlib.suppress(OSError):
            if above == pid and b"ServeReplica" in Path(f"/proc/{each}/cmdline").read_bytes():
                pages = int(Path(f"/proc/{each}/statm").read_text().split()[1])
                found[each] = pages * os.sysconf("SC_PAGE_SIZE")
    return found


def request(name: str, body: bytes) -> bytes:
    head = f"POST /v1/models/{name}:predict HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Load:
    """Clients that ask one question after the other, and what became of them.

    Attributes:
        seconds: seconds of each answered request.
        failed: statuses of the others, and of requests that were sent again (`retries`).
        wrong: names whose answer was none of those expected.
    """

    def __init__(self, port: int, image: bytes, expected: dict, *, retries: int = 0):
        self._port, self._expected, self._retries = port, expected, retries
        self._body = json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}]}).encode()
        self.clear()

    def clear(self):
        self.seconds: list[float] = []
        self.failed: list[int] = []
        self.retried = 0
        self.wrong: list[str] = []

    async def _client(self, name_of, until: float, checks: bool):
        reader = writer = None
        while time.monotonic() < until:
            name, start = name_of(), time.perf_counter()
            for attempt in range(self._retries + 1):
                try:
                    if not writer:
                        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    writer.write(request(name, self._body))
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                    body = await reader.readexactly(length)
                    status = int(head[9:12])
                except (OSError, EOFError, ValueError):
                    writer, status = None, 0
                if status == 200 or attempt == self._retries:
                    break
                self.retried += 1
                await asyncio.sleep(0.1 * (attempt + 1))
            if status != 200:
                self.failed.append(status)
                continue
            self.seconds.append(time.perf_counter() - start)
            if checks:
                logits = np.array(json.loads(body)["predictions"][0]["logits"])
                if min(np.abs(logits - each).max() for each in self._expected[name]) > TOLERANCE:
                    self.wrong.append(name)
        if writer:
            writer.close()

    async def run(self, seconds: float, names, *, clients: int = CLIENTS, checks: bool = True) -> float:
        """Asks for so long; returns answers per second."""
        self.clear()
        chosen = random.Random(0)
        until = time.monotonic() + seconds
        start = time.perf_counter()
        await asyncio.gather(*(self._client(lambda: chosen.choice(names), until, checks) for _ in range(clients)))
        return len(self.seconds) / (time.perf_counter() - start)

    def percentile(self, part: float) -> float:
        return float(np.percentile(self.seconds, part)) * 1000

    def require_clean(self):
        assert not self.failed and not self.wrong, (self.failed[:5], self.wrong[:5])


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
        return response.read()


def in_memory(port: int) -> int:
    lines = get(port, "/metrics").decode().splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("model_patch_tasks_in_memory")))


def wait_until_loaded(port: int):
    start = time.perf_counter()
    while in_memory(port) < min(TASKS, 1000):
        time.sleep(0.2)
    return time.perf_counter() - start


def cpu_seconds(name: str) -> float:
    """Returns the processor time of all processes of a name, in seconds."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if name in (stat.parent / "cmdline").read_bytes().decode(errors="replace"):
                total += sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


async def change(port: int, folder: Path, patches: Patches, expected: dict, seconds: float, number: int = CHANGES):
    """Replaces tasks, adds some, and removes those again; half of it by files, half by requests."""
    loop = asyncio.get_running_loop()

    def put(name, contents):
        url = f"http://127.0.0.1:{port}/v1/models/{name}"
        urllib.request.urlopen(
            urllib.request.Request(url, contents, {"Authorization": "Bearer secret"}, method="PUT"), timeout=60
        ).close()

    def place(name, contents):
        (folder / ".new").write_bytes(contents)
        (folder / ".new").rename(folder / f"{name}.safetensors")

    def one(i: int, seed: int):
        name = f"task{i}"
        contents = patches.contents(seed)
        (folder / ".expected").write_bytes(contents)
        expected[name] = [*expected[name][-1:], patches.expected(folder / ".expected")]
        (put if i % 2 else place)(name, contents)
        (put if i % 2 else place)(f"added{i}", contents)

    def remove(i: int):
        if i % 2:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/models/added{i}",
                headers={"Authorization": "Bearer secret"},
                method="DELETE",
            )
            urllib.request.urlopen(request, timeout=60).close()
        else:
            (folder / f"added{i}.safetensors").unlink()

    for i in range(number):
        await loop.run_in_executor(None, one, i, 10_000 + random.randrange(10**6))
        await asyncio.sleep(seconds / number / 2)
        await loop.run_in_executor(None, remove, i)
        await asyncio.sleep(seconds / number / 2)


def hostile(image: bytes):
    """Yields requests that deserve an error, by kind: raw bytes, and whether the connection is cut after them."""
    encoded = base64.b64encode(image)
    good = json.dumps({"instances": [{"b64": encoded.decode()}]}).encode()
    spread = random.Random(1)

    def bomb(width: int, height: int) -> bytes:
        file = io.BytesIO()
        Image.new("1", (8, 8)).save(file, "PNG")
        contents = bytearray(file.getvalue())
        contents[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        contents[29:33] = zlib.crc32(contents[12:29]).to_bytes(4, "big")
        return json.dumps({"instances": [{"b64": base64.b64encode(bytes(contents)).decode()}]}).encode()

    def flat(width: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (width, width)).save(file, "PNG")
        return json.dumps({"instances": [{"b64": base64.b64encode(file.getvalue()).decode()}]}).encode()

    bombs = [bomb(2**30, 2**30), bomb(50_000, 50_000), flat(5_000)]
    names = [
        "..%2f..%2fetc%2fpasswd",
        "../../etc/passwd",
        "%00",
        "%ff%fe",
        "ta\u00dfk".encode("utf-8").decode("latin1"),
        "task0%2f..",
        "task0/../task1",
        "a" * 4000,
        "%E2%98%82",
        ":predict",
        "task0;ls",
        "{}",
        "%0d%0aX: y",
    ]
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 50_000,
        b'{"instances": "x"}',
        b'{"instances": [1]}',
        b'{"instances": [[[[1, 2, "3"]]]]}',
        b'{"instances": [{"b64": "%%%"}]}',
        b'{"instances": [{"b64": {}}]}',
        b'{"instances": [{"b64": "' + encoded[:-60] + b'"}]}',
        b"\xff" * 1000,
        b'{"instances": [' + b"9" * 5000 + b"]}",
        b'{"instances": [[[[1e999, 0, 0]]]]}',
        b'{"instances": ' + b"[" * 400 + b"]" * 400 + b"}",
    ]
    while True:
        kind = spread.choice(["name", "body", "bomb", "cut", "bytes", "large", "method", "flip"])
        if kind == "name":
            yield kind, request(spread.choice(names), good), False
        elif kind == "body":
            yield kind, request("task0", spread.choice(bodies)), False
        elif kind == "bomb":
            yield kind, request("task0", spread.choice(bombs)), False
        elif kind == "cut":
            whole = request("task0", good)
            yield kind, whole[: spread.randrange(1, len(whole) - 1)], True
        elif kind == "bytes":
            yield kind, spread.randbytes(spread.randrange(1, 2000)) + b"\r\n\r\n", True
        elif kind == "large":
            yield (
                kind,
                f"POST /v1/models/task0:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n{{".encode(),
                True,
            )
        elif kind == "method":
            yield (
                kind,
                f"{spread.choice(['PUT', 'DELETE', 'BREW', 'PATCH'])} /v1/models/task0 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx".encode(),
                False,
            )
        else:
            damaged = bytearray(image)
            damaged[spread.randrange(8, 33)] ^= 1 << spread.randrange(8)
            yield (
                kind,
                request(
                    "task0", json.dumps({"instances": [{"b64": base64.b64encode(bytes(damaged)).decode()}]}).encode()
                ),
                False,
            )
