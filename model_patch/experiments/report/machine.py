"""The machine that figures were measured on."""

import os
import platform
from pathlib import Path

import keras


def machine() -> dict[str, str | int | float]:
    """Returns processor, cores, memory in GiB, accelerators, system, and how busy it is: 1-minute load per core; 0 is idle.

    Without Linux's /proc, the processor is that of `platform`, and the memory is omitted.
    """
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    names = [line.partition(":")[2].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    kilobytes = [int(line.split()[1]) for line in _lines(meminfo) if line.startswith("MemTotal")]
    cores = num_cores()
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores,
        **({"memory_gib": round(kilobytes[0] / 2**20)} if kilobytes else {}),
        "accelerators": ", ".join(_accelerators()) or "none",
        "system": platform.platform(),
        "load_per_core": round(os.getloadavg()[0] / cores, 2),
    }


def _accelerators() -> list[str]:
    if keras.backend.backend() == "jax":  # On its machine there may be no TensorFlow.
        import jax

        return [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    import tensorflow as tf

    return [
        tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
        for device in tf.config.list_physical_devices()
        if device.device_type != "CPU"
    ]


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
