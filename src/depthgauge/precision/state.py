"""State that modules keep between calls, read at any moment of a run and put back before another.

Each run begins from what the model had before the first; a call that is run again, from what its module had then. That
is attributes and what they hold (`holding`): parameters, buffers and other tensors, containers, random generators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from depthgauge.precision.emulation import unrounded
from depthgauge.precision.holding import Kind, reached

Change = Callable[[Tensor], Tensor]
"""A new tensor from one."""

Place = tuple[int, int]
"""An object's id, and which of its contents."""

Entry = tuple[Any, Kind, Any]
"""An object, a kind of it, and its content."""


@dataclass(frozen=True)
class State:
    """Contents of modules at one moment.

    Attributes:
        entries: the objects, by place.
        tensors: id -> a tensor that they hold, and a copy of it; None of a parameter as the run began with it.
        changed: ids of the tensors whose copies are put back.
    """

    entries: Mapping[Place, Entry]
    tensors: Mapping[int, tuple[Tensor, Tensor | None]]
    changed: Collection[int]

    def since(self, before: State) -> State:
        """Pick what differs from an earlier state."""
        entries = {place: each for place, each in self.entries.items() if before.entries.get(place) is not each}
        changed = {key for key, each in self.tensors.items() if before.tensors.get(key) is not each}
        return State(entries, self.tensors, changed)

    def passing(self) -> list[int]:
        """List the ids of changed tensors that hand a gradient on to the operations that made them."""
        found = ((key, *self.tensors[key]) for key in self.tensors if key in self.changed)
        return [
            key
            for key, each, copy_of in found
            if each.grad_fn is not None and copy_of is not None and not isinstance(each, nn.Parameter)
        ]

    def copies(self) -> list[Tensor]:
        """The copies, in the order in which the tensors are found."""
        return [copy_of for _, copy_of in self.tensors.values() if copy_of is not None]


