"""The sharpness of one module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from depthgauge.curvature.lanczos import Lanczos, largest
from depthgauge.curvature.products import Hessian, Loss
from depthgauge.curvature.results import Columns, Sharpness, check_symmetry, inverse_root, result, scaled
from depthgauge.formats.arguments import kind


def sharpness(
    model: nn.Module,
    loss: Loss,
    inputs: Any,
    targets: Any,
    *,
    preconditioner: Columns | None = None,
    batch: int | None = None,
    smallest: bool = False,
    **settings: Any,
) -> Sharpness:
    """The largest eigenvalue of the Hessian of a mean loss, by Lanczos' iteration on products with vectors.

    Parameters that require a gradient are differentiated by, shared ones once. The model is run in the mode that it
    is in: batch normalization in training uses the statistics of each batch, and dropout has one mask, of `seed`. It
    stays as it was: weights, gradients, buffers, modes, hooks and random states.

    Args:
        model: any module.
        loss: `loss(model, inputs, targets)`, the scalar mean over the examples.
        inputs: of all examples, in one batch.
        targets: likewise.
        preconditioner: P, positive, as one tensor a parameter or one flat tensor: the eigenvalues are those of
            P^-1/2 H P^-1/2, and so are the vectors.
        batch: most examples a pass, to save memory; the Hessian is the mean over all.
        smallest: seek the smallest eigenvalues, smallest first.
        **settings: fields of `Lanczos`: `count`, `tolerance`, `most_steps`, `seed`.

    Raises:
        NoHessianError: the loss is random, or cannot be differentiated twice.
        ValueError: no parameter requires a gradient, or an argument does not fit the others.
        TypeError: the loss is no scalar, or there is no such setting.
    """
    chosen = Lanczos(**settings)
    hessian = Hessian(model, loss, inputs, targets, batch=batch, seed=chosen.seed)
    scale = None if preconditioner is None else inverse_root(preconditioner, hessian.parameters)
    sign = -1.0 if smallest else 1.0
    with hessian.ready():
        pairs = largest(scaled(hessian, scale, sign), hessian.like(), chosen, hessian.eps)
    check_symmetry(pairs, hessian.eps)
    return result(pairs, 0, hessian.parameters, sign)


def adam_preconditioner(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Tensor]:
    """The preconditioner of Adam after its last step: (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps), a parameter each.

    Cohen et al. 2022, arXiv:2207.14484. Adam is then stable below (2 + 2 beta1) / ((1 - beta1) lr) of
    `sharpness(..., preconditioner=...)`, which is 38 / lr for beta1 = 0.9.

    Args:
        optimizer: a `torch.optim.Adam` or `AdamW` that has stepped, without `amsgrad`.
        model: its model.

    Raises:
        TypeError: no optimizer, or no module.
        ValueError: a parameter that requires a gradient has no state of Adam's, or another rule made the steps.
    """
    if not all((isinstance(optimizer, torch.optim.Optimizer), isinstance(model, nn.Module))):
        raise TypeError(
            f"a preconditioner is that of an optimizer and its module, not {kind(optimizer)} and {kind(model)}"
        )
    if isinstance(optimizer, torch.optim.NAdam | torch.optim.RAdam):
        raise ValueError(f"{type(optimizer).__name__} divides its steps by another preconditioner than Adam's")
    groups = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = optimizer.state.get(parameter, {})
        if "exp_avg_sq" not in state or id(parameter) not in groups or not int(state["step"]):
            raise ValueError(f"the optimizer holds no second moment of {name!r}: it is no Adam, or has not stepped it")
        group = groups[id(parameter)]
        if group.get("amsgrad"):
            raise ValueError(
                "with amsgrad steps are divided by the largest second moment so far: this is Adam's without"
            )
        found.append(_adam(state["exp_avg_sq"], int(state["step"]), group["betas"], group["eps"]))
    return found


def _adam(square: Tensor, step: int, betas: tuple[float, float], eps: float) -> Tensor:
    root = (square.detach().double() / (1.0 - betas[1] ** step)).sqrt()
    return (1.0 - betas[0] ** step) * (root + eps)
