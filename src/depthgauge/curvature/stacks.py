"""Products of the Hessians of a stack of replicas with vectors, one a replica, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge.curvature.lanczos import BASIS_BYTES, Lanczos, largest
from depthgauge.curvature.products import check_parameters, differentiable, directional, gradients
from depthgauge.curvature.results import Columns, Sharpness, check_symmetry, inverse_root, result, scaled
from depthgauge.curvature.single import sharpness
from depthgauge.nested import scores
from depthgauge.replicas import Stack, engine, mapped
from depthgauge.replicas.chain import Chain
from depthgauge.replicas.objective import Loss, Objective


def of_replicas(
    stack: Stack,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss = "cross_entropy",
    *,
    preconditioner: Columns | None = None,
    **settings: Any,
) -> list[Sharpness]:
    """The largest eigenvalue of every replica's Hessian, as `sharpness`, for a stack at once.

    Args:
        stack: the replicas; they stay as they are.
        inputs: (N, ...), one batch, the same for all.
        targets: (N, ...).
        loss: as in `replicas.Loop`.
        preconditioner: (R, *shape) for each parameter that requires a gradient, or (R, P).
        **settings: as in `sharpness`.

    Returns:
        One result a replica.

    Raises:
        NoHessianError: as in `sharpness`.
        ValueError: as in `sharpness`.
    """
    chosen, task = Lanczos(**settings), _Task.on(stack, inputs, targets, Objective(loss))
    shapes = [row[0] for row in task.wanted(stack)]
    roots = None if preconditioner is None else inverse_root(preconditioner, shapes, len(stack)).to(task.inputs.device)
    choice = engine.choose(stack, task.inputs)
    if choice.strategy == "loop":
        given = [None] * len(stack) if roots is None else list(roots.pow(-2))
        return [task.alone(stack.module(row), given[row], settings) for row in range(len(stack))]
    most = max(1, BASIS_BYTES // (8 * chosen.most_steps * sum(each.numel() for each in shapes)))
    found = []
    for block in engine.blocks(stack, choice, moments=None):
        for start in range(block.start, block.stop, most):
            rows = slice(start, min(start + most, block.stop))
            found += task.together(stack.part(rows), choice.chain, None if roots is None else roots[rows], chosen)
    return found


@dataclass(frozen=True)
class _Task:
    """The loss of every replica: all of the examples in one batch, on the stack's device."""

    inputs: Tensor
    targets: Tensor
    objective: Objective

    @staticmethod
    def on(stack: Stack, inputs: Tensor, targets: Tensor, objective: Objective) -> _Task:
        check_parameters([each for each in stack.template.parameters() if each.requires_grad])
        device = next(iter(stack.parameters.values())).device
        return _Task(inputs.to(device), targets.to(device), objective)

    @staticmethod
    def wanted(stack: Stack) -> list[Tensor]:
        return [leaf for leaf in mapped.leaves(stack) if leaf.requires_grad]

    def together(self, stack: Stack, chain: Chain | None, root: Tensor | None, settings: Lanczos) -> list[Sharpness]:
        """Replicas whose losses are summed: their Hessians are the blocks of the sum's."""
        leaves = mapped.leaves(stack)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        shapes = [leaf[0].detach() for leaf in wanted]
        sizes = [each.numel() for each in shapes]
        eps = max(torch.finfo(leaf.dtype).eps for leaf in wanted)
        with differentiable(stack.template):
            everywhere = self.inputs.expand(len(stack), *self.inputs.shape)
            if chain is None:
                outputs = mapped.outputs(stack.fresh(), leaves, everywhere)
            else:
                outputs = chain.forward(leaves, everywhere).outputs
            losses = torch.func.vmap(self.objective.single, in_dims=(0, None))(outputs, self.targets)
            slopes = gradients(losses.sum(), wanted)

            def product(vectors: Tensor) -> Tensor:
                pieces = torch.split(vectors, sizes, dim=1)
                along = [piece.reshape(leaf.shape).to(leaf) for piece, leaf in zip(pieces, wanted, strict=True)]
                images = directional(slopes, wanted, along, keep=True)
                flat = torch.cat([each.reshape(len(each), -1).to(vectors) for each in images], 1)
                return torch.where(losses.isfinite()[:, None], flat, torch.nan)

            like = wanted[0].detach().new_empty((len(stack), sum(sizes)))
            pairs = largest(scaled(product, root), like, settings, eps)
        check_symmetry(pairs, eps)
        return [result(pairs, row, shapes) for row in range(len(stack))]

    def alone(self, model: nn.Module, preconditioner: Tensor | None, settings: dict[str, Any]) -> Sharpness:
        """One replica as a module of its own."""

        def loss(model: nn.Module, inputs: Any, targets: Any) -> Tensor:
            return self.objective.single(scores(model(inputs)), targets)

        module = model.to(self.inputs.device)
        return sharpness(module, loss, self.inputs, self.targets, preconditioner=preconditioner, **settings)
