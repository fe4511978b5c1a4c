"""Risk of least squares and of ridge regression by the number of features: the interpolation peak, exactly.

>>> [round(ridgeless_risk(100, features, noise=0.2), 3) for features in (50, 99, 102, 200, 800)]
[0.204, inf, 20.02, 0.702, 0.904]
>>> round(ridge_risk(1.0, noise=0.2), 3), best_penalty(1.0, noise=0.2)
(0.358, 0.2)
"""

from __future__ import annotations

import math

from depthgauge.theory.arguments import non_negative, positive, whole


def ridgeless_risk(examples: int, features: int, *, signal: float = 1.0, noise: float = 1.0) -> float:
    """Expected excess risk of the least-squares fit of least norm, exact at every size.

    Inputs are N(0, I) of p features, targets x.b + noise, n examples; returned is E |b' - b|^2:

    - p <= n - 2: noise p / (n - p - 1), the mean of an inverse Wishart matrix's trace;
    - p >= n + 2: signal (1 - n / p) + noise n / (p - n - 1): what n inputs do not span, and what their noise adds;
    - between them infinity.

    Features that are left out add the square of their weights to the noise. Belkin, Hsu and Xu 2020, "Two models of
    double descent for weak features", theorem 1; with p / n held it is the limit of Hastie et al. 2022, theorem 1.

    Args:
        examples: n.
        features: p.
        signal: |b|^2.
        noise: variance of the targets about x.b.

    Raises:
        ValueError: an argument that is negative, not finite or no whole number.
    """
    n, p = whole("examples", examples, least=1), whole("features", features, least=1)
    signal, noise = non_negative("signal", signal), non_negative("noise", noise)
    if p <= n - 2:
        return noise * p / (n - p - 1)
    if p >= n + 2:
        return signal * (1 - n / p) + noise * n / (p - n - 1)
    return math.inf


def best_penalty(ratio: float, *, signal: float = 1.0, noise: float = 1.0) -> float:
    """The penalty lambda at which ridge regression has its least risk: noise ratio / signal (`ridge_risk`)."""
    return non_negative("noise", noise) * positive("ratio", ratio) / positive("signal", signal)


def ridge_risk(ratio: float, penalty: float | None = None, *, signal: float = 1.0, noise: float = 1.0) -> float:
    """Excess risk of ridge regression on isotropic features, many of them.

    b' = (X'X / n + lambda)^-1 X'y / n at p / n = ratio g. With m, the Stieltjes transform of the Marchenko-Pastur law
    at -lambda, which solves g lambda m^2 + (1 - g + lambda) m = 1, and m' its derivative, the risk is
    signal lambda^2 m' + noise g (m - lambda m'); at the best penalty, noise g / signal, it is noise g m (Dobriban and
    Wager 2018; Hastie et al. 2022, section 6).

    Args:
        ratio: features over examples.
        penalty: lambda > 0; without one the best.
        signal: |b|^2.
        noise: variance of the targets about x.b.

    Raises:
        ValueError: an argument that is negative, zero or not finite.
    """
    g, noise, signal = positive("ratio", ratio), positive("noise", noise), positive("signal", signal)
    at = positive("penalty", best_penalty(g, signal=signal, noise=noise) if penalty is None else penalty)
    root = math.sqrt((1 - g + at) ** 2 + 4 * g * at)
    rest = 1 - g + at
    m = 2 / (rest + root) if rest > 0 else (root - rest) / (2 * g * at)  # the same, without cancellation
    slope = m * (1 + g * m) / root  # from the equation of m, differentiated by -lambda
    return signal * at**2 * slope + noise * g * (m - at * slope)
