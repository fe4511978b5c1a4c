"""Calls of a model's parts: what each was given and returned, as copies that later changes do not reach."""

from __future__ import annotations

import threading
from collections import ChainMap, Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from depthgauge.nested import inexact
from depthgauge.precision.arithmetic import Arithmetic, Autocast, autocasts
from depthgauge.precision.copying import copied, items, placed
from depthgauge.precision.emulation import unrounded
from depthgauge.precision.holding import contents, differ, move
from depthgauge.precision.randomness import RandomState, random_state, set_random_state
from depthgauge.precision.state import State, States
from depthgauge.probe.tensors import in_transform

Gradients = Sequence[Tensor | None]
Handler = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(eq=False)
class Call:
    """One call of a module, in one run of the model.

    Attributes:
        module: the module.
        place: number of the module's earlier calls in this run.
        state: of the random generators, at the beginning.
        autocast: what autocast does there.
        before: what the module holds there.
        parameters: those of the module and of those inside it, there.
        arguments: copy of (args, kwargs).
        given: the tensors in them that count (`placed`), and those of `taken`.
        output: copy of what it returned, and of the arguments that it has changed, by position or name.
        returned: the tensors in that that count, and those of `left`.
        places: the place of each of the output.
        same: place in `returned` -> place in `given`, where both are one object.
        written: place in `given` -> value afterwards, where the call has changed it in place.
        children: calls of the model's modules within it, in their order.
        state_after: of the random generators, at the end.
        after: what the module then holds that it did not before.
        taken: ids of the tensors in `before` that hand their gradients on.
        left: those in `after`.
        gradients: with respect to `returned`; None where there is none.
        handed: with respect to `given`, as the call's own backward pass gives them.
        held: trained parameters that no child brings along.
        held_gradients: with respect to these.
    """

    module: nn.Module
    place: int
    state: RandomState
    autocast: tuple[Autocast, ...]
    before: State
    parameters: tuple[nn.Parameter, ...]
    arguments: Any = None
    given: list[Tensor] = field(default_factory=list)
    output: Any = None
    returned: list[Tensor] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    same: dict[int, int] = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)
    children: list[Call] = field(default_factory=list)
    state_after: RandomState | None = None
    after: State | None = None
    taken: Sequence[int] = ()
    left: Sequence[int] = ()
    gradients: Gradients = field(default_factory=list)
    handed: Gradients = field(default_factory=list)
    held: list[nn.Parameter] = field(default_factory=list)
    held_gradients: Gradients = field(default_factory=list)

    @property
    def key(self) -> tuple[int, int]:
        """The module's id, and which of its calls it is: the same in every run."""
        return id(self.module), self.place

    @property
    def arrived(self) -> bool:
        """Tell whether any gradient with respect to its output arrived."""
        return any(each is not None for each in self.gradients)


_INTERCEPTION = threading.RLock()  # one bisection at a time: the call of all modules is one attribute


