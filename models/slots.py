"""The exchangeable parts of an architecture: activation, normalization, residual connection.

An architecture is written once, over a `Slots`; what a study varies is handed down in it:

    slots = Slots.over("images", activation="gelu", norm="group", residual=True)
    slots.activation(), slots.norm(64), slots.join()      # fresh modules

A part is named, or given as a callable that makes it. Nothing here works in place: gradients are probed by hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import nn

Activation = str | nn.Module | type[nn.Module] | Callable[[torch.Tensor], torch.Tensor]
Norm = str | Callable[[int], nn.Module]
Residual = bool | float
Axes = Literal["features", "images", "tokens"]

# These mix elements, or draw at random (RReLU).
_LEFT_OUT = frozenset({nn.GLU, nn.LogSoftmax, nn.MultiheadAttention, nn.RReLU, nn.Softmax, nn.Softmax2d, nn.Softmin})


class Function(nn.Module):
    """A plain function of one tensor, as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the function to x, whatever its shape."""
        return self.function(x)

    def extra_repr(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", repr(self.function))


class Join(nn.Module):
    """The sum of shortcut and branch: `shortcut + scale * branch`; `branch` alone where scale is None.

    A module, so that hooks see the residual stream.
    """

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, shortcut: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        """Two tensors of one shape -> one."""
        if self.scale is None:
            return branch
        return shortcut + (branch if self.scale == 1.0 else self.scale * branch)

    def extra_repr(self) -> str:
        """The branch's factor."""
        return f"scale={self.scale}"


def _image_layer_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _group_norm(channels: int) -> nn.Module:
    """Groups of 16 channels where they divide (Wu and He 2018, table 3), else the most groups that do."""
    groups = max(1, channels // 16)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


def batch_statistics(features: int) -> nn.Module:
    """Batch normalization by the statistics of the batch alone, in evaluation too: its replicas train together."""
    return nn.BatchNorm1d(features, track_running_stats=False)


def _none(_features: int) -> nn.Module:
    return nn.Identity()


NORMS: Mapping[Axes, Mapping[str, Callable[[int], nn.Module]]] = {
    "features": {"none": _none, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "rms": partial(nn.RMSNorm, eps=1e-5)},
    "images": {
        "none": _none,
        "batch": nn.BatchNorm2d,
        "layer": _image_layer_norm,
        "group": _group_norm,
    },
    "tokens": {"none": _none, "layer": nn.LayerNorm, "rms": partial(nn.RMSNorm, eps=1e-5)},
}


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


@cache
def activations() -> Mapping[str, type[nn.Module]]:
    """The elementwise activations of torch.nn that need no argument, `identity` among them.

    A name is the one in torch.nn.functional where there is one, else that of the class in lower case.
    """
    functional = {_plain(name): name for name in dir(nn.functional) if name.strip("_") == name}
    classes: dict[str, type[nn.Module]] = {"identity": nn.Identity}
    for name in nn.modules.activation.__all__:
        kind = getattr(nn, name)
        if kind in _LEFT_OUT:
            continue
        try:
            kind()
        except TypeError:  # it needs arguments: to be had as a module or a callable
            continue
        classes[functional.get(name.lower(), name.lower())] = kind
    return classes


def activation(spec: Activation) -> Callable[[], nn.Module]:
    """Return a maker of activations, called once for each place where the activation stands.

    Args:
        spec: a name as torch.nn or torch.nn.functional spells it (`relu`, `leaky_relu`, `LeakyReLU`), `identity`,
            a module (copied for each place), a module class, or a function of one tensor.

    Raises:
        ValueError: no activation of torch.nn has that name, or it needs arguments.
        TypeError: `spec` is nothing that can be called.
    """
    if isinstance(spec, str):
        by_plain_name = {_plain(name): kind for name, kind in activations().items()}
        kind = by_plain_name.get({"linear": "identity"}.get(_plain(spec), _plain(spec)))
        if kind is None:
            raise ValueError(f"no activation {spec!r}; there is {', '.join(sorted(activations()))}, or any callable")
        return kind
    if isinstance(spec, type):
        return spec
    if isinstance(spec, nn.Module):
        return partial(deepcopy, spec)
    if callable(spec):
        return partial(Function, spec)
    raise TypeError(f"an activation is a name, a module or a callable, not {spec!r}")


def norm(spec: Norm, axes: Axes) -> Callable[[int], nn.Module]:
    """Return a maker of normalizations, called with their number of channels. A spec is a name or any such callable.

    Raises:
        ValueError: there is no normalization of that name over these axes.
    """
    if isinstance(spec, str):
        if spec not in NORMS[axes]:
            raise ValueError(f"no normalization {spec!r} over {axes}; there is {', '.join(NORMS[axes])}")
        return NORMS[axes][spec]
    return spec


@dataclass(frozen=True)
class Slots:
    """The parts that an architecture leaves open.

    Attributes:
        activation: makes an activation.
        norm: makes a normalization of that many channels.
        join: makes the place where a residual branch meets its shortcut.
        residual: whether there are shortcuts at all; without them a block that would project its shortcut does not.
    """

    activation: Callable[[], nn.Module]
    norm: Callable[[int], nn.Module]
    join: Callable[[], Join]
    residual: bool

    @staticmethod
    def over(axes: Axes, *, activation: Activation, norm: Norm = "none", residual: Residual = False) -> Slots:
        """Slots for tensors of these axes: `features` (N, C), `images` (N, C, H, W), `tokens` (N, T, C).

        Args:
            axes: the axes that the normalization runs over.
            activation: see `activation`.
            norm: see `norm`.
            residual: `False`: no shortcut; `True`: shortcut + branch; a number: shortcut + number * branch.
        """
        scale = None if residual is False else float(residual)
        return Slots(_activation(activation), _norm(norm, axes), partial(Join, scale), residual=scale is not None)


_activation, _norm = activation, norm  # `Slots.over` has parameters of these names
