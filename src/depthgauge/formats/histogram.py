"""Exponent histograms, and the fractions of their values that a format loses.

    >>> gradients = np.float32([1e-9, 3e-8, 1e-6, 0.5])
    >>> fractions(ExponentHistogram.of(gradients), "fp16").under
    0.25
    >>> fractions(ExponentHistogram.of(gradients), "fp16", loss_scale=2**12).under
    0.0

A histogram of exponents is enough to answer this *exactly*, for every format below and every loss scale that is
a power of two: such a scale moves a value to another binade and leaves its significand as it is, so that a format's
limits always cut binades at the same few places (`EDGES`). The histogram counts the segments between these places.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depthgauge.formats.arguments import integers, kind, numbers, real
from depthgauge.formats.constants import Format, elementwise


@dataclass(frozen=True)
class Edge:
    """A place within every binade: a value 2^e (1 + f) has passed it if f > `fraction`, or f = `fraction` and `closed`.

    Attributes:
        fraction: f at the edge, 0 <= f < 1.
        closed: whether the edge itself belongs to the upper side.
    """

    fraction: Fraction
    closed: bool = True


def _ones(bits: int) -> Fraction:
    return 1 - Fraction(1, 2**bits)


# A format with m mantissa bits rounds up to its smallest normal value from f = 1 - 2^-m of the binade below, and
# beyond its largest value from f = 1 - 2^-(m+1) of the top binade; both are ties, which go to the even neighbour
# above. Two edges are open: a tie at half the smallest subnormal value goes to zero, and in e4m3fn, where the
# significand of 448 is even, the tie at 464 goes down. For float64, 1 - 2^-53 lies above every float64 value.
EDGES: tuple[Edge, ...] = (
    Edge(Fraction(0), closed=False),
    Edge(_ones(2)),
    Edge(Fraction(13, 16), closed=False),
    *(Edge(_ones(bits)) for bits in (3, 7, 8, 10, 11, 23, 24, 52)),
)
SEGMENTS = len(EDGES) + 1
_LAST_KEY = (1023 + 1074) * 16 + 15
_STARTS = np.array([0.0, *(float(edge.fraction) for edge in EDGES)])
_ENDS = np.array([0.0, *(float(edge.fraction) for edge in EDGES[1:]), 1.0])


@dataclass(frozen=True, eq=False)
class ExponentHistogram:
    """Counts of values in each segment of each binade; zeros and non-finite values are counted beside them.

    The non-empty cells stand in three arrays of equal length, sorted by exponent, then segment.

    Attributes:
        exponents: e of the cell: its values are 2^e (1 + f) in magnitude, 0 <= f < 1; subnormal values too are filed
            under their true exponent, down to -149 (float32) and -1074 (float64).
        segments: number of `EDGES` that its values have passed, 0 to 11; segment 0 holds the powers of two themselves.
        counts: values in the cell.
        zeros: values that are 0 or -0.
        positive_infinities: values that are inf.
        negative_infinities: values that are -inf.
        nans: values that are not a number.
    """

    exponents: NDArray[np.int64]
    segments: NDArray[np.int64]
    counts: NDArray[np.int64]
    zeros: int = 0
    positive_infinities: int = 0
    negative_infinities: int = 0
    nans: int = 0

    @classmethod
    def of(cls, values: ArrayLike) -> ExponentHistogram:
        """The histogram of an array or tensor of any shape; complex values count as their real and imaginary parts.

        This is the plain reference in float64 that the compiled kernels of `depthgauge.probe` are tested against.

        Raises:
            TypeError: values that are no numbers, masked ones, or a sparse or nested tensor.
        """
        array = numbers("values", values, imaginary=True)
        if np.iscomplexobj(array):
            array = np.stack([array.real, array.imag])
        with np.errstate(invalid="ignore"):  # a signalling NaN is no reason for a warning
            x = array.astype(np.float64).ravel()
        magnitude = np.abs(x[np.isfinite(x) & (x != 0)])
        significand, exponent = np.frexp(magnitude)
        fraction = 2 * significand - 1
        segment = np.zeros(len(magnitude), np.int64)
        for edge in EDGES:
            place = float(edge.fraction)
            segment += (fraction >= place) if edge.closed else (fraction > place)
        keys, counts = np.unique(cell_key(exponent.astype(np.int64) - 1, segment), return_counts=True)
        return cls.from_cells(
            keys,
            counts,
            zeros=int(np.count_nonzero(x == 0)),
            positive_infinities=int(np.count_nonzero(x == np.inf)),
            negative_infinities=int(np.count_nonzero(x == -np.inf)),
            nans=int(np.count_nonzero(np.isnan(x))),
        )

    @classmethod
    def from_cells(cls, keys: NDArray[Any], counts: NDArray[Any], **outside: int) -> ExponentHistogram:
        """A histogram from cell keys (see `cell_key`), each any number of times, and their counts.

        Raises:
            TypeError: keys or counts that are no whole numbers.
            ValueError: a key of no cell, a negative count, or not as many counts as keys.
        """
        keys, counts = integers("keys", keys, 0, _LAST_KEY), integers("counts", counts, 0)
        if keys.shape != counts.shape:
            raise ValueError(f"keys of shape {keys.shape} and counts of shape {counts.shape} do not belong together")
        distinct, place = np.unique(keys, return_inverse=True)
        total = np.zeros(len(distinct), np.int64)
        np.add.at(total, place, counts)
        exponents, segments = cell_of(distinct)
        return cls(exponents, segments, total, **outside)

    def __add__(self, other: ExponentHistogram) -> ExponentHistogram:
        if not isinstance(other, ExponentHistogram):
            return NotImplemented
        return ExponentHistogram.from_cells(
            np.concatenate([cell_key(self.exponents, self.segments), cell_key(other.exponents, other.segments)]),
            np.concatenate([self.counts, other.counts]),
            zeros=self.zeros + other.zeros,
            positive_infinities=self.positive_infinities + other.positive_infinities,
            negative_infinities=self.negative_infinities + other.negative_infinities,
            nans=self.nans + other.nans,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExponentHistogram):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        cells = (self.exponents.tobytes(), self.segments.tobytes(), self.counts.tobytes())
        return (*cells, self.zeros, self.positive_infinities, self.negative_infinities, self.nans)

    @staticmethod
    def sum(histograms: Iterable[ExponentHistogram]) -> ExponentHistogram:
        """All histograms in one; of none, the empty one."""
        if not isinstance(histograms, Iterable):
            raise TypeError(f"histograms is {kind(histograms)}, where several histograms were expected")
        empty = np.zeros(0, np.int64)
        return reduce(operator.add, histograms, ExponentHistogram(empty, empty, empty))

    @property
    def nonzero(self) -> int:
        """Finite values other than zero."""
        return int(self.counts.sum())

    @property
    def count(self) -> int:
        """All values: finite, infinite and not a number."""
        return self.nonzero + self.zeros + self.positive_infinities + self.negative_infinities + self.nans

    def by_exponent(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Exponents from the smallest to the largest without gaps, and the number of values in each binade."""
        if not len(self.exponents):
            return self.exponents, self.counts
        low = int(self.exponents[0])
        counts = np.bincount(self.exponents - low, weights=self.counts).astype(np.int64)
        return np.arange(low, low + len(counts)), counts


