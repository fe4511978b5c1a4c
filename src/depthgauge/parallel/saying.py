"""Sentences of a comparison: each is understood alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from depthgauge.parallel.causes import Fit
from depthgauge.parallel.passes import Held
from depthgauge.parallel.sameness import Compared
from depthgauge.parallel.shards import Chosen

_SHOWN = 4  # numbers of a list that are written out


@dataclass(frozen=True)
class Saying:
    """Sentences about one batch.

    Attributes:
        taken: the batch.
        ranks: number of ranks.
        accumulate: backward passes a step.
    """

    taken: Chosen
    ranks: int
    accumulate: int

    @property
    def ways(self) -> str:
        """`2 ranks`, `4 accumulation steps`, `2 ranks with 4 accumulation steps each`."""
        ranks = _number(self.ranks, "rank")
        steps = _number(self.accumulate, "accumulation step")
        return ranks if self.accumulate == 1 else steps if self.ranks == 1 else f"{ranks} with {steps} each"

    @property
    def piece(self) -> str:
        """Name the parts that a batch is cut into."""
        return "rank" if self.accumulate == 1 else "accumulation step" if self.ranks == 1 else "piece"

    @property
    def pieces(self) -> int:
        """The number of these."""
        return self.ranks * self.accumulate

    @property
    def averaged(self) -> str:
        """The mean that is taken of them."""
        if self.accumulate == 1:
            return "DDP's mean over ranks"
        return "the mean over accumulation steps" if self.ranks == 1 else "the mean over ranks and accumulation steps"

    # -- the answer ----------------------------------------------------------------------------------------------------

    def agreeing(self, result: Compared, cleared: bool, exact: bool) -> str:
        """Say that the gradients are the same."""
        so = f"{self._give} the gradient of one device on {self.taken}: it is {result.distance:.2g} of its length away"
        if cleared:
            return f"{so}, all of it rounding, as in float64 they agree"
        how = "" if exact else ", to judge by the order of the examples"
        return f"{so}, and rounding explains up to {result.band:.2g}{how}"

    def parting(self, result: Compared) -> str:
        """Say by how much the gradients part."""
        hidden = any(row.beyond for row in result.rows if row.kind == "parameter") and not any(
            row.distance > row.band for row in result.rows
        )
        return (
            f"{self._give} another gradient than one device on {self.taken}: it is {result.distance:.2g} of that one's"
            f" length away, where rounding explains {result.band:.2g}"
            f"{', but not in float64, where they part, too' * hidden}, and {result.factor:.3g} times as long in its"
            " direction"
        )

    @property
    def _give(self) -> str:
        return f"{self.ways} {'gives' if self.pieces == 1 else 'give'}"

    def nothing(self, problem: str) -> str:
        """Say why nothing can be compared."""
        return f"nothing can be compared on {self.taken} as {problem}"

    def empty(self, sizes: Sequence[int]) -> str:
        """Say that there are too few examples."""
        without = sizes.count(0)
        return f"{self.taken} has too few for {self.ways}: {_number(without, self.piece)} would get none"

    def raises(self, rank: int, text: str, sizes: Sequence[int]) -> str:
        """Say that a rank cannot run its shard."""
        own = sizes[rank * self.accumulate]
        return f"one device runs {self.taken} and rank {rank} cannot run its shard of {own}: {text}"

    # -- the cause -----------------------------------------------------------------------------------------------------

    def summed(self) -> str:
        """A sum in the place of a mean."""
        return (
            f"the gradients of the {self.piece}s add up to that of the whole batch, so the loss is a sum over"
            f" examples, or is divided by a number of the whole batch, and {self.averaged} is 1/{self.pieces} of it;"
            f" take the mean over examples in the loss, or multiply it by {self.pieces}"
        )

    def ragged(self, sizes: Sequence[int]) -> str:
        """Shards of unequal length."""
        more = max(sizes) / min(sizes) - 1
        return (
            f"the {self.piece}s have {_listed(sizes)} examples and count alike, so that an example counts up to"
            f" {100 * more:.3g} % more than another; weight each loss by its number of examples, or leave such batches"
            " out (drop_last)"
        )

    def weighted(self, fit: Fit, what: str) -> str:
        """A mean over something else than examples, or a function of a mean."""
        weights = _listed([f"{weight:.3g}" for weight in fit.weights])
        made = f"the whole batch's gradient is made of those of the {self.piece}s with the weights {weights}"
        if fit.cause == "nonlinear":
            return (
                f"{made}, which add up to {sum(fit.weights):.4g} and not to 1, so that the loss is no mean but a"
                " function of one, such as its root or a ratio of two"
            )
        found = f" (in these shares: {what})" if what else ", such as tokens"
        return (
            f"{made} and {self.averaged} weights them alike, so that the loss is a mean over something of which the"
            f" {self.piece}s have unequal amounts{found}; divide each {self.piece}'s sum by the number in the whole"
            f" batch and multiply it by {self.pieces}"
        )

    def batch_norm(self, sizes: Sequence[int], held: Held, remedied: bool | None) -> str:
        """Statistics of a shard."""
        off = " and without dropout" if held.random else ""
        remedy = {
            True: "; with depthgauge.parallel.SyncBatchNorm they agree, too",
            False: "; depthgauge.parallel.SyncBatchNorm alone does not make them agree",
            None: "",
        }[remedied]
        return (
            f"batch normalization takes the mean and the variance of each {self.piece}'s {_range(sizes)} examples in"
            " place of the whole batch's, as with fixed statistics (its running ones)"
            f"{off} the gradients agree{remedy}"
        )

    def random(self) -> str:
        """Dropout."""
        return (
            f"dropout draws other masks for the {self.piece}s than for the whole batch, as without dropout the"
            " gradients agree; the training is the same but for its draws, if ranks have seeds of their own"
        )

    def drawing(self) -> str:
        """Random numbers that cannot be switched off."""
        return (
            "a step draws random numbers, other ones for the shards than for the whole batch, and not for dropout"
            " alone, so that what else may differ cannot be seen; switch the draws off in setup to see it"
        )

    def tied(self, misfit: float | None) -> str:
        """Examples that depend on each other; no misfit where there are too few parameters to tell."""
        if misfit is None:
            return (
                f"the gradients of the {self.piece}s make it up neither as terms of a sum nor in proportion to their"
                " examples, and there are too few parameters to say more"
            )
        return (
            f"no weights make the whole batch's gradient of those of the {self.piece}s (the best leave {misfit:.2g}),"
            " so that the loss is no mean or sum of terms of one example each: examples depend on each other (negatives"
            " taken from the batch, statistics of it), a penalty stands beside a sum, or a hook changes gradients"
            " before they are averaged, as clipping does"
        )

    def not_finite(self, broken: Sequence[int]) -> str:
        """A shard without a gradient."""
        return (
            f"the gradient of rank {_listed(broken)} is not finite and that of the whole batch is, as where a mean is"
            " taken over something of which a shard has none"
        )

    def buffers(self, names: Sequence[str]) -> str:
        """Buffers that are those of a shard."""
        what = f"the buffer{'s' * (len(names) > 1)} {_listed([f'`{name}`' for name in names])}"
        if self.ranks == 1:
            return f"the gradients agree, but not {what}, changed by one accumulation step after the other"
        return f"the gradients agree, but not {what}, of which DDP keeps what rank 0's shard makes"

    def reduction(self) -> str:
        """A reduction that is no mean."""
        return f"the mean of the {self.piece}s' gradients is right, but not what is left after DDP's reduction of them"

    def state(self) -> str:
        """A model that the accumulation steps before have changed."""
        return (
            f"each {self.piece}'s own gradient is right, but a step changes the model for those after it (buffers, such"
            " as the vectors of a spectral norm, or something else that it keeps from call to call)"
        )

    def unrepeatable(self) -> str:
        """A step that keeps something."""
        return (
            "not even one device gives this gradient twice from the same weights and seeds, as the model or the loss"
            " keeps something from call to call, or draws from a generator of its own"
        )

    def also(self, held: Held) -> str:
        """Say which parts had to be held still to see it."""
        what = [name for name, on in (("dropout", held.random), ("batch normalization", held.statistics)) if on]
        return f" (seen with {' and '.join(what)} held still, which part, too)" if what else ""


def notes(batches: Any, looked: int, *, unused: bool) -> Iterator[str]:
    """Say what DDP has to be told, and which batches the answer does not hold for."""
    if unused:
        yield "some shard leaves a parameter without a gradient, so that DDP takes find_unused_parameters=True, as here"
    try:
        there = len(batches)
    except (TypeError, NotImplementedError):
        yield f"batches has no length, and {_number(looked, 'batch', 'batches')} of it were looked at"
        return
    if looked < there:
        yield f"{looked:,} of {there:,} batches were looked at: a ragged one after these would not be seen"


def _number(count: int, noun: str, several: str = "") -> str:
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def _listed(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    if len(texts) > _SHOWN:
        return f"{', '.join(texts[:_SHOWN])}, ..."
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _range(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"
