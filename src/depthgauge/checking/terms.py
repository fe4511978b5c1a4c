"""The terms of a loss, read from its autograd graph before it goes backward: scores, targets, how they are reduced."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Form = Literal["classes", "binary", "binary_logits", "regression", "kl"]

_FORMS: dict[str, Form] = {
    "NllLoss": "classes", "NllLoss2D": "classes", "BinaryCrossEntropy": "binary",
    "BinaryCrossEntropyWithLogits": "binary_logits", "MseLoss": "regression", "SmoothL1Loss": "regression",
    "HuberLoss": "regression", "KlDiv": "kl",
}  # fmt: skip
_SHAPING = re.compile(
    r"(Unsafe)?View|_?Reshape.*|Transpose|T|Permute|Select|Slice|Squeeze|Unsqueeze|ToCopy|Alias|Clone|Index|Expand"
    r"|AsStrided|Unbind|Split.*|Narrow|Swapaxes|Contiguous|Flatten"
)
_MOST = 4_000_000  # numbers of a term that are kept: 16 MB in float32
_BELOW = 3  # nodes that are named below a term
_AGREED = 0.02  # relative difference below which a loss is a term's mean: half precision rounds to 0.001


@dataclass(frozen=True, eq=False)
class Term:
    """One loss function of torch's in a loss's graph.

    Attributes:
        form: `classes` (negative log-likelihood), `binary`, `binary_logits`, `regression` or `kl`.
        name: as autograd has it, `NllLoss`.
        scores: what it was handed first, detached: (rows, classes) log-probabilities of `classes`, else (numbers,).
        targets: what these are held against: (rows,) class numbers, else (numbers,).
        shape: of the targets as they were handed over, after broadcasting.
        summed: whether it adds up what it could have averaged.
        ignored: the class number that does not count.
        below: the nodes that made its scores, from the last on, without those that only change a shape.
        broadcast: whether scores and targets are repeated against each other along different dimensions.
        plain: whether no weight of classes or of positive examples is in it.
        weight: of each class, or of positive examples; None where there is none.
    """

    form: Form
    name: str
    scores: Tensor
    targets: Tensor
    shape: tuple[int, ...]
    summed: bool
    ignored: int
    below: tuple[str, ...]
    broadcast: bool
    plain: bool
    weight: Tensor | None = None

    @property
    def counted(self) -> Tensor:
        """Rows that count, of class numbers."""
        return self.targets != self.ignored

    @property
    def classes(self) -> int:
        """Number of classes that there are scores for."""
        return self.scores.shape[-1]

    @property
    def by_row(self) -> Tensor:
        """Its value for each row that counts, in float64 and without weights; of a regression the square."""
        return _by_row(self)

    @property
    def value(self) -> float:
        """Its mean over what is kept; NaN where nothing counts."""
        rows = self.by_row
        return rows.mean().item() if len(rows) else math.nan

    def is_all_of(self, loss: float) -> bool:
        """Tell whether a loss is this term's mean and nothing else."""
        return math.isclose(loss, self.value, rel_tol=_AGREED, abs_tol=1e-6)


def terms_of(found: list[Any]) -> tuple[Term, ...]:
    """The terms among a graph's nodes; one that cannot be read is left out."""
    return tuple(term for node in found if (term := _term(node)) is not None)


def short(node: Any) -> str:
    """`LogSoftmaxBackward0` -> `LogSoftmax`."""
    return re.sub(r"Backward\d*$", "", node.name())


def below(node: Any) -> Iterator[Any]:
    """The nodes that made a node's first input, from the last on, without those that only change a shape."""
    while node is not None and node.next_functions:
        node = node.next_functions[0][0]
        if node is not None and not _SHAPING.fullmatch(short(node)):
            yield node


def _term(node: Any) -> Term | None:
    form = _FORMS.get(short(node))
    if form is None:
        return None
    try:
        scores, targets = node._saved_self.detach(), node._saved_target.detach()
        names = tuple(short(each) for each, _ in zip(below(node), range(_BELOW), strict=False))
        return Term(
            form,
            short(node),
            *_flat(form, scores, targets),
            shape=tuple(targets.shape),
            summed=getattr(node, "_saved_reduction", 1) == 2,
            ignored=signed(getattr(node, "_saved_ignore_index", -100)),
            below=names,
            broadcast=_broadcast(scores, targets),
            plain=getattr(node, "_saved_weight", None) is None and getattr(node, "_saved_pos_weight", None) is None,
            weight=_weight(form, node),
        )
    except Exception:  # noqa: BLE001 - a saved tensor may be changed in place, offloaded by the user's hooks, or gone
        return None


def _weight(form: Form, node: Any) -> Tensor | None:
    found = getattr(node, {"classes": "_saved_weight", "binary_logits": "_saved_pos_weight"}.get(form, ""), None)
    return found.detach().float().reshape(-1).clone() if isinstance(found, Tensor) and found.numel() else None


def _flat(form: Form, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of both, cut to `_MOST` numbers."""
    if form != "classes":
        scores, targets = (each.reshape(-1)[:_MOST].clone() for each in _like(scores, targets))
        return scores, targets
    if scores.dim() == 1:
        scores, targets = scores[None], targets[None]
    rows = scores.movedim(1, -1).reshape(-1, scores.shape[1])
    kept = max(1, _MOST // max(1, scores.shape[1]))
    return rows[:kept].float().clone(), targets.reshape(-1)[:kept].clone()


def _like(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the shape of their broadcast."""
    return scores.expand_as(scores + targets), targets.expand_as(scores + targets)


def signed(number: int) -> int:
    """An int64 that autograd shows as an unsigned number."""
    return number - 2**64 if number >= 2**63 else number


def _broadcast(scores: Tensor, targets: Tensor) -> bool:
    if scores.dim() != targets.dim():
        return False
    sizes = zip(scores.shape, scores.stride(), targets.stride(), strict=True)
    repeated = [(not one, not other) for size, one, other in sizes if size > 1]
    return (True, False) in repeated and (False, True) in repeated


def _by_row(term: Term) -> Tensor:
    scores, targets = term.scores.double(), term.targets
    if term.form == "classes":
        counted = term.counted
        return -scores[counted].gather(1, targets[counted][:, None])[:, 0]
    if term.form == "binary":
        return nn.functional.binary_cross_entropy(scores, targets.double(), reduction="none")
    if term.form == "binary_logits":
        return nn.functional.binary_cross_entropy_with_logits(scores, targets.double(), reduction="none")
    if term.form == "kl":
        return nn.functional.kl_div(scores, targets.double(), reduction="none")
    return (scores - targets.double()).square()
