"""Time that devices take to talk to each other, in the alpha-beta model.

A message of m bytes from one device to another takes alpha + m beta seconds. All devices send and receive at once.

>>> round(allreduce_time(4e9, devices=4, alpha=1e-5, beta=1e-10), 6)
0.60006
>>> round(allreduce_time(1000, devices=64, alpha=1e-5, beta=1e-10, algorithm="doubling"), 9)
6.06e-05
"""

from __future__ import annotations

from typing import Literal

from depthgauge.theory.arguments import non_negative, whole

Algorithm = Literal["ring", "doubling"]
Collective = Literal["all_reduce", "reduce_scatter", "all_gather"]

ALGORITHMS: tuple[Algorithm, ...] = ("ring", "doubling")
COLLECTIVES: tuple[Collective, ...] = ("all_reduce", "reduce_scatter", "all_gather")


def allreduce_time(
    bytes: float,  # noqa: A002 - the field's word, as in every formula of this kind
    devices: int,
    alpha: float,
    beta: float,
    algorithm: Algorithm = "ring",
) -> float:
    """Seconds of an all-reduce.

    - ring: 2 (p - 1) messages of bytes / p, a reduce-scatter and then an all-gather: 2 (p - 1) alpha +
      2 (p - 1) / p bytes beta. No all-reduce can have less than this share of beta. Patarasuk and Yuan, "Bandwidth
      optimal all-reduce algorithms for clusters of workstations" (2009).
    - doubling: ceil(log2 p) messages of all bytes: ceil(log2 p) (alpha + bytes beta). Thakur, Rabenseifner and Gropp,
      "Optimization of collective communication operations in MPICH" (2005). Exact where p is a power of 2; else the
      least number of messages.

    Time to add numbers is not counted; a fitted beta holds it. Libraries have more algorithms: a reduce-scatter by
    halving and then an all-gather by doubling (Thakur et al.; here the sum of `reduce_scatter_time` and
    `all_gather_time` by `doubling`) sends what a ring sends in 2 ceil(log2 p) messages, and so do trees that pipeline.
    On many devices the ring is an upper bound.

    Args:
        bytes: size of the buffer on each device.
        devices: p.
        alpha: seconds a message.
        beta: seconds a byte.
        algorithm: `ring` or `doubling`.

    Raises:
        ValueError: a number below 0, fewer devices than 1, or another algorithm.
    """
    return _time(collective_cost("all_reduce", devices, algorithm), bytes, alpha, beta)


def reduce_scatter_time(
    bytes: float,  # noqa: A002 - as above
    devices: int,
    alpha: float,
    beta: float,
    algorithm: Algorithm = "ring",
) -> float:
    """Seconds of a reduce-scatter: each device keeps the sum of its p-th of the buffer.

    - ring: p - 1 messages of bytes / p.
    - doubling: recursive halving, ceil(log2 p) messages of (p - 1) / p bytes together.

    Args:
        bytes: size of the whole buffer, as it is on each device before.
        devices: p.
        alpha: seconds a message.
        beta: seconds a byte.
        algorithm: `ring` or `doubling`.

    Raises:
        ValueError: as in `allreduce_time`.
    """
    return _time(collective_cost("reduce_scatter", devices, algorithm), bytes, alpha, beta)


def all_gather_time(
    bytes: float,  # noqa: A002 - as above
    devices: int,
    alpha: float,
    beta: float,
    algorithm: Algorithm = "ring",
) -> float:
    """Seconds of an all-gather: each device has a p-th of the buffer, and gets the others.

    - ring: p - 1 messages of bytes / p.
    - doubling: ceil(log2 p) messages of (p - 1) / p bytes together.

    Args:
        bytes: size of the whole buffer, as it is on each device afterwards.
        devices: p.
        alpha: seconds a message.
        beta: seconds a byte.
        algorithm: `ring` or `doubling`.

    Raises:
        ValueError: as in `allreduce_time`.
    """
    return _time(collective_cost("all_gather", devices, algorithm), bytes, alpha, beta)


def collective_cost(collective: Collective, devices: int, algorithm: Algorithm = "ring") -> tuple[int, float]:
    """Messages that follow each other, and the share of the buffer that a device sends: what alpha and beta count.

    >>> collective_cost("all_reduce", 4)
    (6, 1.5)

    Args:
        collective: `all_reduce`, `reduce_scatter` or `all_gather`.
        devices: p.
        algorithm: `ring` or `doubling`.

    Raises:
        ValueError: fewer devices than 1, another collective, or another algorithm.
    """
    p = whole("devices", devices)
    if collective not in COLLECTIVES:
        raise ValueError(f"collective is {collective!r}, where one of {', '.join(COLLECTIVES)} was expected")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm is {algorithm!r}, where 'ring' or 'doubling' was expected")
    doublings = (p - 1).bit_length()  # ceil(log2 p)
    if collective == "all_reduce" and algorithm == "doubling":
        return doublings, float(doublings)
    phases = 2 if collective == "all_reduce" else 1
    return phases * (p - 1 if algorithm == "ring" else doublings), phases * (p - 1) / p


def _time(cost: tuple[int, float], size: float, alpha: float, beta: float) -> float:
    messages, share = cost
    return messages * non_negative("alpha", alpha) + share * non_negative("bytes", size) * non_negative("beta", beta)
