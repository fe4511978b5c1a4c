"""Modules drawn anew by the name of a scheme; the sigmas and gains of each scheme."""

from __future__ import annotations

import math
from typing import Any, cast

import pandas as pd
import torch
from torch import nn

from depthgauge import theory
from depthgauge.architecture import RESETS, reset
from depthgauge.initialization.catalog import scheme as named
from depthgauge.initialization.maps import blank, weighted
from depthgauge.initialization.stored import stored_weights

# Drawn at the gain of the activation, as their authors have it; unscaled they would be compared with less than He's.
GAINED = ("orthogonal", "delta_orthogonal")


def draw(module: nn.Module, generator: torch.Generator, scheme: str, activation: str, batch: torch.Tensor) -> None:
    """Draw a module anew: what its own modules draw, and over it the scheme.

    PyTorch's default of a weight that no module's reset draws is normal, of the second moment that the weight had.

    Args:
        module: any.
        generator: the scheme's generator; torch's own draws come from the global one.
        scheme: its name.
        activation: the activation whose gain a scheme takes.
        batch: inputs, for those that look at data.
    """
    reset(module)
    if scheme == "default":
        _redraw(module, generator)
    settings: dict[str, Any] = {}
    if scheme in GAINED:
        settings = {"gain": theory.gain(activation).forward}
    elif scheme == "preserving":
        settings = {"activation": activation}
    elif scheme == "lsuv":
        settings = {"batch": batch}
    named(scheme, **settings)(module, generator)


@torch.no_grad()
def _redraw(module: nn.Module, generator: torch.Generator) -> None:
    """N(0, what it is) where no reset draws a weight: behind parametrizations, and of modules that have none."""
    for layer in weighted(module):
        held = all(name in layer.module._parameters for name, _ in stored_weights(layer.module))
        if held and any(callable(getattr(layer.module, name, None)) for name in RESETS):
            continue
        for weight in layer.maps:
            std = float(weight.double().square().mean().sqrt())
            weight.copy_(nn.init.normal_(blank(weight), 0.0, std, generator=generator))
        layer.bring()


def sigmas(scheme: str, activation: str, width: int) -> tuple[float, float] | None:
    """(sigma_w, sigma_b) that a scheme amounts to between layers of one width; None where data decide."""
    known = {
        "default": theory.default_linear(width), "lecun": (1.0, 0.0), "xavier": (1.0, 0.0),
        "xavier_uniform": (1.0, 0.0), "he": (2**0.5, 0.0), "he_fan_out": (2**0.5, 0.0),
        "normal": (0.01 * width**0.5, 0.0),
    }  # fmt: skip
    if scheme in (*GAINED, "preserving"):
        return theory.gain(activation).forward, 0.0
    return known.get(scheme)


def gains() -> pd.DataFrame:
    """Tabulate each activation's gain: `torch.nn.init.calculate_gain`'s, and that which keeps the second moment."""
    from torch.nn.init import calculate_gain  # noqa: PLC0415 - beside its only use

    rows = []
    for name in ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "selu", "gelu", "silu"):
        gain = theory.gain(name)
        try:
            torchs = calculate_gain(cast("Any", {"identity": "linear"}.get(name, name)))
        except ValueError:  # torch has none
            torchs = math.nan
        rows.append(
            {
                "activation": name, "calculate_gain": torchs, "forward": gain.forward, "backward": gain.backward,
                "kept_a_layer_with_torchs": (torchs / gain.forward) ** 2,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
