"""Weights of edges that add up to one over another end than that at which messages are added.

A graph's attention is a softmax over the edges of one node, told by an index. Where learnt weights add up to one for
each number of one index, and what they weigh is added by another, a node's weights are no shares of what it hears.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.within import Within
from depthgauge.checking.subject import Subject
from depthgauge.restoring import random_states_kept

LEAST = 16  # edges
KEPT = 64  # products and indices that are kept of a pass
ONE = 1e-3  # by which a sum is off from 1, at most
HARDLY = 0.2  # of the groups of the other index, that add up to one by chance: those of one edge each way

KINDS = {
    "softmax_over_receivers": Kind(
        "fault",
        "learnt weights of edges add up to one over the edges of each node at one end, and what they weigh is added at"
        " the other",
    ),
}
_ADDS = frozenset({"aten::index_add", "aten::index_add_", "aten::scatter_add", "aten::scatter_add_"})
_ADDS |= frozenset({"aten::scatter_reduce", "aten::scatter_reduce_", "aten::index_reduce", "aten::index_put_"})


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Keep products and the indices by which something was added; hold both against each other at each addition."""

    def __init__(self, within: Within) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._within = within
        self._products: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}
        self._indices: list[Tensor] = []
        self._raised = False
        self.found: tuple[str, float] | None = None

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        try:
            if name == "aten::exp":
                self._raised = True
            elif name == "aten::mul" and all(isinstance(each, Tensor) for each in args[:2]) and self._raised:
                if len(result) >= LEAST and len(self._products) < KEPT:
                    self._products[result.data_ptr()] = result, tuple(args[:2])
            elif name in _ADDS and self.found is None and name != "aten::index_put_":
                self._added(args)
        except (RuntimeError, IndexError, TypeError):  # of a tensor that cannot be read here
            pass
        return result

    def _added(self, args: Any) -> None:
        dim, index, source = args[1], args[2], args[3]
        if not isinstance(source, Tensor) or index.is_floating_point() or dim % source.dim() or len(source) < LEAST:
            return
        index = index.detach() if index.dim() == 1 else index.detach().reshape(len(index), -1)[:, 0]
        product = self._products.get(source.data_ptr())
        for weights in product[1] if product is not None and product[0].numel() == source.numel() else ():
            self._hold(weights, index, source.numel() // len(source))
        if len(self._indices) < KEPT and not any(_equal(each, index) for each in self._indices):
            self._indices.append(index.clone())

    def _hold(self, weights: Tensor, index: Tensor, width: int) -> None:
        """Hold an operand's sums by this index against those by the indices that came before."""
        shares = weights.detach().reshape(len(weights), -1).double() if len(weights) == len(index) else weights[:0]
        if not shares.numel() or shares.shape[1] >= max(2, width) or bool((shares < 0).any()):
            return
        if float(shares.std()) < 1e-6 or _ones(shares, index) > HARDLY:
            return
        for other in self._indices:
            if len(other) == len(index) and not _equal(other, index) and _ones(shares, other) == 1:
                self.found = self._within.place("model"), _ones(shares, index)
                return


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _ones(shares: Tensor, index: Tensor) -> float:
    """Share of the groups of an index over which they add up to one."""
    sums = torch.zeros(int(index.max()) + 1, shares.shape[1], dtype=shares.dtype, device=shares.device)
    sums.index_add_(0, index.long(), shares)
    there = torch.bincount(index.long(), minlength=len(sums)) > 0
    return ((sums[there] - 1).abs() <= ONE).all(1).float().mean().item()


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield the finding where weights are shared out at the other end."""
    training = subject.training
    if isinstance(training.model, torch.jit.ScriptModule) or not subject.fits(3, "attention over the edges of a graph"):
        return
    with training.untouched(), random_states_kept(), Within(training.model) as within:
        training.model.eval()  # dropout would change the sums
        with _Operations(within) as seen:
            training.value(subject.seen.batch)
    if seen.found is None:
        return
    where, share = seen.found
    yield Finding(
        "softmax_over_receivers", Status.LOOK,
        "attention's weights add up to 1 over the edges of each node at one end, and the messages that they weigh are"
        " added at the other: a node's weights are no shares of what it hears",
        "take the softmax over the index by which messages are added (of edge_index the target's row, as a rule 1)",
        "each node gets a mean of its neighbours", tuple(dict.fromkeys((where, "model", "loss"))),
        Measure("share of the nodes whose weights add up to 1", share),
    )  # fmt: skip
