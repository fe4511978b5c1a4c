"""Batches that come in another order, or with other numbers, each time, from the same seeds and states.

Readings may also differ as a loader goes on where it was (a file, a queue). So a source of entropy is looked for, too:
a generator that is seeded without a number while the loader is read.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from depthgauge import nested
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.questions.reproducibility.repeating import printed
from depthgauge.checking.subject import Subject
from depthgauge.restoring import random_states_kept
from depthgauge.updating import generators_of
from depthgauge.workload import Training

READINGS = 3  # of the loader's first batches, from the same states
FEW = 2  # batches of a reading
SHARE = 0.1  # of the time that is left, for all of them
_WHAT = "a loader that draws numbers without a seed"
_OF_THE_SYSTEM = frozenset(  # whose numbers NumPy's generators are seeded with where they are given none
    each.__code__ for each in (random.SystemRandom.getrandbits, random.SystemRandom.random)
)
_SEED = random.Random.seed.__code__


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield the finding where each reading of a loader is another: it draws numbers that no seed sets."""
    batches = subject.training.batches
    workers: object = getattr(batches, "num_workers", None)
    if isinstance(batches, Iterator) or workers:  # it cannot begin anew, or takes long to
        return
    if not _can_be_set(sys.getprofile()):
        subject.missed.append(f"{_WHAT}: a profiler is at work, which would end")
        return
    if not subject.fits(0, _WHAT, 0.5, loads=FEW, copies=0):
        return
    began, most = time.perf_counter(), SHARE * subject.clock.left
    read: list[tuple[int, ...]] = []
    drew = False
    for _ in range(READINGS):
        with _entropy() as drawn:
            read.append(_reading(subject.training))
        drew |= bool(drawn)
        if not drew:
            return
        if time.perf_counter() - began > most / READINGS:
            subject.short.append(_WHAT)
            return
    if len(set(read)) == READINGS and len({len(each) for each in read}) == 1:
        yield Finding(
            "unseeded", Status.LOOK,
            f"Read {READINGS} times from the same seeds and states, the loader gives other batches each time: it draws"
            " numbers that no seed sets.",
            "let the loader draw from torch's generator, or from one that you seed (np.random.default_rng(seed))",
            "a seed then repeats a run", ("batches",), Measure("readings of the loader that differ", READINGS),
        )  # fmt: skip


def _can_be_set(profiler: object) -> bool:
    """Tell whether it can be put back: cProfile's, in Python 3.11 and before, is handed out as what is not callable."""
    return profiler is None or callable(profiler)


@contextmanager
def _entropy() -> Iterator[list[str]]:
    """Within the block a list grows by each generator that is seeded without a number."""
    drawn: list[str] = []
    before = sys.getprofile()

    def seen(frame: FrameType, event: str, called: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code in _OF_THE_SYSTEM or (code is _SEED and frame.f_locals.get("a") is None):
                drawn.append(code.co_name)
        elif event == "c_call" and isinstance(getattr(called, "__self__", None), torch.Generator):
            drawn.extend(["seed"] if called.__name__ == "seed" else [])

    sys.setprofile(seen)
    try:
        yield drawn
    finally:
        sys.setprofile(before)


def _reading(training: Training) -> tuple[int, ...]:
    """Checksums of the first batches' tensors."""
    with random_states_kept(generators_of(training.batches)), attributes_kept(training):
        taken: list[Any] = list(itertools.islice(training.batches, FEW))
        tensors = [each for batch in taken for _, each in nested.tensors(batch) if each.layout is torch.strided]
        return tuple(found.digest for each in tensors if (found := printed(each)) is not None)
