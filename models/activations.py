"""Activations by name: every elementwise one of torch.nn, and any callable by where it is defined.

activations.make("gelu"), activations.make("my_package.my_module:snake")      # fresh modules
activations.distinct(("elu", "celu", "relu"))      # {"elu": "elu = celu", "relu": "relu"}: each function once
activations.kinks("hardtanh")       # (-1.0, 1.0)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from depthgauge import factories, theory
from depthgauge.models import slots

# Some of every kind, for what shall be quick.
FEW = ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "selu")
# What an activation is given that has no defaults: the arguments of the example in torch's documentation of it.
DOCUMENTED: dict[str, tuple[type[nn.Module], tuple[float, ...]]] = {"threshold": (nn.Threshold, (0.0, 0.5))}


def names() -> tuple[str, ...]:
    """Every elementwise activation of the installed torch.nn that does not draw at random, `identity` among them."""
    return tuple(sorted({*slots.activations(), *DOCUMENTED}))


def make(spec: str) -> nn.Module:
    """A fresh module: of a name of torch's, or of `package.module:attribute`, a module class or a function of a tensor.

    Raises:
        ValueError: there is no activation of that name, or nothing at that place that can be called.
    """
    if spec in DOCUMENTED:
        kind, arguments = DOCUMENTED[spec]
        return kind(*arguments)
    known = slots.activations()
    if spec in known:
        return known[spec]()
    if ":" not in spec:
        raise ValueError(f"no activation {spec!r}; there is {', '.join(names())}, or package.module:function")
    loaded: Any = factories.load(spec)
    return loaded() if isinstance(loaded, type) and issubclass(loaded, nn.Module) else slots.Function(loaded)


def handed(spec: str) -> str | nn.Module:
    """The activation as a model's factory takes it: by name where torch has one, as factories may know names alone."""
    return spec if spec in slots.activations() else make(spec)


@cache
def phi(spec: str) -> theory.Activation:
    """The same for `depthgauge.theory`, resolved once."""
    return theory.activation(spec if spec in slots.activations() else make(spec))


def once(rows: pd.DataFrame, *, timed: bool = False) -> pd.DataFrame:
    """The rows of each function once: `activation` is its name, and `spec` what it was called in the case.

    Args:
        rows: with a column `activation` of specs.
        timed: a callable of one's own is code of its own, and stays beside a function of torch's that it equals.
    """
    names = distinct(dict.fromkeys(rows["activation"]), timed=timed)
    first = rows[rows["activation"].isin(list(names))]
    return first.assign(spec=first["activation"], activation=first["activation"].map(names))


def distinct(specs: Iterable[str], *, timed: bool = False) -> dict[str, str]:
    """Spec -> name of each function once: specs of one function share a name, `celu = elu`, and the first stays.

    Two are one where their values and slopes agree at every point tried and neither has parameters to train.
    """
    alike: dict[str, list[str]] = {}
    for spec in sorted(specs, key=lambda spec: ":" in spec):  # torch's own come first
        twin = None if timed and ":" in spec else next((first for first in alike if _same(first, spec)), None)
        alike.setdefault(twin or spec, []).append(spec)
    labels = {spec: spec.rpartition(":")[2] for specs in alike.values() for spec in specs}
    short = {first: " = ".join(dict.fromkeys(labels[spec] for spec in others)) for first, others in alike.items()}
    return {first: name if list(short.values()).count(name) == 1 else first for first, name in short.items()}


def _same(a: str, b: str) -> bool:
    trained = any(True for spec in (a, b) for _ in make(spec).parameters())
    return not trained and bool(np.allclose(_curve(a), _curve(b), rtol=1e-9, atol=1e-12))


@cache
def _curve(spec: str) -> np.ndarray:
    return np.stack(phi(spec).both(np.linspace(-20.003, 20.0, 4001)))


@cache
def kinks(spec: str) -> tuple[float, ...]:
    """The points without derivative: those at which the slope, or the function itself, jumps."""
    _, bends = phi(spec).mesh(8.0)
    step = 1e-6 * np.maximum(1.0, np.abs(bends))
    (low, slope_low), (high, slope_high) = phi(spec).both(bends - step), phi(spec).both(bends + step)
    found = bends[(np.abs(slope_high - slope_low) > 1e-3) | (np.abs(high - low) > 1e-3)]
    return tuple(round(float(point), 9) + 0.0 for point in found)
