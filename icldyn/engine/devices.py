"""Devices, cores and memory of this machine."""

import itertools
import os
from pathlib import Path

import jax


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers() -> list[jax.Device]:
    """One entry for every local accelerator, or one for every core of the CPU."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return devices
    return [d for _, d in zip(range(max(cores(), len(devices))), itertools.cycle(devices), strict=False)]


def default_block(batch: int) -> int:
    """Seeds in one program. An accelerator wants many; on a CPU core 8 to 64, at about 1024 prompts in flight.

    Measured in benchmarks/README.md. 64 seeds of batch 32 are faster still, but take 128 seeds to occupy two cores.
    """
    if jax.default_backend() != "cpu":
        return 1024
    fitting = 1024 // batch
    return max(8, min(64, 1 << max(fitting, 1).bit_length() - 1))


def memory(device: jax.Device) -> int | None:
    """Bytes that programs on this device may take in all; on a CPU, those of the machine or of its control group."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return stats.get("bytes_limit")
    limits = []
    try:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        pass
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits, default=None)
