"""Full-batch training of a stack of replicas that shows the optimizer's state, and the squared loss it minimizes."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from depthgauge import data, models, replicas
from depthgauge.initialization import gaussian
from depthgauge.replicas import mapped
from depthgauge.replicas.optimizers import StackedAdam, StackedStep

Look = Callable[[int, replicas.Stack, StackedStep, Tensor], object]
"""Receives a number of updates done, the replicas then, their optimizer, and their losses (R,)."""

UNIFORM = 3**-0.5  # sigma_w of weights whose variance is that of PyTorch's own linear layers


def half_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error, summed over the outputs, its mean over the examples."""
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def digits(source: str, count: int) -> data.Examples:
    """The first digits of a training set: pixels less their mean, of mean square 1 together; targets one-hot."""
    train = data.load(source).train
    x = train.x[:count] - train.x[:count].mean(0)
    return data.Examples(x / x.square().mean().sqrt(), torch.nn.functional.one_hot(train.y[:count], 10).to(x))


def networks(width: int, x: Tensor, seeds: list[int]) -> replicas.Stack:
    """Networks of two hidden tanh layers."""
    shape = tuple(x.shape[1:])
    model = models.build("mlp", depth=2, width=width, activation="tanh", input_shape=shape, classes=10)
    return replicas.stack(model, seeds, gaussian(UNIFORM), device=x.device)


@torch.no_grad()
def descend(
    stack: replicas.Stack, examples: data.Examples, optimizer: replicas.SGD | replicas.Adam, at: Collection[int],
    look: Look,
) -> None:  # fmt: skip
    """Train replicas on all examples at every step, and look at them after the numbers of updates in `at`."""
    trained = stack.clone()
    running = trained.fresh()
    parameters = list(trained.parameters.values())
    rates = torch.as_tensor(optimizer.lr).to(parameters[0]).expand(len(stack))
    stepped = optimizer.stacked(parameters, rates, None)
    everywhere = examples.x.expand(len(stack), *examples.x.shape)
    for step in range(max(at) + 1):
        leaves = mapped.leaves(trained)
        with torch.enable_grad():
            outputs = mapped.outputs(running, leaves, everywhere)
            losses = torch.func.vmap(half_squared, in_dims=(0, None))(outputs, examples.y)
            gradients = torch.autograd.grad(losses.sum(), leaves)
        if step in at:
            look(step, trained, stepped, losses.detach())
        stepped.begin()
        for place, gradient in enumerate(gradients):
            stepped.update(place, gradient)


def preconditioner(stepped: StackedStep) -> list[Tensor] | None:
    """The preconditioner of Adam after its last step, for every replica; None for other optimizers.

    (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps), Cohen et al. 2022, arXiv:2207.14484.
    """
    if not isinstance(stepped, StackedAdam):
        return None
    first, second = (1.0 - beta**stepped.step for beta in stepped.betas)
    return [first * ((square / second).sqrt() + stepped.eps) for square in stepped.squares]
