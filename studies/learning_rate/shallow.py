"""Networks of one wide hidden layer, the data of the catapult, and its two numbers in closed form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from depthgauge import data, replicas

Floats = NDArray[np.float64]
ONE = "linear, one example"
LINEAR = "linear, digits"
RELU = "ReLU, digits"
ACTIVATIONS: Mapping[str, type[nn.Module]] = {ONE: nn.Identity, LINEAR: nn.Identity, RELU: nn.ReLU}


def examples(net: str, count: int) -> data.Examples:
    """The number 1 with target 0; or digits, of mean square 1 / pixels, with target 1 from the digit 5 on and else -1.

    With weights from N(0, 1 / sqrt(width)) in both layers the network is that of weights from N(0, 1), divided by
    sqrt(width) at its output and by sqrt(pixels) at its input; both see the same training.
    """
    if net == ONE:
        return data.Examples(torch.ones(1, 1), torch.zeros(1, 1))
    train = data.load("digits").train
    x = train.x[:count].flatten(1)
    x = x / x.square().mean().sqrt() / x.shape[1] ** 0.5
    return data.Examples(x, torch.where(train.y[:count, None] >= 5, 1.0, -1.0))


def networks(net: str, width: int, inputs: int, seeds: list[int]) -> replicas.Stack:
    """Networks of one hidden layer without biases, of one output."""
    model = nn.Sequential(nn.Linear(inputs, width, bias=False), ACTIVATIONS[net](), nn.Linear(width, 1, bias=False))

    def draw(module: nn.Module, generator: torch.Generator) -> None:
        for weight in module.parameters():
            weight.normal_(0.0, width**-0.25, generator=generator)

    return replicas.stack(model, seeds, draw)


def predicted(loss: Floats, sharpness: Floats, rate: Floats, steps: int) -> tuple[Floats, Floats]:
    """Loss and sharpness of a linear network on one example, along gradient descent on its squared error.

    Of f = a.w and the tangent kernel k = |a|^2 + |w|^2 descent on f^2 / 2 at rate e makes (1 - e k + e^2 f^2) f and
    k + e f^2 (e k - 4) (Lewkowycz et al. 2020, arXiv:2003.02218), and the largest eigenvalue s of the Hessian solves
    s^2 = k s + 3 f^2.

    Args:
        loss: (R,), f^2 at the start.
        sharpness: (R,), of the loss f^2 at the start: 2 s.
        rate: (R,), of the loss f^2: e / 2.
        steps: number of steps.

    Returns:
        Loss and sharpness, (steps + 1, R) each; not finite where it diverges.
    """
    f, e, s = np.sqrt(loss), 2 * rate, sharpness / 2
    k = s - 3 * f**2 / s
    losses, sharpnesses = [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps + 1):
            losses.append(f**2)
            sharpnesses.append(k + np.sqrt(k**2 + 12 * f**2))
            f, k = (1 - e * k + e**2 * f**2) * f, k + e * f**2 * (e * k - 4)
    return np.array(losses), np.array(sharpnesses)
