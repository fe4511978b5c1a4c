"""The schemes as this study asks for them: what each is given, and its colour."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from depthgauge import initialization, theory
from depthgauge.initialization.maps import blank, weighted
from depthgauge.initialization.stored import stored_weights

# Drawn at the gain of the activation, as their authors have it; unscaled they would be compared with less than He's.
_GAINED = ("orthogonal", "delta_orthogonal")

# Fixed, so that a scheme has its colour in every figure; equals of one family share theirs.
_COLOURS = {
    "default": "C1", "lecun": "C4", "xavier": "C3", "xavier_uniform": "C3", "he": "C0", "he_fan_out": "C5",
    "preserving": "C0", "orthogonal": "C2", "delta_orthogonal": "C2", "lsuv": "C4", "normal": "0.55",
    "depth_scaled": "C5", "gpt2": "C5", "fixup": "C2", "constant": "0.3", "zeros": "0.75",
}  # fmt: skip
MARKERS = {"xavier_uniform": "v", "he_fan_out": "s", "preserving": "s", "delta_orthogonal": "D"}


def colour(scheme: str) -> str:
    """The scheme's, in every figure."""
    return _COLOURS.get(scheme, "C6")


def draw(module: nn.Module, generator: torch.Generator, scheme: str, activation: str, batch: torch.Tensor) -> None:
    """Draw a module anew: what its own modules draw, and over it the scheme.

    PyTorch's default of a weight that no module's reset draws is normal, of the second moment that the weight had.

    Args:
        module: any.
        generator: of the scheme; torch's own draws come from the global one.
        scheme: its name.
        activation: whose gain the schemes take that take one.
        batch: inputs, for those that look at data.
    """
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    if scheme == "default":
        _redraw(module, generator)
    settings: dict[str, Any] = {}
    if scheme in _GAINED:
        settings = {"gain": theory.gain(activation).forward}
    elif scheme == "preserving":
        settings = {"activation": activation}
    elif scheme == "lsuv":
        settings = {"batch": batch}
    initialization.scheme(scheme, **settings)(module, generator)


@torch.no_grad()
def _redraw(module: nn.Module, generator: torch.Generator) -> None:
    """N(0, what it is) where no reset draws a weight: behind parametrizations, and of modules that have none."""
    for layer in weighted(module):
        own = layer.module
        if callable(getattr(own, "reset_parameters", None)) and all(
            name in own._parameters for name, _ in stored_weights(own)
        ):
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
    if scheme in (*_GAINED, "preserving"):
        return theory.gain(activation).forward, 0.0
    return known.get(scheme)
