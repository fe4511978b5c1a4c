"""Noise scales of replicas, without forming a per-example gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from depthgauge.nested import scores
from depthgauge.noise.gradients import power_of_two, scale
from depthgauge.noise.ratio import NoiseError, NoiseScale, of_products
from depthgauge.replicas import Stack, engine
from depthgauge.replicas.chain import Chain
from depthgauge.replicas.objective import Loss, Objective

_HELD = 1 << 24  # numbers that the layers of a block of replicas may hold


@torch.no_grad()
def of_replicas(
    stack: Stack,
    x: Tensor,
    y: Tensor,
    loss: Loss = "cross_entropy",
    *,
    confidence: float = 0.95,
    population: int | None = None,
) -> list[NoiseScale]:
    """Noise scale of every replica, over all examples given; `noise.scale` of each, faster.

    Of a chain of linear layers the gradient of example i in a layer is d_i a_i^T, so that its squared norm is
    |d_i|^2 (|a_i|^2 + 1) with a bias, and its product with the sum S of all is d_i . (S a_i): no gradient of one
    example is formed. Other models are taken one replica after another.

    Args:
        stack: the replicas; nothing of them changes.
        x: (n, ...) examples, the same for all.
        y: (n, ...) targets.
        loss: as in `replicas.train`, a mean over examples.
        confidence: of the intervals.
        population: as in `noise.scale`.

    Raises:
        NoiseError: fewer than two examples, or as many inputs as targets are not given.
    """
    if len(x) != len(y):
        raise NoiseError(f"{len(x)} inputs and {len(y)} targets; give one target an input")
    like = next(iter(stack.parameters.values()))
    x, y = x.to(like.device), y.to(like.device)
    objective = Objective.of(loss, y)
    if objective.ignores:
        raise NoiseError("some targets are left out of the loss (-100), so that it does not weigh every example alike")
    chain = engine.chained(stack.template, x[:2])
    if chain is None:
        return [
            scale(
                stack.module(row).to(like.device),
                lambda model, inputs, targets: objective.single(scores(model(inputs)), targets),
                x, y, confidence=confidence, population=population,
            )
            for row in range(len(stack))
        ]  # fmt: skip
    width = sum(weight.shape[1] + weight.shape[2] for weight in stack.parameters.values() if weight.dim() == 3)
    rows = max(1, _HELD // max(1, len(x) * width))
    found = []
    for start in range(0, len(stack), rows):
        squares, along = _products(stack.part(slice(start, start + rows)), chain, objective, x, y)
        for own, with_all in zip(squares.cpu().numpy(), along.cpu().numpy(), strict=True):
            found.append(of_products(own, with_all, confidence=confidence, population=population))
    return found


def _products(stack: Stack, chain: Chain, objective: Objective, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(R, n) squared norms of the gradients, and their products with the sum of all.

    A layer's products are made in the stack's format, in 32 bits at least, of tensors scaled to size 1, and added over
    its units and over layers in float64.
    """
    parameters = list(stack.parameters.values())
    everywhere = (len(stack), -1)
    inputs = x.expand(*everywhere, *x.shape[1:])
    done = chain.forward(parameters, inputs, keep=True)
    _, cotangent = objective.stacked(done.outputs, y.expand(*everywhere, *y.shape[1:]))
    squares = torch.zeros(len(stack), len(x), dtype=torch.float64, device=x.device)
    along = torch.zeros_like(squares)

    def watch(index: int, gradient: Tensor) -> None:
        (incoming, size), (gradient, slope) = _unit(done.stages[index][0]), _unit(gradient)
        total = torch.bmm(gradient.transpose(1, 2), incoming)
        products = torch.bmm(gradient, total).mul_(incoming).sum(2, dtype=torch.float64) * size**2
        norms = incoming.square().sum(2, dtype=torch.float64) * size**2
        if chain.layers[index].bias is not None:
            products += torch.einsum("rno,ro->rn", gradient, gradient.sum(1))
            norms += 1
        squares.add_(norms * gradient.square().sum(2, dtype=torch.float64) * slope**2)
        along.add_(products * slope**2)

    # the cotangent is that of the mean: an example's own gradient is n times its part
    chain.backward(parameters, done, cotangent * len(x), watch=watch)
    return squares, along


def _unit(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(R, ...) over the power of two next to each replica's largest number, and these (R, 1)."""
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    size = power_of_two(tensor.abs().flatten(1).amax(1))[:, None]
    return tensor / size[:, :, None].to(tensor.dtype), size
