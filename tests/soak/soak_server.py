"""The server under load, as a process with clients beside it: rates, changes, kills, memory, starts, hostile requests.

    pytest -s tests/soak/soak_server.py                      # prints the table of docs/server.md; about 40 minutes
    SECONDS=5 TASKS=100 pytest -s tests/soak/soak_server.py  # a shorter form

Wrong and lost answers are errors. Rates and times are printed: they depend on the machine.
"""

import asyncio
import base64
import contextlib
import dataclasses
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.serve", reason="needs the extra `serve`")

from model_patch import Patch, Task, bind, open_trunk

ROOT = Path(__file__).parents[2]
TASKS = int(os.environ.get("TASKS", "1000"))
SECONDS = float(os.environ.get("SECONDS", "10"))
FLAT_SECONDS = float(os.environ.get("FLAT_SECONDS", "600"))
HOSTILE = int(os.environ.get("HOSTILE", "10000"))
CHANGES = 100
CLIENTS = 64
GROWTH = 0.03
TOLERANCE = 1e-3
"""Largest difference of a logit from the task's own model, whose sums run in another order."""


@pytest.fixture(scope="session")
def own():
    """A bound task on the bundled trunk: the model that answers are compared with."""
    trunk = open_trunk("bundled")
    return bind(trunk, Task("any", tuple("abcdefghij"), trunk.preprocessing), "scale_bias+last")


@pytest.fixture(scope="session")
def image() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype("uint8")).save(file, "PNG")
    return file.getvalue()


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


@pytest.fixture(scope="session")
def patches(own, image):
    return Patches(own, image)


