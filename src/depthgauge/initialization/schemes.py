"""Schemes that use the shapes of the maps alone, or the activation as well."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from depthgauge import theory
from depthgauge.initialization.maps import blank, fans, weighted
from depthgauge.theory.activation import Phi

Scheme = Callable[[nn.Module, torch.Generator], None]
Init = str | Scheme
Draw = Callable[[Tensor, torch.Generator], object]
Variance = Callable[[int, int], float]


@dataclass(frozen=True)
class Drawn:
    """Every map drawn by itself, `draw(values, generator)` in place; biases from N(0, sigma_b^2)."""

    draw: Draw
    sigma_b: float = 0.0

    def __call__(self, model: nn.Module, generator: torch.Generator) -> None:
        """Set every weight and bias of `model`."""
        for layer in weighted(model):
            for weight in layer.maps:
                values = blank(weight)
                self.draw(values, generator)
                weight.copy_(values)
            for bias in layer.biases:
                bias.copy_(nn.init.normal_(blank(bias), 0.0, self.sigma_b, generator=generator))
            layer.bring()


def _normal(variance: Variance, sigma_b: float = 0.0) -> Scheme:
    def draw(values: Tensor, generator: torch.Generator) -> None:
        nn.init.normal_(values, 0.0, math.sqrt(variance(*fans(values))), generator=generator)

    return Drawn(draw, sigma_b)


def _uniform(variance: Variance) -> Scheme:
    def draw(values: Tensor, generator: torch.Generator) -> None:
        bound = math.sqrt(3 * variance(*fans(values)))
        nn.init.uniform_(values, -bound, bound, generator=generator)

    return Drawn(draw)


def default() -> Scheme:
    """Leave what PyTorch's modules drew when they were built: uniform in +-1/sqrt(fan_in) where there is a fan-in."""
    return lambda _model, _generator: None


def zeros() -> Scheme:
    """Every weight zero: with ReLU or tanh nothing but the last bias ever gets a gradient."""
    return constant(0.0)


def constant(value: float | None = None) -> Scheme:
    """Every weight the same, by default 1 / fan-in: each unit the mean of its inputs, and the same as its neighbour."""
    return Drawn(lambda values, _: values.fill_(1 / fans(values)[0] if value is None else value))


def normal(std: float = 0.01) -> Scheme:
    """N(0, std^2) at any width; 0.01 is AlexNet's (Krizhevsky et al. 2012, section 5)."""
    return _normal(lambda _in, _out: std**2)


def gaussian(sigma_w: float, sigma_b: float = 0.0) -> Scheme:
    """Mean-field convention: weights from N(0, sigma_w^2 / fan-in), biases from N(0, sigma_b^2) (Poole et al. 2016)."""
    return _normal(lambda fan_in, _: sigma_w**2 / fan_in, sigma_b)


def at_gain(gain: float) -> Scheme:
    """N(0, gain^2 / fan_in), the first layer's N(0, 1 / fan_in): it keeps the second moment of standardized inputs."""

    def draw(module: nn.Module, generator: torch.Generator) -> None:
        gaussian(gain)(module, generator)
        for first in itertools.islice((layer for layer in weighted(module) if layer.maps), 1):
            for weight in first.maps:
                weight.div_(gain)
            first.bring()

    return draw


def lecun() -> Scheme:
    """N(0, 1 / fan-in) (LeCun et al. 1998, eq. 16)."""
    return gaussian(1.0)


def xavier(gain: float = 1.0) -> Scheme:
    """N(0, 2 gain^2 / (fan-in + fan-out)) (Glorot and Bengio 2010, eq. 12)."""
    return _normal(lambda fan_in, fan_out: 2 * gain**2 / (fan_in + fan_out))


def xavier_uniform(gain: float = 1.0) -> Scheme:
    """Uniform of the same variance, as the paper has it (Glorot and Bengio 2010, eq. 16)."""
    return _uniform(lambda fan_in, fan_out: 2 * gain**2 / (fan_in + fan_out))


def he() -> Scheme:
    """N(0, 2 / fan-in), which keeps the signal's second moment through ReLU (He et al. 2015, eq. 10)."""
    return _normal(lambda fan_in, _: 2 / fan_in)


