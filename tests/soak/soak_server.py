"""The server under load, as a process with clients beside it: rates, changes, kills, memory, starts, hostile requests.

    pytest -s tests/soak/soak_server.py                      # prints the table of docs/server.md; about 40 minutes
    SECONDS=5 TASKS=100 pytest -s tests/soak/soak_server.py  # a shorter form

Wrong and lost answers are errors. Rates and times are printed: they depend on the machine.
"""

import asyncio
import contextlib
import io
import itertools
import os
import re
import signal
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.serve", reason="needs the extra `serve`")

from model_patch import Task, bind, open_trunk
from tests.soak.server_load import (
    ROOT,
    TASKS,
    Load,
    Patches,
    change,
    cpu_seconds,
    free_port,
    get,
    hostile,
    process,
    replicas,
    serving,
    wait_until_loaded,
)

SECONDS = float(os.environ.get("SECONDS", "10"))
FLAT_SECONDS = float(os.environ.get("FLAT_SECONDS", "600"))
HOSTILE = int(os.environ.get("HOSTILE", "10000"))
GROWTH = 0.03


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