@pytest.fixture(scope="session")
def folder(patches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    for i in range(TASKS):
        (folder / f"task{i}.safetensors").write_bytes(patches.contents(i))
    return folder


@pytest.fixture(scope="session")
def expected(patches, folder):
    return {f"task{i}": [patches.expected(folder / f"task{i}.safetensors")] for i in range(TASKS)}


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
        seconds: of each answered request.
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


def test_rates(folder, image, expected, tmp_path):
    """Mixed tasks against one, and against the naive server, in turns."""
    names = list(expected)
    naive_port = free_port()
    with (
        serving(folder, tmp_path / "server.log") as (port, _),
        process(ROOT / "tests/soak/naive_server.py", "bundled", folder, naive_port, log=tmp_path / "naive.log"),
    ):
        wait_until_loaded(port)
        load, naive = Load(port, image, expected), Load(naive_port, image, expected)
        rates: dict[str, list[float]] = {"mixed": [], "one": [], "naive": []}
        used = {"ServeReplica:model_patch": 0.0, "haproxy": 0.0}
        for _ in range(4):
            before, start = {each: cpu_seconds(each) for each in used}, time.process_time()
            rates["mixed"].append(asyncio.run(load.run(SECONDS, names)))
            load.require_clean()
            own = time.process_time() - start
            requests = len(load.seconds)
            used = {each: 1000 * (cpu_seconds(each) - before[each]) / requests for each in used}
            print(
                f"mixed: p50 {load.percentile(50):.0f} ms, p99 {load.percentile(99):.0f} ms; CPU ms per request: "
                f"{', '.join(f'{name} {ms:.2f}' for name, ms in used.items())}, clients {1000 * own / requests:.2f}"
            )
            rates["one"].append(asyncio.run(load.run(SECONDS, names[:1])))
            load.require_clean()
            rates["naive"].append(asyncio.run(naive.run(SECONDS, names)))
            naive.require_clean()
        for name, each in rates.items():
            print(f"{name}: {', '.join(f'{rate:.0f}' for rate in each)} requests/s")
        lines = get(port, "/metrics").decode().splitlines()
        count, total = (
            next(float(x.split()[-1]) for x in lines if x.startswith(f"model_patch_batch_size_{what}"))
            for what in ("count", "sum")
        )
        print(f"mean batch {total / count:.1f}")
        mixed, one, naively = (np.median(each) for each in rates.values())
        print(f"mixed / one {mixed / one:.2f}, mixed / naive {mixed / naively:.2f}")


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


def test_changes(folder, image, patches, expected, tmp_path):
    """A hundred tasks are replaced, a hundred are added and removed."""
    with serving(folder, tmp_path / "server.log", max_tasks=TASKS + 10) as (port, _):
        wait_until_loaded(port)
        load, names = Load(port, image, expected), list(expected)
        for _ in range(2):
            asyncio.run(load.run(SECONDS, names))
            load.require_clean()
            quiet, before = load.percentile(99), load.percentile(50)
            rate = len(load.seconds) / SECONDS

            async def both():
                await asyncio.gather(
                    load.run(2 * SECONDS, names), change(port, folder, patches, expected, 1.5 * SECONDS)
                )

            asyncio.run(both())
            load.require_clean()
            print(
                f"p50 {before:.0f} to {load.percentile(50):.0f} ms, p99 {quiet:.0f} to {load.percentile(99):.0f} ms "
                f"({load.percentile(99) / quiet:.2f}), rate {rate:.0f} to {len(load.seconds) / 2 / SECONDS:.0f}/s"
            )
        time.sleep(5)
        newest = {name: each[-1:] for name, each in expected.items()}
        after = Load(port, image, newest)
        asyncio.run(after.run(SECONDS, names))
        after.require_clean()


def test_a_killed_replica(folder, image, expected, tmp_path):
    """With two replicas nothing is lost for clients that try again, and both are back soon."""
    with serving(folder, tmp_path / "server.log", replicas=2) as (port, pid):
        load, names = Load(port, image, expected, retries=20), list(expected)
        back = None

        async def kill():
            nonlocal back
            await asyncio.sleep(SECONDS / 4)
            first = replicas(pid)
            os.kill(next(iter(first)), signal.SIGKILL)
            start = time.monotonic()
            while not back:
                await asyncio.sleep(0.5)
                log = (tmp_path / "server.log").read_text(errors="replace")
                if len(replicas(pid)) == 2 and log.count("ready in") >= 3:
                    back = time.monotonic() - start

        async def both():
            await asyncio.gather(load.run(max(60.0, 4 * SECONDS), names), asyncio.wait_for(kill(), 240))

        asyncio.run(both())
        assert not load.failed and not load.wrong
        print(
            f"{len(load.seconds)} requests, {load.retried} sent again, none lost; two replicas again after {back:.0f} s"
        )


def test_memory_stays_flat(folder, image, patches, expected, tmp_path):
    with serving(folder, tmp_path / "server.log", max_tasks=max(TASKS // 2, 10)) as (port, pid):
        load, names = Load(port, image, expected), list(expected)
        memory: list[int] = []
        answered = 0

        async def watch(until: float):
            while time.monotonic() < until:
                memory.append(sum(replicas(pid).values()))
                await asyncio.sleep(FLAT_SECONDS / 100)

        for _ in range(2):
            asyncio.run(load.run(5, names))

        async def all_of():
            until = time.monotonic() + FLAT_SECONDS
            await asyncio.gather(
                load.run(FLAT_SECONDS, names), watch(until), change(port, folder, patches, expected, FLAT_SECONDS * 0.9)
            )

        asyncio.run(all_of())
        load.require_clean()
        answered += len(load.seconds)
        middle, end = (np.median(part) for part in (memory[len(memory) // 2 :][:10], memory[-10:]))
        print(
            f"{answered} requests in {FLAT_SECONDS:.0f} s, half of the tasks in memory; "
            f"{middle / 2**20:.0f} MiB in the middle, {end / 2**20:.0f} at the end"
        )
        assert end <= middle * (1 + GROWTH)


@pytest.mark.parametrize("number", [TASKS, 10 * TASKS])
def test_starts(number, folder, patches, tmp_path, image):
    """From the imports to readiness, and until as many tasks are in memory as fit."""
    for i in range(number):
        os.link(folder / f"task{i % TASKS}.safetensors", tmp_path / f"start{i}.safetensors")
    with serving(tmp_path, tmp_path / "server.log") as (port, _):
        loading = wait_until_loaded(port)
        (seconds,) = re.findall(r"ready in ([\d.]+) s", (tmp_path / "server.log").read_text())
        print(f"{number} patches: ready {seconds} s after the imports, full {loading:.1f} s later")


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
        import zlib

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


def test_hostile_requests(folder, image, expected, tmp_path):
    """Each gets an error, beside clients that get their answers, and slow ones that hold connections open."""
    with serving(folder, tmp_path / "server.log") as (port, pid):
        wait_until_loaded(port)
        load, names = Load(port, image, expected), list(expected)
        made = itertools.islice(hostile(image), HOSTILE)
        answers: dict[str, dict[int, int]] = {}
        memory: list[int] = []

        async def attack():
            for kind, contents, cut in made:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(contents)
                status = 0
                with contextlib.suppress(OSError, EOFError, TimeoutError, ValueError, asyncio.IncompleteReadError):
                    await writer.drain()
                    if cut:
                        writer.write_eof()
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 60)
                    status = int(head[9:12])
                counts = answers.setdefault(kind, {})
                counts[status] = counts.get(status, 0) + 1
                writer.close()
                if sum(sum(each.values()) for each in answers.values()) % max(1, HOSTILE // 20) == 0:
                    memory.append(sum(replicas(pid).values()))

        async def slow(until):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/models/task0:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            with contextlib.suppress(OSError):
                while time.monotonic() < until:
                    writer.write(b"{")
                    await writer.drain()
                    await asyncio.sleep(1)
            writer.close()

        async def all_of():
            attackers = asyncio.gather(*(attack() for _ in range(16)))
            idle = [asyncio.create_task(slow(time.monotonic() + 3600)) for _ in range(32)]
            good = asyncio.create_task(load.run(SECONDS, names, clients=4))
            await attackers
            await good
            for each in idle:
                each.cancel()
            await asyncio.gather(*idle, return_exceptions=True)

        asyncio.run(all_of())
        load.require_clean()
        for kind, counts in sorted(answers.items()):
            print(kind, dict(sorted(counts.items())))
            allowed = {200} if kind == "flip" else set()
            assert all(
                400 <= status < 500 or status == 0 or status in allowed or status in (501, 503) for status in counts
            ), (kind, counts)
        print(f"memory {memory[len(memory) // 2] / 2**20:.0f} MiB in the middle, {memory[-1] / 2**20:.0f} at the end")
        asyncio.run(load.run(2, names))
        load.require_clean()
        assert memory[-1] <= memory[len(memory) // 2] * (1 + GROWTH)
