"""Attributes of a training's objects beside its modules' tensors: counters, lists, generators; put back after a block.

What there is to be put back is told by `reaching`; modules, optimizers and schedulers are `Training.untouched`'s.
"""

from __future__ import annotations

import functools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from depthgauge.reaching import CONTAINERS, LONG, OWN, PLAIN, Generator, Numbers, Reached, slots_of
from depthgauge.restoring import Snapshot, has_no_sizes
from depthgauge.seeding import Purpose, seed_globals
from depthgauge.updating import version
from depthgauge.workload import Training

SMALL = 1_000_000  # numbers of a data set's tensor that is copied: a running mean is smaller, the data larger
LARGE = 2**26  # bytes of any other tensor that is not copied: a memory bank of 65,536 x 128 in float32 takes half of it
MOST = 2**28  # bytes of all those together
SAMPLE = 4096  # numbers by which a tensor that is not copied is told to have changed, where torch counts no change


@contextmanager
def attributes_kept(training: Training, *, draws: bool = False) -> Iterator[list[Generator]]:
    """Put back what calls change in attributes of modules, loss, optimizer and data, and generators that they hold.

    Also tensors in containers, globals and closures of the user's functions, and attributes of functions and classes.
    `Training.untouched` leaves such attributes as a call leaves them: a second run would begin with another counter.

    Args:
        training: the user's.
        draws: put back generators alone.

    Yields:
        The generators.
    """
    with training.reaching() as reached:
        undo = [_redrawing(each) for each in reached.generators]
        undo += [] if draws else list(_undoing(reached))
        try:
            yield reached.generators
        finally:
            for put_back in undo:
                put_back()


def takes_on(training: Training) -> bool:
    """Tell whether the loss or a module holds an iterator, from which each call takes other things."""
    return training.reached.iterates


@contextmanager
def left_changed(training: Training) -> Iterator[list[str]]:
    """Tell by name which tensors the block changes and `attributes_kept` does not put back, as they are too large.

    Yields:
        The names, which are there after the block.
    """
    reached = training.reached
    looked_at = [*_shared_out(reached)[1]]
    for place, module in reached.large:
        named = (*module.named_parameters(), *module.named_buffers())
        looked_at += [(f"{place}.{name}", each) for name, each in named if _has_numbers(each)]
    before = [(name, each, _sample(each)) for name, each in looked_at]
    names: list[str] = []
    try:
        yield names
    finally:
        names += [name for name, each, sample in before if _sample(each) != sample]


def reseed(generators: list[Generator], seed: int) -> None:
    """Have the global generators and others draw other numbers, and the same for the same seed."""
    seed_globals(seed, Purpose.DROPOUT)
    for each in generators:
        if isinstance(each, torch.Generator):
            each.manual_seed(seed)
        else:
            for _ in range(seed):
                each.random()


def _undoing(reached: Reached) -> Iterator[Callable[[], object]]:
    """What puts back all that was reached, but generators, modules, optimizers and schedulers."""
    parts = [part for part in reached.parts if not has_no_sizes(part)]  # whose sizes come with its first call, and stay
    for holder in (*parts, *(each for each in reached.holders if hasattr(each, "__dict__"))):
        yield _reassigning(holder)
    for holder in reached.holders:
        for name in slots_of(holder):
            if hasattr(holder, name):
                yield functools.partial(object.__setattr__, holder, name, getattr(holder, name))
    for kind in reached.classes:
        yield _of_class(kind)
    for container in reached.containers:
        yield _refilling(container)
    for cell in reached.cells:
        yield functools.partial(setattr, cell, "cell_contents", cell.cell_contents)
    for around, name in reached.names:
        yield functools.partial(around.__setitem__, name, around[name])
    stored = [each for each in reached.stored if _has_numbers(each) and math.prod(each.shape) <= SMALL]
    for each in (*(each for _, each in _shared_out(reached)[0]), *stored):
        yield torch.no_grad()(Snapshot.of(each).restore) if isinstance(each, Tensor) else _rewriting(each)


def _reassigning(holder: Any) -> Callable[[], object]:
    attributes = vars(holder)
    own = OWN if isinstance(holder, nn.Module) else frozenset()
    before = {name: value for name, value in attributes.items() if name not in own}

    def restore() -> None:
        for name in [name for name in attributes if name not in before and name not in own]:
            del attributes[name]
        attributes.update(before)

    return restore


def _of_class(kind: type) -> Callable[[], object]:
    def content() -> dict[str, Any]:
        kinds = (*PLAIN, *CONTAINERS, tuple, Tensor)
        return {name: each for name, each in vars(kind).items() if isinstance(each, kinds) and name[:2] != "__"}

    before = content()

    def restore() -> None:
        now = content()
        for name in now.keys() - before.keys():
            delattr(kind, name)
        for name, value in before.items():
            if now.get(name, kind) is not value:
                setattr(kind, name, value)

    return restore


def _redrawing(value: Generator) -> Callable[[], object]:
    """What puts a generator back."""
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    return functools.partial(value.set_state, value.get_state(legacy=True))


def _refilling(value: Any) -> Callable[[], object]:
    kind: Any = next(each for each in type(value).__mro__ if each in CONTAINERS)  # whatever a subclass makes of it
    content = dict(kind.items(value)) if isinstance(value, dict) else list(kind.__iter__(value))

    def restore() -> None:
        if len(content) > LONG and _equal(value, content):  # millions of rows, which would be written anew each time
            return
        kind.clear(value)
        (kind.extend if isinstance(value, list | deque) else kind.update)(value, content)

    return restore


def _rewriting(array: Any) -> Callable[[], object]:
    return functools.partial(np.copyto, array, array.copy())


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - tensors that were exchanged, which have no one truth value
        return False


def _shared_out(reached: Reached) -> tuple[list[tuple[str, Numbers]], list[tuple[str, Numbers]]]:
    """The tensors and arrays that are copied, and those that are too large for it, by name."""
    kept: list[tuple[str, Numbers]] = []
    left: list[tuple[str, Numbers]] = []
    taken = 0
    for name, each in reached.tensors:
        if _has_numbers(each):
            size = each.nbytes
            fits = size <= LARGE and taken + size <= MOST
            (kept if fits else left).append((name, each))
            taken += size if fits else 0
    return kept, left


def _sample(numbers: Numbers) -> bytes:
    """The bits of some of them, and for a tensor how often it was written to."""
    step = max(1, math.prod(numbers.shape) // SAMPLE)
    if not isinstance(numbers, Tensor):
        return numbers.ravel()[::step].tobytes() if numbers.flags.c_contiguous else b""
    count = version(numbers).to_bytes(8, "big")
    if numbers.layout is not torch.strided or not numbers.is_contiguous():
        return count
    return count + numbers.detach().view(-1)[::step].contiguous().view(torch.uint8).cpu().numpy().tobytes()


def _has_numbers(tensor: Numbers) -> bool:
    """Tell whether it has numbers that can be changed."""
    if not isinstance(tensor, Tensor):
        return bool(tensor.flags.writeable)
    empty = tensor.is_meta or nn.parameter.is_lazy(tensor) or isinstance(tensor, FakeTensor)
    return not (empty or tensor.is_inference() or tensor.is_nested)
