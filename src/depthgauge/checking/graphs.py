"""Reading of a loss's autograd graph: its leaves, its terms, and what could not be looked into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from depthgauge.checking.parameters import held_by
from depthgauge.checking.terms import Term, below, short, terms_of
from depthgauge.workload import Training

_OPAQUE = ("CompiledFunction", "CheckpointFunction", "_checkpoint")  # whose leaves lie in a graph of their own


@dataclass(frozen=True, eq=False)
class Graph:
    """The autograd graph of a loss.

    Attributes:
        leaves: every tensor that would get a gradient, once.
        unknown: those among them that neither the model's (or a loss module's) parameters nor the optimizer hold.
        opaque: names of nodes that hide a graph of their own; where there are any, leaves may be missing.
        terms: torch's loss functions in it, with what they were handed.
        pairs: of every softmax and logarithm in it, its name and that of the node below: `("LogSoftmax", "Softmax")`.
    """

    leaves: tuple[Tensor, ...]
    unknown: tuple[Tensor, ...]
    opaque: tuple[str, ...]
    terms: tuple[Term, ...] = ()
    pairs: frozenset[tuple[str, str]] = frozenset()


def graph_of(training: Training, loss: Tensor) -> Graph:
    """Walk the graph of a loss that has not gone backward yet."""
    leaves: dict[int, Tensor] = {}
    opaque: list[str] = []
    found = list(nodes(loss))
    for node in found:
        if (variable := getattr(node, "variable", None)) is not None:
            leaves[id(variable)] = variable
        elif any(name in node.name() for name in _OPAQUE):
            opaque.append(node.name())
    known = {id(each) for module in training.modules for each in module.parameters()}
    known |= set(map(id, held_by(training.optimizer)))
    unknown = tuple(each for key, each in leaves.items() if key not in known)
    return Graph(tuple(leaves.values()), unknown, tuple(dict.fromkeys(opaque)), terms_of(found), _pairs(found))


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
