"""Which functions are compared: every elementwise activation of torch.nn, and any callable by where it is defined."""

from __future__ import annotations

from functools import cache
from importlib import import_module

import numpy as np
from torch import nn

from depthgauge import theory
from depthgauge.models.slots import Function, activations

# What an activation is given that has no defaults: the arguments of the example in torch's documentation of it.
DOCUMENTED: dict[str, tuple[type[nn.Module], tuple[float, ...]]] = {"threshold": (nn.Threshold, (0.0, 0.5))}

# Those whose formula has an exponential or a function made of some (tanh, erf).
EXPONENTIAL = frozenset(
    {
        "celu", "elu", "gelu", "logsigmoid", "mish", "selu", "sigmoid", "silu", "softplus", "tanh", "tanhshrink",
    }
)  # fmt: skip


def names() -> tuple[str, ...]:
    """Every elementwise activation of the installed torch.nn that does not draw at random, `identity` among them."""
    return tuple(sorted({*activations(), *DOCUMENTED}))


def make(spec: str) -> nn.Module:
    """A fresh module: of a name of torch's, or of `package.module:attribute`, a module class or a function of a tensor.

    Raises:
        ValueError: there is no activation of that name, or nothing that can be called at that place.
    """
    if spec in DOCUMENTED:
        kind, arguments = DOCUMENTED[spec]
        return kind(*arguments)
    if ":" not in spec:
        known = activations()
        if spec not in known:
            raise ValueError(f"no activation {spec!r}; there is {', '.join(names())}, or package.module:function")
        return known[spec]()
    place, _, attribute = spec.partition(":")
    try:
        found = getattr(import_module(place), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"activation {spec!r} cannot be had: {error}") from error
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found()
    if not callable(found):
        raise ValueError(
            f"activation {spec!r} is a {type(found).__name__}, where a module class or a function would do"
        )
    return Function(found)


def handed(spec: str) -> str | nn.Module:
    """What a model's factory is given: a name where torch has one, as factories of one's own may know names alone."""
    return spec if spec in activations() else make(spec)


@cache
def phi(spec: str) -> theory.Activation:
    """The same for `depthgauge.theory`, resolved once."""
    return theory.activation(spec if spec in activations() else make(spec))


def label(spec: str) -> str:
    """What it is called in tables and figures."""
    return spec.rpartition(":")[2]


@cache
def kinks(spec: str) -> tuple[float, ...]:
    """Where it has no derivative: the points at which its slope, or the function itself, jumps."""
    _, bends = phi(spec).mesh(8.0)
    step = 1e-6 * np.maximum(1.0, np.abs(bends))
    (low, slope_low), (high, slope_high) = phi(spec).both(bends - step), phi(spec).both(bends + step)
    found = bends[(np.abs(slope_high - slope_low) > 1e-3) | (np.abs(high - low) > 1e-3)]
    return tuple(round(float(point), 9) + 0.0 for point in found)
