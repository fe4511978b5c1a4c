"""Activations, losses, normalizations and initializations, each alone.

    pytest --benchmark benchmarks/test_operations.py --benchmark-group-by=group

Forward and backward together, as training has them. Most of these move bytes and compute little: `bytes_per_second`
against the bandwidth in `machine_info` tells more than their operations do.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from depthgauge import initialization, models, seeding
from depthgauge.models import slots
from depthgauge.seeding import Purpose

ROWS, WIDTH, CLASSES = 256, 1024, 1000
Timed = Callable[..., None]

QUICK_ACTIVATIONS = ("relu", "gelu", "tanh", "silu", "sigmoid")
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
}
QUICK_INITIALIZATIONS = ("he", "orthogonal")


def full_but(quick: tuple[str, ...], names: object) -> list[object]:
    others = [name for name in names if name not in quick]
    return [*quick, *(pytest.param(name, marks=pytest.mark.full) for name in others)]


def both(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], object]:
    """Forward, and backward to the input."""
    ones = torch.ones_like(function(x))
    return lambda: torch.autograd.grad(function(x), x, ones)


def drawn(device: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeding.generator(0, Purpose.INPUTS)).to(device).requires_grad_()


@pytest.mark.parametrize("cold", [False, pytest.param(True, marks=pytest.mark.full)], ids=["warm", "cold"])
@pytest.mark.parametrize("name", full_but(QUICK_ACTIVATIONS, slots.activations()))
def test_activation(timed: Timed, name: str, cold: bool, device: str) -> None:
    function = slots.activation(name)().to(device)
    work = both(function, drawn(device, ROWS, WIDTH))
    timed(work, device, cold=cold, group=f"activation, {device}, {'cold' if cold else 'warm'}", activation=name)


@pytest.mark.parametrize("name", LOSSES)
def test_regression_loss(timed: Timed, name: str, device: str) -> None:
    target = drawn(device, ROWS, WIDTH).detach() + 1
    loss = LOSSES[name]
    timed(both(lambda x: loss(x, target), drawn(device, ROWS, WIDTH)), device, group=f"loss, {device}", loss=name)


def test_cross_entropy(timed: Timed, device: str) -> None:
    target = (torch.arange(ROWS) % CLASSES).to(device)
    work = both(lambda x: functional.cross_entropy(x, target), drawn(device, ROWS, CLASSES))
    timed(work, device, group=f"loss, {device}", loss="cross_entropy")


@pytest.mark.parametrize(
    ("axes", "name"), [(axes, name) for axes, names in slots.NORMS.items() for name in names if name != "none"]
)
def test_normalization(timed: Timed, axes: slots.Axes, name: str, device: str) -> None:
    shape = (32, 64, 16, 16) if axes == "images" else (ROWS, WIDTH)
    layer: nn.Module = slots.norm(name, axes)(64 if axes == "images" else WIDTH).to(device)
    work = both(layer, drawn(device, *shape))
    timed(work, device, group=f"normalization, {device}", axes=axes, normalization=name)


@pytest.mark.parametrize("name", full_but(QUICK_INITIALIZATIONS, initialization.SCHEMES))
def test_initialization(timed: Timed, name: str) -> None:
    model = models.build("mlp", depth=4, width=256, input_shape=(1, 28, 28), classes=10, residual=True)
    generator = seeding.generator(0, Purpose.INPUTS)
    settings = {"gaussian": {"sigma_w": 1.5}, "lsuv": {"batch": torch.randn(64, 1, 28, 28, generator=generator)}}
    scheme = initialization.scheme(name, **settings.get(name, {}))
    timed(lambda: scheme(model, generator), group="initialization", initialization=name)