def he_fan_out() -> Scheme:
    """N(0, 2 / fan-out), which keeps the gradient's (He et al. 2015, eq. 14)."""
    return _normal(lambda _, fan_out: 2 / fan_out)


def orthogonal(gain: float = 1.0) -> Scheme:
    """Every map, as a matrix of outputs by fan-in, gain times semi-orthogonal (Saxe et al. 2014)."""
    return Drawn(lambda values, generator: nn.init.orthogonal_(values, gain, generator=generator))


def delta_orthogonal(gain: float = 1.0) -> Scheme:
    """Kernels that are zero but for a semi-orthogonal matrix at their centre (Xiao et al. 2018, algorithm 1).

    The convolution is then that matrix at every pixel: it preserves norms, of any image, where there are no fewer
    outputs than inputs. A linear layer is a kernel of one pixel.
    """

    def draw(values: Tensor, generator: torch.Generator) -> None:
        matrix = torch.empty(values.shape[:2], dtype=values.dtype)
        _at_centre(values, nn.init.orthogonal_(matrix, gain, generator=generator))

    return Drawn(draw)


def dirac(gain: float = 1.0) -> Scheme:
    """Kernels that hand on their input: gain times the identity at their centre, as `torch.nn.init.dirac_`.

    Where outputs outnumber inputs, what is left of them is zero; nothing is drawn.
    """
    return Drawn(lambda values, _: _at_centre(values, gain * torch.eye(*values.shape[:2], dtype=values.dtype)))


def _at_centre(values: Tensor, matrix: Tensor) -> None:
    values.zero_()
    centre = values
    for size in reversed(values.shape[2:]):
        centre = centre.select(-1, size // 2)
    centre.copy_(matrix)


def preserving(activation: Phi | None = None, direction: Literal["forward", "backward"] = "forward") -> Scheme:
    """The exact gain of the activation at hand: N(0, gain^2 / fan-in), gain = E[phi(z)^2]^(-1/2), z ~ N(0, 1).

    Backward: N(0, gain^2 / fan-out), gain = E[phi'(z)^2]^(-1/2). See `theory.gain`.

    Args:
        activation: a name, a module or a callable; None: the one that the model holds as a module.
        direction: whether the second moment of activations is kept, or that of gradients.

    Raises:
        ValueError: when applied, to a model that holds no activation, or several of different gains.
    """
    if direction not in ("forward", "backward"):
        raise ValueError(f"a variance is preserved 'forward' or 'backward', not {direction!r}")

    def initialize(model: nn.Module, generator: torch.Generator) -> None:
        gain = _gain(model) if activation is None else theory.gain(activation)
        if direction == "forward":
            _normal(lambda fan_in, _: gain.forward**2 / fan_in)(model, generator)
        else:
            _normal(lambda _, fan_out: gain.backward**2 / fan_out)(model, generator)

    return initialize


def _gain(model: nn.Module) -> theory.Gain:
    """The gain of a model's own activation."""
    gains: dict[str, theory.Gain] = {}
    for module in model.modules():
        leaf = next(module.children(), None) is None
        of_torch = type(module).__module__ == nn.ReLU.__module__ or next(module.parameters(), None) is None
        if leaf and of_torch and repr(module) not in gains:
            phi = _activation(module)
            if phi is not None:
                gains[repr(module)] = theory.gain(phi)
    if not gains:
        raise ValueError("this model holds no activation as a module; say which it has, as in activation='relu'")
    if len(set(gains.values())) > 1:
        raise ValueError(f"this model holds several activations, {', '.join(gains)}; say which with activation=...")
    return next(iter(gains.values()))


def _activation(module: nn.Module) -> theory.Activation | None:
    """The activation that a module is; None for what is none, or no more than a straight line."""
    try:
        phi = theory.activation(module)
    except Exception:  # noqa: BLE001 - a trial of modules of any kind, on an input that may not be theirs
        return None
    moments = theory.layer_moments(phi, 1.0)
    return phi if moments.slope4 > moments.slope2**2 * (1 + 1e-9) else None  # the slope of a line does not vary
