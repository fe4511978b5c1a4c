"""What it costs to round values to a format: the emulation of low precision does it after every operation.

    pytest --benchmark benchmarks/test_rounding.py

A tensor or array of 300,000 float32, about a small network's parameters, beside torch's own cast there and back. Each
way to round is one benchmark: `native` is torch's cast, the floor; then elements to nearest, elements stochastically,
and blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from depthgauge import formats
from depthgauge.seeding import Purpose, generator

SIZE = (300, 1000)
FORMATS = ["float16", "bfloat16", "tf32", "float8_e4m3fn", "mxfp8_e4m3", "nvfp4"]
Timed = Callable[..., None]


def values() -> torch.Tensor:
    return torch.randn(SIZE, generator=generator(0, Purpose.INPUTS))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn"])
def test_native(timed: Timed, name: str, device: str) -> None:
    x, dtype = values().to(device), getattr(torch, name)
    timed(lambda: x.to(dtype).to(x.dtype), device, group=f"rounding a tensor, {device}", fmt=name)


@pytest.mark.parametrize("name", FORMATS)
def test_nearest(timed: Timed, name: str, device: str) -> None:
    x = values().to(device)
    timed(lambda: formats.round(x, name), device, group=f"rounding a tensor, {device}", fmt=name)


@pytest.mark.parametrize("name", FORMATS)
def test_stochastic(timed: Timed, name: str, device: str) -> None:
    x, dice = values().to(device), torch.Generator(device).manual_seed(0)
    timed(lambda: formats.round(x, name, stochastic=dice), device, group=f"rounding a tensor, {device}", fmt=name)


@pytest.mark.parametrize("name", FORMATS)
def test_nearest_of_an_array(timed: Timed, name: str) -> None:
    x = values().numpy()
    timed(lambda: formats.round(x, name), group="rounding an array", fmt=name)


@pytest.mark.parametrize("name", FORMATS)
def test_stochastic_of_an_array(timed: Timed, name: str) -> None:
    x, dice = values().numpy(), np.random.default_rng(0)
    timed(lambda: formats.round(x, name, stochastic=dice), group="rounding an array", fmt=name)
