"""All that a training reaches: modules, optimizers and schedulers, objects, containers, tensors, generators and names.

A walk from modules, loss, optimizer and data over attributes, containers, hooks, closures, and the globals that the
user's own functions name, so that all of it can be put back after a use of the training.
"""

from __future__ import annotations

import argparse
import functools
import io
import random
import sys
import sysconfig
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from depthgauge.modules import is_installed

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
Numbers = Tensor | np.ndarray[Any, Any]
Stepper = torch.optim.Optimizer | LRScheduler | ReduceLROnPlateau

OWN = frozenset(vars(nn.Module()))
"""What torch keeps in each module: parameters, buffers, modules, mode and hooks."""
CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
PLAIN = (bool, int, float, complex, str, bytes, type(None))
DEEP = 6  # a container or function within another takes 1 of it, an object 2
MOST = 20_000  # things that are looked at
LARGEST = 2**28  # bytes of a further module that is copied, where the given ones are not larger still
LONG = 10_000  # items of a container that is looked into
_OF_OTHERS = {"torch", "numpy", "pandas", *sys.stdlib_module_names}
_HELD = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_STATE = {"state", "param_groups", "defaults"}


@dataclass(eq=False)
class Reached:
    """All things that were found, each once.

    Attributes:
        modules: beside those that were given, none within another.
        large: by name, others that take more than `LARGEST` bytes, and more than those that were given.
        parts: of all modules, the given ones too.
        steppers: optimizers and schedulers beside the one that was given.
        holders: objects and functions whose attributes the training's code may change.
        classes: of the user's own.
        containers: lists, dictionaries, sets, and those of subclasses of the user's.
        tensors: by name, that no module and no optimizer has; arrays too.
        stored: tensors and arrays of data sets.
        generators: of random numbers.
        cells: of closures.
        names: globals, each with the dictionary that it is in.
        iterates: whether there is an iterator, from which each call may take another thing.
    """

    modules: list[nn.Module] = field(default_factory=list)
    large: list[tuple[str, nn.Module]] = field(default_factory=list)
    parts: list[nn.Module] = field(default_factory=list)
    steppers: list[Stepper] = field(default_factory=list)
    holders: list[Any] = field(default_factory=list)
    classes: list[type] = field(default_factory=list)
    containers: list[Any] = field(default_factory=list)
    tensors: list[tuple[str, Numbers]] = field(default_factory=list)
    stored: list[Numbers] = field(default_factory=list)
    generators: list[Generator] = field(default_factory=list)
    cells: list[CellType] = field(default_factory=list)
    names: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    iterates: bool = False

    @staticmethod
    def of(modules: Iterable[nn.Module], loss: object, optimizer: object, batches: object) -> Reached:
        """Walk from modules, a loss, an optimizer (or None) and batches."""
        walk = _Walk(getattr(loss, "__module__", None))
        walk.begin(modules, optimizer)
        walk.put("loss", loss, DEEP)
        walk.go()
        walk.of_data(batches)
        return walk.found


