"""Attributes of a training's objects beside tensors: counters, lists, generators; put back after a block."""

from __future__ import annotations

import functools
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depthgauge.restoring import Snapshot, has_no_sizes
from depthgauge.seeding import Purpose, seed_globals
from depthgauge.workload import Training

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

OWN = frozenset(vars(nn.Module()))  # what torch keeps in each module, which `untouched` restores
_LISTS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
DEEP = 2  # objects within objects that are looked into
SMALL = 1_000_000  # numbers of a tensor that is copied: a running mean is smaller, a data set larger
_PLAIN = (bool, int, float, complex, str, tuple)


@contextmanager
def attributes_kept(training: Training, *, draws: bool = False) -> Iterator[list[Generator]]:
    """Put back what calls change in attributes of modules, loss, optimizer and data, and generators that they hold.

    `Training.untouched` leaves such attributes as a call leaves them: a second run would begin with another counter.

    Args:
        training: the user's.
        draws: put back generators alone.

    Yields:
        The generators.
    """
    notes = _Notes(draws=draws)
    for module in training.modules:
        for part in module.modules():
            if not has_no_sizes(part):  # whose sizes come with its first call, and stay
                notes.add_attributes(part, DEEP)
    of_optimizer = [] if training.optimizer is None else list(vars(training.optimizer).values())
    for value in (*_around(training.loss), *of_optimizer, *_of_loader(training.batches)):
        notes.add(value, DEEP)
    notes.add_names(training.loss)
    try:
        yield notes.generators
    finally:
        for undo in notes.undo:
            undo()


def takes_on(training: Training) -> bool:
    """Tell whether the loss or a module holds an iterator, from which each call takes other things."""
    held = [value for module in training.modules for part in module.modules() for value in vars(part).values()]
    return any(isinstance(value, Iterator) for value in (*held, *_around(training.loss)))


def _around(function: object) -> Iterator[object]:
    """What a loss holds: its object's attributes, its closure, defaults and the globals that it names."""
    if isinstance(function, functools.partial):
        yield from (*function.args, *function.keywords.values())
        yield from _around(function.func)
    elif isinstance(function, MethodType):
        yield function.__self__
    elif isinstance(function, FunctionType):
        cells = function.__closure__ or ()
        yield from (each.cell_contents for each in cells if _is_filled(each))
        yield from function.__defaults__ or ()
        yield from (function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__)
    elif function is not None and not isinstance(function, nn.Module):
        yield function


def _of_loader(batches: object) -> Iterator[object]:
    """A loader of the user's own, its sampler, and the data sets in it; nothing of an iterator, which goes on."""
    if isinstance(batches, Iterator):
        return
    yield from (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    inner = getattr(batches, "dataset", None)
    while inner is not None:
        yield inner
        inner = getattr(inner, "dataset", None)  # of a subset


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


class _Notes:
    """What puts attributes back.

    Attributes:
        undo: to be called, in any order.
        generators: those that were met.
    """

    def __init__(self, *, draws: bool) -> None:
        self.undo: list[Callable[[], object]] = []
        self.generators: list[Generator] = []
        self._draws = draws
        self._met: set[int] = set()

    def add_attributes(self, holder: object, deep: int) -> None:
        """Note an object's attributes, and what they hold."""
        if id(holder) in self._met:
            return
        self._met.add(id(holder))
        attributes = vars(holder)
        before = {name: value for name, value in attributes.items() if name not in OWN}

        def restore() -> None:
            for name in [name for name in attributes if name not in before and name not in OWN]:
                del attributes[name]
            attributes.update(before)

        if not self._draws:
            self.undo.append(restore)
        for value in before.values():
            self.add(value, deep)

    def add(self, value: Any, deep: int) -> None:
        """Note a generator's state, a container's content, or the attributes of an object of the user's."""
        if id(value) in self._met:
            return
        if isinstance(value, Tensor):
            self._met.add(id(value))
            if _is_small(value) and not self._draws:
                self.undo.append(torch.no_grad()(Snapshot.of(value).restore))
        elif (restore := _redrawing(value)) is not None:
            self._met.add(id(value))
            self.undo.append(restore)
            self.generators.append(value)
        elif type(value) in _LISTS:
            self._met.add(id(value))
            self.undo += [] if self._draws else [_refilling(value)]
        elif deep and _is_users(value):
            self.add_attributes(value, deep - 1)

    def add_names(self, loss: object) -> None:
        """Note numbers and texts that a function keeps in its closure or among its globals."""
        while isinstance(loss, functools.partial):
            loss = loss.func
        if self._draws or not isinstance(loss, FunctionType):
            return
        for cell in filter(_is_filled, loss.__closure__ or ()):
            if type(cell.cell_contents) in _PLAIN:
                self.undo.append(functools.partial(setattr, cell, "cell_contents", cell.cell_contents))
        around = loss.__globals__
        kept = {name: around[name] for name in loss.__code__.co_names if type(around.get(name)) in _PLAIN}
        self.undo.append(functools.partial(around.update, kept))


def reseed(generators: list[Generator], seed: int) -> None:
    """Have the global generators and others draw other numbers, and the same for the same seed."""
    seed_globals(seed, Purpose.DROPOUT)
    for each in generators:
        if isinstance(each, torch.Generator):
            each.manual_seed(seed)
        else:
            for _ in range(seed):
                each.random()


def _redrawing(value: Any) -> Callable[[], object] | None:
    """What puts a generator back; None of anything else."""
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return functools.partial(value.setstate, value.getstate())
    return None


def _refilling(value: Any) -> Callable[[], object]:
    content = value.copy()

    def restore() -> None:
        value.clear()
        (value.extend if isinstance(value, list | deque) else value.update)(content)

    return restore


def _is_small(tensor: Tensor) -> bool:
    """Tell whether it has numbers that can be changed, and few enough to be copied."""
    return not (tensor.is_meta or tensor.is_inference() or nn.parameter.is_lazy(tensor)) and tensor.numel() <= SMALL


def _is_users(value: object) -> bool:
    """Tell whether it is an object of a class that is neither Python's nor torch's nor NumPy's, or a loss scaler."""
    if isinstance(value, torch.amp.GradScaler):
        return True
    kind = type(value)
    known = kind.__module__.partition(".")[0] in {"builtins", "collections", "functools", "numpy", "torch", "types"}
    return not known and not isinstance(value, type | nn.Module | FunctionType) and hasattr(value, "__dict__")
