"""Causes of a gradient that is not that of the whole batch: the weights with which the shards' gradients make it up.

    fit = explained(whole, pieces, sizes, scale, tolerance)       # the whole gradient as a weighted sum of the pieces'
    fit.cause                                                     # "sum": all weights are 1

DDP takes the mean of the pieces' gradients, each with the weight 1/P. Where the whole batch's gradient is made of them
by other weights, the weights say what the loss is; where no weights make it, the examples depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthgauge import nested

Floats = NDArray[np.float64]
Cause = Literal[
    "", "sum", "ragged", "weights", "nonlinear", "batch norm", "random", "batch", "empty", "not finite", "buffers",
    "reduction", "state", "unrepeatable", "raises",
]  # fmt: skip
"""Why a training parts from that on one device; empty where it does not.

`sum`: the loss adds up its examples. `ragged`: shards of unequal length count alike. `weights`: the loss is a mean over
something that shards have unequally much of, such as tokens. `nonlinear`: the loss is a function of a mean, such as its
root. `batch norm`: statistics are those of a shard. `random`: random draws differ. `batch`: the examples of a batch
depend on each other otherwise. `empty`: a rank gets no example. `not finite`: a shard's gradient is NaN or infinite.
`buffers`: gradients agree, and buffers do not. `reduction`: the shards' gradients are right, and what DDP makes of them
is not. `state`: an accumulation step changes the model for those after it. `unrepeatable`: not even one device gives
the same gradient twice. `raises`: a rank cannot run its shard.
"""

PER_WEIGHT = 10  # values of a gradient that a fitted weight takes, at least


@dataclass(frozen=True)
class Fit:
    """The weights that make the whole gradient of the pieces' gradients.

    Attributes:
        cause: what they say; `batch` where none do.
        weights: (P,) one a piece; those that fit best.
        misfit: what remains at the parameter that they fit worst, as a share of its gradient.
    """

    cause: Cause
    weights: tuple[float, ...]
    misfit: float


def explained(whole: Floats, pieces: Floats, sizes: Sequence[int], tolerance: float) -> Fit:
    """Find the weights, those that have a meaning first.

    Args:
        whole: (D,) the gradient of the whole batch, each parameter's divided by its length.
        pieces: (P, D) those of the pieces, divided likewise.
        sizes: (P,) examples of each piece.
        tolerance: root mean square of what may remain of a parameter's gradient, which has the length 1.
    """
    count, there = (
        len(pieces),
        np.asarray(pieces.any(1), dtype=np.float64),
    )  # a piece without a gradient may have any weight
    shares = np.asarray(sizes) / np.sum(sizes)
    meanings: dict[Cause, Floats] = {
        "": np.full(count, 1 / count), "sum": there,
    }  # fmt: skip
    if np.ptp(sizes):
        meanings["ragged"] = shares
    misfit, cause = min(
        ((_misfit(whole, pieces, weights), cause) for cause, weights in meanings.items()), key=itemgetter(0)
    )
    if misfit <= tolerance:
        lone = cause == "sum" and there.sum() == 1
        return Fit("weights" if lone else cause, tuple(map(float, meanings[cause])), misfit)
    if not np.isfinite(pieces).all():
        return Fit("not finite", tuple([np.nan] * count), np.inf)
    used = int(np.count_nonzero(pieces.any(0)))
    fitted: Floats = np.linalg.lstsq(pieces.T, whole, rcond=None)[0].astype(np.float64)
    misfit = _misfit(whole, pieces, fitted)
    free = used >= PER_WEIGHT * count and misfit <= tolerance and bool((fitted > -tolerance).all())
    cause = "batch" if not free else "weights" if abs(fitted.sum() - 1) < 100 * tolerance else "nonlinear"
    return Fit(cause, tuple(map(float, fitted)), misfit)


def _misfit(whole: Floats, pieces: Floats, weights: Floats) -> float:
    if not np.isfinite(pieces).all():
        return float("inf")
    return float(np.linalg.norm(whole - weights @ pieces))


# -- what the weights count --------------------------------------------------------------------------------------------


def counted(pieces: Sequence[Any], weights: Sequence[float]) -> str:
    """Name the things of a batch that the pieces have in these shares; empty where nothing is found.

    Such as "entries of `labels` that are not -100".
    """
    shares = np.asarray(weights) / np.sum(weights)
    for name, counts in _counts(pieces):
        total = counts.sum()
        if total > 0 and np.ptp(counts) > 0 and np.abs(counts / total - shares).max() < 1e-4:
            return name
    return ""


def _counts(pieces: Sequence[Any]) -> Iterator[tuple[str, Floats]]:
    """(what is counted, how many each piece has)."""
    columns: dict[str, list[Tensor]] = {}
    for piece in pieces:
        fields = piece.to_dict() if hasattr(piece, "to_dict") else piece  # of graphs
        for place, tensor in nested.tensors(fields):
            columns.setdefault(place or "", []).append(tensor)
    for place, held in columns.items():
        if len(held) != len(pieces) or held[0].is_complex():
            continue
        named = f"`{place}`" if not place.isdecimal() else f"tensor {place} of the batch"
        what = named if place else "the batch"
        if held[0].is_floating_point():
            yield f"numbers in {what}", _each(held, lambda x: torch.tensor(x.numel()))
        for number in (0, -100):
            yield f"entries of {what} that are not {number}", _each(held, partial(_others, number))
            if all(x.dim() > 1 for x in held):
                later = [x[:, 1:] for x in held]  # a token is predicted from those before it
                yield (
                    f"entries of {what} that are not {number}, its first column left out",
                    _each(later, partial(_others, number)),
                )
        yield f"entries of {what} above 0", _each(held, lambda x: (x > 0).sum())
        yield f"the sum of {what}", _each(held, lambda x: x.double().sum())


def _others(number: int, x: Tensor) -> Tensor:
    return (x != number).sum()


def _each(held: Sequence[Tensor], count: Callable[[Tensor], Tensor]) -> Floats:
    return np.array([float(count(x)) for x in held])
