"""The band that rounding predicts for the difference of two results of one operation.

    variance = predicted_variance(values, sensitivity, sides)
    judge(a, b, variance, level, epsilon)       # the largest deviation, and how large rounding lets it be

A result y of m roundings and of sums of n terms, given exact inputs, has the error variance

    V u^2 m (y^2 + S) + V u'^2 n (y^2 / 3 + S / 6)

where S is the variance of y when inputs and parameters are changed by relative amounts of variance 1, u the unit
roundoff of the side's format and u' that of its sums (float32 where u is larger: low precision is taken to be
accumulated in float32). The second term is that of a sum taken one term after another, whose partial sums form a
bridge from 0 to y: the square root of n, not n, because roundings are as good as independent (Higham & Mary 2019, SIAM
J. Sci. Comput. 41, A2815). V = 0.18 is the variance of a rounding to nearest in units of u^2: 1/3 of a uniform error,
times the mean of 1/s^2 over significands s in [1, 2) that are distributed as 1/s. Two sides add their variances.

An operator that is neither a product nor plain arithmetic (a normalization, a softmax, erf) counts as `STEP` roundings,
of results as large as the tensor's on average: it has steps inside that may cancel. Where u is larger than that of
float32, terms that kernels are known to add up in the format itself (a convolution's window; the examples in a
parameter's gradient) count with u in place of u'.

Where a layer has several operators, the rounding of one may be amplified by the next: (h + 100) - mean(h + 100). How
far it moves the layer's results is measured (`noise.moves`), and `judge_sizes` adds it to what the variance explains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import scipy.special
import torch
from torch import Tensor

ROUNDING = 1 / 8 / math.log(2)
"""Variance of the relative error of one rounding to nearest, in units of u^2."""

SUMS = 2.0**-24
"""Unit roundoff of sums in a format of less precision."""

INDEPENDENT = 16
"""Values of a slice that count as independent, at most: roundings share causes."""

MARGIN = 1.5
"""Width of the band over that of normal errors: roundings have longer tails, and some kernels more of them."""

STEP = 16
"""Roundings that one of the other operators is worth: it has steps inside, and functions that cancel."""

AMPLIFIED = 2.0
"""Ratio from which roundings inside of a layer move values by more than chance makes of a variance predicted right."""

MOVED = 2.0
"""Width of the band over the moves of a few runs, which are too large by 1 / sqrt(ROUNDING / 2), and differ."""

MANY = 1e6
"""Degrees of freedom that are as good as infinitely many."""

LARGEST = 1024
"""Slices or values whose sizes are kept; to sort more of them takes as long as a layer's own work."""

PRIOR = 4
"""Draws that the mean of a whole tensor is worth beside those of one of its slices."""


@dataclass(frozen=True)
class Work:
    """The work that one call of a module does itself, its children apart.

    Attributes:
        roundings: matrix products, additions and the like, each of which rounds its results once.
        steps: other operators, which have several roundings each and may cancel (1 + erf, 1 - tanh^2).
        products: terms of all its sums together; of a result of k values each is a sum of products / k terms.
        terms: terms of each sum, at least.
    """

    roundings: int = 0
    steps: int = 0
    products: int = 0
    terms: float = 1.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.roundings + other.roundings, self.steps + other.steps,
            self.products + other.products, max(self.terms, other.terms),
        )  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """The largest deviation of a tensor from another, relative to the root mean square of the other.

    Attributes:
        error: root mean square of the difference, over the slice where it is largest in units of its band; infinite
            where one side alone is not finite.
        band: how large that may be.
        ulps: largest difference of a value, in units in the last place of the coarser format; of a value below the
            tensor's root mean square, at the latter.
    """

    error: float
    band: float
    ulps: float

    @property
    def size(self) -> float:
        """The error in units of the band; beyond 1 rounding does not explain it."""
        return 0.0 if self.error == 0 else self.error / self.band if self.band > 0 else math.inf


