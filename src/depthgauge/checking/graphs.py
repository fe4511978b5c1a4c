"""Reading of a loss's autograd graph: its terms, and which functions follow each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from depthgauge.checking.terms import Term, below, short, signed, terms_of

_OF_SCORES = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "LogSigmoid"})


def softmaxes(graph: Iterable[Any]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield of each softmax of a graph's nodes its shape, and the dimension along which it adds up to 1."""
    for node in graph:
        if short(node) in {"Softmax", "LogSoftmax"}:
            yield tuple(node._saved_result.shape), signed(node._saved_dim) % max(node._saved_result.dim(), 1)


@dataclass(frozen=True, eq=False)
class Graph:
    """The autograd graph of a loss.

    Attributes:
        terms: torch's loss functions in it, with what they were handed.
        pairs: of every softmax and logarithm in it, its name and that of the node below: `("LogSoftmax", "Softmax")`.
        flattened: likewise of those whose output is nearly even for what is below: a softmax or sigmoid of one.
    """

    terms: tuple[Term, ...] = ()
    pairs: frozenset[tuple[str, str]] = frozenset()
    flattened: frozenset[tuple[str, str]] = frozenset()


def graph_of(loss: Tensor) -> Graph:
    """Walk the graph of a loss that has not gone backward yet."""
    found = list(nodes(loss))
    return Graph(terms_of(found), _pairs(found), _flattened(found))


def _pairs(found: list[Any]) -> frozenset[tuple[str, str]]:
    upper = (node for node in found if short(node) in {"LogSoftmax", "Log"})
    return frozenset((short(node), short(lower)) for node in upper if (lower := next(below(node), None)) is not None)


def _flattened(found: list[Any]) -> frozenset[tuple[str, str]]:
    """Functions of scores that get what another one, or the same, has bounded by 1 already."""
    uppers = (node for node in found if short(node) in _OF_SCORES)
    return frozenset(
        (short(node), short(lower)) for node in uppers if (lower := _bounding(node)) is not None and _even(node)
    )


def _bounding(node: Any) -> Any:
    """The softmax or sigmoid whose output a function gets, clamped or times a number at most; None where there is none.

    That of a softmax is to be another one's, as weights of attention may be made of gates.
    """
    lower = next((each for each in below(node) if not _is_step(each)), None)
    kinds = {"Softmax"} if short(node) in {"Softmax", "LogSoftmax"} else {"Sigmoid", "Softmax"}
    return lower if lower is not None and short(lower) in kinds else None


def _is_step(node: Any) -> bool:
    """Tell whether a node clamps, or makes numbers smaller by a factor of its own."""
    name = short(node)
    if name in {"Clamp", "ClampMin", "ClampMax"}:
        return True
    if name not in {"Div", "Mul"} or len([each for each, _ in node.next_functions if each is not None]) != 1:
        return False
    try:
        factor = abs(float(node._saved_other))
    except Exception:  # noqa: BLE001 - as below, or more numbers than one
        return False
    return factor >= 1 if name == "Div" else factor <= 1


def _even(node: Any) -> bool:
    """Tell whether a function's output is what numbers between 0 and 1 give: within e of each other."""
    try:
        made = node._saved_result.detach() if short(node) != "LogSigmoid" else node._saved_self.detach().sigmoid()
        if short(node) in {"Sigmoid", "LogSigmoid"}:
            return bool(((made > 0.49) & (made < 0.74)).all())
        logs = (made if short(node) == "LogSoftmax" else made.log()).float()
        dim = signed(node._saved_dim)
        return logs.shape[dim] > 1 and bool((logs.amax(dim) - logs.amin(dim) <= 1.01).all())
    except Exception:  # noqa: BLE001 - a saved tensor may be changed in place, offloaded by the user's hooks, or gone
        return False


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
