"""Distances of two gradients of one training, parameter by parameter, and the bands that rounding explains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from depthgauge.parallel.passes import Found
from depthgauge.parallel.sameness import Compared, Row

WIDTH = 8.0  # of a band, in rounding errors of the whole batch's gradient
CAP = 0.01  # widest band, as a share of the whole gradient, where what lies beyond is looked at in float64
HIDDEN = 1e-5  # share of the whole gradient that is no rounding in float64
ASSUMED = 1e3  # spacings of numbers that rounding may change a gradient by, where nothing could be measured

Kind = Literal["parameter", "buffer"]


@dataclass(frozen=True)
class Difference:
    """Two passes, compared.

    Attributes:
        rows: by parameter and buffer, in the model's order.
        limits: by name, the largest distance that rounding explains, absolute.
        norm: |g_1| over all parameters.
        inner: <g_k, g_1>.
        distance: |g_k - g_1|.
        epsilon: spacing of numbers at 1 in the coarsest format of the gradients.
        calls: whether buffers of whole numbers are compared.
    """

    rows: tuple[Row, ...]
    limits: Mapping[str, float]
    norm: float
    inner: float
    distance: float
    epsilon: float
    calls: bool

    @property
    def beyond(self) -> bool:
        """Tell whether any row is beyond its band."""
        return any(row.beyond for row in self.rows)

    @property
    def of_gradients(self) -> bool:
        """Tell whether a parameter's gradient is beyond its band."""
        return any(row.beyond and row.kind == "parameter" for row in self.rows)

    @property
    def band(self) -> float:
        """Largest distance of the whole gradients that rounding explains, as a share of the first."""
        return math.hypot(*(self.limits[row.name] for row in self.rows if row.kind == "parameter")) / self.norm

    def confirmed(self, one: Found, many: Found) -> Difference:
        """Leave beyond the band what is so in float64, too."""
        there = {(row.kind, row.name) for row in between(one, many, self.limits, self.calls).rows if row.beyond}
        rows = (replace(row, beyond=row.beyond and (row.kind, row.name) in there) for row in self.rows)
        return replace(self, rows=tuple(rows))

    def revealed(self, one: Found, many: Found) -> Difference:
        """Put beyond the band what parts in float64, though rounding would explain it in the training's own format."""
        limits = {name: HIDDEN * length(one) for name in one.gradients} | dict.fromkeys(one.buffers, math.inf)
        there = {(row.kind, row.name) for row in between(one, many, limits, False).rows if row.beyond}
        rows = (replace(row, beyond=row.beyond or (row.kind, row.name) in there) for row in self.rows)
        return replace(self, rows=tuple(rows))

    def compared(self, result: Compared) -> Compared:
        """Write the figures into a result."""
        distance = self.distance / self.norm
        return replace(
            result, factor=self.inner / self.norm**2, distance=distance, band=self.band, ulps=distance / self.epsilon,
            rows=self.rows,
        )  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A batch's gradients, compared; all but the difference and the gradient are known in every rank.

    Attributes:
        problem: why there is nothing to compare.
        raised: the first rank that raised on its shard, and what.
        parts: whether the gradients part.
        cleared: whether they part beyond the band, but not in float64.
        draws: whether the training draws random numbers.
        exact: whether it could be run in float64.
        unused: whether some shard leaves a parameter without a gradient.
        difference: in rank 0.
        one: in rank 0, the gradient of the whole batch.
    """

    problem: str = ""
    raised: tuple[int, str] | None = None
    parts: bool = False
    cleared: bool = False
    draws: bool = False
    exact: bool = False
    unused: bool = False
    difference: Difference | None = None
    one: Found | None = None


def between(one: Found, many: Found, limits: Mapping[str, float], calls: bool) -> Difference:
    """Compare two passes.

    Args:
        one: of the whole batch on one device.
        many: of its shards.
        limits: by name, the largest distance that rounding explains.
        calls: whether buffers of whole numbers are compared.
    """
    rows, norms, inners, distances, spacings = [], [0.0], [0.0], [0.0], [0.0]
    for kind, name, first, second in _pairs(one, many):
        if kind == "buffer" and (torch.equal(first, second) or not (calls or first.is_floating_point())):
            continue
        a, b, epsilon = _wide(first), _wide(second), _epsilon(first)
        norm, distance, inner = _norm(a), _apart(a, b), float((a.conj() * b).real.sum())
        apart = distance / norm if norm else math.inf if distance else 0.0
        band, factor = (limits[name] / norm, inner / norm**2) if norm else (math.inf, math.nan)
        rows.append(Row(name, kind, norm, factor, apart, band, apart / epsilon, beyond=not distance <= limits[name]))
        if kind == "parameter":
            for figures, figure in ((norms, norm), (inners, inner), (distances, distance), (spacings, epsilon)):
                figures.append(figure)
    return Difference(
        tuple(rows), limits, math.hypot(*norms), math.fsum(inners), math.hypot(*distances), max(spacings), calls
    )


def bands(one: Found, errors: Mapping[str, float] | None, *, capped: bool) -> dict[str, float]:
    """The largest distance that rounding explains, by parameter and buffer.

    Args:
        one: of the whole batch.
        errors: its rounding errors, by name; None: they could not be measured, and are assumed.
        capped: whether what is beyond is looked at in float64.
    """
    total, made = length(one), {}
    for kind, name, value, _ in _pairs(one, one):
        norm, epsilon = _norm(_wide(value)), _epsilon(value)
        error = ASSUMED * epsilon * norm if errors is None else errors.get(name, 0.0)
        around = total if kind == "parameter" else norm
        limit = WIDTH * (error + epsilon * norm) + epsilon * around / 100
        if not value.is_floating_point() and not value.is_complex():
            limit = 0.0
        made[name] = min(limit, CAP * around) if capped else limit
    return made


def distances(one: Found, other: Found) -> dict[str, float]:
    """|difference| by parameter and buffer."""
    return {name: _apart(_wide(a), _wide(b)) for _, name, a, b in _pairs(one, other)}


def relative(one: Found, other: Found) -> float:
    """|difference| of two gradients, as a share of the first."""
    apart = (_apart(_wide(a), _wide(b)) for kind, _, a, b in _pairs(one, other) if kind == "parameter")
    return math.hypot(*apart, 0.0) / length(one)


def length(one: Found) -> float:
    """|g| over all parameters."""
    return math.hypot(*(_norm(_wide(each)) for each in one.gradients.values() if each is not None), 0.0)


def problem(one: Found) -> str:
    """Say why nothing can be held against this gradient of a whole batch; empty where there is no reason."""
    for name, gradient in one.gradients.items():
        if gradient is not None and not gradient.isfinite().all():
            return f"the gradient of the whole batch is not finite at `{name}`"
    return "" if length(one) > 0 else "the gradient of the whole batch is zero"


def _pairs(one: Found, many: Found) -> Iterator[tuple[Kind, str, Tensor, Tensor]]:
    """What two passes have, parameters first; no gradient is one of zeros."""
    for name, first in one.gradients.items():
        second = many.gradients[name]
        if first is not None or second is not None:
            like = first if first is not None else second
            assert like is not None
            zero = torch.zeros_like(like)
            yield "parameter", name, zero if first is None else first, zero if second is None else second
    for name, buffer in one.buffers.items():
        yield "buffer", name, buffer, many.buffers[name]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _apart(a: Tensor, b: Tensor) -> float:
    return _norm(torch.where(a == b, torch.zeros_like(a), b - a))  # infinities that agree are no distance


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor)) if tensor.numel() else 0.0


def _epsilon(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 1.0
