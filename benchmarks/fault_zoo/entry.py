"""The zoo's entries: a planted fault with its sound twin, or a sound training."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from depthgauge import Training


@dataclass(frozen=True)
class Planted:
    """A fault in an otherwise sound training.

    Attributes:
        name: what is wrong.
        build: the training, with the fault or without; draws from PyTorch's own generator.
        found_by: (question, pattern of a place): a finding of nature `fault`, broken or to be looked at, whose `where`
            has a name that matches the whole pattern. Any of them counts as found at the right place.
        source: address of a public report of such a fault; from the third set on also a sentence on the kind.
        needs: distributions that it is built from, besides depthgauge's own.
    """

    name: str
    build: Callable[[bool], Training]
    found_by: tuple[tuple[str, str], ...]
    source: str
    needs: tuple[str, ...] = ()

    def make(self, seed: int) -> Training:
        """The training with its fault."""
        return drawn(lambda: self.build(True), seed)

    def twin(self, seed: int) -> Training:
        """The same without it."""
        return drawn(lambda: self.build(False), seed)


@dataclass(frozen=True)
class Sound:
    """A training without a fault.

    Attributes:
        name: what is trained.
        build: the training; draws from PyTorch's own generator.
        needs: distributions that it is built from, besides depthgauge's own.
    """

    name: str
    build: Callable[[], Training]
    needs: tuple[str, ...] = ()

    def make(self, seed: int) -> Training:
        """The training."""
        return drawn(self.build, seed)


def drawn(build: Callable[[], Training], seed: int) -> Training:
    """Build with that seed; all generators are left as they were."""
    kept, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - packages draw from NumPy's old generator
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - as above
            return build()
    finally:
        random.setstate(kept)
        np.random.set_state(arrays)  # noqa: NPY002 - as above


class Faults:
    """Planted faults, collected by a decorator over their `build`."""

    def __init__(self) -> None:
        self.all: list[Planted] = []

    def add(
        self, *found_by: tuple[str, str], source: str, needs: tuple[str, ...] = ()
    ) -> Callable[[Callable[[bool], Training]], Callable[[bool], Training]]:
        """Take a fault in; the function's name is the fault's."""

        def took(build: Callable[[bool], Training]) -> Callable[[bool], Training]:
            self.all.append(Planted(build.__name__, build, found_by, source, needs))
            return build

        return took


class Sounds:
    """Sound trainings, collected by a decorator over their `build`."""

    def __init__(self) -> None:
        self.all: list[Sound] = []

    def add(self, *needs: str) -> Callable[[Callable[[], Training]], Callable[[], Training]]:
        """Take a training in; the function's name is its own."""

        def took(build: Callable[[], Training]) -> Callable[[], Training]:
            self.all.append(Sound(build.__name__, build, needs))
            return build

        return took
