"""Monte Carlo arithmetic: every result of an operator is changed as its rounding could have changed it.

    with noisy(epsilon, draws):
        loss(model(x), y).backward()

How far a result moves over a few such runs is what rounding inside makes of it, cancellation included (Vignes 1978,
Math. Comput. Simul. 20, 227; Parker 1997, UCLA CSD-970002). A result is multiplied by 1 + delta, delta = +-epsilon,
where a rounding has a standard deviation of sqrt(ROUNDING) epsilon / 2. A sum and a product of matrices have a delta
that grows with the square root of the number of terms, and so have their terms: the parts of the band's law of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested, operations
from depthgauge.nested import inexact
from depthgauge.precision.band import STEP, SUMS, sizes
from depthgauge.precision.emulation import Rounding, has_numbers, of_parts, unrounded
from depthgauge.precision.passage import ARITHMETIC, EXACT, Call, Direction, Edge, Key, Pinned
from depthgauge.precision.randomness import random_state, set_random_state
from depthgauge.seeding import Purpose, generator

_SUMS = frozenset({"cumsum", "dot", "mean", "mv", "sum", "vdot"})

_DRAWN = 2**16

RUNS = 3
"""Runs of a side."""


@dataclass(frozen=True)
class Moves:
    """Moves of results by roundings inside of a side's calls, in units of the coarser format's spacing.

    Attributes:
        sizes: `band.sizes` of moves, the most of all runs, of the results of calls that have several operators or one
            of several steps; infinite where rounding decides whether there is a finite result.
        draws: the moves themselves, run by run, of some of these results.
    """

    sizes: dict[Key, list[Tensor]]
    draws: tuple[dict[Key, Tensor], ...]


def moves(  # noqa: PLR0917 # one caller
    pinned: Pinned, known: Mapping[Key, Tensor], reference: Callable[[Edge, Direction, Tensor], Tensor | None],
    cotangents: Mapping[str, Tensor], epsilon: float, kept: Collection[Key],
) -> Moves:  # fmt: skip
    """Run a side with the same values at its boundaries and other roundings between them.

    Args:
        pinned: the side.
        known: its results without a change.
        reference: edge, direction and tensor -> what is there at a boundary; None leaves what comes.
        cotangents: place in the output -> its gradient.
        epsilon: spacing of the coarser format at 1.
        kept: results whose single moves are wanted.
    """
    compound = {call.layer for call, work in pinned.survey.work.items() if work.roundings + 2 * work.steps > 1}
    found = Moves({}, tuple({} for _ in range(RUNS)))
    draws = generator(pinned.side.seed, Purpose.INPUTS, "roundings")
    reached: set[Key] = set()
    for single in found.draws if compound else ():
        reached.clear()

        def passing(
            edge: Edge, maker: Call, direction: Direction, tensor: Tensor, single: dict[Key, Tensor] = single
        ) -> Tensor:
            key = edge, direction
            reached.add(key)
            with unrounded():
                if key in known and pinned.layer(maker.layer) in compound:
                    move = (_move(known[key], tensor) / epsilon).float()
                    before = found.sizes.get(key)
                    found.sizes[key] = sizes(move) if before is None else list(map(torch.maximum, before, sizes(move)))
                    if key in kept:
                        single[key] = move
                there = reference(edge, direction, tensor)
            return tensor if there is None else there

        try:
            with pinned.side.eager(), noisy(epsilon, draws):
                pinned.side.run(passing, pinned.modules, cotangents=cotangents)
        except RuntimeError:  # rounding decides the shapes inside, as where it routes
            for key in known.keys() - reached:
                if pinned.layer(_maker(*key)) in compound:
                    found.sizes[key] = sizes(torch.full_like(known[key], math.inf, dtype=torch.float32))
    return found


def _maker(edge: Edge, direction: Direction) -> str:
    """The layer that makes what passes a boundary: the one inside, or the one around."""
    inside = edge.kind == "parameter" or (edge.kind, direction) in {("out", "forward"), ("in", "backward")}
    return edge.layer if inside else edge.layer.rpartition(".")[0]


def _move(before: Tensor, after: Tensor) -> Tensor:
    """A change, infinite where rounding decides whether there is a finite result, or what shape it has."""
    if before.shape != after.shape:
        return torch.full_like(before, math.inf, dtype=torch.float64)
    same = (before == after) | (before.isnan() & after.isnan())
    change = torch.where(same, 0.0, after.double() - before.double())
    return torch.where(change.isfinite(), change, math.inf)


@contextmanager
def noisy(epsilon: float, draws: torch.Generator) -> Iterator[None]:
    """Change every floating-point result of an operator within the block, in both directions, at random.

    Args:
        epsilon: spacing at 1 of the format whose roundings are meant; no finer than that of the results.
        draws: decides the signs, on the CPU.
    """
    with _Noise(epsilon, draws):
        yield


class _Noise(Rounding):  # type: ignore[no-untyped-call]  # torch has not typed __init_subclass__
    def __init__(self, epsilon: float, draws: torch.Generator) -> None:
        super().__init__(self._moved)
        self._epsilon = epsilon
        self._draws = draws
        self._signs = torch.empty(0)
        self._size = 0.0
        self._rewind: Callable[[], None] = _nothing

    def before(self, func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        draws = torch.Tag.nondeterministic_seeded in func.tags
        self._rewind = _rewinding([*args, *kwargs.values()]) if draws else _nothing

    def replaced(self, func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Any:
        call: Callable[..., Any] = func
        name = func.overloadpacket.__name__.rstrip("_")
        if func.is_view or name in EXACT or (name == "_to_copy" and _spacing(out) <= _spacing(args[0])):
            return out
        products = operations.multiplications(func, args, kwargs, out)
        bridge = _terms(products, args, out) * min(1.0, 2 * SUMS / self._epsilon) ** 2
        if bridge > STEP and not func._schema.is_mutable:
            self._size = math.sqrt(bridge / 6)
            self._rewind()  # what it draws (an attention's dropout) is drawn once
            out = call(*nested.mapped(tuple(args), self._argument), **kwargs)
        roundings = 1 if products or name in ARITHMETIC or name in _SUMS else STEP
        self._size = math.sqrt(roundings + bridge / 3)
        return super().replaced(func, args, kwargs, out)

    def _argument(self, tensor: Tensor) -> Tensor:
        return of_parts(self._moved, tensor) if has_numbers(tensor) else tensor

    def _moved(self, tensor: Tensor) -> Tensor:
        signs = self._next_signs(tensor.numel()).to(tensor).view(tensor.shape)
        changed = torch.addcmul(tensor, tensor, signs, value=self._size * self._epsilon)
        return torch.where(changed.abs() < math.inf, changed, tensor)

    def _next_signs(self, count: int) -> Tensor:
        if count > len(self._signs):  # drawn together, as single draws are slow
            drawn = torch.empty(max(count, _DRAWN), dtype=torch.int8).random_(2, generator=self._draws)
            self._signs = drawn.to(torch.float32) * 2 - 1
        signs, self._signs = self._signs[:count], self._signs[count:]
        return signs


def _nothing() -> None:
    """Do nothing."""


def _rewinding(arguments: Sequence[Any]) -> Callable[[], None]:
    """A function that brings random generators back to where they are now: the global ones, and those in arguments."""
    state = random_state()
    own = [(each, each.get_state()) for each in arguments if isinstance(each, torch.Generator)]

    def rewind() -> None:
        set_random_state(state)
        for each, before in own:
            each.set_state(before)

    return rewind


def _spacing(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if inexact(tensor) else 0.0


def _terms(products: int, args: Sequence[Any], out: Any) -> float:
    """Terms of each sum that an operator makes; 0 where it makes none."""
    size = sum(map(_length, out if isinstance(out, list | tuple) else (out,)))
    terms = (products or max(map(_length, args), default=0)) / max(size, 1)
    return terms if terms > 1 else 0.0


def _length(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 0