class States:
    """The state of a model, from run to run.

    Args:
        root: the model.
        apart: tensors that are left to others.

    Attributes:
        stand_ins: id -> a parameter that stands in the place of the model's own in the runs.
    """

    def __init__(self, root: nn.Module, apart: Iterable[Tensor] = ()) -> None:
        self._inside = {id(each) for each in root.modules()}
        self._weights = {id(each) for each in (*root.parameters(), *root.buffers())}
        self._start: dict[Place, Entry] = {}
        self._own: dict[int, tuple[Tensor, Tensor]] = {}  # the tensors, and the memory that is theirs
        self._replaced: set[int] = set()  # whose memory cannot be
        left = {id(each) for each in apart}
        for held, contents in reached(root.modules(), self._inside):
            self._start.update({(id(held), place): (held, *each) for place, each in enumerate(contents)})
            if isinstance(held, Tensor) and id(held) not in left and held.layout is torch.strided:
                self._own[id(held)] = held, held.data
                if held.is_inference() or held.grad_fn is not None or _accumulates(held):
                    self._replaced.add(id(held))
        self.stand_ins: MutableMapping[int, object] = WeakValueDictionary()
        self._change: Change = cloned
        self._entries: dict[Place, Entry] = {}
        self._tensors: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._begun: dict[int, tuple[int, int]] = {}
        self._watched: set[int] = set()  # parameters whose changes nothing but a look at them tells
        self._plain: dict[int, Tensor] = {}  # copies of what is no parameter and no buffer, as the user has it

    def begin(self, change: Change) -> None:
        """Put back what there was before any run, on copies of its memory: of parameters and buffers, `change`."""
        self._change = change
        self._entries.clear()
        self._tensors.clear()
        there: dict[int, Tensor] = {}
        with unrounded():  # the numbers are the user's, whatever arithmetic the run has
            copies = _together([memory for _, memory in self._own.values()], list(map(self._changing, self._own)))
        for (tensor, _), copy_of in zip(self._own.values(), copies, strict=True):
            if id(tensor) in self._replaced:
                there[id(tensor)] = self._like(tensor, copy_of)
            else:
                _give(tensor, copy_of)
        _write(self._start, there.get)
        held = (each for each, _ in self._own.values() if isinstance(each, nn.Parameter))
        self._begun = {id(each): _mark(each) for each in held if id(each) not in self._replaced | self._watched}

    def _changing(self, key: int) -> Change:
        return self._change if key in self._weights else cloned

    def overlooked(self) -> bool:
        """Tell whether a run has changed parameters by `.data`, which counts no change; the next sees all of it."""
        own = ((key, *self._own[key]) for key, mark in self._begun.items() if mark == _mark(self._own[key][0]))
        found = {key for key, tensor, memory in own if not _equal(tensor, self._changing(key)(memory))}
        self._watched |= found
        return bool(found)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put everything back, on its own memory, after the block."""
        try:
            yield
        finally:
            _write(self._start, lambda _: None)
            for tensor, memory in self._own.values():
                if id(tensor) not in self._replaced:
                    _give(tensor, memory)

    def read(self, module: nn.Module) -> State:
        """Read what a module and those inside it hold now."""
        entries: dict[Place, Entry] = {}
        tensors: list[Tensor] = []
        for held, contents in reached(module.modules(), self._inside):
            if isinstance(held, Tensor) and not nn.parameter.is_lazy(held):
                tensors.append(held)
            for place, (kind, content) in enumerate(contents):
                key = id(held), place
                last = self._entries.get(key)
                if last is None or last[1] is not kind or not kind.same(last[2], content):
                    self._entries[key] = held, kind, content
                entries[key] = self._entries[key]
        self._look_at(tensors)
        return State(entries, {id(each): self._tensors[id(each)] for each in tensors}, frozenset(map(id, tensors)))

    def now(self, module: nn.Module, state: State) -> dict[int, Tensor]:
        """Map the ids of a state's tensors to those that the module holds in their places, if it holds as many."""
        found = [each for each, _ in reached(module.modules(), self._inside) if isinstance(each, Tensor)]
        return dict(zip(state.tensors, found, strict=True)) if len(found) == len(state.tensors) else {}

    def _look_at(self, tensors: Sequence[Tensor]) -> None:
        """Copy those that are not as they were when they were last looked at."""
        changed: dict[Any, list[Tensor]] = {}
        alike: dict[Any, list[Tensor]] = {}
        for each in tensors:
            last = self._tensors.get(id(each))
            if self._begun.get(id(each)) == _mark(each):
                if last is None or last[1] is not None:
                    self._tensors[id(each)] = each, None
                continue
            same = last is not None and last[1] is not None and _equal(each, last[1])
            (alike if same else changed).setdefault(_memory(each), []).append(each)
        # Views of memory that has changed are cloned with it, so that the copies are views of one memory, too.
        found = [each for key, group in changed.items() for each in (*group, *alike.get(key, ()))]
        for each, copy_of in zip(found, _together(found, [cloned] * len(found)), strict=True):
            if id(each) not in self._tensors and id(each) in self._own and id(each) not in self._weights:
                self._plain[id(copy_of)] = copy_of
            self._tensors[id(each)] = each, copy_of

    def put(self, state: State, change: Change, there: dict[int, Tensor]) -> None:
        """Put a state back, of its tensors copies.

        Args:
            state: what was read.
            change: makes a copy of what was cloned.
            there: id of a tensor that was read -> the one that stands in its place in this run; what is put back is
                added.
        """
        back: list[tuple[Tensor, Tensor]] = []
        for tensor, copy_of in (state.tensors[key] for key in state.changed):
            if copy_of is not None:
                back.append((tensor, copy_of))
            elif self._begun[id(tensor)] != _mark(tensor):
                _give(tensor, self._change(self._own[id(tensor)][1]))
                self._begun[id(tensor)] = _mark(tensor)
        changes = [cloned if id(copy_of) in self._plain else change for _, copy_of in back]
        for (tensor, _), value in zip(back, _together([copy_of for _, copy_of in back], changes), strict=True):
            there[id(tensor)] = self._standing(tensor, value, there.get(id(tensor)))

        def instead(key: int) -> Tensor | None:
            if key not in there and key in state.tensors:
                tensor, copy_of = state.tensors[key]
                there[key] = tensor if copy_of is None else self._standing(tensor, change(copy_of), None)
            return there.get(key)

        _write(state.entries, instead)

    def _standing(self, tensor: Tensor, value: Tensor, there: Tensor | None) -> Tensor:
        """The tensor itself, or the one that stands in its place, with a value; a new one of a tensor of a run."""
        if value.requires_grad:
            if there is None or (there.shape, there.dtype) != (value.shape, value.dtype):
                return value
            with torch.enable_grad():
                return there.copy_(value)
        if there is None and id(tensor) in self._own and id(tensor) not in self._replaced:
            there = tensor
        if there is None:
            return self._like(tensor, value)
        _give(there, value)
        if id(there) in self._begun:
            self._begun[id(there)] = _NEVER
        return there

    def _like(self, tensor: Tensor, value: Tensor) -> Tensor:
        """A value as a parameter, or as a leaf that asks for a gradient, where the tensor is one."""
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(value, requires_grad=tensor.requires_grad)
            self.stand_ins[id(made)] = made
            return made
        return value.requires_grad_(tensor.requires_grad and tensor.is_leaf)


