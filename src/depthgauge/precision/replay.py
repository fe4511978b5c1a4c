"""One call run again by itself, forward and backward, what its children returned put in the place of their work."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge.nested import inexact
from depthgauge.precision.arithmetic import in_autocast
from depthgauge.precision.copying import copied, items, placed
from depthgauge.precision.holding import move
from depthgauge.precision.randomness import set_random_state
from depthgauge.precision.recording import Call, Gradients, Parts, version

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
        begun: the call whose state it begins with, but for what gradients pass; by default its own.

    Attributes:
        returned: tensors of the output, at the recorded places; None where a hook of a child would have put it.
        given: memory that the call was handed, by its caller and by its children.
        given_back: memory of gradients that its backward pass was handed.
        differentiates: whether its forward pass asks children for gradients, which are recorded of the backward pass.
    """

    def __init__(self, parts: Parts, call: Call, cast: Cast, *, whole: bool = False, begun: Call | None = None) -> None:
        self.call = call
        self.cast = cast
        self.returned: Gradients = []
        self.given = Memory()
        self.given_back = Memory()
        self.differentiates = False
        self._forward = False
        self._parts = parts
        self._whole = whole
        self._begun = begun or call
        self._there: dict[int, Tensor] = {}
        self._leaves: list[Tensor | None] = []
        self._seen: Counter[int] = Counter()
        self._anchor = torch.zeros((), requires_grad=True)  # makes every replaced output ask for a gradient

    def remembered(self, copy_of: Tensor) -> Tensor:
        """Copy what the module held: as it was."""
        return copy_of.detach().clone()

    def watch_input(self, child: Call, given: Sequence[Tensor]) -> None:
        """See what the call hands to a child."""

    def answer(self, child: Call, gradients: Gradients) -> Gradients:
        """The gradients that a child hands back, where the call hands it those with respect to its output."""
        raise NotImplementedError

    def forward(self) -> None:
        """Run the call."""
        self._forward = True
        try:
            self._run(asking=True)
        except RuntimeError:  # some modules set `requires_grad` of their input, which is refused where it is there
            self._run(asking=False)
        finally:
            self._forward = False

    def asked(self, child: Call, gradients: Gradients) -> Gradients:
        """The gradients that a child hands back, whoever asks."""
        self.differentiates |= self._forward
        return self.answer(child, gradients)

    def _run(self, *, asking: bool) -> None:
        places = self._places()
        self._leaves = [None] * len(self.call.given)
        self._seen.clear()
        self._there.clear()

        def asked(tensor: Tensor, copy_of: Tensor) -> Tensor:
            if asking and id(tensor) in places and inexact(copy_of):
                self._leaves[places[id(tensor)]] = copy_of.requires_grad_()
                with torch.enable_grad():
                    copy_of = copy_of.clone()  # which the module may change in place
                self.given.note(copy_of)
            return copy_of

        def give(tensor: Tensor) -> Tensor:
            passed = asked(tensor, self.cast(tensor, None))
            self.given.note(passed)
            return passed

        def remember(tensor: Tensor) -> Tensor:
            own = self.call.given[places[id(tensor)]] if id(tensor) in places else tensor
            return asked(tensor, self.remembered(tensor) if own is tensor else self.cast(own, None))

        with torch.enable_grad(), self._parts.handled(None if self._whole else self._child):
            arguments, _ = copied(self.call.arguments, give, self._parts.kept)
            self._parts.states.put(self._begun.before, remember, self._there)
            set_random_state(self.call.state)
            with in_autocast(self.call.autocast):
                output = self._parts.run(self.call.module, arguments)
            found = placed((output, {key: items(arguments)[key] for key in self.call.output[1]}))
        self.returned = [*(found.get(place) for place in self.call.places), *self._left()]
        if self.call.places and not found.keys() & set(self.call.places):
            raise ValueError("its output has another structure than in the whole model's run")

    def _places(self) -> dict[int, int]:
        """Map ids of tensors that were recorded to their places in what the call was given."""
        places = {id(each): place for place, each in enumerate(self.call.given)}
        taken = [self._begun.before.tensors[key][1] for key in self._begun.taken]
        if len(taken) == len(self.call.taken):
            places.update({id(each): place for place, each in enumerate(taken, len(places) - len(taken))})
        return places

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
        held = [self._there.get(id(each), each) for each in self._begun.held]
        wanted = [*leaves, *held, self._anchor]  # the last, so that each child is asked
        by_leaf = iter(torch.autograd.grad(outs, wanted, handed, allow_unused=True)[:-1])
        inputs = [None if leaf is None else next(by_leaf) for leaf in self._leaves]
        return inputs, list(by_leaf)

    def _child(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = list(placed((args, kwargs)).values())
        child = self._recorded(module, given)
        if child is None:  # it takes another way than it took before
            with self._parts.handled(None):
                return self._parts.run(module, (args, kwargs))
        given += self._taken(child)
        self.watch_input(child, given)
        output, changed = self._replaced(child, given)
        for key, each in changed.items():
            move(each, items((args, kwargs))[key])
        if child.state_after is not None:
            set_random_state(child.state_after)
        return output

    def _taken(self, child: Call) -> list[Tensor]:
        """List what a child finds in its modules: what this run has put there, or what was recorded."""
        now = self._parts.states.now(child.module, child.before) if child.taken else {}
        recorded = child.given[len(child.given) - len(child.taken) :]
        return [now.get(key, self.cast(each, None)) for key, each in zip(child.taken, recorded, strict=True)]

    def _left(self) -> list[Tensor | None]:
        """List what the call leaves in its modules."""
        if self.call.after is None or not self.call.left:
            return []
        now = self._parts.states.now(self.call.module, self.call.after)
        return [now.get(key) for key in self.call.left]

    def _recorded(self, module: nn.Module, given: Sequence[Tensor]) -> Call | None:
        """The call of a child that was recorded at this point; a checkpoint may ask for it once more."""
        calls = [child for child in self.call.children if child.module is module]
        if not calls:
            return None
        child = calls[self._seen[id(module)] % len(calls)]
        self._seen[id(module)] += 1
        same = list(map(_shape, given)) == list(map(_shape, child.given[: len(child.given) - len(child.taken)]))
        return child if same else None

    def _replaced(self, child: Call, given: list[Tensor]) -> tuple[Any, dict[Any, Any]]:
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

        if child.after is not None:

            def remember(tensor: Tensor) -> Tensor:
                value = by_id.get(id(tensor))
                return self.remembered(tensor) if value is None else value

            self._parts.states.put(child.after, remember, self._there)
            for key in child.after.changed:
                self.given.note(self._there.get(key))
        (output, changed), _ = copied(child.output, result, self._parts.kept)
        return output, changed


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
        handed = replay.asked(child, [by_place.get(place) for place in range(len(child.returned))])
        handed = handed or [None] * len(child.given)
        for each in handed:
            replay.given_back.note(each)
        return (None, None, None, *(handed[place] for place in _floating(child.given)))


def _floating(tensors: Sequence[Tensor]) -> list[int]:
    return [place for place, each in enumerate(tensors) if inexact(each)]


def _shape(tensor: Tensor) -> torch.Size | None:
    return None if tensor.is_nested else tensor.shape
