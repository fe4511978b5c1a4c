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
from depthgauge.theory.batch_norm import batch_norm_growth, batch_norm_shard_bias
from depthgauge.theory.batch_size import (
    NoiseEstimate,
    Regime,
    batch_for,
    examples_at,
    noise_scale,
    noise_scale_from_batches,
    regime,
    regime_bounds,
    scaled_rate,
    steps_at,
)
from depthgauge.theory.clipping import chrono_biases, clipped_mean, clipped_rest, gate_decay, reach
from depthgauge.theory.communication import (
    Algorithm,
    Collective,
    all_gather_time,
    allreduce_time,
    collective_cost,
    reduce_scatter_time,
)
from depthgauge.theory.dropout import dropout_ridge, variance_shift
from depthgauge.theory.equilibrium import equilibrium_angle
from depthgauge.theory.expectation import Moments
from depthgauge.theory.finite_width import (
    LogGain,
    SignalLaw,
    asymptotic_log_gain,
    critical_sigma,
    linear_log_gain,
    log_norm_growth,
    lyapunov_exponents,
    relu_dying_probability,
    relu_log_gain,
    signal_law,
)
from depthgauge.theory.isometry import Spectrum, Weights, critical_sigmas, jacobian_spectrum
from depthgauge.theory.mean_field import (
    Gain,
    MeanField,
    NoFixedPoint,
    chi,
    correlation_trajectory,
    critical_sigma_w,
    default_linear,
    depth_scales,
    gain,
    gradient_trajectory,
    layer_moments,
    mean_field,
    variance_trajectory,
)
from depthgauge.theory.pipeline import pipeline_bubble
from depthgauge.theory.plain import PlainSignal, plain_signal
from depthgauge.theory.quadratic import noisy_quadratic
from depthgauge.theory.regression import regression_risk, stable_learning_rate
from depthgauge.theory.residual import residual_trajectory
from depthgauge.theory.ridge import best_penalty, ridge_risk, ridgeless_risk
from depthgauge.theory.rounding import (
    ExitDepth,
    exit_depth,
    landing_probability,
    landing_share,
    lost_decay_fraction,
    lost_update_fraction,
    underflow_fraction,
)
from depthgauge.theory.selection import least_squares_error, selection_optimism, smoothed_gap
from depthgauge.theory.shattering import gradient_correlation
from depthgauge.theory.stabilizers import ResidualGrowth, residual_growth, transformer_stream
from depthgauge.theory.summation import (
    SumError,
    equal_sum_errors,
    probabilistic_bound,
    sum_errors,
    variance_error,
    worst_case,
)

__all__ = [
    "Activation",
    "Algorithm",
    "Collective",
    "ExitDepth",
    "Gain",
    "LogGain",
    "MeanField",
    "Moments",
    "NoFixedPoint",
    "NoiseEstimate",
    "PlainSignal",
    "Regime",
    "ResidualGrowth",
    "SignalLaw",
    "Spectrum",
    "SumError",
    "Weights",
    "activation",
    "activation_names",
    "all_gather_time",
    "allreduce_time",
    "asymptotic_log_gain",
    "batch_for",
    "batch_norm_growth",
    "batch_norm_shard_bias",
    "best_penalty",
    "chi",
    "chrono_biases",
    "clipped_mean",
    "clipped_rest",
    "collective_cost",
    "correlation_trajectory",
    "critical_sigma",
    "critical_sigma_w",
    "critical_sigmas",
    "default_linear",
    "depth_scales",
    "dropout_ridge",
    "equal_sum_errors",
    "equilibrium_angle",
    "examples_at",
    "exit_depth",
    "gain",
    "gate_decay",
    "gradient_correlation",
    "gradient_trajectory",
    "jacobian_spectrum",
    "landing_probability",
    "landing_share",
    "layer_moments",
    "least_squares_error",
    "linear_log_gain",
    "log_norm_growth",
    "lost_decay_fraction",
    "lost_update_fraction",
    "lyapunov_exponents",
    "mean_field",
    "noise_scale",
    "noise_scale_from_batches",
    "noisy_quadratic",
    "pipeline_bubble",
    "plain_signal",
    "probabilistic_bound",
    "reach",
    "reduce_scatter_time",
    "regime",
    "regime_bounds",
    "regression_risk",
    "relu_dying_probability",
    "relu_log_gain",
    "residual_growth",
    "residual_trajectory",
    "ridge_risk",
    "ridgeless_risk",
    "scaled_rate",
    "selection_optimism",
    "signal_law",
    "smoothed_gap",
    "stable_learning_rate",
    "steps_at",
    "sum_errors",
    "transformer_stream",
    "underflow_fraction",
    "variance_error",
    "variance_shift",
    "variance_trajectory",
    "worst_case",
]
