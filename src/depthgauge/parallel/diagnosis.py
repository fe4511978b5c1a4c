"""Why a batch's gradients part: tried, not guessed.

The ranks' own gradients are had without reduction, in float64 where the training runs in it, and the weights found with
which they make up the whole batch's. Where none do, dropout is switched off, and then batch normalization held to its
running statistics: what makes the parts agree is the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from depthgauge.parallel import differences, passes
from depthgauge.parallel.causes import Cause, Fit, Floats, counted, explained
from depthgauge.parallel.differences import Judged
from depthgauge.parallel.naming import ParallelError
from depthgauge.parallel.passes import NOTHING, Found, Held, Step
from depthgauge.parallel.places import Ranks
from depthgauge.parallel.saying import Saying

CLEAR = frozenset({"", "sum", "ragged", "not finite"})  # causes that no chance makes
VALUES = 2_000_000  # of a gradient that the weights are fitted to
EXACT, SMALL = 1e-6, 1e-9  # share of a gradient that weights may leave in float64; parameters that do not count
COARSE, LITTLE = 1e-3, 1e-3  # the same in the training's own format
BANDS = 3.0  # that weights may leave there


def diagnosed(
    ranks: Ranks, batch: Any, sizes: Sequence[int], judged: Judged, said: Saying
) -> tuple[Cause, str, tuple[float, ...]]:
    """The cause, a clause that explains it, and the weights of the pieces' gradients; what rank 0 says counts.

    Args:
        ranks: this rank's place.
        batch: the whole.
        sizes: examples of each piece.
        judged: what the comparison said.
        said: makes sentences.
    """
    if not ranks.told(_repeats(ranks, batch, judged) if ranks.first else None):
        return "unrepeatable", said.unrepeatable(), ()
    rows = judged.difference.rows if judged.difference is not None else ()
    if ranks.told(judged.difference is not None and not judged.difference.of_gradients):
        return "buffers", said.buffers([row.name for row in rows if row.beyond]), ()
    tries = Tries(ranks, batch, sizes, judged)
    fit, held = tries.first()
    cause, what = _named(fit, held, tries), ""
    few = cause == "batch" and fit.misfit <= tries.tolerance  # weights make it, and could make anything
    if cause == "weights" or few:
        what = ranks.told(counted(ranks.pieces(batch), fit.weights) if ranks.first else None)
        cause = "weights" if what else cause
    remedied = tries.remedied(held) if cause == "batch norm" else None
    if cause == "reduction" and tries.changes():
        cause = "state"
    clauses: dict[Cause, Callable[[], str]] = {
        "batch": lambda: said.tied(None if few else fit.misfit),
        "batch norm": lambda: said.batch_norm(sizes, held, remedied),
        "nonlinear": lambda: said.weighted(fit, ""),
        "not finite": lambda: said.not_finite(tries.broken),
        "ragged": lambda: said.ragged(sizes),
        "random": said.drawing if tries.drawing else said.random,
        "reduction": said.reduction,
        "state": said.state,
        "sum": said.summed,
        "weights": lambda: said.weighted(fit, what),
    }
    also = "" if cause in {"batch norm", "random"} else said.also(held)
    return cause, clauses[cause]() + also, fit.weights


def _named(fit: Fit, held: Held, tries: Tries) -> Cause:
    """The cause that weights tell, and what had to be held still for them."""
    if not fit.cause:
        return "batch norm" if held.statistics else "random" if held.random else "reduction"
    return "random" if fit.cause == "batch" and tries.drawing else fit.cause


def _repeats(ranks: Ranks, batch: Any, judged: Judged) -> bool:
    """Tell whether one device gives the same gradient twice."""
    assert judged.one is not None
    assert judged.difference is not None
    again = passes.whole(ranks.step, batch, ranks.alone)
    return not differences.between(judged.one, again, judged.difference.limits, False).beyond


class Tries:
    """Weights that explain a batch, with more and more held still.

    Args:
        ranks: this rank's place.
        batch: the whole.
        sizes: examples of each piece.
        judged: what the comparison said.

    Attributes:
        tolerance: what weights may leave of a parameter's gradient.
        broken: ranks whose gradients were not finite at the last try.
        drawing: whether random numbers are drawn even without dropout.
    """

    def __init__(self, ranks: Ranks, batch: Any, sizes: Sequence[int], judged: Judged) -> None:
        self.ranks, self.batch, self.sizes, self._judged = ranks, batch, sizes, judged
        band = judged.difference.band if judged.difference is not None else 0.0
        self.tolerance = EXACT if judged.exact else max(COARSE, BANDS * ranks.told(band))
        self.broken: list[int] = []
        self.drawing = False

    def first(self) -> tuple[Fit, Held]:
        """The first weights with a meaning, and what was held still."""
        plain = self.fit(NOTHING)
        if plain.cause in CLEAR:
            return plain, NOTHING
        found = []
        for held in self._held():
            fit = self.fit(held)
            if not fit.cause:
                return fit, held
            found.append((fit, held))
        clear = CLEAR | {"weights"} if plain.cause == "batch" else CLEAR
        return next(((fit, held) for fit, held in found if fit.cause in clear), (plain, NOTHING))

    def _held(self) -> Iterator[Held]:
        """What to hold still, the least first."""
        draws = self._judged.draws
        normalizes, self.drawing = self.ranks.told(self._seen() if self.ranks.first else None)
        if draws:
            yield Held(random=True)
        if normalizes:
            yield Held(statistics=True)
            if draws:
                yield Held(random=True, statistics=True)

    def _seen(self) -> tuple[bool, bool]:
        """Whether statistics of the batch are taken, and random numbers drawn without dropout."""
        found = passes.whole(self.ranks.step, self.batch, self.ranks.alone, Held(random=True))
        return bool(found.normalizes), found.draws

    def fit(self, held: Held, *, shards: Held | None = None) -> Fit:
        """The weights, with something held still; in the shards something else."""
        ranks, double, one, scaled = self.ranks, self._judged.exact, None, None
        if ranks.first:
            one = passes.whole(ranks.step, self.batch, ranks.alone, held, double=double)
            scaled = _scale(one, double)
        scale, stride = ranks.told(scaled)
        mine = passes.alone(ranks.step, ranks.own(self.batch), shards or held, double=double)
        every = ranks.gathered([_sampled(ranks.step, found, scale, stride) for found in mine])
        self.broken = [rank for rank, rows in enumerate(every) if not np.isfinite(np.stack(rows)).all()]
        made = None
        if one is not None:
            pieces = np.stack([row for rows in every for row in rows])
            made = explained(_sampled(ranks.step, one, scale, stride), pieces, self.sizes, self.tolerance)
        fit: Fit = ranks.told(made)
        return fit

    def changes(self) -> bool:
        """Tell whether a piece's gradient is another one after the pieces before it than by itself, on one device."""
        ranks, double = self.ranks, self._judged.exact
        if ranks.accumulate == 1:
            return False
        own = ranks.own(self.batch)
        together = passes.accumulated(ranks.step, own, double=double)
        scale, stride = _scale(together, double)
        found = passes.alone(ranks.step, own, double=double)
        mean = np.mean([_sampled(ranks.step, each, scale, stride) for each in found], axis=0)
        apart = float(np.linalg.norm(_sampled(ranks.step, together, scale, stride) - mean))
        return any(ranks.gathered(apart > self.tolerance))

    def remedied(self, held: Held) -> bool | None:
        """Tell whether synchronized statistics make the ranks agree; None where that was not tried."""
        layers = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.ranks.step.modules())
        if self.ranks.accumulate > 1 or not layers:
            return None
        still = replace(held, statistics=False)
        try:
            return not self.fit(still, shards=replace(still, synchronized=True)).cause
        except ParallelError:
            return None


def _scale(one: Found, double: bool) -> tuple[dict[str, float], int]:
    """The divisors that give all parameters' gradients together the length 1; and which n-th values count."""
    there = {name: gradient for name, gradient in one.gradients.items() if gradient is not None}
    least = (SMALL if double else LITTLE) * differences.length(one)
    scale = {
        name: max(float(torch.linalg.vector_norm(gradient.double())), least) * len(there) ** 0.5
        for name, gradient in there.items()
    }
    return scale, max(1, sum(gradient.numel() for gradient in there.values()) // VALUES)


def _sampled(step: Step, found: Found, scale: Mapping[str, float], stride: int) -> Floats:
    """(D,) every n-th value of all gradients, each parameter's divided by its scale; zeros where it has none."""
    values = []
    for name, parameter in step.named():
        if name in scale:
            gradient = found.gradients[name]
            full = torch.zeros(parameter.shape) if gradient is None else gradient
            values.append(full.flatten()[::stride].double().numpy() / scale[name])
    return np.concatenate(values)
