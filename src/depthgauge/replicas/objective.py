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


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    _check_shapes(outputs.shape, targets.shape)
    return functional.mse_loss(outputs, targets)


def _check_shapes(outputs: torch.Size, targets: torch.Size) -> None:
    """Refuse what would be broadcast: the mean square over all pairs of examples."""
    if outputs != targets:
        raise ValueError(
            f"a mean squared error takes targets of the outputs' shape {tuple(outputs)}, not {tuple(targets)}; "
            "reshape the targets"
        )


_NAMED: dict[str, Function] = {"cross_entropy": _cross_entropy, "mse": _mse}

IGNORED = -100
"""The class that torch's cross-entropy leaves out."""


@dataclass(frozen=True)
class Objective:
    """A loss, and whether outputs are the scores of classes.

    Attributes:
        loss: `cross_entropy` (classes in the last dimension), `mse`, or a function (outputs, targets) -> scalar of
            one model's batch, made of torch operations.
        ignores: whether there are targets that cross-entropy leaves out (-100), of padding.
    """

    loss: Loss
    ignores: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in _NAMED:
            raise ValueError(f"no loss {self.loss!r}; there is {', '.join(_NAMED)}, or any f(outputs, targets)")

    @staticmethod
    def of(loss: Loss, targets: Tensor) -> Objective:
        """The objective of these targets."""
        return Objective(loss, loss == "cross_entropy" and bool((targets == IGNORED).any()))

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
            return self._cross_entropies(outputs, targets)
        if self.loss == "mse":
            _check_shapes(outputs.shape[1:], targets.shape[1:])
            difference = outputs - targets
            terms = difference[0].numel()
            return difference.square().flatten(1).sum(1) / terms, difference.mul_(2.0 / terms)
        with torch.enable_grad():
            outputs.requires_grad_()
            losses = self._each(outputs, targets)
            (gradient,) = torch.autograd.grad(losses.sum(), outputs)
        return losses.detach(), gradient

    def _cross_entropies(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores, labels = outputs.flatten(1, -2), targets.flatten(1).unsqueeze(2)
        counted = labels != IGNORED if self.ignores else None
        if counted is not None:
            labels = labels.masked_fill(~counted, 0)
        logs = functional.log_softmax(scores, 2)
        losses = -logs.gather(2, labels)
        gradient = logs.exp_()
        gradient.scatter_add_(2, labels, gradient.new_full((1, 1, 1), -1.0).expand_as(labels))
        if counted is None:
            terms = labels.shape[1]
            return losses.sum((1, 2)) / terms, gradient.div_(terms).view_as(outputs)
        number = counted.sum(1, keepdim=True)
        losses.masked_fill_(~counted, 0.0)
        gradient.masked_fill_(~counted, 0.0).div_(number.clamp(min=1))
        return losses.sum((1, 2)) / number[:, 0, 0], gradient.view_as(outputs)

    def _each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses (R,) of a function of the user's: in one call, or one after another where it looks at its numbers."""
        try:
            losses: Tensor = torch.func.vmap(self.single)(outputs, targets)
        except RuntimeError as error:
            if "randomness" in str(error):  # draws that no seed of a replica decides
                raise
            return torch.stack([self.single(own, y) for own, y in zip(outputs, targets, strict=True)])
        return losses

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Fraction of right classes (R,) of R models, in 32 bits at least; None where outputs are no scores."""
        if targets.is_floating_point() or outputs.shape[1:-1] != targets.shape[1:]:
            return None
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        right = (outputs.detach().argmax(-1) == targets).flatten(1).to(dtype)
        if not self.ignores:
            return right.mean(1)
        return right.sum(1) / (targets != IGNORED).flatten(1).sum(1)
