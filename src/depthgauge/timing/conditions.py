"""The conditions of a measurement: threads, cores, clock rates, throttling."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# ruff: noqa: PLC0415 - a CPU is described without torch

Conditions = dict[str, str | int | float | None]

_CPU = Path("/sys/devices/system/cpu")


@contextmanager
def pinned(threads: int = 1, cores: frozenset[int] | None = None) -> Iterator[None]:
    """Run the block with this number of intra-op threads, on these cores where any are named.

    Raises:
        ValueError: fewer than one thread, or a core that this process may not use.
    """
    if threads < 1:
        raise ValueError(f"work takes at least one thread; got {threads}")
    import torch

    before = torch.get_num_threads()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores is not None and affinity is not None:
        if not cores or not cores <= affinity:
            raise ValueError(f"this process may use cores {sorted(affinity)}; got {sorted(cores)}")
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if cores is not None and affinity is not None:
            os.sched_setaffinity(0, affinity)


def conditions(device: str = "cpu") -> Conditions:
    """Read the machine's state just now; None for each fact that it does not report.

    `threads`, `cores` that the process may use, `load` (runnable processes, mean of a minute), `governor`, `mhz` and
    `mhz_max` of the first core, `throttled` (how often cores were, since start); on CUDA `sm_mhz`, `sm_mhz_max`,
    `memory_mhz`, `celsius`, `throttled_by` from NVML.
    """
    import torch

    state: Conditions = {
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "governor": _text(_CPU / "cpu0/cpufreq/scaling_governor"),
        "mhz": _mhz(_CPU / "cpu0/cpufreq/scaling_cur_freq"),
        "mhz_max": _mhz(_CPU / "cpu0/cpufreq/cpuinfo_max_freq"),
        "throttled": _throttled(),
    }
    return state | (_cuda(device) if device.startswith("cuda") else {})


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _mhz(path: Path) -> float | None:
    khz = _text(path)
    return int(khz) / 1000 if khz and khz.isdigit() else None


def _throttled() -> int | None:
    counts = [_text(path) for path in _CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    events = [int(count) for count in counts if count and count.isdigit()]
    return sum(events) if events else None


# NVML's reasons that mean: slower than asked (nvmlClocksEventReasons in nvml.h).
_SLOWED = {0x4: "power", 0x8: "hardware", 0x20: "temperature", 0x40: "temperature", 0x80: "power"}


def _cuda(device: str) -> Conditions:
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]  # where it is installed
    except ImportError:
        return {"sm_mhz": None, "throttled_by": None}
    import torch

    index = torch.device(device).index or 0
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        reasons = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return {
            "sm_mhz": int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            "sm_mhz_max": int(pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            "memory_mhz": int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
            "celsius": int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            "throttled_by": ", ".join(sorted({why for bit, why in _SLOWED.items() if reasons & bit})) or "nothing",
        }
    except pynvml.NVMLError:
        return {"sm_mhz": None, "throttled_by": None}
