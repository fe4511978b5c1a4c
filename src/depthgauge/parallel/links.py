"""A link between devices: alpha seconds a message and beta seconds a byte, given, named or fitted.

    link = Link.parse("nvlink")                       # or "pcie", "100gbe", "5e-6,1e-10"
    link = fit(sizes, seconds, devices=2)             # measured all-reduces, see `depthgauge.parallel.collectives`
    link.allreduce(4e9, devices=64)                   # an Estimate in seconds
    link.allreduce(4e3, devices=64, algorithm="doubling")

The formulas are those of `depthgauge.theory.allreduce_time`. A fitted link knows how far measured sizes lie off its
line (`misfit`), and its predictions hold that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depthgauge import theory
from depthgauge.formats.arguments import whole
from depthgauge.parallel.line import fit_line
from depthgauge.parallel.naming import ParallelError
from depthgauge.stats import Estimate, laws
from depthgauge.stats.location import FEWEST
from depthgauge.theory import Algorithm, Collective
from depthgauge.theory.arguments import non_negative, reals

Floats = NDArray[np.float64]

_TAIL = 0.025  # of a 95 % interval

_NCCL = "NCCL 2.30.7"
PRESETS: dict[str, tuple[float, float, str]] = {
    "nvlink": (
        3.4e-6,
        1 / (18 * 20.6e9),
        f"{_NCCL}: an H100's 18 links of 20.6 GB/s (topo.h, SM90_NVLINK_BW), 3.4 us (tuning.cc, NVLINK, ring, simple)",
    ),
    "pcie": (
        5.7e-6,
        1 / 12e9,
        f"{_NCCL}: PCIe 3.0 x16 at 12 GB/s (topo.h, PCI_BW), 5.7 us (tuning.cc, PCI, ring, simple)",
    ),
    "100gbe": (
        14e-6,
        8 / 100e9,
        f"100 Gbit/s by definition; {_NCCL}: 14 us (tuning.cc, NET, ring, simple)",
    ),
}
"""Seconds a message, seconds a byte, and where they are from: what NCCL assumes of hardware, not what yours does."""


@dataclass(frozen=True)
class Link:
    """Cost of a message between two devices: alpha + bytes beta seconds.

    Attributes:
        name: as in a table.
        alpha: seconds a message.
        beta: seconds a byte; 1 / beta is the bandwidth of one direction.
        misfit: standard deviation of ln(measured / fitted) over the sizes that it was fitted to; 0 where it was given.
    """

    name: str
    alpha: Estimate
    beta: Estimate
    misfit: float = 0.0

    def allreduce(self, bytes: float, devices: int, algorithm: Algorithm = "ring") -> Estimate:  # noqa: A002 - as theory has it
        """Seconds of an all-reduce with a 95 % interval; see `time`."""
        return self.time("all_reduce", bytes, devices, algorithm)

    def reduce_scatter(self, bytes: float, devices: int, algorithm: Algorithm = "ring") -> Estimate:  # noqa: A002 - same
        """Seconds of a reduce-scatter of as many bytes on each device; see `time`."""
        return self.time("reduce_scatter", bytes, devices, algorithm)

    def all_gather(self, bytes: float, devices: int, algorithm: Algorithm = "ring") -> Estimate:  # noqa: A002 - same
        """Seconds of an all-gather of as many bytes in all; see `time`."""
        return self.time("all_gather", bytes, devices, algorithm)

    def time(
        self,
        collective: Collective,
        bytes: float,  # noqa: A002 - as theory has it
        devices: int,
        algorithm: Algorithm = "ring",
    ) -> Estimate:
        """Seconds of a collective, with the interval in which 95 % of measured medians are expected.

        Its ends are those of alpha and beta together, which is wider than needed where both terms count, and, in
        quadrature on the log scale, Student's t times `misfit`. How the time depends on the number of devices is the
        formula's: a link that was fitted at one number knows nothing of another's departure from it.

        Args:
            collective: `all_reduce`, `reduce_scatter` or `all_gather`.
            bytes: of the whole buffer.
            devices: p; a single one takes no time.
            algorithm: `ring` or `doubling`.

        Raises:
            ValueError: as in `theory.allreduce_time`.
        """
        messages, share = theory.collective_cost(collective, devices, algorithm)
        size = non_negative("bytes", bytes)
        value, low, high = (
            messages * a + share * size * b
            for a, b in zip(self.alpha.ends, self.beta.ends, strict=True)
        )  # fmt: skip
        n = min(self.alpha.n, self.beta.n)
        scatter = -laws.student_quantile(_TAIL, n - 2 if n > 2 else math.inf) * self.misfit if self.misfit else 0.0
        what = f"{algorithm} {collective.replace('_', '-')} of {devices} devices by alpha and beta, 95 %"
        return Estimate(value, _below(value, low, scatter), _above(value, high, scatter), n, what, "s")

    @property
    def bounded(self) -> bool:
        """Tell whether its figures have intervals, be they of no width: not where it was fitted to too few sizes."""
        return self.alpha.has_interval and self.beta.has_interval

    @property
    def bandwidth(self) -> Estimate:
        """Bytes a second of one direction, 1 / beta: what the bus bandwidth of a ring tends to."""
        value, low, high = (math.inf if end == 0 else 1 / end for end in self.beta.ends)
        return Estimate(value, high, low, self.beta.n, self.beta.method, "B/s")

    def __str__(self) -> str:
        """`nvlink: 3.4 us a message, 0.0027 ns a byte (370.8 GB/s)`, with intervals where there are any."""
        a, b, rate = (_shown(*each) for each in ((self.alpha, 1e6), (self.beta, 1e9), (self.bandwidth, 1e-9)))
        if not self.beta.value and self.beta.high:
            rate = f"at least {1e-9 * self.bandwidth.low:.4g}"
        off = f"; misfit {_whole(100 * self.misfit)} % over {self.alpha.n} sizes" if self.misfit > 0 else ""
        return f"{self.name}: {a} us a message, {b} ns a byte ({rate} GB/s){off}"

    @staticmethod
    def parse(text: str) -> Link:
        """A link by name, or from `alpha,beta`: seconds a message and seconds a byte.

        Raises:
            ParallelError: there is none of that name, and the text is no pair of numbers >= 0.
        """
        name = str(text).strip()
        if name.lower() in PRESETS:
            alpha, beta, source = PRESETS[name.lower()]
            return Link(name.lower(), _given(alpha, source, "s"), _given(beta, source, "s/B"))
        try:
            pair = [float(part) for part in name.split(",")]
        except ValueError:
            pair = []
        if len(pair) != 2 or not all(math.isfinite(number) and number >= 0 for number in pair):
            raise ParallelError(
                f"{text!r} is no link: name one of {', '.join(PRESETS)}, or give alpha,beta, the seconds a message and"
                " the seconds a byte, such as 5e-6,1e-10"
            )
        return Link(name, _given(pair[0], "given", "s"), _given(pair[1], "given", "s/B"))


def fit(
    sizes: ArrayLike,
    seconds: ArrayLike,
    devices: ArrayLike,
    algorithm: Algorithm = "ring",
    *,
    collective: Collective = "all_reduce",
    name: str = "fitted",
) -> Link:
    """Fit alpha and beta to measured durations: least squares of the logarithms, so that each size has one weight.

    All durations of one size and number of devices are one observation, their median. How far these lie off the line,
    more than by chance or not, is `misfit`, and the intervals come from it: profiles of the sum of squares at Student's
    t of k - 2 degrees of freedom, k the number of conditions. An end of 0 says that the sizes cannot tell the term from
    none. Their coverage stands in docs/method.md.

    Args:
        sizes: bytes of the whole buffer.
        seconds: durations; sizes, seconds and devices are broadcast, so that (rounds, sizes) goes with (sizes,).
        devices: number of devices, from 2.
        algorithm: the one that was used, as far as is known; at one number of devices the fit is as good by any.
        collective: what was measured.
        name: of the link.

    Raises:
        ValueError: a number that is not positive, shapes that do not fit, or sizes that cannot tell alpha from beta.
    """
    messages, sent, logs = _conditions(sizes, seconds, devices, (collective, algorithm))
    k = len(logs)
    tolerance = laws.student_quantile(_TAIL, k - 2) ** 2 / (k - 2) if k > 2 else 0.0
    line = fit_line(messages, sent, logs, tolerance)
    method = f"{algorithm} {collective.replace('_', '-')}, least squares of ln seconds at {k} sizes"
    method += ", profile interval, 95 %" if k >= FEWEST else f", points only: {k} of at least {FEWEST} sizes"
    alpha, beta = (
        Estimate(value, *((low, high) if k >= FEWEST else (math.nan, math.nan)), k, method, unit)
        for (value, low, high), unit in ((line.alpha, "s"), (line.beta, "s/B"))
    )
    return Link(name, alpha, beta, math.sqrt(line.squares / (k - 2)) if k > 2 else math.nan)


def _conditions(
    sizes: ArrayLike, seconds: ArrayLike, devices: ArrayLike, law: tuple[Collective, Algorithm]
) -> tuple[Floats, Floats, Floats]:
    """Messages, bytes sent and ln of the median seconds, for each size and number of devices.

    Raises:
        ValueError: as in `fit`.
    """
    size, second, device = (
        reals(name, x) for name, x in (("sizes", sizes), ("seconds", seconds), ("devices", devices))
    )
    try:
        size, second, device = (each.ravel() for each in np.broadcast_arrays(size, second, device))
    except ValueError:
        shapes = f"{size.shape}, {second.shape} and {device.shape}"
        raise ValueError(f"sizes, seconds and devices have shapes {shapes}, which do not fit") from None
    for name, values in (("sizes", size), ("seconds", second)):
        if not len(values) or not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} are positive finite numbers, one at least")
    pairs, which = np.unique(np.column_stack([size, device]), axis=0, return_inverse=True)
    costs = [
        theory.collective_cost(law[0], whole("devices", int(p) if float(p).is_integer() else float(p), 2), law[1])
        for _, p in pairs
    ]
    messages, shares = np.array(costs, dtype=np.float64).T
    logs = np.array([np.median(np.log(second[which.ravel() == place])) for place in range(len(pairs))])
    sent = shares * pairs[:, 0]
    if np.allclose(sent / messages, sent[0] / messages[0], rtol=1e-9):
        raise ValueError(
            "durations of one size cannot tell seconds a message from seconds a byte: measure several sizes"
        )
    return messages, sent, logs


def _below(value: float, low: float, scatter: float) -> float:
    """The lower end, a known distance and a scatter apart from the value on the log scale."""
    if low == 0:
        return 0.0
    return value * math.exp(-math.hypot(math.log(value / low), scatter))


def _above(value: float, high: float, scatter: float) -> float:
    if value == 0:  # and yet the upper end may not be
        return high * math.exp(scatter)
    return value * math.exp(math.hypot(math.log(high / value), scatter))


def _given(value: float, source: str, unit: str) -> Estimate:
    return Estimate(value, value, value, 0, source, unit)


def _whole(percent: float) -> str:
    return f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"


def _shown(estimate: Estimate, factor: float) -> str:
    value, low, high = (f"{factor * end:.4g}" for end in estimate.ends)
    return f"{value} [{low}, {high}]" if estimate.has_interval and estimate.low < estimate.high else value
