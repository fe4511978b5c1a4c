"""Is a training on several ranks, or with accumulation, the same training as on one device?

    # my_project/steps.py
    def setup():                                           # importable, without arguments
        model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
        return Training(model, batches, loss)

    # anywhere
    found = depthgauge.parallel.same(my_project.steps.setup, ranks=2)
    found.same                                             # False
    print(found.why)                                       # ... batch normalization takes the mean and variance of

torchrun starts the ranks; each builds the training by itself, and DDP wraps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from depthgauge.parallel.comparison import compare
from depthgauge.parallel.group import Group
from depthgauge.parallel.launching import Outcome, launch
from depthgauge.parallel.naming import ParallelError, check_read, found, named
from depthgauge.parallel.sameness import Same
from depthgauge.seeding import Purpose, seed_globals
from depthgauge.workload import Training, WorkloadError

MOST = 64  # accumulation steps


def same(
    setup: Callable[[], Training] | str,
    ranks: int = 2,
    accumulate: int = 1,
    *,
    batches: int = 2,
    split: Callable[[Any, int], Any] | str | None = None,
    device: str = "cpu",
    limit: float = 300.0,
) -> Same:
    """Compare the first gradients of a training on several ranks with those on one device, before the optimizer.

    Each batch is split along dimension 0 of every tensor among the ranks (`torch.tensor_split`), each shard likewise
    among the accumulation steps; losses are averaged, as DDP does. Compared are the first batches, and the first of
    every other size, all at the initial weights; buffers, too, as they are after the step.

    Args:
        setup: importable, or "package.module:setup"; called without arguments in each rank, with the same seeds.
        ranks: number of ranks; 1: accumulation alone.
        accumulate: backward passes a step, `no_sync` but for the last.
        batches: how many batches from the first on are compared, beside one of every other size.
        split: `split(batch, parts)`, importable or its name, where the examples are not along dimension 0.
        device: `cpu`, or `cuda`: a device a rank.
        limit: seconds that all of it may take.

    Raises:
        ParallelError: setup cannot be found or run, the training cannot be split, or an argument is out of range; the
            message is one sentence.
    """
    for name, value, most in (("accumulate", accumulate, MOST), ("batches", batches, MOST)):
        if type(value) is not int or not 1 <= value <= most:
            raise ParallelError(f"{name} is a whole number from 1 to {most}, not {value!r:.60}")
    check_read()
    place, cut = named(setup), None if split is None else named(split)
    outcome = launch(_in_rank, place, accumulate, batches, cut, ranks=ranks, device=device, limit=limit, patience=limit)
    if not outcome.well:
        raise ParallelError(f"{place} cannot be compared: {_why(outcome)}")
    answer: Same = outcome.answers[0]
    return answer


def _why(outcome: Outcome) -> str:
    """Say what ended the ranks; of a sentence about the training not where it was raised."""
    blamed = outcome.culprit
    if blamed is not None and blamed.status == "raised":
        for kind in (ParallelError, WorkloadError):
            if blamed.message.startswith(f"{kind.__name__}: "):
                return blamed.message.removeprefix(f"{kind.__name__}: ")
    return outcome.why


def _in_rank(group: Group, place: str, accumulate: int, batches: int, cut: str | None) -> Same:
    """Build the training, and compare it."""
    seed_globals(0, Purpose.MODULES)
    training: Any = found(place)()
    if not isinstance(training, Training):
        raise WorkloadError(f"it returns a {type(training).__name__}, where a depthgauge.Training was expected")
    return compare(group, training, accumulate, batches=batches, split=None if cut is None else found(cut))
