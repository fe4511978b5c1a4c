"""Calls of a model's parts: what each was given and returned, as copies that later changes do not reach."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from depthgauge import nested
from depthgauge.nested import inexact
from depthgauge.precision.arithmetic import Arithmetic, RandomState, random_state, set_random_state

Gradients = Sequence[Tensor | None]
Handler = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(eq=False)
class Call:
    """One call of a module, in one run of the model.

    Attributes:
        module: the module.
        place: number of the module's earlier calls in this run.
        state: of the random generators, at the beginning.
        arguments: copy of (args, kwargs).
        given: the tensors in them that count (`placed`).
        output: copy of what it returned.
        returned: the tensors in that that count.
        places: the place of each.
        same: place in `returned` -> place in `given`, where both are one object.
        written: place in `given` -> value afterwards, where the call has changed it in place.
        children: calls of the model's modules within it, in their order.
        state_after: of the random generators, at the end.
        gradients: with respect to `returned`; None where there is none.
        handed: with respect to `given`, as the call's own backward pass gives them.
        held: trained parameters that no child brings along.
        held_gradients: with respect to these.
    """

    module: nn.Module
    place: int
    state: RandomState
    arguments: Any = None
    given: list[Tensor] = field(default_factory=list)
    output: Any = None
    returned: list[Tensor] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    same: dict[int, int] = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)
    children: list[Call] = field(default_factory=list)
    state_after: RandomState | None = None
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


class _Copying(TorchFunctionMode):
    """Makes `copy.deepcopy` take a function of a tensor for its copy; torch's own refuses what has a gradient."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self._function = function

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.take(tensor)

    def of(self, tensor: Tensor) -> Tensor:
        """The function's result."""
        self.found.append(self._function(tensor))
        return self.found[-1]


class _Memo(dict[int, object]):
    """What `copy.deepcopy` has copied; parameters, which copy themselves past any mode, are handled as it asks."""

    def __init__(self, mode: _Copying, kept: Mapping[int, object]) -> None:
        super().__init__()
        self._mode = mode
        self._kept = kept

    def take(self, tensor: Tensor) -> Tensor:
        """The copy of a tensor, made once."""
        if id(tensor) not in self:
            self[id(tensor)] = self._mode.of(tensor)
        copy_of: Any = self[id(tensor)]
        return copy_of  # type: ignore[no-any-return]  # it is a tensor's

    def get(self, key: int, default: Any = None) -> Any:
        """As deepcopy asks for everything that it meets."""
        if key in self:
            return self[key]
        kept = self._kept.get(key, default)
        return self.take(kept) if isinstance(kept, Tensor) else kept


def copied(value: Any, function: Callable[[Tensor], Tensor], kept: Mapping[int, object]) -> tuple[Any, list[Tensor]]:
    """A deep copy of any structure with a function of each of its tensors in that tensor's place.

    Args:
        value: tuples, mappings, dataclasses, other objects; what cannot be copied stays what it is.
        function: called once a tensor; places that hold one tensor hold one result.
        kept: ids -> modules, which are not copied, and their parameters, which are.

    Returns:
        The copy, and the function's results in the order of the places.
    """
    mode = _Copying(function)
    memo = _Memo(mode, kept)

    def copy_of(part: Any) -> Any:
        try:
            with mode:
                return copy.deepcopy(part, memo)
        except Exception:  # noqa: BLE001 - an object may refuse by any exception
            if isinstance(part, list) or type(part) is tuple:
                return type(part)(copy_of(each) for each in part)
            if type(part) is dict:
                return {key: copy_of(each) for key, each in part.items()}
            return part

    return copy_of(value), mode.found


def placed(value: Any) -> dict[str, Tensor]:
    """The tensors in tuples, lists, mappings and dataclasses by place, each once; of any object where there are none.

    An object beside tensors, such as a cache of keys, holds a module's state, and is none of its inputs or outputs.
    """
    found = {id(tensor): (place or "", tensor) for place, tensor in reversed(list(nested.tensors(value)))}
    if found:
        return dict(reversed(found.values()))
    inside = copied(value, lambda tensor: tensor, {})[1]
    return {str(number): tensor for number, tensor in enumerate(inside)}


_INTERCEPTION = threading.RLock()  # one bisection at a time: the call of all modules is one attribute


class Parts:
    """The modules of a model, and what answers their calls.

    Attributes:
        names: id -> name, as in `named_modules`.
        kept: modules and parameters by id, for `copied`.
        frozen: whether no parameter asks for a gradient.
    """

    def __init__(self, root: nn.Module) -> None:
        self.names = {id(part): name for name, part in root.named_modules()}
        whole = (*root.modules(), *root.parameters())
        self.kept: dict[int, object] = {id(each): each for each in whole}
        self.frozen = not any(each.requires_grad for each in root.parameters())
        self._handler: Handler | None = None
        self._plain: Callable[..., Any] = nn.Module.__call__

    @contextmanager
    def intercepted(self) -> Iterator[None]:
        """Have the handler called in place of the modules within the block.

        A hook of a module's own would be copied with it, and none can replace what it computes.
        """

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._handler is None or id(module) not in self.names:
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

    def run(self, module: nn.Module, arguments: Any) -> Any:
        """Call a module itself; its children are the handler's."""
        args, kwargs = arguments
        return self._plain(module, *args, **kwargs)


class Recorder:
    """A handler that runs each module and notes its calls.

    Attributes:
        calls: in the order of their beginnings.
        ended: the outputs of the outermost calls, tensor by tensor, as the loss gets them.
        failed: the innermost module that raised.
    """

    def __init__(self, parts: Parts, side: Arithmetic, like: Mapping[tuple[int, int], Call] | None = None) -> None:
        self.calls: list[Call] = []
        self.ended: list[tuple[Call, list[Tensor]]] = []
        self.failed: nn.Module | None = None
        self._parts = parts
        self._side = side
        self._like = like or {}
        self._open: list[Call] = []
        self._count: Counter[int] = Counter()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module; an outermost one on copies of its inputs, and its outputs come out in float32."""
        call = Call(module, self._count[id(module)], random_state())
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
        output, _ = copied(output, _left, self._parts.kept)
        self.ended.append((call, list(placed(output).values())))
        return output

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
        output = self._parts.run(call.module, arguments)
        for place, (tensor, before) in enumerate(zip(given, versions, strict=True)):
            if version(tensor) != before:
                call.written[place] = tensor.detach().clone()
        call.output, _ = copied(output, keep, self._parts.kept)
        call.places, call.returned = list(placed(call.output)), list(placed(call.output).values())
        places = {id(each): place for place, each in enumerate(given)}
        sources = (places.get(id(live[id(each)])) for each in call.returned)
        call.same = {place: source for place, source in enumerate(sources) if source is not None}
        like = self._like.get(call.key)
        if like is not None and like.state_after is not None:
            set_random_state(like.state_after)
        call.state_after = random_state()
        inside = {id(each) for child in call.children for each in child.module.parameters()}
        call.held = [each for each in call.module.parameters() if each.requires_grad and id(each) not in inside]
        return output


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
