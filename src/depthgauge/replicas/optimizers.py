"""Optimizers as data, and their steps over stacked parameters.

A stacked parameter is (R, *shape): one slice a replica. Learning rate and weight decay are numbers, or one number a
replica; the rest is common to all. The arithmetic is that of `torch.optim`, operation for operation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PerReplica = float | Sequence[float]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, as `torch.optim.SGD` with zero dampening.

    Attributes:
        lr: learning rate; one for all, or one a replica.
        momentum: heavy-ball coefficient.
        weight_decay: L2 coefficient, added to the gradient; one for all, or one a replica.
        nesterov: look ahead along the momentum (Sutskever et al. 2013).
    """

    lr: PerReplica
    momentum: float = 0.0
    weight_decay: PerReplica = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("Nesterov's look-ahead needs a momentum above zero")

    @property
    def moments(self) -> int:
        """Tensors of state, each of the parameters' size."""
        return int(self.momentum != 0)

    def single(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """The same optimizer of `torch.optim`, for one model."""
        own = list(parameters)
        return torch.optim.SGD(
            own, lr, self.momentum, weight_decay=weight_decay, nesterov=self.nesterov, fused=_fusible(own)
        )

    def stacked(self, parameters: Sequence[Tensor], lr: Tensor, weight_decay: Tensor | None) -> StackedSGD:
        """The step over stacked parameters; `lr` and `weight_decay` are (R,)."""
        return StackedSGD(self, parameters, lr, weight_decay)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015), as `torch.optim.Adam`; weight decay is an L2 term of the gradient.

    Attributes:
        lr: learning rate; one for all, or one a replica.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: one for all, or one a replica.
    """

    lr: PerReplica = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: PerReplica = 0.0

    moments = 2
    decoupled = False

    def single(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """The same optimizer of `torch.optim`, for one model."""
        kind, own = torch.optim.AdamW if self.decoupled else torch.optim.Adam, list(parameters)
        return kind(own, lr, self.betas, self.eps, weight_decay, fused=_fusible(own))

    def stacked(self, parameters: Sequence[Tensor], lr: Tensor, weight_decay: Tensor | None) -> StackedAdam:
        """The step over stacked parameters; `lr` and `weight_decay` are (R,)."""
        return StackedAdam(self, parameters, lr, weight_decay)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`."""

    weight_decay: PerReplica = 1e-2

    decoupled = True


Optimizer = SGD | Adam


def _fusible(parameters: Sequence[Tensor]) -> bool:
    """Tell whether one kernel makes a step of all of them: of complex ones torch has none, of 16 bits a wrong one.

    Its SGD on a processor moves of these only what is left beyond whole vectors (torch 2.13).
    """
    return all(parameter.dtype in {torch.float32, torch.float64} for parameter in parameters)


def wide(tensors: Iterable[Tensor]) -> torch.dtype:
    """The format of coefficients, losses and norms: the widest of the floating-point tensors, 32 bits at least."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _decayed(steps: Sequence[Tensor], moved: Sequence[Tensor], decay: Sequence[Tensor]) -> list[Tensor]:
    """Gradients plus decay times parameters, in the parameters' format."""
    added = torch._foreach_addcmul(list(steps), list(moved), list(decay))
    return [step.to(parameter.dtype) for step, parameter in zip(added, moved, strict=True)]


def _along(coefficient: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of an (R,) coefficient that broadcast against each stacked parameter."""
    return [coefficient.view(-1, *[1] * (parameter.dim() - 1)) for parameter in parameters]


class StackedStep(ABC):
    """One optimizer over stacked parameters: `begin` a step, then move each parameter once, in any order.

    Attributes:
        parameters: (R, *shape) each.
        lr: views of the (R,) learning rates that broadcast against each parameter.
        decay: likewise of the weight decay; None where all are zero.
        step: number of steps begun.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: Tensor, weight_decay: Tensor | None) -> None:
        self.parameters = parameters
        self.lr = _along(lr, parameters)
        self.decay = None if weight_decay is None else _along(weight_decay, parameters)
        self.step = 0
        self._scratch: dict[torch.Size, Tensor] = {}

    def begin(self) -> None:
        """Start a new step."""
        self.step += 1

    @abstractmethod
    def update_all(self, gradients: Mapping[int, Tensor]) -> None:
        """Move the parameters of these indices in place, all by the same few calls; gradients stay as they are."""

    def update(self, index: int, gradient: Tensor) -> None:
        """Move parameter `index` in place."""
        self.update_all({index: gradient})

    def update_product(self, index: int, left: Tensor, right: Tensor) -> None:
        """Move parameter `index`, whose gradient is the batched matrix product of two tensors."""
        parameter = self.parameters[index]
        if parameter.shape not in self._scratch:  # a gradient lives for one update: one for each shape is enough
            self._scratch[parameter.shape] = torch.empty_like(parameter)
        self.update(index, torch.bmm(left, right, out=self._scratch[parameter.shape]))