class _Walk:
    """The nearest things come first, so that each is met with as much depth left as can be."""

    def __init__(self, beside: str | None) -> None:
        self.found = Reached()
        self._beside = beside  # a module whose functions are followed wherever it is installed
        self._met: dict[int, Any] = {}  # the things themselves, so that no other gets their number
        self._waiting: deque[tuple[str, Any, int]] = deque()
        self._later: list[Any] = []
        self._is_data = False
        self._count = 0
        self._given = 0  # bytes of the given modules

    def begin(self, modules: Iterable[nn.Module], optimizer: Any) -> None:
        """Take the given modules and optimizer as known, and what they hold as the first things to look at."""
        for module in modules:
            self._parts(module, DEEP)
            self._given += _bytes((*module.parameters(), *module.buffers()))
        if optimizer is not None:
            self._met[id(optimizer)] = optimizer
            self._tensors_known(optimizer)
            self._attributes("optimizer", optimizer, DEEP, _STATE)
            self.put(type(optimizer).__name__, type(optimizer), DEEP)

    def of_data(self, batches: object) -> None:
        """Look at a loader of the user's own, its sampler, and the data sets in it; not into an iterator."""
        self._is_data = True
        roots: list[Any] = []
        if not isinstance(batches, Iterator):
            roots = [batches, *(getattr(batches, each, None) for each in ("sampler", "batch_sampler", "collate_fn"))]
            inner = getattr(batches, "dataset", None)
            while inner is not None and not any(inner is each for each in roots):
                roots.append(inner)
                inner = getattr(inner, "dataset", None)  # of a subset
        for value in (*roots, *self._later):
            self.put("batches", value, DEEP)
        self.go()

    def put(self, name: str, value: Any, deep: int) -> None:
        """Have a thing looked at, where it can hold anything and was not met."""
        if isinstance(value, PLAIN) or id(value) in self._met or self._count > MOST:
            return
        if not self._is_data and isinstance(value, torch.utils.data.Dataset | torch.utils.data.DataLoader):
            self._later.append(value)
            return
        self._met[id(value)] = value
        self._count += 1
        self._waiting.append((name, value, deep))

    def go(self) -> None:
        """Look at all that waits."""
        while self._waiting:
            with suppress(Exception):  # a user's object raises when it is looked at: a proxy without a target
                self._visit(*self._waiting.popleft())

    def _visit(self, name: str, value: Any, deep: int) -> None:
        found = self.found
        if isinstance(value, Tensor | np.ndarray):
            found.stored.append(value) if self._is_data else found.tensors.append((name, value))
        elif isinstance(value, Generator):
            found.generators += [] if isinstance(value, random.SystemRandom) else [value]
        elif isinstance(value, nn.Module):
            self._module(name, value, deep)
        elif isinstance(value, Stepper):
            found.steppers.append(value)
            self._tensors_known(value)
            self._attributes(name, value, deep, _STATE)
        elif type(value) in CONTAINERS or isinstance(value, tuple):
            found.containers += [] if isinstance(value, tuple) else [value]
            self._items(name, value, deep - 1)
        elif isinstance(value, CONTAINERS) and is_users(value):
            found.containers.append(value)
            found.holders.append(value)
            self._items(name, value, deep - 1)
            self._attributes(name, value, deep - 2)
        elif isinstance(value, Iterator) and not isinstance(value, io.IOBase):
            found.iterates = True
        elif deep > 0:
            self._deeper(name, value, deep)

    def _deeper(self, name: str, value: Any, deep: int) -> None:
        if isinstance(value, FunctionType):
            self._function(value, deep - 1)
        elif isinstance(value, MethodType):
            self.put(name, value.__self__, deep)
            self.put(name, value.__func__, deep)
        elif isinstance(value, functools.partial):
            self.put(name, value.func, deep)
            for each in (*value.args, *value.keywords.values()):
                self.put(name, each, deep)
        elif isinstance(value, type):
            self._class(value, deep - 1)
        elif is_users(value):
            self.found.holders.append(value)
            self._attributes(name, value, deep - 2)
            self.put(type(value).__name__, type(value), deep)
        elif callable(wrapped := getattr(value, "__wrapped__", None)):  # of functools.cache
            self.put(name, wrapped, deep - 1)

    def _items(self, name: str, value: Any, deep: int) -> None:
        if deep < 0 or isinstance(value, set) or len(value) > LONG or self._is_data:
            return
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            if not isinstance(item, PLAIN):
                self.put(f"{name}[{key!r:.40}]", item, deep)

    def _attributes(self, name: str, value: Any, deep: int, without: Iterable[str] = ()) -> None:
        slots = {key: getattr(value, key) for key in slots_of(value) if hasattr(value, key)}
        for key, each in [*getattr(value, "__dict__", {}).items(), *slots.items()]:
            if key in without:
                continue
            hooks = isinstance(each, dict) and (key in OWN or key.startswith("_optimizer_"))
            for inner in list(each.values()) if hooks else [each]:
                with suppress(Exception):  # as in `go`
                    if not isinstance(inner, PLAIN) and not ((hooks or callable(inner)) and _is_ours(inner)):
                        self.put(f"{name}.{key}", inner, deep)

    def _module(self, name: str, module: nn.Module, deep: int) -> None:
        inside = {id(part) for part in module.modules()}
        self.found.modules[:] = [each for each in self.found.modules if id(each) not in inside]
        new = [each for each in (*module.parameters(), *module.buffers()) if id(each) not in self._met]
        if _bytes(new) > max(LARGEST, self._given):
            self.found.large.append((name, module))
        else:
            self.found.modules.append(module)
        self._parts(module, deep - 2)

    def _parts(self, module: nn.Module, deep: int) -> None:
        """Note a module's parts, and have a look at what they hold beside parameters, buffers and modules."""
        parts = list(module.named_modules())
        self._met.update((id(each), each) for each in (*module.parameters(), *module.buffers()))
        self._met.update((id(part), part) for _, part in parts)
        known = set(map(id, self.found.parts))
        for place, part in parts:
            if id(part) in known or isinstance(part, torch.jit.ScriptModule):
                continue
            self.found.parts.append(part)
            self._attributes(place or type(module).__name__, part, max(0, deep), _HELD)
            if deep > 0:
                self.put(type(part).__name__, type(part), deep)

    def _tensors_known(self, optimizer: Any) -> None:
        """Take the tensors that an optimizer steps or keeps as known: they are put back with it."""
        for group in getattr(optimizer, "param_groups", ()):
            self._met.update((id(each), each) for each in group["params"])

    def _function(self, function: FunctionType, deep: int) -> None:
        closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        cells = [(name, cell) for name, cell in closure if _is_filled(cell)]
        for name, cell in cells:
            self.put(name, cell.cell_contents, deep)
        for name, each in vars(function).items():
            self.put(name, each, deep)
        around = function.__globals__
        if not (is_own(around.get("__name__")) or around.get("__name__") == self._beside):
            return
        self.found.holders.append(function)
        self.found.cells += [cell for _, cell in cells]
        for each in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.put(function.__name__, each, deep)
        self._names(around, list(_names(function.__code__)), deep)

    def _names(self, around: dict[str, Any], names: list[str], deep: int) -> None:
        for name in names:
            value = around.get(name)
            if isinstance(value, ModuleType):
                inner = vars(value)
                if around is not inner and is_own(value.__name__) and deep > 0:
                    self._names(inner, [each for each in names if each in inner], deep - 1)
            elif name in around:
                self.found.names += [] if isinstance(value, FunctionType | type) else [(around, name)]
                self.put(name, value, deep)

    def _class(self, kind: type, deep: int) -> None:
        """Look at what a class of the user's own has, and its bases: numbers, containers, and functions."""
        for each in kind.__mro__:
            if is_own(each.__module__) and not issubclass(each, Enum) and each not in self.found.classes:
                self.found.classes.append(each)
                for name, value in list(vars(each).items()):
                    if isinstance(value, staticmethod | classmethod):
                        self.put(name, value.__func__, deep)
                    elif isinstance(value, property):
                        self.put(name, value.fget, deep)
                    elif not name.startswith("__") or isinstance(value, FunctionType):
                        self.put(f"{each.__name__}.{name}", value, deep)