class Spread:
    """Second moment of a tensor's changes, as a product of its means over the slices of each axis.

    Args:
        independent: whether the values of one draw are; else a slice has no more to say than one of them.
    """

    def __init__(self, *, independent: bool = True) -> None:
        self._independent = independent
        self._draws = 0
        self._means: list[Tensor] = []

    def add(self, change: Tensor) -> None:
        """Count one draw of changes; those that are not finite count as none."""
        square = torch.nan_to_num(change.double().square(), 0.0, 0.0, 0.0)
        axes = range(square.dim())
        means = [square.mean([k for k in axes if k != axis]) if square.dim() > 1 else square for axis in axes]
        means.append(square.mean())
        self._means = [a + b for a, b in zip(self._means, means, strict=True)] if self._draws else means
        self._draws += 1

    def variance(self, shape: torch.Size) -> Tensor | float:
        """Per value, up to broadcasting; 0 where nothing was drawn."""
        if not self._draws:
            return 0.0
        *axes, whole = (mean / self._draws for mean in self._means)
        variance = whole
        for axis, mean in enumerate(axes):
            count = self._count(shape, axis)
            share = ((PRIOR * whole + count * mean) / (PRIOR + count) / whole).nan_to_num(0.0)
            variance = variance * share.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        return variance

    def _count(self, shape: torch.Size, axis: int) -> float:
        return self._draws * (math.prod(shape) / max(shape[axis], 1) if self._independent else 1.0)

    def freedom(self, shape: torch.Size) -> float:
        """Degrees of freedom of the variance of a value, at least."""
        return PRIOR + min((self._count(shape, axis) for axis, size in enumerate(shape) if size > 1), default=MANY)


def predicted_variance(
    values: Tensor, sensitivity: Tensor | float, sides: Iterable[tuple[float, Work]], *, tiny: float = 0.0,
    rounded: float = 0.0,
) -> Tensor:  # fmt: skip
    """Variance of the difference of two results that only rounding separates.

    Args:
        values: the results, any shape.
        sensitivity: their variance under relative changes of variance 1 of inputs and parameters.
        sides: unit roundoff of each side, and the work of its call.
        tiny: largest spacing of subnormal values among the sides' formats.
        rounded: terms of a sum that are added up in the format itself, where it has less precision than float32.
    """
    square = values.double().square()
    results, bridges = square + sensitivity, square / 3 + sensitivity / 6
    cancelling = results + results.nan_to_num(0.0, 0.0, 0.0).mean()
    total = torch.full_like(square, tiny**2)
    for u, work in sides:
        terms = max(work.terms, work.products / max(values.numel(), 1))
        roundings = work.roundings or int(work.steps == 0)
        sums = terms * min(u, SUMS) ** 2 + (min(terms, rounded) * u**2 if u > SUMS else 0.0)
        total += ROUNDING * (u**2 * (roundings * results + STEP * work.steps * cancelling) + sums * bridges)
    return total


def judge(
    a: Tensor, b: Tensor, variance: Tensor, level: float, epsilon: float, *, freedom: float = MANY, slices: bool = True
) -> Judgement:
    """Hold the difference of two tensors against its predicted variance.

    The deviation is looked for in single values, in every slice along every axis and in the whole: a wrong weight is
    one output feature of all examples, a wrong example one slice of the batch. Each kind of slice has the limit of F
    at its share of the level, with at most `INDEPENDENT` degrees of freedom over those of the variance.

    Args:
        a: any shape.
        b: the same shape; the reference of relative sizes.
        variance: of each difference.
        level: probability of a value beyond the band, where only rounding separates the two.
        epsilon: spacing of the coarser format at 1.
        freedom: degrees of freedom of the variances, which are estimated.
        slices: whether values of a slice are independent, so that slices are looked at.
    """
    a, b = a.double(), b.double()
    difference, scale = _difference(a, b), _scale(b, variance)
    usual = _limit(level, 1, 1, freedom) * math.sqrt(_mean(variance)) / scale
    if not difference.numel() or not bool(difference.any()):
        return Judgement(0.0, usual, 0.0)
    if not bool(difference.isfinite().all()):
        return Judgement(math.inf, usual, math.inf)
    at = torch.frexp(b.abs().clamp(min=scale).nan_to_num(0.0, 0.0, 0.0))[1]
    ulps = float((difference / torch.ldexp(torch.full_like(b, epsilon), at - 1)).max())
    square = difference.square()
    worst = max(
        _deviations(square, variance.nan_to_num(0.0, 0.0, 0.0), level, freedom, slices), key=lambda pair: _ratio(*pair)
    )
    return Judgement(worst[0] / scale, worst[1] / scale, ulps)


def sizes(change: Tensor) -> list[Tensor]:
    """Root mean squares of a change over its slices along each axis, over the whole, and of single values.

    The `LARGEST` of each kind, from large to small. They stand for each other: which of them rounding moves far is
    another each time.
    """
    return [_largest(each).sqrt() for each in _means(change.square())]


