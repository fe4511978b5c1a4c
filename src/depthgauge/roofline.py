"""A device's measured limits: matrix products a second by number format, bytes a second.

    top = ceilings("cpu")
    top.fraction(flops=2e9, moved=1e7, seconds=0.05)      # how near a piece of work comes to the roofline
    top.ridge("float32")                                  # the intensity below which memory is the limit

The roofline (Williams, Waterman and Patterson 2009, Commun. ACM 52(4), 65): work of F operations and B bytes takes at
least max(F / peak, B / bandwidth). Both ceilings are measured on this machine with this torch, not read from a data
sheet: the best of several repetitions, since a ceiling is what the device does when nothing disturbs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

from depthgauge import environment, seeding, timing
from depthgauge.seeding import Purpose

# ruff: noqa: PLC0415 - a roofline that was measured elsewhere is read without torch

_ENOUGH = 0.01  # seconds of one product: a larger one runs no faster
_MEMORY, _CACHED = 1 << 27, 1 << 17  # bytes copied: far beyond a CPU's last level, and within the second


@dataclass(frozen=True)
class Ceilings:
    """The roofline of a device.

    Attributes:
        device: as torch spells it.
        threads: intra-op threads that a CPU was given.
        flops: number format -> operations a second of the best square matrix product, of any layout; `tf32` is
            float32 on CUDA with its products rounded to TF32.
        bandwidth: bytes a second, read and written together, of a copy far larger than the caches.
        cached_bandwidth: the same of a copy of 128 KiB, which stays in the caches.
    """

    device: str
    threads: int
    flops: Mapping[str, float]
    bandwidth: float
    cached_bandwidth: float

    def peak(self, dtype: str) -> float:
        """Operations a second at most.

        Raises:
            LookupError: that format's products were not measured; the message names those that were.
        """
        if dtype not in self.flops:
            raise LookupError(f"no ceiling for {dtype!r} on {self.device}; there is {', '.join(self.flops)}")
        return self.flops[dtype]

    def ridge(self, dtype: str = "float32") -> float:
        """Operations a byte at which both ceilings take the same time: below it memory is the limit."""
        return self.peak(dtype) / self.bandwidth

    def attainable(self, intensity: float, dtype: str = "float32") -> float:
        """Operations a second at most, as a function of operations a byte: the roofline itself."""
        return min(self.peak(dtype), intensity * self.bandwidth)

    def least(self, flops: float, moved: float, dtype: str = "float32", *, cached: bool = False) -> float:
        """Least seconds for a number of operations and bytes."""
        bandwidth = self.cached_bandwidth if cached else self.bandwidth
        return max(flops / self.peak(dtype) if flops else 0.0, moved / bandwidth)

    def fraction(
        self, flops: float, moved: float, seconds: float, dtype: str = "float32", *, cached: bool = False
    ) -> float:
        """Return a piece of work's fraction of the roofline: its least time over the time it took.

        Above 1 where caches or fusion saved traffic that `moved` counts, or where work does without operations that
        `flops` counts.

        Args:
            flops: operations.
            moved: bytes read and written.
            seconds: the time it took.
            dtype: the format whose products set the ceiling.
            cached: hold the bytes against the caches' bandwidth, for work whose tensors stay there.

        Raises:
            ValueError: a time that is none.
            LookupError: no ceiling for that format.
        """
        if not seconds > 0:
            raise ValueError(f"a duration is positive; got {seconds!r}")
        return self.least(flops, moved, dtype, cached=cached) / seconds


def ceilings(device: str = "cpu") -> Ceilings:
    """The roofline of a device with as many intra-op threads as torch has now; measured once a process.

    Raises:
        DeviceError: there is no such device.
    """
    import torch

    device = environment.device(device)
    return _measured(device, torch.get_num_threads() if device == "cpu" else 1)


@cache
def _measured(device: str, threads: int) -> Ceilings:
    with _float32("highest"):
        flops = {name: _products(device, name) for name in ("float64", "float32", "bfloat16", "float16")}
    if device != "cpu":
        with _float32("high"):
            flops["tf32"] = _products(device, "float32")
    large = _MEMORY if device == "cpu" else 8 * _MEMORY
    return Ceilings(device, threads, flops, _copies(device, large), _copies(device, _CACHED))


def _products(device: str, dtype: str) -> float:
    """Operations a second of the best square product; sizes double until one takes long enough.

    Each size is tried as it is and with either factor transposed, as the products of a linear layer's step are: without
    16-bit arithmetic some processors are several times faster where the summed dimension is contiguous.
    """
    import torch

    best, n = 0.0, 256
    while True:
        generator = seeding.generator(n, Purpose.OPERANDS)
        left, right = (torch.randn(n, n, generator=generator).to(device, getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(left)
        layouts = ((left, right), (left, right.t()), (left.t(), right))
        seconds = min(_best(partial(torch.mm, a, b, out=out), device) for a, b in layouts)
        best = max(best, 2 * n**3 / seconds)
        if seconds > _ENOUGH or n >= 8192:
            return best
        n *= 2


def _copies(device: str, size: int) -> float:
    import torch

    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: str) -> float:
    """Seconds of the best round; slow work is not repeated for long."""
    return timing.measure(work, device, rounds=5, warmup=0.0, least=2e-3).best


@contextmanager
def _float32(precision: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
