"""Objects that modules keep their state in: how the content of each kind is read, compared and written."""

from __future__ import annotations

import enum
import io
import random
import threading
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEPTH = 2
"""Objects within objects that are followed, from a module on; containers and modules do not count."""


@dataclass(frozen=True)
class Kind:
    """A kind of object that can change.

    Attributes:
        read: gives its content, which later changes do not touch.
        write: sets its content.
        same: tells whether two contents are the same.
        holds: whether a content is a mapping to objects or a tuple of them, not a value.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object]
    same: Callable[[Any, Any], bool]
    holds: bool = False


def _same_items(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    if len(a) != len(b):
        return False
    return all(map(is_, a, b)) and all(map(is_, a.values(), b.values()))


def _same_members(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))


def _methods(held: dict[Any, Any]) -> Any:
    """The methods of a dictionary itself: a subclass may load what it lacks, or refuse."""
    return OrderedDict if isinstance(held, OrderedDict) else dict


def _read_dict(held: dict[Any, Any]) -> dict[Any, Any]:
    return dict(_methods(held).items(held))


def _write_dict(held: dict[Any, Any], content: Mapping[Any, Any]) -> None:
    methods, now = _methods(held), _read_dict(held)
    for key in now.keys() - content.keys():
        methods.__delitem__(held, key)
    left = [key for key in now if key in content]
    if list(content)[: len(left)] != left:  # their order is to be another
        methods.clear(held)
    for key, value in content.items():
        methods.__setitem__(held, key, value)


def _write_members(held: Any, content: Sequence[Any]) -> None:
    held.clear()
    (held.update if isinstance(held, set) else held.extend)(content)


def _slots(kind: type) -> tuple[str, ...]:
    own = (vars(each) for each in kind.__mro__ if "__slots__" in vars(each))
    return tuple(name for each in own for name, at in each.items() if isinstance(at, types.MemberDescriptorType))


def _attributes(held: object) -> dict[str, Any]:
    slots = {name: getattr(held, name) for name in _slots(type(held)) if hasattr(held, name)}
    return {**getattr(held, "__dict__", {}), **slots}


def _write_attributes(held: object, content: Mapping[str, Any]) -> None:
    slots = _slots(type(held))
    for name in slots:
        if name in content:
            object.__setattr__(held, name, content[name])
        elif hasattr(held, name):
            object.__delattr__(held, name)
    if hasattr(held, "__dict__"):
        _write_dict(vars(held), {name: value for name, value in content.items() if name not in slots})


def _state(held: np.random.Generator) -> Any:
    return held.bit_generator.state


def _set_state(held: np.random.Generator, state: Any) -> None:
    held.bit_generator.state = state


def _same_numbers(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


_legacy = np.random.RandomState
_DICT = Kind(_read_dict, _write_dict, _same_items, holds=True)
_SEQUENCE = Kind(tuple, _write_members, _same_members, holds=True)
_ATTRIBUTES = Kind(_attributes, _write_attributes, _same_items, holds=True)
_CONTAINERS = (dict, _DICT), (list, _SEQUENCE), (deque, _SEQUENCE), (set, _SEQUENCE)
_PLAIN: dict[type, tuple[Kind, ...]] = {
    **dict.fromkeys((dict, OrderedDict, defaultdict, Counter), (_DICT,)),
    **dict.fromkeys((list, deque, set), (_SEQUENCE,)),
}
_VALUES = (
    (torch.Generator, Kind(torch.Generator.get_state, torch.Generator.set_state, torch.equal)),
    (random.Random, Kind(random.Random.getstate, random.Random.setstate, lambda a, b: bool(a == b))),
    (np.random.Generator, Kind(_state, _set_state, lambda a, b: repr(a) == repr(b))),
    (np.random.RandomState, Kind(_legacy.get_state, _legacy.set_state, lambda _a, _b: False)),
    (np.ndarray, Kind(np.copy, np.copyto, _same_numbers)),
)
_SIMPLE = {type(None), bool, int, float, complex, str, bytes}
_FIXED = (
    *_SIMPLE, tuple, type, torch.dtype, torch.device,
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, weakref.ref, partial, enum.Enum,
    torch.jit.ScriptModule,
)  # fmt: skip
_OF_THE_SYSTEM = (type(threading.Lock()), type(threading.RLock()), threading.Thread, io.IOBase)


def kinds_of(held: object, *, followed: bool = True) -> tuple[Kind, ...]:
    """Kinds of an object, by which it is read; none where it cannot change or must not be put back.

    Args:
        held: any object.
        followed: whether attributes of an object that is no module are read.
    """
    if type(held) in _PLAIN:  # most of what a module holds
        return _PLAIN[type(held)]
    if isinstance(held, _FIXED):
        return ()
    if isinstance(held, nn.Module):
        return (_ATTRIBUTES,)
    for each, kind in _VALUES:
        if isinstance(held, each):
            return () if isinstance(held, np.ndarray) and not held.flags.writeable else (kind,)
    found = tuple(kind for each, kind in _CONTAINERS if isinstance(held, each))
    return (*found, _ATTRIBUTES) if followed and _has_state(held) else found


def _has_state(held: object) -> bool:
    """Tell whether an object's attributes are state: not torch's own, nor those of one that holds a lock or a file."""
    if type(held).__module__.partition(".")[0] == "torch":
        return False
    return not any(isinstance(each, _OF_THE_SYSTEM) for each in _attributes(held).values())


Content = tuple[Kind, Any]


def reached(roots: Iterable[object], apart: Iterable[int] = ()) -> Iterator[tuple[Any, tuple[Content, ...]]]:
    """Yield each object that others hold, and these, with its contents; a tensor has none.

    Args:
        roots: modules, or any objects.
        apart: ids of modules that are not entered from another object.
    """
    seen = set(apart)
    for root in roots:
        seen.discard(id(root))
        waiting: list[tuple[Any, int]] = [(root, 0)]
        while waiting:
            held, depth = waiting.pop()
            if id(held) in seen or type(held) in _SIMPLE:
                continue
            seen.add(id(held))
            if isinstance(held, Tensor):
                yield held, ()
            elif isinstance(held, torch.jit.ScriptModule):
                waiting.extend((each, depth) for each in (*held.parameters(), *held.buffers()))
            elif isinstance(held, tuple):
                waiting.extend((each, depth) for each in held)
            elif kinds := kinds_of(held, followed=depth < DEPTH):
                deeper = depth + (kinds[-1] is _ATTRIBUTES and not isinstance(held, nn.Module))
                contents = tuple((kind, kind.read(held)) for kind in kinds)
                yield held, contents
                for kind, content in contents:
                    members = content.values() if isinstance(content, dict) else content
                    if kind.holds:
                        waiting.extend((each, deeper) for each in members if type(each) not in _SIMPLE)


def contents(value: object, apart: Iterable[int]) -> dict[int, tuple[Any, tuple[Content, ...]]]:
    """Read a value and all that it holds, by ids, without the modules of which `apart` are the ids."""
    return {id(held): (held, found) for held, found in reached((value,), apart) if found}


def differ(one: Mapping[int, tuple[Any, tuple[Content, ...]]], other: Mapping[int, Any]) -> bool:
    """Tell whether what was read is another than before."""
    if one.keys() != other.keys():
        return True
    pairs = ((a, b) for key, (_, found) in one.items() for a, b in zip(found, other[key][1], strict=False))
    return not all(kind.same(content, now) for (kind, content), (_, now) in pairs)


def move(source: object, target: object) -> None:
    """Give an object the contents of another one of its kind."""
    if isinstance(source, tuple) and isinstance(target, tuple):
        for inner, other in zip(source, target, strict=True):
            move(inner, other)
    for kind in kinds_of(source):
        kind.write(target, kind.read(source))
