"""A side of a comparison that is fed, at every boundary of a layer, with what the other side had there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from depthgauge.nested import inexact
from depthgauge.precision.band import (
    ROUNDING,
    Judgement,
    Spread,
    Work,
    amplified,
    judge,
    judge_sizes,
    predicted_variance,
)
from depthgauge.precision.noise import Moves, moves
from depthgauge.precision.passage import (
    Call,
    Direction,
    Edge,
    Key,
    Passing,
    Pinned,
    Survey,
    cotangents,
    numbers,
    stripped,
    with_numbers,
)
from depthgauge.seeding import Purpose, generator

DRAWS = 3
"""Runs with changed inputs and parameters, from which a layer's sensitivity is measured."""

COMMON = 64
"""Roundings whose mean is taken to be random; that of more is not nearer to zero."""

WINDOW = 16.0
"""Terms that a kernel may add up in the format itself: those of a convolution's window."""

NEAR = 16
"""Spacings from the largest value of a format within which rounding may decide whether there is an overflow."""

_GIVEN = {("in", "forward"), ("out", "backward")}  # of the whole module: its inputs and cotangents, which no layer made


@dataclass(frozen=True)
class Feeding:
    """The runs of a comparison.

    Attributes:
        recorded: the side that runs as it is.
        fed: the other, whose format holds the values of the recorded side.
        whole: work of the whole module, where it is seen from outside alone.
        arranged: layers whose inputs the sides arrange otherwise: each is fed its own side's.
        tape: what the recorded side had at each boundary.
        own: what the fed side computed there.
        makers: the call that computed it, in order of execution.
        spreads: how it answers to changes of inputs and parameters.
        moves: of the recorded and of the fed side, what roundings inside of calls move results by.
        passed: every boundary of the fed side that a tensor passed, and whether that was other than zero.
    """

    recorded: Pinned
    fed: Pinned
    whole: Work | None = None
    arranged: frozenset[str] = frozenset()
    tape: dict[Key, Tensor] = field(default_factory=dict)
    own: dict[Key, Tensor] = field(default_factory=dict)
    makers: dict[Key, Call] = field(default_factory=dict)
    spreads: dict[Key, Spread] = field(default_factory=dict)
    moves: list[Moves] = field(default_factory=list)
    passed: dict[Key, bool] = field(default_factory=dict)

    def run(self) -> None:
        """Record the one side, feed the other, and measure its sensitivities."""
        shapes = {place: x.shape for place, x in self.fed.survey.ends.items()}
        ends = {place: x for place, x in self.recorded.survey.ends.items() if shapes.get(place) == x.shape}
        given = cotangents(ends, self.recorded.side.seed)
        self.recorded.side.run(self._record, self.recorded.modules, cotangents=given)
        self.fed.side.run(self._feed, self.fed.modules, cotangents=given)
        for draw in range(DRAWS):
            self._change(generator(self.fed.side.seed, Purpose.INPUTS, "changes", draw), given)
        self._shake(given)
        if self.one_format:  # else rounding parts the parameters too
            self._project(given)
            for draw in range(DRAWS):
                self._project(given, draw)

    def _record(self, edge: Edge, _: Call, direction: Direction, tensor: Tensor) -> Tensor:
        self.tape[edge, direction] = tensor.detach()
        return tensor

    def _feed(self, edge: Edge, maker: Call, direction: Direction, tensor: Tensor) -> Tensor:
        self.passed[edge, direction] = bool((tensor != 0).any())
        reference = self.reference(edge, direction, tensor)
        if reference is None:
            return tensor
        if edge.layer or (edge.kind, direction) not in _GIVEN:
            self.own[edge, direction] = tensor.detach()
            self.makers[edge, direction] = maker
        return reference

    def _changed(self, tensor: Tensor, draws: torch.Generator) -> Tensor:
        """A tensor after relative changes of random sign."""
        least = self.recorded.survey.tiny / self.recorded.survey.epsilon
        signs = torch.randint(2, tuple(tensor.shape), generator=draws).to(tensor.device) * 2.0 - 1
        exact = tensor.double()
        return (exact + self._step * signs * (exact.square() + least**2).sqrt()).to(tensor)

    def _change(self, draws: torch.Generator, given: Mapping[str, Tensor]) -> None:
        """Change inputs, gradients and parameters, and see how results answer."""

        def passing(edge: Edge, _: Call, direction: Direction, tensor: Tensor) -> Tensor:
            key = edge, direction
            if key in self.own:
                self.spreads.setdefault(key, Spread()).add(self._response(key, tensor))
            reference = self.reference(edge, direction, tensor)
            return tensor if reference is None else self._changed(reference, draws)

        self._run_changed(passing, draws, given)

    def _run_changed(self, passing: Passing, draws: torch.Generator, given: Mapping[str, Tensor]) -> None:
        def parameter(_: str, tensor: Tensor) -> Tensor:
            return with_numbers(tensor, self._changed(numbers(tensor), draws)) if inexact(tensor) else tensor

        self.fed.side.run(passing, self.fed.modules, change=parameter, cotangents=given)

    def _response(self, key: Key, tensor: Tensor) -> Tensor:
        """Change of a result for a relative change of 1."""
        return (tensor.double() - self.own[key].double()) / self._step

    def _shake(self, given: Mapping[str, Tensor]) -> None:
        """Measure how far roundings move the results of both sides."""
        kept = {key for key in self.own if (key[0].kind, key[1]) == ("out", "forward")} if self.one_format else set()

        def fed(edge: Edge, direction: Direction, like: Tensor) -> Tensor | None:
            # Of the shape that it had without roundings: a layer behind one that routes has its input all the same.
            return self.reference(edge, direction, self.own.get((edge, direction), like))

        for pinned, known, reference in (
            (self.recorded, self.tape, lambda edge, direction, _: self.tape.get((edge, direction))),
            (self.fed, self.own, fed),
        ):
            self.moves.append(moves(pinned, known, reference, given, self.epsilon, kept))

    def _project(self, given: Mapping[str, Tensor], draw: int | None = None) -> None:
        """Project the differences of the outputs on the parameters: the backward pass of each layer starts from them.

        A wrong weight makes the same difference in all examples, which is seen in their sum long before it is seen in
        one of them. With a draw the differences are such as rounding makes, of results and of parameters.
        """
        starts: dict[Edge, Tensor] = {}
        draws = None if draw is None else generator(self.fed.side.seed, Purpose.INPUTS, "projections", draw)

        def passing(edge: Edge, maker: Call, direction: Direction, tensor: Tensor) -> Tensor:
            reference = self.reference(edge, direction, tensor)
            forward: Key = edge, "forward"
            if edge.kind == "parameter":
                if draws is not None:
                    self.spreads.setdefault(forward, Spread(independent=False)).add(tensor)
                elif edge.layer in self.fed.modules:
                    self.own[forward], self.makers[forward] = tensor.nan_to_num(0.0, 0.0, 0.0), maker
            elif reference is not None and forward in self.own and edge.kind == "out":
                if direction == "backward":
                    return starts[edge]
                found = self._difference(forward, tensor, draws)
                for moved in () if draw is None else self._moved(forward, draw):
                    found = found + math.sqrt(ROUNDING) / 2 * moved
                starts[edge] = found.nan_to_num(0.0, 0.0, 0.0).to(tensor)
            if reference is None:
                return tensor
            return reference if draws is None or direction == "backward" else self._changed(reference, draws)

        if draws is None:
            self.fed.side.run(passing, self.fed.modules, cotangents=given)
        else:
            self._run_changed(passing, draws, given)

    def _difference(self, key: Key, tensor: Tensor, draws: torch.Generator | None) -> Tensor:
        """Difference of an output, or one that rounding could have made, in units of the format's spacing at 1."""
        own, epsilon = self.own[key], self.fed.survey.epsilon
        if draws is None:
            found = own.double() - self._there(key).double()
        else:
            # Where inputs are nearly the same in all examples, so are roundings.
            signs = torch.randint(2, tuple(own.shape), generator=draws).to(own.device) * 2.0 - 1 + COMMON**-0.5
            rounded = math.sqrt(2 * ROUNDING) * epsilon / 2 * self._response(key, tensor)
            found = self._variance(key).sqrt() * signs + rounded
        return found / epsilon

    def reference(
        self, edge: Edge, direction: Direction, like: Tensor, tape: Mapping[Key, Tensor] | None = None
    ) -> Tensor | None:
        """The tensor that the recorded side had there, in the other's dtype; None where it had none of that shape."""
        tape = self.tape if tape is None else tape
        if edge.kind == "in" and edge.layer in self.arranged:
            return None
        there, here = (pinned.survey.calls(edge.layer) for pinned in (self.recorded, self.fed))
        if edge.kind == "parameter" or not edge.layer or there == here:
            found = tape.get((edge, direction))
        else:
            found = self._joined(
                edge, like, [tape.get((edge._replace(number=n), direction)) for n in range(len(there))]
            )
        return None if found is None or found.shape != like.shape else found.to(like)

    def _joined(self, edge: Edge, like: Tensor, parts: Sequence[Tensor | None]) -> Tensor | None:
        """The rows of one call among those of all calls."""
        if not like.dim() or any(part is None or part.shape[1:] != like.shape[1:] for part in parts):
            return None
        start = sum(shape[0] for shape in self.fed.survey.calls(edge.layer)[: edge.number])
        return torch.cat([part for part in parts if part is not None])[start : start + len(like)]

    def _there(self, key: Key) -> Tensor:
        found = self.reference(*key, self.own[key])
        return torch.zeros_like(self.own[key]) if found is None else found

    def _variance(self, key: Key) -> Tensor:
        """Of the difference of two results, if rounding alone made it."""
        spread = self.spreads.get(key)
        sensitivity = spread.variance(self.own[key].shape) if spread else 0.0
        if _is_projection(key):
            return torch.zeros_like(self.own[key], dtype=torch.float64) + sensitivity
        sides = [(each.survey.epsilon / 2, self.work(each.survey, *key)) for each in (self.fed, self.recorded)]
        rounded = WINDOW
        if key[0].kind == "parameter":  # some kernels add them up example by example in the format itself
            shapes = self.fed.survey.calls(key[0].layer) or [(1,)]
            rounded = sum(math.prod(shape[: None if self._is_vector(key[0]) else 1]) for shape in shapes)
        tiny = max(self.recorded.survey.tiny, self.fed.survey.tiny)
        return predicted_variance(self._there(key), sensitivity, sides, tiny=tiny, rounded=rounded)

    def _moved(self, key: Key, draw: int) -> list[Tensor]:
        """How far one run of each side moved a result, in the shape that the fed side has."""
        if not self.moves:
            return []
        recorded, fed = (each.draws[draw] for each in self.moves)
        found = self.reference(*key, self.own[key].double(), recorded), fed.get(key)
        return [each for each in found if each is not None]

    def _sizes(self, key: Key) -> list[Tensor]:
        """Sizes of the moves that roundings inside of a call make of a result; none where they make none."""
        there, here = (pinned.survey.calls(key[0].layer) for pinned in (self.recorded, self.fed))
        fitting = self.moves if key[0].kind == "parameter" or there == here else self.moves[1:]
        known = [each.sizes[key] for each in fitting if key in each.sizes]
        return [torch.stack(kind).amax(0).double() * self.epsilon for kind in zip(*known, strict=True)]

    def judge(self, key: Key, level: float) -> Judgement:
        """Hold what the fed side computed against what the recorded one had.

        Where rounding inside of a layer moves values farther than the layer's counts and sums tell, it has the wider of
        the two bands.
        """
        if self._overflows(key):
            return Judgement(math.inf, 0.0, math.inf)
        found, moves = self._judged(key, level), self._sizes(key)
        if not moves:
            return found
        own, there, variance, freedom = self.own[key], self._there(key), self._variance(key), self._freedom(key)
        if found.size <= 1 and not amplified(variance, moves, level, **freedom):
            return found
        again = judge_sizes(own, there, variance, moves, level, slices=self.one_format, **freedom)
        return found if again.size > max(found.size, 1) else replace(again, ulps=found.ulps)

    def _overflows(self, key: Key) -> bool:
        """Whether the fed side overflows where the recorded one has values that its dtype cannot hold."""
        own = self.own[key]
        exact = self.reference(*key, own.double())
        if exact is None or bool(own.isfinite().all()):
            return False
        info = torch.finfo(own.dtype)
        beyond = exact.isfinite() & (exact.abs() > info.max * (1 + NEAR * info.eps))
        return bool((beyond & ~own.isfinite()).any())

    def _freedom(self, key: Key) -> dict[str, float]:
        spread = self.spreads.get(key)
        return {"freedom": spread.freedom(self.own[key].shape)} if spread else {}

    def _judged(self, key: Key, level: float) -> Judgement:
        """By the band of counts and sums."""
        if _is_projection(key):  # sums of the same differences: slices are not independent
            found = judge(self.own[key], self._there(key), self._variance(key), level, self.epsilon, slices=False)
            return replace(found, ulps=0.0)
        # A rounded weight makes one difference in all examples: their slices are not independent either.
        there, variance, freedom = self._there(key), self._variance(key), self._freedom(key)
        return judge(self.own[key], there, variance, level, self.epsilon, slices=self.one_format, **freedom)

    @property
    def epsilon(self) -> float:
        """Spacing of the coarser format at 1."""
        return max(self.recorded.survey.epsilon, self.fed.survey.epsilon)

    @cached_property
    def _step(self) -> float:
        """Relative change that is far from a format's rounding, and from what is not linear."""
        dtypes = {x.dtype for x in self._parameters.values() if inexact(x)}
        epsilon = max([self.fed.survey.epsilon, *(torch.finfo(dtype).eps for dtype in dtypes)])
        return float(2.0 ** round(math.log2(epsilon) / 2))

    @cached_property
    def _parameters(self) -> dict[str, Tensor]:
        return {stripped(name): each for name, each in self.fed.side.module.named_parameters()}

    def outputs_apart(self) -> str:
        """Tell how the outputs of the two sides differ before any number does; "" where they do not."""
        sides = [{place: tuple(x.shape) for place, x in side.survey.ends.items()} for side in (self.recorded, self.fed)]
        if sides[0] == sides[1]:
            return ""
        shown = [", ".join(f"{place or 'output'} {shape}" for place, shape in side.items()) for side in sides]
        return f"outputs differ in structure or shape: {shown[0] or 'no numbers'} against {shown[1] or 'no numbers'}"

    def one_sided(self) -> Iterator[Edge]:
        """Parameters that get a gradient other than zero on one side alone, though both ask for one."""
        asked = [
            {stripped(name) for name, each in side.side.module.named_parameters() if each.requires_grad}
            for side in (self.recorded, self.fed)
        ]
        there = {key for key, tensor in self.tape.items() if bool((tensor != 0).any())}
        here = {key for key, other_than_zero in self.passed.items() if other_than_zero}
        for edge, direction in sorted(there ^ here):
            name = f"{edge.layer}.{edge.place}".lstrip(".")
            if (edge.kind, direction) == ("parameter", "backward") and all(name in names for names in asked):
                yield edge

    def _is_vector(self, edge: Edge) -> bool:
        """Whether a parameter has one dimension at most, so that all results of a layer add up in its gradient."""
        return self._parameters[f"{edge.layer}.{edge.place}".removeprefix(".")].dim() <= 1

    @property
    def one_format(self) -> bool:
        """True where both sides have the same coarsest format."""
        return self.recorded.survey.epsilon == self.fed.survey.epsilon

    def work(self, survey: Survey, edge: Edge, direction: Direction) -> Work:
        """A side's work that made a tensor."""
        if self.whole is not None:
            return self.whole
        if edge.kind != "parameter":
            maker = self.makers[edge, direction]
            return survey.work.get(maker) or self.fed.survey.work.get(maker, Work())
        layer = self.fed.layer(edge.layer)
        work = sum((each for call, each in survey.work.items() if call.layer == layer), Work())
        if not self._is_vector(edge) or layer != edge.layer:
            return work
        return replace(work, products=sum(math.prod(shape) for shape in survey.calls(layer)))


def _is_projection(key: Key) -> bool:
    return key[0].kind == "parameter" and key[1] == "forward"
