"""Expectations, fixed points and exact laws that predict what a study measures. Pure: numbers in, numbers out.

    >>> from depthgauge import theory
    >>> round(theory.gain("relu").forward ** 2, 12)
    2.0
    >>> theory.mean_field("tanh", sigma_w=0.5, sigma_b=0.0).q_star
    0.0

Activations are names of torch's, modules, or callables. No torch is imported before one is asked for. Formulas and
sources: docs/theory.md.
"""

from depthgauge.theory.activation import Activation, activation, activation_names
from depthgauge.theory.expectation import Moments
from depthgauge.theory.finite_width import (
    LogGain,
    asymptotic_log_gain,
    critical_sigma,
    linear_log_gain,
    log_norm_growth,
    lyapunov_exponents,
    relu_dying_probability,
    relu_log_gain,
)
from depthgauge.theory.mean_field import (
    Gain,
    MeanField,
    NoFixedPoint,
    chi,
    correlation_trajectory,
    critical_sigma_w,
    default_linear,
    gain,
    gradient_trajectory,
    layer_moments,
    mean_field,
    variance_trajectory,
)

__all__ = [
    "Activation",
    "Gain",
    "LogGain",
    "MeanField",
    "Moments",
    "NoFixedPoint",
    "activation",
    "activation_names",
    "asymptotic_log_gain",
    "chi",
    "correlation_trajectory",
    "critical_sigma",
    "critical_sigma_w",
    "default_linear",
    "gain",
    "gradient_trajectory",
    "layer_moments",
    "linear_log_gain",
    "log_norm_growth",
    "lyapunov_exponents",
    "mean_field",
    "relu_dying_probability",
    "relu_log_gain",
    "variance_trajectory",
]
