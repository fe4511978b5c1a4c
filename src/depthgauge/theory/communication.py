"""Time that devices take to talk to each other.

>>> ring_allreduce_time(4e9, devices=4, bandwidth=1e10, latency=1e-5)
0.60006
"""

from __future__ import annotations

from depthgauge.theory.arguments import non_negative, positive, whole


def ring_allreduce_time(
    bytes: float,  # noqa: A002 - the field's word, as in every formula of this kind
    devices: int,
    bandwidth: float,
    latency: float = 0.0,
) -> float:
    """Seconds for a ring all-reduce.

    Args:
        bytes: size of the buffer on each device.
        devices: p.
        bandwidth: bytes per second that each device sends to its neighbour.
        latency: seconds per message.

    2 (p - 1) messages of bytes / p each: 2 (p - 1) latency + 2 (p - 1) / p bytes / bandwidth. The bandwidth term is
    the least any all-reduce can have. Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations" (2009).
    """
    p = whole("devices", devices)
    size, bandwidth = non_negative("bytes", bytes), positive("bandwidth", bandwidth)
    return 2 * (p - 1) * (non_negative("latency", latency) + size / p / bandwidth)
