"""The loss that is minimized, for one model and for a stack of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[[Tensor, Tensor], Tensor]
Loss = str | Function


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


_NAMED: dict[str, Function] = {"cross_entropy": _cross_entropy, "mse": functional.mse_loss}


@dataclass(frozen=True)
class Objective:
    """A loss, and whether outputs are the scores of classes.

    Attributes:
        loss: `cross_entropy` (classes in the last dimension), `mse`, or a function (outputs, targets) -> scalar of
            one model's batch, made of torch operations.
    """

    loss: Loss

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in _NAMED:
            raise ValueError(f"no loss {self.loss!r}; there is {', '.join(_NAMED)}, or any f(outputs, targets)")

    def single(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar loss of one model, for autograd."""
        function = _NAMED[self.loss] if isinstance(self.loss, str) else self.loss
        return function(outputs, targets)

    def stacked(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (R,) of R models and its gradient with respect to their outputs (R, B, ...).

        The gradient of cross-entropy is softmax minus one-hot, over the number of terms.
        """
        outputs = outputs.detach()
        if self.loss == "cross_entropy":
            scores, labels = outputs.flatten(1, -2), targets.flatten(1).unsqueeze(2)
            terms = labels.shape[1]
            logs = functional.log_softmax(scores, 2)
            loss = -logs.gather(2, labels).sum((1, 2)) / terms
            gradient = logs.exp_()
            gradient.scatter_add_(2, labels, gradient.new_full((1, 1, 1), -1.0).expand_as(labels))
            return loss, gradient.div_(terms).view_as(outputs)
        if self.loss == "mse":
            difference = outputs - targets
            terms = difference[0].numel()
            return difference.square().flatten(1).sum(1) / terms, difference.mul_(2.0 / terms)
        with torch.enable_grad():
            outputs.requires_grad_()
            losses = torch.func.vmap(self.single)(outputs, targets)
            (gradient,) = torch.autograd.grad(losses.sum(), outputs)
        return losses.detach(), gradient

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Fraction of right classes (R,) of R models; None where outputs are no scores."""
        if targets.is_floating_point() or outputs.shape[1:-1] != targets.shape[1:]:
            return None
        return (outputs.detach().argmax(-1) == targets).flatten(1).to(outputs.dtype).mean(1)
