"""The environment that made numbers: versions, code, machine, device.

Two runs whose `identity` agrees give bit-identical rows; the rest of the fingerprint is for the reader.

    here = fingerprint("cpu")
    here["torch"]                 # '2.13.0+cpu'
    differences(stored, here)     # ('torch 2.9.0 -> 2.13.0+cpu',)
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from depthgauge import version

# ruff: noqa: PLC0415 - a machine is described without torch where torch has nothing to say
Fingerprint = dict[str, str | int | float | None]

_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "mlxtend")
# The entries of `identity`. Cores, memory and kernel change no number: work is cut by the grid alone. Nor does the
# commit: `source` covers the code.
_DECISIVE = ("depthgauge", "source", "python", *_LIBRARIES, "device", "cpu", "simd", "threads")
_INDEX = re.compile("[0-9]{1,4}")  # of a device
_SEPARATE = ("models", "reports", "studies", "cli", "results.py")


class DeviceError(ValueError):
    """Missing device; the message names those of this machine."""


def cores() -> int:
    """CPU cores that this process may use: its affinity, and no more than its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_control_group("cpu.max") or "max 1").split()
    return allowed if quota == "max" else max(1, min(allowed, round(int(quota) / int(period))))


def memory_gib() -> float:
    """Memory of the machine, or of the container where that is less, in GiB."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _control_group("memory.max") or "max"
    return round((installed if limit == "max" else min(installed, int(limit))) / 2**30, 1)


def available_memory() -> float:
    """Bytes that processes may still take without swapping, of the machine and of the container; pages of files count.

    All of its memory, where the system does not tell what is free (other systems than Linux).
    """
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024.0 * int(told["MemAvailable"].split()[0])
    except (OSError, LookupError, ValueError):
        return memory_gib() * 2**30
    limit, used = _control_group("memory.max") or "max", _control_group("memory.current")
    if limit == "max" or used is None:
        return free
    kept = dict(line.split() for line in (_control_group("memory.stat") or "").splitlines())
    return min(free, max(0.0, float(limit) - float(used) + float(kept.get("inactive_file", 0))))


def _control_group(name: str) -> str | None:
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None


def device(wanted: str = "auto") -> str:
    """The device as torch spells it: `cpu`, `cuda` or `cuda:1`; `auto` is `cuda` where there is one.

    Raises:
        DeviceError: no such device, or no such spelling.
    """
    if wanted == "cpu":
        return wanted
    kind, _, index = wanted.partition(":")
    if kind not in {"auto", "cuda"} or (kind == "auto" and index) or (":" in wanted and not _INDEX.fullmatch(index)):
        near = difflib.get_close_matches(wanted, ("cpu", "cuda", "cuda:0", "auto"), n=1, cutoff=0.4)
        raise DeviceError(
            f"there is no device {wanted!r}; "
            + (f"did you mean {near[0]!r}?" if near else "use cpu, cuda, cuda:1 or auto")
        )
    import torch

    if not torch.cuda.is_available():
        if kind == "auto":
            return "cpu"
        raise DeviceError(f"device {wanted!r} needs CUDA, which torch {torch.__version__} does not find here; use cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise DeviceError(f"there is no device {wanted!r}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return "cuda" if kind == "auto" else wanted


def has(need: str, device: str) -> bool:
    """Tell whether a run on a device has what it needs.

    Args:
        need: `cuda`, or `cuda:2`: two CUDA devices; empty: nothing.
        device: `cuda` stands for all CUDA devices, `cuda:1` for that one.
    """
    kind, _, count = need.partition(":")
    if not need or not device.startswith(kind) or ":" in device:
        return not need or (device.startswith(kind) and int(count or 1) == 1)
    import torch

    return torch.cuda.device_count() >= int(count or 1)


@cache
def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def source() -> str:
    """SHA-256 of the code that makes numbers: every module of the package but those of `reports`, `cli` and `results`.

    Raises:
        RuntimeError: no file of the package is there.
    """
    modules = _modules()
    if not modules:
        raise RuntimeError("depthgauge's own files are not there: it is being installed anew; run again then")
    return digest(modules)


def digest(files: Mapping[str, Path]) -> str:
    """SHA-256 of named files: of their names and contents, wherever they lie."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _modules() -> dict[str, Path]:
    """Dotted name -> file; the same names wherever the folders lie (checkout, wheel, editable install)."""
    root = Path(version.__file__).parent
    files = {f"depthgauge/{path.relative_to(root)}": path for path in root.rglob("*.py")}
    files = {name: path for name, path in files.items() if name.split("/")[1] not in _SEPARATE}
    for part in ("models", "studies"):
        spec = find_spec(f"depthgauge.{part}")
        for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
            files |= {f"depthgauge/{part}/{path.relative_to(folder)}": path for path in folder.rglob("*.py")}
    return files


@cache
def commit() -> str | None:
    """The git commit of the checkout that the package runs from, `+` added where files differ from it; or None."""
    here = Path(version.__file__).resolve()  # an editable install may be links into the checkout
    try:
        # A wheel inside somebody else's repository is not tracked there, and has no commit.
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "rev-parse", "HEAD") + (
            "+" if _git(here.parent, "status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    # The words are ours; git is found by PATH like every other tool of a developer.
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    return done.stdout.strip()


def identity(device: str = "cpu", threads: int = 1) -> Fingerprint:
    """Return the parts of this environment that stored numbers depend on.

    Args:
        device: as torch spells it (see `device`).
        threads: intra-op threads a worker, unless a study says otherwise.
    """
    import torch

    return {
        "depthgauge": version.__version__,
        "source": source(),
        "python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in _LIBRARIES},
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "cpu": _cpu(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
    }


def fingerprint(device: str = "cpu", threads: int = 1) -> Fingerprint:
    """Return a run's record of its environment: the `identity`, and further facts for a report's reader."""
    return {
        **identity(device, threads),
        "commit": commit(),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "system": platform.platform(),
    }


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> tuple[str, ...]:
    """List the differences of two fingerprints that change numbers: `torch 2.9.0 -> 2.13.0+cpu`, one entry a string."""
    pairs = ((name, before.get(name), now.get(name)) for name in _DECISIVE)
    return tuple(f"{name} {_brief(name, old)} -> {_brief(name, new)}" for name, old, new in pairs if old != new)


def _brief(name: str, value: object) -> str:
    return str(value)[:8] if name == "source" else str(value)
