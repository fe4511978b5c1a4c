"""States that a pass cuts out of its graph again and again, and the same pass with the gradient let through."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from depthgauge.checking.graphs import nodes
from depthgauge.workload import Training

CUT = 3  # cuts in a row, each of what the last one's result became
MOST = 64  # cuts that are followed
NODES = 20_000  # of a graph, that are looked at
_DATA = vars(torch._C.TensorBase)["data"].__get__  # what torch calls for `.data`


def _cuts(function: Any) -> bool:
    """Whether it is `detach` or `.data`."""
    return function is torch.Tensor.detach or function is torch.detach or function == _DATA


class Through(TorchFunctionMode):
    """Hands on what is detached as it is."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, or leave it out."""
        if _cuts(function) and torch.is_grad_enabled() and args[0].grad_fn is not None:
            return args[0]
        return function(*args, **(kwargs or {}))


class _Following(TorchFunctionMode):
    """Keeps what is detached, and lets what comes of it ask for a gradient, so that a graph names it."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, and note what it cuts off."""
        result = function(*args, **(kwargs or {}))
        if _cuts(function) and torch.is_grad_enabled() and len(self.pairs) < MOST and args[0].grad_fn is not None:
            result = result.requires_grad_()
            self.pairs.append((args[0], result))
        return result


def chain(training: Training, batch: Any) -> tuple[int, tuple[str, ...]]:
    """Length of the longest row of cuts, each of what the last one's result became; and who holds weights between.

    Args:
        training: within `untouched()`.
        batch: of it.
    """
    following = _Following()
    with following:
        training.value(batch)
    pairs = following.pairs
    if len(pairs) < CUT:
        return 0, ()
    places = {id(result): place for place, (_, result) in enumerate(pairs)}
    named = {id(each): name.rpartition(".")[0] for name, each in training.model.named_parameters()}
    lengths: list[int] = []
    inside: dict[str, None] = {}
    for place, (given, _) in enumerate(pairs):
        leaves = _leaves(given)
        before = [
            lengths[places[each]]
            for each in leaves
            if places.get(each, place) < place and pairs[places[each]][0].shape == given.shape
        ]
        lengths.append(1 + max(before, default=0))
        if before:
            inside.update(dict.fromkeys(named[each] for each in leaves if each in named))
    return max(lengths), tuple(inside)


def _leaves(value: Tensor) -> set[int]:
    """Identities of the leaves that a tensor was made of."""
    leaves = (getattr(node, "variable", None) for node in islice(nodes(value), NODES))
    return {id(leaf) for leaf in leaves if leaf is not None}