def judge_sizes(
    a: Tensor, b: Tensor, variance: Tensor, moves: Sequence[Tensor], level: float, *, freedom: float = MANY,
    slices: bool = True,
) -> Judgement:  # fmt: skip
    """Hold the sizes of the differences of two tensors against those of moves that rounding makes.

    Where a layer's operators cancel, or rounding decides on which side of a kink a value lies, few values may differ by
    very much. Up to twice as many slices or values as were moved so far may differ `MOVED` times so far, beside what
    the variance explains.

    Args:
        a: any shape.
        b: the same shape; the reference of relative sizes.
        variance: of each difference, as `predicted_variance` has it.
        moves: the `sizes` of moves; infinite where rounding decides whether a value is finite.
        level: as in `judge`.
        freedom: as in `judge`.
        slices: as in `judge`.

    Returns:
        The error and the band that are the largest in units of each other; for want of a place, no ulps.
    """
    a, b = a.double(), b.double()
    scale, found = _scale(b, variance), sizes(_difference(a, b).nan_to_num(math.inf, math.inf))
    bands = _bands(variance, moves, level, freedom)
    if not bool(found[-1].any()):
        return Judgement(0.0, _rms(bands[-1].square()) / scale, 0.0)
    worst = max(
        (_worst(*each) for each in list(zip(found, bands, strict=True))[None if slices else -1 :]),
        key=lambda pair: _ratio(*pair),
    )
    return Judgement(worst[0] / scale, worst[1] / scale, 0.0)


def amplified(variance: Tensor, moves: Sequence[Tensor], level: float, *, freedom: float = MANY) -> bool:
    """Tell whether rounding moves values much farther than their variance tells; arguments as in `judge_sizes`."""
    limit = _limit(level / len(moves), max(variance.numel(), 1), 1, freedom)
    usual = _largest(variance.nan_to_num(0.0, 0.0, 0.0).flatten()).sqrt()
    return bool((MOVED * moves[-1] > AMPLIFIED * limit * usual).any())


def _bands(variance: Tensor, moves: Sequence[Tensor], level: float, freedom: float) -> list[Tensor]:
    bands = []
    for means, moved in zip(_means(variance.nan_to_num(0.0, 0.0, 0.0)), moves, strict=True):
        size = min(variance.numel() // max(means.numel(), 1), INDEPENDENT)
        limit = _limit(level / len(moves), max(means.numel(), 1), size, freedom)
        usual = limit**2 * _largest(means)
        bands.append((usual + (MOVED * moved.double()).square()).sqrt())
    return bands


def _worst(errors: Tensor, bands: Tensor) -> tuple[float, float]:
    among = bands[torch.arange(len(errors), device=bands.device) // 2]
    place = int(torch.where((errors == 0) | among.isinf(), 0.0, errors / among).argmax())
    return (0.0 if among[place].isinf() else float(errors[place])), float(among[place])


def _difference(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b).abs()


def _scale(b: Tensor, variance: Tensor) -> float:
    return _rms(b[b.isfinite()].square()) or math.sqrt(_mean(variance)) or 1.0


def _deviations(
    square: Tensor, variance: Tensor, level: float, freedom: float, slices: bool
) -> Iterable[tuple[float, float]]:
    """Error and band of the worst slice of each kind."""
    means = list(zip(_means(square), _means(variance), strict=True))[None if slices else -1 :]
    for errors, variances in means:
        size = square.numel() // errors.numel()
        limit = _limit(level / len(means), errors.numel(), min(size, INDEPENDENT), freedom)
        place = int((errors / variances).nan_to_num(0.0).argmax())
        yield math.sqrt(errors[place]), limit * math.sqrt(variances[place])


def _largest(values: Tensor) -> Tensor:
    return values.topk(min(LARGEST, len(values))).values


def _means(values: Tensor) -> list[Tensor]:
    """Over the slices along each axis, over the whole, and each value."""
    axes = [axis for axis in range(values.dim()) if values.shape[axis] > 1]
    kinds = [[k for k in axes if k != axis] for axis in axes] if len(axes) > 1 else []
    return [values.mean(over).flatten() if over else values.flatten() for over in (*kinds, axes, [])]


def _limit(level: float, slices: int, size: int, freedom: float) -> float:
    """Standard deviations that the root mean square of the worst of many slices stays within."""
    return MARGIN * math.sqrt(float(scipy.special.fdtri(size, freedom, 1 - level / slices)))


def _ratio(error: float, band: float) -> float:
    return error / band if band else math.inf if error else 0.0


def _mean(values: Tensor) -> float:
    return float(values[values.isfinite()].mean()) if bool(values.isfinite().any()) else 0.0


def _rms(squares: Tensor) -> float:
    return math.sqrt(float(squares.mean())) if squares.numel() else 0.0