class StackedSGD(StackedStep):
    """`SGD` over stacked parameters."""

    def __init__(self, spec: SGD, parameters: Sequence[Tensor], lr: Tensor, weight_decay: Tensor | None) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.momentum, self.nesterov = spec.momentum, spec.nesterov
        self.buffers = [torch.zeros_like(parameter) for parameter in parameters] if spec.momentum else None

    def update_all(self, gradients: Mapping[int, Tensor]) -> None:
        """Parameter <- parameter - lr * (momentum-filtered gradient)."""
        moved, lr = [self.parameters[index] for index in gradients], [self.lr[index] for index in gradients]
        steps = list(gradients.values())
        if self.decay is not None:
            steps = _decayed(steps, moved, [self.decay[index] for index in gradients])
        if self.buffers is not None:
            buffers = [self.buffers[index] for index in gradients]
            torch._foreach_mul_(buffers, self.momentum)
            torch._foreach_add_(buffers, steps)
            steps = list(torch._foreach_add(steps, buffers, alpha=self.momentum)) if self.nesterov else buffers
        torch._foreach_addcmul_(moved, steps, lr, -1.0)

    def update_product(self, index: int, left: Tensor, right: Tensor) -> None:
        """With plain momentum the product is added to the filtered gradient as it is formed."""
        if self.buffers is None or self.decay is not None or self.nesterov:
            super().update_product(index, left, right)
        else:
            buffer = self.buffers[index].baddbmm_(left, right, beta=self.momentum)
            self.parameters[index].addcmul_(buffer, self.lr[index], value=-1.0)


class StackedAdam(StackedStep):
    """`Adam` and `AdamW` over stacked parameters."""

    def __init__(self, spec: Adam, parameters: Sequence[Tensor], lr: Tensor, weight_decay: Tensor | None) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.eps, self.decoupled = spec.betas, spec.eps, spec.decoupled
        self.means = [torch.zeros_like(parameter) for parameter in parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in parameters]

    def update_all(self, gradients: Mapping[int, Tensor]) -> None:
        """Parameter <- parameter - lr * corrected mean / (root of corrected second moment + eps)."""
        moved, lr = [self.parameters[index] for index in gradients], [self.lr[index] for index in gradients]
        means, squares = [self.means[index] for index in gradients], [self.squares[index] for index in gradients]
        steps = list(gradients.values())
        if self.decay is not None and self.decoupled:
            torch._foreach_mul_(moved, [1.0 - self.lr[index] * self.decay[index] for index in gradients])
        elif self.decay is not None:
            steps = _decayed(steps, moved, [self.decay[index] for index in gradients])
        beta1, beta2 = self.betas
        torch._foreach_lerp_(means, steps, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, steps, steps, 1.0 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1.0 - beta2**self.step))
        torch._foreach_add_(roots, self.eps)
        torch._foreach_addcmul_(moved, torch._foreach_div(means, roots), lr, -1.0 / (1.0 - beta1**self.step))


def clip(gradients: Sequence[Tensor], largest: Tensor) -> None:
    """Scale each replica's gradients to a global 2-norm of at most `largest` (R,), as `clip_grad_norm_` does.

    A replica whose norm is not finite ends non-finite; its neighbours are untouched.
    """
    flat = (gradient.reshape(len(gradient), -1).to(largest.dtype) for gradient in gradients)
    squares = torch.stack([gradient.square().sum(1) for gradient in flat])
    factor = (largest / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient, along in zip(gradients, _along(factor, gradients), strict=True):
        gradient.mul_(along)