_NEVER = (-1, -1)


def _mark(tensor: Tensor) -> tuple[int, int]:
    """What tells that a tensor has been changed: how often in place, and where it lies."""
    return 0 if tensor.is_inference() else tensor._version, _address(tensor)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a subclass without memory of its own
        return 0


def _memory(tensor: Tensor) -> Any:
    """What tensors have in common that are views of one memory."""
    if tensor.layout is not torch.strided or tensor.is_nested or not tensor.numel() or not _address(tensor):
        return id(tensor)
    return tensor.untyped_storage().data_ptr(), tensor.dtype


def _together(tensors: Sequence[Tensor], changes: Sequence[Change]) -> list[Tensor]:
    """New tensors of tensors; those that are views of one memory are views of one new memory."""
    count = Counter(map(_memory, tensors))
    chosen = {_memory(each): change for each, change in zip(tensors, changes, strict=True) if change is not cloned}
    whole: dict[Any, Tensor] = {}
    made = []
    with torch.no_grad():
        for tensor, change in zip(tensors, changes, strict=True):
            key = _memory(tensor)
            if count[key] == 1:
                made.append(change(tensor))
                continue
            if key not in whole:
                flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
                whole[key] = chosen.get(key, cloned)(flat)
            made.append(whole[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).data)
    return made


def cloned(tensor: Tensor) -> Tensor:
    """A copy that no gradient passes."""
    return tensor.detach().clone()


def _equal(tensor: Tensor, copy_of: Tensor) -> bool:
    if tensor.shape != copy_of.shape or tensor.dtype != copy_of.dtype or tensor.layout != copy_of.layout:
        return False
    try:
        return torch.equal(tensor, copy_of)
    except (RuntimeError, NotImplementedError):  # a layout or device that cannot tell
        return False


def _accumulates(tensor: Tensor) -> bool:
    """Tell whether anyone holds the node that adds to a tensor's gradient, as data parallelism does to hook it.

    A tensor whose memory gets another dtype loses that node, and with it what hooks it. That the node is held is seen
    as it is the same one when it is asked for again.
    """
    if not (tensor.is_leaf and tensor.requires_grad) or nn.parameter.is_lazy(tensor):
        return False
    _accumulator(tensor).metadata[__name__] = True
    return _accumulator(tensor).metadata.pop(__name__, None) is not None


def _accumulator(tensor: Tensor) -> Any:
    with torch.enable_grad():
        node: Any = tensor.view_as(tensor).grad_fn
    return node.next_functions[0][0]


def _give(tensor: Tensor, value: Tensor) -> None:
    if tensor.grad_fn is not None:  # a run has changed it in place
        tensor.detach_()
    tensor.data = value


def _write(entries: Mapping[Place, Entry], instead: Callable[[int], Tensor | None]) -> None:
    """Write contents, with other tensors in place of tensors; by a tensor's id, None for itself."""
    for held, kind, content in entries.values():
        wanted = content
        if kind.holds and isinstance(content, dict):
            wanted = {key: _filled(each, instead) for key, each in content.items()}
        elif kind.holds:
            wanted = _filled(content, instead)
        if not kind.same(kind.read(held), wanted):
            kind.write(held, wanted)


def _filled(content: Any, instead: Callable[[int], Tensor | None]) -> Any:
    if isinstance(content, Tensor):
        other = instead(id(content))
        return content if other is None else other
    if not isinstance(content, tuple):  # another container has a content of its own
        return content
    filled = [_filled(each, instead) for each in content]
    if all(each is before for each, before in zip(filled, content, strict=True)):
        return content
    return type(content)(*filled) if hasattr(content, "_fields") else type(content)(filled)
