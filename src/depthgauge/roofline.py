"""A device's measured limits: matrix products a second by number format, bytes a second by the memory they lie in.

    top = ceilings("cpu")
    top.fraction(flops=2e9, moved=1e7, seconds=0.05)      # how near one operator comes to the roofline
    top.least_of(counted)                                 # least seconds of all the operators that `counting` listed
    top.ridge("float32")                                  # the intensity below which memory is the limit

The roofline (Williams, Waterman and Patterson 2009, Commun. ACM 52(4), 65): work of F operations and B bytes takes at
least max(F / peak, B / bandwidth). Both ceilings are measured on this machine with this torch, not read from a data
sheet: the best of many sizes and of several repetitions, since a ceiling is what the device does when nothing disturbs
it. Bandwidth depends on where the tensors lie, so that it is measured by size: work that touches few bytes may find
them in a cache, and is held against the cache's bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from depthgauge import environment, float32, seeding, timing
from depthgauge.seeding import Purpose

if TYPE_CHECKING:
    from depthgauge.operations import Operation

# ruff: noqa: PLC0415 - a roofline that was measured elsewhere is read without torch

_ENOUGH, _LONGEST = 0.01, 0.3  # seconds of one product: larger ones are tried while they are faster; never
_ROUNDS = 4
_GAIN = 1.02  # a rate that grows by less has stopped growing
_SIDES = (*(side for power in range(6, 13) for side in (1 << power, 3 << power - 1)), 8192)  # 64, 96, 128, ...
_LEAST, _MEMORY = 1 << 14, 1 << 28  # bytes touched, from the first level of caches to far beyond the ones of one core


@dataclass(frozen=True)
class Ceilings:
    """The roofline of a device.

    Attributes:
        device: as torch spells it.
        threads: intra-op threads that a CPU was given.
        flops: number format -> operations a second of the best square matrix product, of any size and layout; `tf32` is
            float32 on CUDA with its products rounded to TF32.
        bandwidth: bytes a second, read and written together, of the largest size: 256 MiB, 2 GiB on CUDA. A last level
            of caches that holds as much is what was measured then.
        cached_bandwidth: the same of the size that is fastest.
        levels: (bytes of memory that are touched, bytes a second), ascending; empty where they were not measured.
    """

    device: str
    threads: int
    flops: Mapping[str, float]
    bandwidth: float
    cached_bandwidth: float
    levels: tuple[tuple[int, float], ...] = ()

    def peak(self, dtype: str) -> float:
        """Operations a second at most.

        Raises:
            LookupError: that format's products were not measured; the message names those that were.
        """
        if dtype not in self.flops:
            raise LookupError(f"no ceiling for {dtype!r} on {self.device}; there is {', '.join(self.flops)}")
        return self.flops[dtype]

    @property
    def fastest(self) -> float:
        """Bytes a second at most, wherever they lie."""
        return max(self.bandwidth, self.cached_bandwidth)

    def bandwidth_within(self, memory: float) -> float:
        """Bytes a second at most of work that touches so many bytes of memory: the best of no smaller measured size."""
        below = [size for size, _ in self.levels if size <= memory]
        return max((rate for size, rate in self.levels if below and size >= below[-1]), default=self.fastest)

    def ridge(self, dtype: str = "float32") -> float:
        """Operations a byte at which both ceilings take the same time: below it memory is the limit."""
        return self.peak(dtype) / self.bandwidth

    def attainable(self, intensity: float, dtype: str = "float32") -> float:
        """Operations a second at most, as a function of operations a byte: the roofline itself."""
        return min(self.peak(dtype), intensity * self.bandwidth)

    def least(self, flops: float, moved: float, dtype: str = "float32", *, within: float | None = None) -> float:
        """Least seconds for a number of operations and bytes; arguments as in `fraction`."""
        bandwidth = self.bandwidth_within(moved / 2 if within is None else within)
        return max(flops / self.peak(dtype) if flops else 0.0, moved / bandwidth)

    def least_of(self, operations: Iterable[Operation], dtype: str = "float32") -> float:
        """Least seconds of operators one after the other, each at the ceiling of its own size.

        Args:
            operations: what `operations.counting` has listed.
            dtype: the format whose products set the ceiling of float32 operators: `tf32` where those are rounded.

        Raises:
            LookupError: no ceiling for an operator's format.
        """
        return sum(
            self.least(each.flops, each.bytes, dtype if each.dtype == "float32" else each.dtype) for each in operations
        )

    def fraction(
        self, flops: float, moved: float, seconds: float, dtype: str = "float32", *, within: float | None = None
    ) -> float:
        """Return one operator's fraction of the roofline: its least time over the time it took.

        Above 1 where a kernel does without operations that `flops` counts (Winograd's convolution), or a library
        multiplies faster than its square matrix product. Caches alone do not make it so: what could lie in one is held
        against that one. Several operators together touch the same memory again; `least_of` takes them one by one.

        Args:
            flops: operations.
            moved: bytes read and written.
            seconds: the time it took.
            dtype: the format whose products set the ceiling.
            within: bytes of memory that it touches. By default half of `moved`, the fewest that one operator can: it
                reads and writes each place once at most. Infinity: memory beyond the caches.

        Raises:
            ValueError: a time that is none.
            LookupError: no ceiling for that format.
        """
        if not seconds > 0:
            raise ValueError(f"a duration is positive; got {seconds!r}")
        return self.least(flops, moved, dtype, within=within) / seconds


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
    with float32.multiplied(tf32=False):
        flops = {name: _products(device, name) for name in ("float64", "float32", "bfloat16", "float16")}
    if device != "cpu":
        with float32.multiplied(tf32=True):
            flops["tf32"] = _products(device, "float32")
    levels = tuple(_levels(device, _MEMORY if device == "cpu" else 8 * _MEMORY))
    return Ceilings(device, threads, flops, levels[-1][1], max(rate for _, rate in levels), levels)


def _products(device: str, dtype: str) -> float:
    """Operations a second of the best square product, of sides that grow while that is worth it.

    Each size is tried as it is and with either factor transposed, as the products of a linear layer's step are: without
    16-bit arithmetic some processors are several times faster where the summed dimension is contiguous. A layout that
    takes twice as long as another is not tried in larger sizes.
    """
    import torch

    best, layouts = 0.0, ["plain", "right", "left"]
    for n in _SIDES:
        generator = seeding.generator(n, Purpose.OPERANDS)
        left, right = (torch.randn(n, n, generator=generator).to(device, getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(left)
        factors = {"plain": (left, right), "right": (left, right.t()), "left": (left.t(), right)}
        works = [partial(torch.mm, *factors[name], out=out) for name in layouts]
        seconds = dict(zip(layouts, _best(works, device), strict=True))
        least = min(seconds.values())
        layouts = [name for name in layouts if seconds[name] <= 2 * least]
        rate = 2 * n**3 / least
        grows, best = rate > _GAIN * best, max(best, rate)
        if least > _LONGEST or (least > _ENOUGH and not grows):
            break
    return best


def _levels(device: str, largest: int) -> Iterator[tuple[int, float]]:
    """Bytes touched, and bytes a second of the fastest operator that only moves them; sizes double."""
    import torch

    size = _LEAST
    while size <= largest:
        one = torch.ones(size // 4, device=device)
        half, other = one.tensor_split(2)
        works = [partial(half.copy_, other), partial(half.mul_, other), partial(one.mul_, 1.0)]
        moved = (size, 3 * size / 2, 2 * size)
        yield size, max(total / seconds for total, seconds in zip(moved, _best(works, device), strict=True))
        size *= 2


def _best(works: Sequence[Callable[[], object]], device: str) -> list[float]:
    """Seconds of each work's best round, in turns."""
    clock = timing.clock(timing.Device.named(device))
    return [float(seconds) for seconds in timing.rounds_in_turns(clock, list(works), _ROUNDS).min(axis=0)]
