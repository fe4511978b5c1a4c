"""Seconds of a step that several devices share: computing, and as much of the exchange of gradients as shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from depthgauge.parallel.links import Link
from depthgauge.parallel.naming import ParallelError
from depthgauge.parallel.prediction import exposed_seconds
from depthgauge.planning.result import Row
from depthgauge.stats import Estimate
from depthgauge.workload import WorkloadError

BUCKET = 25 * 2**20  # bytes of gradients that DDP exchanges at once, unless it is told otherwise
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


def shared(alone: Estimate, link: Link | None, size: int, devices: int) -> Estimate:
    """Seconds of a step on each device's own examples, and of what shows of exchanging `size` bytes of gradients.

    The backward pass hides exchange, but for that of the last bucket. At the lower end all computing does, and at the
    upper end none.
    """
    if link is None or devices == 1 or math.isnan(alone.value):
        return alone
    buckets = -(-size // BUCKET)
    bucket = link.allreduce(size / buckets, devices)
    value, low, high = (
        compute + exposed_seconds(compute, buckets * each, overlap, buckets)
        for compute, each, overlap in (
            (alone.value, bucket.value, BACKWARD),
            (_end(alone, alone.low), _end(bucket, bucket.low), 1.0),
            (_end(alone, alone.high), _end(bucket, bucket.high), 0.0),
        )
    )
    method = f"{alone.method}; with {link.name}, of whose exchange computing hides from all to nothing"
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
        f"its gradients by {given}, of which the backward pass hides all but the last bucket. One flat link joins all "
        "devices: where several machines share the work, give the slowest link, that between them. Intervals reach "
        "from all computing hides it to none does, and hold no congestion, no slower device and no reading of data."
    )
    if not link.bounded:
        yield "The link was fitted to too few sizes to have intervals: what it is wrong by is in none of these."
