"""Seconds of a step that several devices share: computing, and as much of the exchange of gradients as shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from depthgauge.parallel.links import Link
from depthgauge.parallel.naming import ParallelError
from depthgauge.parallel.prediction import exposed_seconds
from depthgauge.planning.result import Row
from depthgauge.stats import Estimate
from depthgauge.workload import WorkloadError

FIRST, BUCKET = 2**20, 25 * 2**20  # bytes from which DDP exchanges gradients, unless it is told otherwise
BACKWARD = 2 / 3  # share of a step's computing: two products a layer, where the forward pass has one


def link_of(link: Link | str | None) -> Link | None:
    """The link that a user named or gave.

    Raises:
        WorkloadError: there is none of this name; the message is one sentence.
    """
    if link is None or isinstance(link, Link):
        return link
    if not isinstance(link, str):
        kind = type(link).__name__  # type: ignore[unreachable]  # a user's call is not type-checked
        raise WorkloadError(f"link is a Link, its name, or 'alpha,beta' in seconds and seconds a byte, not a {kind}")
    try:
        return Link.parse(link)
    except ParallelError as error:
        raise WorkloadError(str(error)) from error


def buckets(gradients: Iterable[int]) -> tuple[int, ...]:
    """Bytes of the buckets in which DDP exchanges gradients of one format, in the order in which they are full.

    The backward pass has the last parameters' gradients first. A bucket is full once it has so many bytes (1 MiB the
    first, 25 MiB the others; https://docs.pytorch.org/docs/stable/notes/ddp.html), the last one with what is left.

    Args:
        gradients: bytes of each parameter's, in the order of the parameters.
    """
    full, filling, least = [], 0, FIRST
    for size in reversed(tuple(gradients)):
        filling += size
        if filling >= least:
            full.append(filling)
            filling, least = 0, BUCKET
    return (*full, filling) if filling else tuple(full)


def shared(alone: Estimate, link: Link | None, sizes: Sequence[int], devices: int) -> Estimate:
    """Seconds of a step on each device's own examples, and of what shows of exchanging gradients in such `buckets`.

    The backward pass hides exchange, but for that of the last bucket. At the lower end all computing does, and at the
    upper end none.
    """
    if link is None or devices == 1 or math.isnan(alone.value):
        return alone
    times = [link.allreduce(size, devices) for size in sizes]
    value, low, high = (
        compute + exposed_seconds(compute, sum(each), overlap, each[-1])
        for compute, each, overlap in (
            (alone.value, [time.value for time in times], BACKWARD),
            (_end(alone, alone.low), [_end(time, time.low) for time in times], 1.0),
            (_end(alone, alone.high), [_end(time, time.high) for time in times], 0.0),
        )
    )
    method = f"{alone.method}; with {link.name}, of whose exchange computing hides from all but the last bucket to none"
    return Estimate(value, low, high, alone.n, method, "s")


def _end(estimate: Estimate, end: float) -> float:
    return estimate.value if math.isnan(end) else end


def told(rows: Sequence[Row], link: Link | None) -> Iterator[str]:
    """Sentences on what the rows on several devices are."""
    several = sorted({row.devices for row in rows if row.devices > 1})
    if not several:
        return
    if link is None:
        yield "Seconds on several devices are those of computing: no link was given for exchanging gradients."
        return
    counts = " and ".join(f"{count:,}" for count in several[-2:]) if len(several) < 3 else f"up to {several[-1]:,}"
    given = f"alpha {link.alpha.value:.3g} s a message and beta {link.beta.value:.3g} s a byte ({link.name})"
    yield (
        f"Extrapolated: rows on {counts} devices were not run; they are this device's step and a ring all-reduce of "
        f"its gradients by {given}, in DDP's buckets, of which the backward pass, two thirds of computing, hides what "
        "it can, but never the last. One flat link joins all devices: where several machines share the work, give "
        "the slowest link, that between them. Intervals reach from all computing hiding exchange, but for the last "
        "bucket, to none hiding any, and hold no congestion, no slower device and no reading of data."
    )
    if not link.bounded:
        yield "The link was fitted to too few sizes to have intervals: what it is wrong by is in none of these."
