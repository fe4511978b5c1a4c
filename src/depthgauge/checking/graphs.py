"""Reading of a loss's autograd graph: its terms, and which functions follow each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from depthgauge.checking.terms import Term, below, short, terms_of


@dataclass(frozen=True, eq=False)
class Graph:
    """The autograd graph of a loss.

    Attributes:
        terms: torch's loss functions in it, with what they were handed.
        pairs: of every softmax and logarithm in it, its name and that of the node below: `("LogSoftmax", "Softmax")`.
    """

    terms: tuple[Term, ...] = ()
    pairs: frozenset[tuple[str, str]] = frozenset()


def graph_of(loss: Tensor) -> Graph:
    """Walk the graph of a loss that has not gone backward yet."""
    found = list(nodes(loss))
    return Graph(terms_of(found), _pairs(found))


def _pairs(found: list[Any]) -> frozenset[tuple[str, str]]:
    upper = (node for node in found if short(node) in {"LogSoftmax", "Log"})
    return frozenset((short(node), short(lower)) for node in upper if (lower := next(below(node), None)) is not None)


def nodes(loss: Tensor) -> Iterator[Any]:
    """Every node of the graph once, from the loss on, breadth first."""
    waiting, met = [loss.grad_fn], {loss.grad_fn}
    while waiting:
        level, waiting = waiting, []
        for node in level:
            if node is None:
                continue
            yield node
            for following, _ in node.next_functions:
                if following is not None and following not in met:
                    met.add(following)
                    waiting.append(following)