class Parts:
    """The modules of a model, and what answers their calls.

    Attributes:
        names: id -> name, as in `named_modules`.
        states: what they hold.
        kept: modules and parameters by id, for `copied`.
        frozen: whether no parameter asks for a gradient.
    """

    def __init__(self, root: nn.Module) -> None:
        self.states = States(root)
        self.names = {id(part): name for name, part in root.named_modules()}
        whole = (*root.modules(), *root.parameters())
        self.kept: Mapping[int, object] = ChainMap({id(each): each for each in whole}, self.states.stand_ins)
        self.frozen = not any(each.requires_grad for each in root.parameters())
        self._handler: Handler | None = None
        self._plain: Callable[..., Any] = nn.Module.__call__

    @contextmanager
    def intercepted(self) -> Iterator[None]:
        """Have the handler called in place of the modules within the block, but for calls inside of torch.func.

        A hook of a module's own would be copied with it, and none can replace what it computes.
        """

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._handler is None or id(module) not in self.names or in_transform():
                return self._plain(module, *args, **kwargs)
            return self._handler(module, args, kwargs)

        def uncheckpointed(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
            return function(*args)  # a reentrant checkpoint refuses `torch.autograd.grad`

        checkpoint: Any = torch.utils.checkpoint.CheckpointFunction
        with _INTERCEPTION:
            self._plain = nn.Module.__call__
            nn.Module.__call__ = call  # type: ignore[method-assign]  # as torch.fx does to trace
            checkpoint.apply = uncheckpointed
            try:
                yield
            finally:
                nn.Module.__call__ = self._plain  # type: ignore[method-assign]  # as above
                del checkpoint.apply

    @contextmanager
    def handled(self, handler: Handler | None) -> Iterator[None]:
        """Have calls within the block answered by a handler, or by the modules themselves."""
        before, self._handler = self._handler, handler
        try:
            yield
        finally:
            self._handler = before

    def read(self, arguments: Any) -> dict[Any, dict[int, Any]]:
        """Read the contents of arguments that can change, but for tensors, by position or name."""
        read = {key: contents(each, self.kept) for key, each in items(arguments).items() if id(each) not in self.kept}
        return {key: found for key, found in read.items() if found}

    def changed(self, arguments: Any, before: Mapping[Any, dict[int, Any]]) -> dict[Any, Any]:
        """Arguments whose contents are no more as they were read."""
        now = self.read(arguments)
        return {key: items(arguments)[key] for key in now if differ(now[key], before.get(key, {}))}

    def run(self, module: nn.Module, arguments: Any) -> Any:
        """Call a module itself; its children are the handler's."""
        args, kwargs = arguments
        return self._plain(module, *args, **kwargs)


def _held_in(state: State, keys: Sequence[int]) -> list[Tensor]:
    copies = (state.tensors[key][1] for key in keys)
    return [each for each in copies if each is not None]


class Ended:
    """An outermost call that has ended.

    Attributes:
        call: the call.
        outputs: its output, tensor by tensor, as the loss gets it.
        tensors: these, and what it has left in its modules.
    """

    def __init__(self, call: Call, outputs: list[Tensor], left: list[Tensor]) -> None:
        self.call = call
        self.outputs = outputs
        self.tensors = tensors = [*outputs, *left]
        self._passed: list[list[Tensor]] = [[] for _ in tensors]
        for tensor, passed in zip(tensors, self._passed, strict=True):
            if tensor.requires_grad:
                tensor.register_hook(_noting(passed))  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def of_the_loss(self) -> Gradients:
        """Gradients that arrived in backward passes that the loss itself has taken, as for a gradient penalty."""
        return [torch.stack(passed).sum(0) if passed else None for passed in self._passed]


def _noting(passed: list[Tensor]) -> Callable[[Tensor], None]:
    """A hook that holds no more than the list: one that held its tensor would be a circle through C++."""

    def note(gradient: Tensor) -> None:
        passed.append(gradient.detach())

    return note


class Recorder:
    """A handler that runs each module and notes its calls.

    Attributes:
        calls: in the order of their beginnings.
        ended: the outermost calls.
        failed: the innermost module that raised.
    """

    def __init__(self, parts: Parts, side: Arithmetic, like: Mapping[tuple[int, int], Call] | None = None) -> None:
        self.calls: list[Call] = []
        self.ended: list[Ended] = []
        self.failed: nn.Module | None = None
        self._parts = parts
        self._side = side
        self._like = like or {}
        self._open: list[Call] = []
        self._count: Counter[int] = Counter()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module; an outermost one on copies of its inputs, and its outputs come out in float32."""
        held = self._held(module), tuple(module.parameters())
        call = Call(module, self._count[id(module)], random_state(), autocasts(), *held)
        self._count[id(module)] += 1
        self._begin(call)
        outermost = not self._open
        arguments: Any = (args, kwargs)
        if outermost:
            arguments, _ = copied(arguments, self._entered, self._parts.kept)
        self._open.append(call)
        try:
            output = self._ran(call, arguments)
        except Exception:
            self.failed = self.failed or module
            raise
        finally:
            self._open.pop()
        if not outermost:
            return output
        changed = {key: items(arguments)[key] for key in call.output[1]}
        (output, changed), _ = copied((output, changed), _left, self._parts.kept)
        for key, each in changed.items():
            move(each, items((args, kwargs))[key])
        left = [] if call.after is None else [call.after.tensors[key][0] for key in call.left]
        self.ended.append(Ended(call, list(placed((output, changed)).values()), left))
        return output

    def _held(self, module: nn.Module) -> State:
        with unrounded():
            return self._parts.states.read(module)

    def _begin(self, call: Call) -> None:
        self.calls.append(call)
        if self._open:
            self._open[-1].children.append(call)
        if call.key in self._like:  # the same random numbers, however many others were drawn
            set_random_state(self._like[call.key].state)

    def _entered(self, tensor: Tensor) -> Tensor:
        copy_of = self._side.cast(tensor)
        if tensor.requires_grad and inexact(copy_of):  # what an earlier outermost call has returned
            apply: Callable[..., Tensor] = _Entered.apply
            return apply(tensor, copy_of)
        if self._parts.frozen and inexact(copy_of):
            return copy_of.requires_grad_().clone()  # the leaf itself could not be changed in place
        return copy_of

    def _ran(self, call: Call, arguments: Any) -> Any:
        live: dict[int, Tensor] = {}  # by the id of its copy

        def keep(tensor: Tensor) -> Tensor:
            copy_of = tensor.detach().clone()
            live[id(copy_of)] = tensor
            return copy_of

        call.arguments, _ = copied(arguments, keep, self._parts.kept)
        call.given = list(placed(call.arguments).values())
        given = [live[id(each)] for each in call.given]
        versions = [version(each) for each in given]
        call.taken = call.before.passing()
        call.given += _held_in(call.before, call.taken)
        held = self._parts.read(arguments)
        output = self._parts.run(call.module, arguments)
        call.after = self._held(call.module).since(call.before)
        for place, (tensor, before) in enumerate(zip(given, versions, strict=True)):
            if version(tensor) != before:
                call.written[place] = tensor.detach().clone()
        call.output, _ = copied((output, self._parts.changed(arguments, held)), keep, self._parts.kept)
        call.places, call.returned = list(placed(call.output)), list(placed(call.output).values())
        places = {id(each): place for place, each in enumerate(given)}
        sources = (places.get(id(live[id(each)])) for each in call.returned)
        call.same = {place: source for place, source in enumerate(sources) if source is not None}
        call.left = call.after.passing()
        call.returned += _held_in(call.after, call.left)
        self._end(call)
        return output

    def _end(self, call: Call) -> None:
        like = self._like.get(call.key)
        if like is not None and like.state_after is not None:
            set_random_state(like.state_after)
        call.state_after = random_state()
        inside = {id(each) for child in call.children for each in child.parameters}
        call.held = [each for each in call.parameters if each.requires_grad and id(each) not in inside]


class _Entered(torch.autograd.Function):
    """A tensor's rounded copy, through which gradients pass as they are."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor, copy_of: Tensor) -> Tensor:
        return copy_of.view_as(tensor)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _left(tensor: Tensor) -> Tensor:
    """What the loss gets: in float32, so that the loss itself is computed alike in every arithmetic.

    A copy also where it is float32 already: a model's own loss is made of its scores, whose gradient is its own affair.
    """
    if not inexact(tensor):
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32, copy=True)


def version(tensor: Tensor) -> int:
    """Count the changes of a tensor's memory in place; 0 of an inference tensor, which does not count them."""
    return 0 if tensor.is_inference() else tensor._version
