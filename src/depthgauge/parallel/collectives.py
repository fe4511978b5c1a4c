"""Collectives timed in a process group, by size, and the line alpha + bytes beta through them.

    torchrun --nproc-per-node 8 -m depthgauge.parallel        # as nccl-tests does; on any number of nodes
    python -m depthgauge.parallel                             # two ranks of this machine

    outcome = launch(measure, sizes_between(4, 1 << 24), ranks=2)     # in each rank: measure(group, sizes)
    frame = outcome.answers[0]                                # collective, bytes, round, seconds, ranks
    table(frame), links(frame)["all_reduce"]

Sizes are bytes of the whole buffer, as in nccl-tests: what an all-reduce sums, what a reduce-scatter is given on each
rank, what an all-gather leaves on each. Two bandwidths follow from bytes S and seconds t, and neither is a link's speed
by itself:

- algorithm bandwidth S / t: what a caller gets. It falls with the number of ranks on equal links.
- bus bandwidth: what each rank sends in a ring, over t: 2 (p - 1) / p S / t for an all-reduce, (p - 1) / p S / t for a
  reduce-scatter and an all-gather, S / t for a broadcast. No algorithm over links between pairs needs less, so it is
  held against a link's speed. For large S it tends to 1 / beta; short messages lie far below, as alpha counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import distributed

from depthgauge import stats, theory, timing
from depthgauge.formats.arguments import whole
from depthgauge.parallel.group import Group
from depthgauge.parallel.links import Link, fit
from depthgauge.parallel.naming import ParallelError
from depthgauge.stats import Estimate
from depthgauge.theory import Algorithm, Collective
from depthgauge.theory.communication import COLLECTIVES
from depthgauge.timing.clocks import Work

Floats = NDArray[np.float64]

NAMES: tuple[Collective, ...] = COLLECTIVES
"""The collectives that have a formula; `measure` knows `broadcast` as well."""

STRETCH, STRETCHES = 5e-4, 5
"""Seconds that a timed stretch of calls lasts at least, and how many of them make a round of a short collective."""

# torch 2.13 has other names, and a warning at each call of the old ones, which is not to be timed
_reduce_scatter: Callable[..., object] = getattr(
    distributed, "reduce_scatter_single", distributed.reduce_scatter_tensor
)
_all_gather: Callable[..., object] = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)
_NONE = Estimate(math.nan, math.nan, math.nan, 0, "no line was fitted")
_ITEM = 4  # bytes of a float32
_SPLIT = frozenset(("reduce_scatter", "all_gather"))  # each rank has a part of the whole


def sizes_between(least: int, most: int, factor: float = 4.0) -> tuple[int, ...]:
    """Sizes in bytes, each `factor` times the one before.

    >>> sizes_between(4, 256)
    (4, 16, 64, 256)

    Raises:
        ValueError: sizes below 4 bytes, or a factor that is not above 1.
    """
    least, most = whole("least", least, _ITEM), whole("most", most, least)
    if not factor > 1:
        raise ValueError(f"factor is {factor!r}, where a number above 1 was expected")
    steps = math.floor(math.log(most / least) / math.log(factor) + 1e-9)
    return tuple(sorted({_ITEM * math.ceil(least * factor**step / _ITEM - 1e-9) for step in range(steps + 1)}))


@dataclass(frozen=True)
class Prepared:
    """A collective that all ranks can call together, any number of times.

    Attributes:
        call: makes it.
        given: the tensor of float32 that this rank puts in.
        result: the tensor that it gets; the same one for an all-reduce and a broadcast.
    """

    call: Work
    given: torch.Tensor
    result: torch.Tensor


Buffers = tuple[torch.Tensor, torch.Tensor]
"""Two lines of float32 in which collectives of many sizes begin at 0: the whole buffer, and a rank's part of it."""


def buffers(group: Group, names: Iterable[str], most: int) -> Buffers:
    """Make buffers full of zeros, long enough for collectives of sizes up to `most` bytes."""
    every, parts = _lengths(names, most, group.ranks)
    return torch.zeros(every, device=group.device), torch.zeros(parts, device=group.device)


