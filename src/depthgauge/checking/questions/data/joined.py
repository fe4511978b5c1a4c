"""Graphs of a batch that were joined to one: edges that lead from one example's nodes to another's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.subject import Subject

GRAPHS = 4  # in a batch, from which on numbers that rise are no types of nodes
ACROSS = 0.05  # of the edges: in a batch that was joined rightly none is
_NAMES = ("x", "edge_index", "batch", "y")  # of torch_geometric's batches

KINDS = {
    "edges_across": Kind(
        "fault",
        f"{ACROSS:.0%} or more of a batch's edges lead from one example's nodes to another's: their node numbers were"
        " not moved by the nodes of all graphs before theirs; or half of the graphs or more have none",
    ),
}


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield that edges of a batch of graphs are another's."""
    batch = subject.seen.batch
    tensors = [each for _, each in nested.tensors(batch)] or [
        each for name in _NAMES if isinstance(each := getattr(batch, name, None), Tensor)
    ]
    owners = [each for each in tensors if _is_owner(each, tensors)]
    for edges in (each for each in tensors if _is_edges(each)):
        for owner in owners:
            if int(edges.max()) < len(owner):
                yield from _across(edges, owner)
                return


def _is_edges(tensor: Tensor) -> bool:
    whole = not tensor.is_floating_point() and tensor.dtype is not torch.bool
    return whole and tensor.dim() == 2 and tensor.shape[0] == 2 < tensor.shape[1] and bool((tensor >= 0).all())


def _is_owner(tensor: Tensor, others: list[Tensor]) -> bool:
    """Tell whether it says of each node which example it belongs to: 0, 0, 0, 1, 1, ..., one target for each."""
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype is torch.bool or len(tensor) < 2 * GRAPHS:
        return False
    steps = tensor.diff()
    graphs = int(tensor[-1]) + 1
    rises = int(tensor[0]) == 0 and bool(((steps == 0) | (steps == 1)).all())
    return rises and GRAPHS <= graphs < len(tensor) and any(each.dim() and len(each) == graphs for each in others)


def _across(edges: Tensor, owner: Tensor) -> Iterator[Finding]:
    ends = owner[edges.long()]
    share = (ends[0] != ends[1]).float().mean().item()
    graphs = int(owner[-1]) + 1
    without = 1 - len(torch.unique(ends)) / graphs
    if share < ACROSS and without < 0.5:
        return
    what = (
        f"{share:.0%} of the edges lead from one graph's nodes to another's"
        if share >= ACROSS
        else f"{without:.0%} of the {graphs} graphs have no edge"
    )
    yield Finding(
        "edges_across", Status.BROKEN, f"in the first batch {what}: node numbers were not moved as graphs were joined",
        "add to each graph's node numbers the number of nodes of all graphs before it (cumsum of their sizes)",
        "each example has its own edges", ("batches",), Measure("share of edges between graphs", share),
    )  # fmt: skip