def is_users(value: object) -> bool:
    """Tell whether it is an object of a class that is neither Python's nor torch's nor NumPy's, or a loss scaler."""
    if isinstance(value, torch.amp.GradScaler | SimpleNamespace | argparse.Namespace | UserDict | UserList):
        return True
    kind = type(value)
    known = kind.__module__.partition(".")[0] in _OF_OTHERS and not is_own(kind.__module__)
    no_object = isinstance(value, type | nn.Module | FunctionType | ModuleType | Enum)
    has_any = isinstance(getattr(value, "__dict__", None), dict) or bool(slots_of(value))
    return has_any and not known and not no_object


def slots_of(value: object) -> list[str]:
    """Names of the attributes that an object keeps beside a dictionary of its own."""
    given = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__ if is_own(kind.__module__)]
    names = [name for each in given for name in ([each] if isinstance(each, str) else each)]
    return [name for name in names if not name.startswith("__")]


@functools.cache
def is_own(module: str | None) -> bool:
    """Tell whether a module, by name, is the user's: neither installed, nor Python's, nor of this package."""
    if module is None or module.partition(".")[0] in {"builtins", "depthgauge", "torch", "numpy"}:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module not in sys.builtin_module_names
    path = Path(file).resolve()
    return not is_installed(path) and not path.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())


def _is_ours(value: Any) -> bool:
    """Tell whether it is this package's own: a hook, or a step that it watches."""
    while isinstance(value, functools.partial | MethodType):
        value = value.func if isinstance(value, functools.partial) else value.__func__
    names = (getattr(value, "__module__", None), type(value).__module__)
    return any(isinstance(name, str) and name.partition(".")[0] == "depthgauge" for name in names)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors if not nn.parameter.is_lazy(each))


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # not assigned yet
        return False


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function's code and the functions within it use."""
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)
