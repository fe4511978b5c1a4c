"""Durations alpha A + beta B fitted on the log scale, alpha and beta at least 0, with profile intervals.

For a given ratio rho = alpha / beta the best ln beta is a mean, b(rho), and the sum of squares is
S(rho) + k (ln beta - b(rho))^2. So the (alpha, beta) whose sum of squares is at most a limit are, at each rho, those
with ln beta within ((limit - S(rho)) / k)^(1/2) of b(rho), and one scan over rho finds the ends of alpha and beta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float, float]  # value, low, high

REACH = math.log(1e6)  # a term that is so many times below the other at every condition is none
_COARSE, _FINE, _ZOOMS, _HALVINGS = 401, 201, 8, 40


@dataclass(frozen=True)
class Line:
    """A fitted line.

    Attributes:
        alpha: value and ends; 0 where the term cannot be told from none.
        beta: likewise.
        squares: sum of squared residuals of the logarithms.
    """

    alpha: Interval
    beta: Interval
    squares: float


def fit_line(a: Floats, b: Floats, logs: Floats, tolerance: float) -> Line:
    """Fit ln(alpha a + beta b) to logarithms of durations.

    Args:
        a: (k,) what alpha counts, positive.
        b: (k,) what beta counts, positive; b / a is not everywhere the same.
        logs: (k,) ln seconds.
        tolerance: the region's sum of squares exceeds the least by this share of it.
    """
    scan = _Scan(a, b, logs)
    at, squares = scan.best()
    ends = scan.region(at, squares * (1 + tolerance))
    ln_beta = float(scan.height(np.array([at]))[0])
    none_a, none_b = at <= scan.ratios[0], at >= scan.ratios[-1]
    return Line(
        (0.0 if none_a else math.exp(at + ln_beta), *ends[0]), (0.0 if none_b else math.exp(ln_beta), *ends[1]), squares
    )


class _Scan:
    """Sums of squares over ln rho."""

    def __init__(self, a: Floats, b: Floats, logs: Floats) -> None:
        self.a, self.b, self.logs = a, b, logs
        bends = np.log(b / a)
        self.ratios = np.linspace(bends.min() - REACH, bends.max() + REACH, _COARSE)
        self.squares = self._squares(self.ratios)

    def height(self, ratios: Floats) -> Floats:
        """The best ln beta at each ln rho."""
        return np.asarray(self._off(ratios).mean(axis=1))

    def _off(self, ratios: Floats) -> Floats:
        return np.asarray(self.logs - np.log(np.exp(ratios)[:, None] * self.a + self.b))

    def _squares(self, ratios: Floats) -> Floats:
        off = self._off(ratios)
        return np.asarray(np.square(off - off.mean(axis=1, keepdims=True)).sum(axis=1))

    def best(self) -> tuple[float, float]:
        """The best ln rho, and its sum of squares; at an end of the scan where one term is none."""
        ratios, squares = self.ratios, self.squares
        first, last = ratios[0], ratios[-1]
        for _ in range(_ZOOMS):
            place, step = int(np.argmin(squares)), ratios[1] - ratios[0]
            low, high = max(first, ratios[place] - step), min(last, ratios[place] + step)
            ratios = np.linspace(low, high, 21)
            squares = self._squares(ratios)
        place = int(np.argmin(squares))
        best = float(ratios[place]), float(squares[place])
        for end in (0, -1):  # an end is as good but for rounding: one term is none
            if self.squares[end] <= best[1] * (1 + 1e-9) + 1e-12:
                return float(self.ratios[end]), float(self.squares[end])
        return best

    def region(self, best: float, limit: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Least and greatest alpha, and least and greatest beta, of the region within the limit."""
        inside = np.append(self.ratios[self.squares <= limit], best)
        left, right = (
            self._edge(float(end), towards, limit) for end, towards in ((inside.min(), -1), (inside.max(), 1))
        )
        ratios = np.sort(np.append(np.linspace(left, right, _FINE), best))
        centre = self.height(ratios)
        half = np.sqrt(np.maximum(limit - self._squares(ratios), 0.0) / len(self.logs))
        a, b = ratios + centre, centre
        low_a = 0.0 if left <= self.ratios[0] else math.exp((a - half).min())
        low_b = 0.0 if right >= self.ratios[-1] else math.exp((b - half).min())
        return (low_a, math.exp((a + half).max())), (low_b, math.exp((b + half).max()))

    def _edge(self, inside: float, towards: int, limit: float) -> float:
        """Where the region ends beyond a ratio that is inside; the scan's end where it does not."""
        beyond = self.ratios[self.ratios > inside][:1] if towards > 0 else self.ratios[self.ratios < inside][-1:]
        if not len(beyond):
            return inside
        outside = float(beyond[0])
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            if self._squares(np.array([middle]))[0] <= limit:
                inside = middle
            else:
                outside = middle
        return inside
