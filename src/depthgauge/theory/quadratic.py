"""Expected loss of SGD on a quadratic whose gradients are noisy, exact at every step.

>>> noisy_quadratic(1.0, learning_rate=0.5, batch_size=1, steps=2, noise=0.0, start=1.0)
0.03125
>>> noisy_quadratic(1.0, learning_rate=0.5, batch_size=1, steps=2, noise=0.0, momentum=0.5)
0.0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depthgauge.theory.activation import Array
from depthgauge.theory.arguments import non_negative, positive, reals

BLOCK = 1 << 13  # eigenvalues that are followed together, to save memory

Schedule = Sequence[float] | NDArray[np.float64] | Callable[[int], float]


def noisy_quadratic(
    curvature: ArrayLike,
    learning_rate: float,
    batch_size: float,
    steps: int | ArrayLike,
    *,
    noise: ArrayLike | None = None,
    start: ArrayLike = 1.0,
    momentum: float = 0.0,
    averaging: float = 0.0,
    schedule: Schedule | None = None,
) -> float | Array:
    """Expected loss of SGD on a quadratic whose gradients are noisy, exact at every step.

    Args:
        curvature: eigenvalues h_i of the Hessian, >= 0; a number or shape (d,).
        learning_rate: alpha.
        batch_size: B.
        steps: t, number of updates done; an array of them gives an array.
        noise: per-example gradient variance c_i along each eigenvector; by default c_i = h_i, as in the paper.
        start: E[theta_i^2] before the first step.
        momentum: beta of the heavy ball, 0 <= beta < 1, as in `torch.optim.SGD` without dampening: v' = beta v + g,
            theta' = theta - alpha v', and v = 0 before the first step.
        averaging: decay a of an exponential average of the weights, 0 <= a < 1: w' = a w + (1 - a) theta', which begins
            at the first weights; the loss returned is the average's.
        schedule: factor of the learning rate at each step, the first step's first: a sequence, or a function of the
            number of steps done, as `LambdaLR` takes.

    L(t) = (1/2) sum_i h_i E[theta_i(t)^2]. Without momentum, average and schedule
    E[theta_t^2] = r^t start + (alpha^2 c / B) (1 - r^t) / (1 - r), r = (1 - alpha h)^2. With them the second moments S
    of s = (theta, v, w) follow S' = M S M^T + (c / B) u u^T, where s' = M s + u n is a step with gradient noise n, one
    eigenvalue by itself; equal steps in a row are taken by powers of that map. Where a direction is unstable the loss
    diverges, to infinity in the end. Zhang et al., "Which algorithmic choices matter at which batch sizes? Insights
    from a noisy quadratic model" (2019), section 3.

    Raises:
        ValueError: an argument that is negative, not finite or out of its range; a schedule shorter than the steps.
    """
    h = eigenvalues(curvature)
    c = h if noise is None else entries("noise", noise, h.shape)
    initial = entries("start", start, h.shape)
    alpha, variance = non_negative("learning_rate", learning_rate), c / positive("batch_size", batch_size)
    beta, decay, t = share("momentum", momentum), share("averaging", averaging), whole_steps(steps)
    with np.errstate(all="ignore"):  # a diverging direction overflows, to infinity
        if beta or decay or schedule is not None:
            stretches = _stretches(alpha, schedule, int(t.max(initial=0)))
            blocks = [slice(start, start + BLOCK) for start in range(0, max(1, len(h)), BLOCK)]
            parts = [_followed(h[b], variance[b], initial[b], t, stretches, decays=(beta, decay)) for b in blocks]
            second = np.concatenate(parts, axis=-1)
        else:
            second = _closed(h, variance, initial, alpha, t)
        # A direction without curvature has no loss, however far its parameter wanders.
        loss = np.asarray(np.where(h == 0, 0.0, h * second).sum(axis=-1) / 2)
    return float(loss) if loss.ndim == 0 else loss


def share(name: str, value: float) -> float:
    """`value` as a float, 0 <= value < 1; ValueError otherwise."""
    number = non_negative(name, value)
    if number >= 1:
        raise ValueError(f"{name} is {value!r}, where a number from 0 to below 1 was expected")
    return number


def eigenvalues(curvature: ArrayLike) -> Array:
    """Curvature as finite floats >= 0, shape (d,); ValueError otherwise."""
    values = np.atleast_1d(reals("curvature", curvature))
    if values.ndim > 1:
        raise ValueError(f"curvature has the shape {values.shape}, where one eigenvalue a direction was expected")
    return entries("curvature", values, values.shape)


def entries(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Array:
    """`values` as finite floats >= 0, broadcast to a shape; ValueError otherwise."""
    given = reals(name, values)
    if given.ndim and given.shape != shape:
        raise ValueError(f"{name} has the shape {given.shape}, where a number or the shape {shape} was expected")
    entries = np.broadcast_to(given, shape)
    if not np.all(np.isfinite(entries) & (entries >= 0)):
        raise ValueError(f"{name} has an entry that is negative or not finite")
    return entries


def whole_steps(steps: int | ArrayLike) -> NDArray[np.int64]:
    """`steps` as whole numbers >= 0; ValueError otherwise."""
    t = np.asarray(steps)
    if not (np.issubdtype(t.dtype, np.integer) and np.all(t >= 0) and np.all(t < 2**63)):
        raise ValueError(f"steps is {steps!r}, where whole numbers >= 0 were expected")
    return t.astype(np.int64)


def _closed(h: Array, variance: Array, initial: Array, alpha: float, t: NDArray[np.int64]) -> Array:
    """E[theta^2] of plain SGD at one rate, shape (..., d)."""
    x = alpha * h
    logarithm = np.where(x < 0.5, np.log1p(-x), np.log(np.abs(1 - x)))  # of |1 - x|, of a small x too
    exponent = np.where(t[..., None] == 0, 0.0, 2.0 * t[..., None] * logarithm)
    power = np.where(x < 0.5, np.exp(exponent), np.abs(1 - x) ** (2.0 * t[..., None]))
    gap = x * (2 - x)  # 1 - r
    missing = -np.expm1(exponent)  # 1 - r^t without cancellation; where r = 1 the sum of t equal terms is t
    series = np.where(
        gap == 0, t[..., None] * 1.0, np.where(t[..., None] == 0, 0.0, missing) / np.where(gap == 0, 1.0, gap)
    )
    noisy = np.where(variance == 0, 0.0, alpha * (alpha * variance) * series)
    second = np.where(initial == 0, 0.0, power * initial) + noisy
    return np.where(np.isnan(second), np.inf, second)  # infinity over infinity, of a direction that diverged


def _stretches(
    alpha: float, schedule: Schedule | None, steps: int
) -> Callable[[int, int], Iterator[tuple[float, int]]]:
    """(rate, number of equal steps in a row) from one step to another."""
    if schedule is None:
        return lambda start, stop: iter([(alpha, stop - start)])
    factors = [schedule(step) for step in range(steps)] if callable(schedule) else schedule
    rates = alpha * np.asarray(factors, dtype=np.float64)
    if rates.ndim != 1 or len(rates) < steps:
        raise ValueError(f"schedule has {rates.size} factors, where {steps} steps need one each")
    if not np.all(np.isfinite(rates) & (rates >= 0)):
        raise ValueError("schedule has a factor that is negative or not finite")
    return lambda start, stop: ((rate, len(list(equal))) for rate, equal in groupby(rates[start:stop].tolist()))


class _Map:
    """An affine map of states, (d, n) to (d, n), and its powers of two, made when they are needed.

    The last entry of a state is 1, so that the map is one matrix an eigenvalue.
    """

    def __init__(self, matrix: Array) -> None:
        self.powers = [matrix]

    def applied(self, state: Array, times: int) -> Array:
        """The state after the map has been applied so many times."""
        for place in range(times.bit_length()):
            if place == len(self.powers):
                self.powers.append(self.powers[-1] @ self.powers[-1])
            if times >> place & 1:
                state = (self.powers[place] @ state[..., None])[..., 0]
        return state


def _followed(
    h: Array,
    variance: Array,
    initial: Array,
    t: NDArray[np.int64],
    stretches: Callable[[int, int], Iterator[tuple[float, int]]],
    *,
    decays: tuple[float, float],
) -> Array:
    """Second moment of the weights, or of their average, by the recursion; shape (..., d)."""
    kinds = 3 if decays[1] else 2  # weights and velocity, and the average
    rows, columns = np.triu_indices(kinds)
    begun = (rows != 1) & (columns != 1)  # the average begins at the weights, the velocity at 0
    state = np.where(np.append(begun, False), initial[:, None], 0.0)
    state[:, -1] = 1.0
    wanted, places = np.unique(t, return_inverse=True)
    found, done, last, one = np.empty((len(wanted), len(h))), 0, -1.0, _Map(np.empty(0))
    for place, step in enumerate(wanted):
        for rate, times in stretches(done, int(step)):
            if rate != last:
                last, one = rate, _Map(_step(h, variance, rate, decays, kinds))
            state = one.applied(state, times)
        found[place], done = state[:, -2 if kinds == 3 else 0], int(step)
    found = np.where(np.isnan(found), np.inf, found)  # infinity less infinity, of a direction that diverged
    found[:, (initial == 0) & (variance == 0)] = 0.0  # a direction at rest stays there, however unstable
    return np.asarray(found[places.reshape(t.shape)])


def _step(h: Array, variance: Array, rate: float, decays: tuple[float, float], kinds: int) -> Array:
    """The map of one step on the distinct second moments of (weights, velocity, average) and 1; shape (d, n, n)."""
    beta, decay = decays
    moved, keep = np.stack([1 - rate * h, np.full_like(h, -rate * beta)], axis=-1), 1 - decay
    matrix = np.zeros((len(h), kinds, kinds))
    matrix[:, 0, :2], matrix[:, 1, 0], matrix[:, 1, 1] = moved, h, beta
    push = np.array([-rate, 1.0, -rate * keep])[:kinds]
    if kinds == 3:
        matrix[:, 2, :2], matrix[:, 2, 2] = keep * moved, decay
    return lifted(matrix, variance[:, None, None] * np.outer(push, push))


def lifted(matrix: Array, noise: Array) -> Array:
    """The affine map S -> M S M^T + N of symmetric S as one matrix on (the upper triangle of S, 1).

    Args:
        matrix: M, shape (d, k, k).
        noise: N, shape (d, k, k).

    Returns:
        Shape (d, n + 1, n + 1), n = k (k + 1) / 2.
    """
    rows, columns = np.triu_indices(matrix.shape[-1])
    # S_ij comes from M_ia S_ab M_jb, and S_ab with a < b stands for S_ba too.
    both = matrix[:, rows[:, None], rows] * matrix[:, columns[:, None], columns]
    swapped = matrix[:, rows[:, None], columns] * matrix[:, columns[:, None], rows]
    size = len(rows)
    whole = np.zeros((len(matrix), size + 1, size + 1))
    whole[:, :size, :size] = both + np.where(rows == columns, 0.0, swapped)
    whole[:, :size, size] = noise[:, rows, columns]
    whole[:, size, size] = 1.0
    return whole
