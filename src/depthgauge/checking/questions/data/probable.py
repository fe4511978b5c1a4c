"""Probabilities where scores are taken: rows that add up to one already, and are made to add up to one once more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from depthgauge.checking.answers import Finding, Status
from depthgauge.checking.questions.data.within import Within

ROUNDED = 0.01  # of the sum of probabilities: bfloat16 has 8 bits
APART = 1e-4  # between the largest and the smallest of a row: equal ones are shares, not what was told
_AGAIN = {"softmax": "softmax", "log_softmax": "log_softmax", "logsumexp": "logits", "gumbel_softmax": "gumbel_softmax"}


class Again(TorchFunctionMode):
    """Notes the first function of scores that gets probabilities along the dimension that it normalizes.

    Attributes:
        found: what takes them, and the module in whose call that is; None where there is none.
    """

    def __init__(self, within: Within) -> None:
        super().__init__()
        self._within = within
        self._raised: dict[int, tuple[Tensor, Tensor]] = {}  # exponentials, with what was raised
        self.found: tuple[str, str] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        given = args[0] if args else kwargs.get("input", kwargs.get("logits"))
        if self.found is None and isinstance(given, Tensor):
            if name == "exp":
                self._raised[id(value)] = value, given
            else:
                self._look(name, func, given, (args, kwargs))
        return value

    def _look(self, name: str, func: Any, given: Tensor, called: tuple[Any, Any]) -> None:
        args, kwargs = called
        if name == "sum":
            raised = self._raised.get(id(given), (None, None))[1]
            again, given = ("sum", raised) if raised is not None else ("", given)
        else:
            again = _AGAIN.get(name, "")
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 and name != "gumbel_softmax" else None))
        if func is functional.cross_entropy:
            again, dim = "cross_entropy", min(1, given.dim() - 1)
        elif name == "gumbel_softmax":
            dim = kwargs.get("dim", -1)
        dim = dim[0] if isinstance(dim, list | tuple) and len(dim) == 1 else dim
        if again and isinstance(dim, int) and are_probabilities(given, dim):
            self.found = again, self._within.place("loss")


def are_probabilities(rows: Tensor, dim: int) -> bool:
    """Tell whether numbers are 0 or more and add up to one along a dimension, and are not all alike."""
    if not rows.is_floating_point() or not -rows.dim() <= dim < rows.dim() or rows.shape[dim] < 2 or not rows.numel():
        return False
    values = rows.detach().float()
    adds_up = bool((values >= 0).all()) and bool(((values.sum(dim) - 1).abs() <= ROUNDED).all())
    return adds_up and bool((values.amax(dim) - values.amin(dim)).max() > APART)


def findings(found: tuple[str, str] | None) -> Iterator[Finding]:
    """Yield the finding where the loss, or a distribution that it asks, takes probabilities for scores.

    Args:
        found: what `Again` found.
    """
    if found is None:
        return
    what, where = found
    takes = {
        "logits": "a distribution takes them for its logits", "sum": "their exponentials are divided by their sum",
    }.get(what, f"{what} takes them for scores")  # fmt: skip
    yield Finding(
        "double_softmax", Status.BROKEN,
        f"probabilities, which add up to 1, are made probabilities again: {takes}, and none gets more than e = 2.7"
        " times another's",
        "hand over scores as they are before the softmax, or give the distribution its probabilities (probs=)",
        "a probability can be near 1", tuple(dict.fromkeys((where, "loss", "model"))),
    )  # fmt: skip