@dataclass(frozen=True)
class Fractions:
    """Fractions of a histogram's finite, nonzero values by their fate in a format; the four add up to one.

    Attributes:
        under: rounded to zero.
        subnormal: held, as subnormal values of the format, with fewer significant bits than it has.
        normal: held at the format's full precision.
        over: beyond the largest value: infinity, and in `float8_e4m3fn` NaN (or `max` where it saturates).
        n: the values these are fractions of; of none, all four are NaN.
    """

    under: float
    subnormal: float
    normal: float
    over: float
    n: int


def fractions(histogram: ExponentHistogram, fmt: str | Format, loss_scale: float = 1.0) -> Fractions:
    """The fractions of a histogram's finite, nonzero values that a format loses, holds as subnormals, or overflows.

    The values are taken times `loss_scale` (exactly), then rounded once to the format. Zeros and non-finite values
    are none of the format's doing and are left out of the denominator: a fraction of *all* values is this one times
    `n / histogram.count`.

    Exact where the loss scale is a power of two and, for float32 and float64 as the format too, the values carry no
    more bits than float64. Another loss scale moves the limits into the inside of a segment, whose values are
    then taken as evenly spread: the error is at most that one segment's share.

    Raises:
        ValueError: unknown format, a block format, or a loss scale that is not a positive finite number.
        TypeError: what is no histogram.
    """
    if not isinstance(histogram, ExponentHistogram):
        made = "ExponentHistogram.of(values)"  # type: ignore[unreachable]  # a user's code is not type-checked
        raise TypeError(f"histogram is {kind(histogram)}, where an ExponentHistogram was expected: give {made}")
    shares = cell_shares(histogram.exponents, histogram.segments, fmt, loss_scale)
    n = histogram.nonzero
    if not n:
        return Fractions(math.nan, math.nan, math.nan, math.nan, 0)
    under, subnormal, over = (float(share @ histogram.counts) / n for share in shares)
    normal = float((1 - shares[0] - shares[1] - shares[2]) @ histogram.counts) / n
    return Fractions(under, subnormal, normal, over, n)


