"""One call run again by itself, forward and backward, what its children returned put in the place of their work."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge.nested import inexact
from depthgauge.precision.arithmetic import set_random_state
from depthgauge.precision.recording import Call, Gradients, Parts, copied, placed, version

Cast = Callable[[Tensor, torch.dtype | None], Tensor]


class Memory:
    """Tensors that were handed in: what lies in their memory, unchanged, was moved and not computed."""

    def __init__(self) -> None:
        self._versions: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def note(self, tensor: Tensor | None) -> None:
        """Take a tensor as handed in, as it is now."""
        if tensor is not None and tensor.layout is torch.strided and tensor.numel():
            self._versions[tensor.untyped_storage().data_ptr()] = version(tensor)
            self._alive.append(tensor)

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether a tensor's numbers are some that were handed in."""
        if tensor.layout is not torch.strided or not tensor.numel():
            return False
        return self._versions.get(tensor.untyped_storage().data_ptr()) == version(tensor)


class Replay:
    """A call that is run again on what it was given, and back on a gradient with respect to its output.

    Args:
        parts: the model's modules, whose calls are intercepted.
        call: the call.
        cast: copies a recorded tensor into the dtype that the call shall see.
        whole: whether its children run too; they are replaced if not.

    Attributes:
        returned: tensors of the output, at the recorded places; None where a hook of a child would have put it.
        given: memory that the call was handed, by its caller and by its children.
        given_back: memory of gradients that its backward pass was handed.
    """

    def __init__(self, parts: Parts, call: Call, cast: Cast, *, whole: bool = False) -> None:
        self.call = call
        self.cast = cast
        self.returned: Gradients = []
        self.given = Memory()
        self.given_back = Memory()
        self._parts = parts
        self._whole = whole
        self._leaves: list[Tensor | None] = []
        self._seen: Counter[int] = Counter()
        self._anchor = torch.zeros((), requires_grad=True)  # makes every replaced output ask for a gradient

    def watch_input(self, child: Call, given: Sequence[Tensor]) -> None:
        """See what the call hands to a child."""

    def answer(self, child: Call, gradients: Gradients) -> Gradients:
        """The gradients that a child hands back, where the call hands it those with respect to its output."""
        raise NotImplementedError

    def forward(self) -> None:
        """Run the call."""
        try:
            self._run(asking=True)
        except RuntimeError:  # some modules set `requires_grad` of their input, which is refused where it is there
            self._run(asking=False)

    def _run(self, *, asking: bool) -> None:
        places = {id(each): place for place, each in enumerate(self.call.given)}
        self._leaves = [None] * len(places)
        self._seen.clear()

        def give(tensor: Tensor) -> Tensor:
            copy_of = passed = self.cast(tensor, None)
            if asking and id(tensor) in places and inexact(copy_of):
                self._leaves[places[id(tensor)]] = copy_of.requires_grad_()
                passed = copy_of.clone()  # which the module may change in place
            self.given.note(passed)
            return passed

        with torch.enable_grad(), self._parts.handled(None if self._whole else self._child):
            arguments, _ = copied(self.call.arguments, give, self._parts.kept)
            set_random_state(self.call.state)
            found = placed(self._parts.run(self.call.module, arguments))
        self.returned = [found.get(place) for place in self.call.places]
        if self.call.places and not found.keys() & set(self.call.places):
            raise ValueError("its output has another structure than in the whole model's run")

    def backward(self, gradients: Gradients) -> tuple[Gradients, Gradients]:
        """Gradients with respect to what the call was given, and to the parameters that it holds."""
        known = [
            (out, self.cast(gradient, out.dtype))
            for out, gradient in zip(self.returned, gradients, strict=False)
            if gradient is not None and out is not None and out.requires_grad and _shape(out) == _shape(gradient)
        ]
        leaves = [leaf for leaf in self._leaves if leaf is not None]
        if not known:
            return [None] * len(self._leaves), [None] * len(self.call.held)
        outs, handed = zip(*known, strict=True)
        for each in handed:
            self.given_back.note(each)
        wanted = [*leaves, *self.call.held, self._anchor]  # the last, so that each child is asked
        by_leaf = iter(torch.autograd.grad(outs, wanted, handed, allow_unused=True)[:-1])
        inputs = [None if leaf is None else next(by_leaf) for leaf in self._leaves]
        return inputs, list(by_leaf)

    def _child(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = list(placed((args, kwargs)).values())
        child = self._recorded(module, given)
        if child is None:  # it takes another way than it took before
            with self._parts.handled(None):
                return self._parts.run(module, (args, kwargs))
        self.watch_input(child, given)
        output = self._replaced(child, given)
        if child.state_after is not None:
            set_random_state(child.state_after)
        return output

    def _recorded(self, module: nn.Module, given: Sequence[Tensor]) -> Call | None:
        """The call of a child that was recorded at this point; a checkpoint may ask for it once more."""
        calls = [child for child in self.call.children if child.module is module]
        if not calls:
            return None
        child = calls[self._seen[id(module)] % len(calls)]
        self._seen[id(module)] += 1
        same = list(map(_shape, given)) == list(map(_shape, child.given))
        return child if same else None

    def _replaced(self, child: Call, given: list[Tensor]) -> Any:
        places = _floating(child.returned)
        floating = [each for each in given if inexact(each)]
        apply: Callable[..., tuple[Tensor, ...]] = _Replaced.apply
        results = apply(self._anchor, self, child, *floating) if places else ()
        by_id = {id(child.returned[place]): value for place, value in zip(places, results, strict=True)}
        returned_in_place = {child.same.get(place) for place in range(len(child.returned))}
        with torch.no_grad():
            for place, value in child.written.items():
                if place not in returned_in_place:
                    given[place].copy_(self.cast(value, None))
                    self.given.note(given[place])

        def result(tensor: Tensor) -> Tensor:
            value = by_id.get(id(tensor))
            value = self.cast(tensor, None) if value is None else value
            self.given.note(value)
            return value

        return copied(child.output, result, self._parts.kept)[0]


class _Replaced(torch.autograd.Function):
    """A child's recorded outputs forward, and its recorded gradients backward."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, replay: Replay, child: Call, *given: Tensor) -> tuple[Tensor, ...]:
        # The replay holds tensors whose graph holds this: a circle that leads through C++ is never collected.
        ctx.replay, ctx.child = weakref.ref(replay), child
        ctx.set_materialize_grads(False)
        by_place = dict(zip(_floating(child.given), given, strict=True))
        results, dirty = [], []
        for place in _floating(child.returned):
            value = replay.cast(child.returned[place], None)
            source = child.same.get(place, -1)
            if source in child.written and source in by_place:
                changed = by_place[source]
                results.append(changed.copy_(value))
                dirty.append(changed)
            else:
                results.append(value)
        ctx.mark_dirty(*dirty)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        child: Call = ctx.child
        replay: Replay = ctx.replay()
        by_place = dict(zip(_floating(child.returned), gradients, strict=True))
        handed = replay.answer(child, [by_place.get(place) for place in range(len(child.returned))])
        handed = handed or [None] * len(child.given)
        for each in handed:
            replay.given_back.note(each)
        return (None, None, None, *(handed[place] for place in _floating(child.given)))


def _floating(tensors: Sequence[Tensor]) -> list[int]:
    return [place for place, each in enumerate(tensors) if inexact(each)]


def _shape(tensor: Tensor) -> torch.Size | None:
    return None if tensor.is_nested else tensor.shape