def held(names: Iterable[str], most: int, ranks: int) -> int:
    """Bytes of the tensors that `measure` holds in each rank; what a backend takes beside them is not counted."""
    return _ITEM * sum(_lengths(names, most, ranks))


def _lengths(names: Iterable[str], most: int, ranks: int) -> tuple[int, int]:
    """Numbers in the whole buffer and in a part."""
    longest = {name: moved(name, most, ranks) // _ITEM for name in names}
    return max(longest.values(), default=0), max(
        (longest[name] // ranks for name in longest if name in _SPLIT), default=0
    )


def prepare(group: Group, name: str, size: int, within: Buffers | None = None) -> Prepared:
    """Make the tensors of a collective, full of zeros.

    Args:
        group: the rank's place.
        name: `all_reduce`, `reduce_scatter`, `all_gather` or `broadcast` (from rank 0).
        size: bytes of the whole buffer, see `moved`.
        within: buffers that several collectives share, one after the other; None: it gets its own.

    Raises:
        ParallelError: there is no such collective.
        ValueError: a size below 4 bytes.
    """
    numbers = moved(name, size, group.ranks) // _ITEM
    lines = within or buffers(group, (name,), size)
    whole_buffer, part = lines[0][:numbers], lines[1][: numbers // group.ranks]
    calls: dict[str, tuple[Work, torch.Tensor, torch.Tensor]] = {
        "all_reduce": (lambda: distributed.all_reduce(whole_buffer), whole_buffer, whole_buffer),
        "reduce_scatter": (lambda: _reduce_scatter(part, whole_buffer), whole_buffer, part),
        "all_gather": (lambda: _all_gather(whole_buffer, part), part, whole_buffer),
        "broadcast": (lambda: distributed.broadcast(whole_buffer, 0), whole_buffer, whole_buffer),
    }
    if name not in calls:
        raise ParallelError(f"{name!r} is no collective that is timed: name {', '.join(calls)}")
    return Prepared(*calls[name])


def moved(name: str, size: int, ranks: int) -> int:
    """Bytes that a collective of about `size` takes: whole numbers of float32, the same on each rank where it splits.

    Raises:
        ValueError: a size below 4 bytes.
    """
    share = ranks if name in _SPLIT else 1
    return _ITEM * share * math.ceil(whole("a size", size, _ITEM) / (_ITEM * share))


def measure(group: Group, sizes: Iterable[int], rounds: int = 12, names: Sequence[str] = NAMES) -> pd.DataFrame:
    """Time collectives of each size in turns, up in one round and down in the next; each rank must call it.

    The slowest rank counts. Of a short collective each duration is the median of several stretches of calls in a row:
    a neighbour that takes a core for a moment spoils one. All sizes lie in the same memory, see `held`.

    Args:
        group: the rank's place.
        sizes: bytes of the whole buffer, from 4.
        rounds: durations of each; an interval of a median takes 6.
        names: collectives, see `collective`.

    Returns:
        Columns collective, bytes (as they were moved: a multiple of 4 bytes on each rank), round, seconds, ranks; the
        same in each rank.

    Raises:
        ParallelError: an unknown collective.
        ValueError: a size below 4 bytes, or no round.
    """
    rounds, sizes = whole("rounds", rounds), tuple(sizes)
    cases = list(dict.fromkeys((name, moved(name, size, group.ranks)) for name in names for size in sizes))
    shared = buffers(group, names, max(sizes, default=_ITEM))
    works = [prepare(group, name, size, shared).call for name, size in cases]
    clock = timing.clock(str(group.device))
    for work in works:
        work()
    tried = [[_timed(group, clock, work, 1) for work in works] for _ in range(3)]
    plans = [_plan(seconds) for seconds in _slowest(group, np.median(tried, axis=0))]
    seconds = np.full((rounds, len(works), STRETCHES), math.nan)
    for place in range(rounds):
        for index in range(len(works))[:: -1 if place % 2 else 1]:
            calls, stretches = plans[index]
            for stretch in range(stretches):
                seconds[place, index, stretch] = _timed(group, clock, works[index], calls) / calls
    return _frame(cases, np.nanmedian(_slowest(group, seconds), axis=2), group.ranks)


def _plan(seconds: float) -> tuple[int, int]:
    """Calls of a stretch, and stretches of a round; the same in all ranks, as the seconds are."""
    calls = max(1, math.ceil(STRETCH / max(seconds, 1e-7)))
    return calls, 1 if calls == 1 else STRETCHES


def _timed(group: Group, clock: timing.Clock, work: Work, calls: int) -> float:
    """Seconds of calls in this rank, begun when all ranks are there."""
    _slowest(group, np.zeros(1))
    return clock.time(work, calls)


def _slowest(group: Group, values: Floats) -> Floats:
    """The greatest of all ranks, elementwise; on CUDA it waits for the device."""
    shared = torch.tensor(values, dtype=torch.float64, device=group.device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return np.asarray(shared.cpu().numpy())


def _frame(cases: list[tuple[str, int]], seconds: Floats, ranks: int) -> pd.DataFrame:
    """Rows of the seconds, (rounds, cases)."""
    return pd.DataFrame([
        {"collective": name, "bytes": size, "round": place, "seconds": float(seconds[place, index]), "ranks": ranks}
        for index, (name, size) in enumerate(cases)
        for place in range(len(seconds))
    ])  # fmt: skip


def bus_share(name: str, ranks: int) -> float:
    """Share of the whole buffer that a rank sends in a ring: bus over algorithm bandwidth."""
    return 1.0 if name == "broadcast" else theory.collective_cost(cast("Collective", name), ranks)[1]


def links(frame: pd.DataFrame, algorithm: Algorithm = "ring") -> dict[str, Link]:
    """The link that each collective of `measure` saw: one line through all its sizes and numbers of ranks.

    Args:
        frame: from `measure`; several of them together where numbers of ranks were varied.
        algorithm: by which the formula counts messages.
    """
    found: dict[str, Link] = {}
    for name in NAMES:
        rows = frame[(frame["collective"] == name) & (frame["ranks"] > 1)]
        if len(set(rows["bytes"])) > 1:
            found[name] = fit(rows["bytes"], rows["seconds"], rows["ranks"], algorithm, collective=name, name=name)
    return found


def table(frame: pd.DataFrame, algorithm: Algorithm = "ring") -> pd.DataFrame:
    """Medians, both bandwidths and the fitted line.

    Args:
        frame: from `measure`.
        algorithm: as in `links`.

    Returns:
        One row a number of ranks, collective and size. Columns ranks, collective, bytes, n, seconds, low_95, high_95
        (of the median), algorithm_bandwidth, bus_bandwidth (bytes a second), fitted, fitted_low_95, fitted_high_95
        (seconds; NaN where there is no line).
    """
    fitted = links(frame, algorithm)
    rows = []
    cases = frame[["ranks", "collective", "bytes"]].drop_duplicates()
    for ranks, name, size in zip(*(cases[column].tolist() for column in cases), strict=True):
        same = (frame["ranks"] == ranks) & (frame["collective"] == name) & (frame["bytes"] == size)
        middle = stats.median(frame.loc[same, "seconds"])
        line = fitted[name].time(cast("Collective", name), size, ranks, algorithm) if name in fitted else _NONE
        rows.append({
            "ranks": ranks, "collective": name, "bytes": size, "n": middle.n,
            "seconds": middle.value, "low_95": middle.low, "high_95": middle.high,
            "algorithm_bandwidth": size / middle.value, "bus_bandwidth": bus_share(name, ranks) * size / middle.value,
            "fitted": line.value, "fitted_low_95": line.low, "fitted_high_95": line.high,
        })  # fmt: skip
    return pd.DataFrame(rows)