def cell_key(exponents: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for a cell, 0 to 33,567: sorted like (exponent, segment), and within 16 bits.

    Raises:
        TypeError: exponents or segments that are no whole numbers.
        ValueError: such as no float64 has.
    """
    return (integers("exponents", exponents, -1074, 1023) + 1074) * 16 + integers("segments", segments, 0, SEGMENTS - 1)


def cell_of(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Exponent and segment of a `cell_key`; errors as in `ExponentHistogram.from_cells`."""
    keys = integers("keys", keys, 0, _LAST_KEY)
    return (keys >> 4) - 1074, keys & 15


def cell_shares(
    exponents: NDArray[np.int64], segments: NDArray[np.int64], fmt: str | Format, loss_scale: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For each cell, the shares of its values that come out as zero, as subnormals, and beyond the largest value.

    Each share is 0 or 1 but for the cell that a limit cuts at a loss scale that is no power of two; see `fractions`.
    """
    fmt = elementwise(fmt)
    exponents, segments = integers("exponents", exponents), integers("segments", segments, 0, SEGMENTS - 1)
    if exponents.shape != segments.shape:
        raise ValueError(f"exponents of shape {exponents.shape} and segments of shape {segments.shape} make no cells")
    number = real(loss_scale)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"a loss scale is a positive finite number, not {loss_scale!r}")
    mantissa, shift = math.frexp(number)
    scale, shift = 2 * mantissa, shift - 1
    lowest = math.frexp(fmt.smallest_subnormal)[1] - 1
    normal = math.frexp(fmt.smallest_normal)[1] - 1
    top = math.frexp(fmt.max)[1] - 1
    over_edge = Edge(_ones(fmt.mantissa_bits + 1)) if fmt.has_infinity else Edge(Fraction(13, 16), closed=False)
    nonzero = _beyond(exponents + shift, segments, lowest - 1, Edge(Fraction(0), closed=False), scale)
    full = _beyond(exponents + shift, segments, normal - 1, Edge(_ones(fmt.mantissa_bits)), scale)
    over = _beyond(exponents + shift, segments, top, over_edge, scale)
    return 1 - nonzero, nonzero - full, over


def _beyond(
    exponents: NDArray[np.int64], segments: NDArray[np.int64], exponent: int, edge: Edge, scale: float
) -> NDArray[np.float64]:
    """The share of each cell's values v for which v * scale lies beyond the edge of that binade; 1 <= scale < 2."""
    if scale == 1.0:
        passed = EDGES.index(edge) + 1 if edge in EDGES else SEGMENTS
        beyond: NDArray[np.bool_] = (exponents > exponent) | ((exponents == exponent) & (segments >= passed))
        return beyond.astype(np.float64)
    place = (1 + float(edge.fraction)) / scale
    at = exponent + place - 1 if place >= 1 else exponent - 1 + 2 * place - 1
    start, end = exponents + _STARTS[segments], exponents + _ENDS[segments]
    width = end - start
    inside: NDArray[np.float64] = np.divide(end - at, width, out=np.where(start > at, 1.0, 0.0), where=width > 0)
    return inside.clip(0.0, 1.0)
