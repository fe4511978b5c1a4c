import math

import pytest

from depthgauge import theory

SIZE, ALPHA, BETA = 12e6, 2e-5, 3e-10


def messages(collective, algorithm, devices):
    """Bytes of each message that one device sends, one after the other."""
    ring = [SIZE / devices] * (devices - 1)
    doublings = [min(2**k, devices - 2**k) * SIZE / devices for k in range(math.ceil(math.log2(devices)))]
    if collective == "all_reduce":
        return 2 * ring if algorithm == "ring" else [SIZE] * len(doublings)
    return ring if algorithm == "ring" else doublings


@pytest.mark.parametrize("devices", [1, 2, 3, 8, 1000])
@pytest.mark.parametrize("algorithm", ["ring", "doubling"])
@pytest.mark.parametrize(
    ("collective", "time"),
    [
        ("all_reduce", theory.allreduce_time),
        ("reduce_scatter", theory.reduce_scatter_time),
        ("all_gather", theory.all_gather_time),
    ],
)
def test_a_collective_takes_the_sum_of_its_messages(collective, time, algorithm, devices):
    sent = messages(collective, algorithm, devices)
    wanted = sum(ALPHA + BETA * size for size in sent)
    assert time(SIZE, devices, ALPHA, BETA, algorithm) == pytest.approx(wanted, rel=1e-12)
    count, share = theory.collective_cost(collective, devices, algorithm)
    assert count == len(sent)
    assert share * SIZE == pytest.approx(sum(sent))


@pytest.mark.parametrize("devices", [4, 7, 64, 4096])
@pytest.mark.parametrize("size", [4, 1e5, 1e9])
def test_halving_and_doubling_are_at_most_a_ring_at_any_size(devices, size):
    of = (size, devices, ALPHA, BETA)
    both = theory.reduce_scatter_time(*of, "doubling") + theory.all_gather_time(*of, "doubling")
    messages = 2 * math.ceil(math.log2(devices))
    assert both == pytest.approx(messages * ALPHA + 2 * (devices - 1) / devices * size * BETA)
    assert both < theory.allreduce_time(*of)


@pytest.mark.parametrize("devices", [4, 64, 4096])
def test_doubling_is_faster_for_short_messages_alone(devices):
    ring, doubling = (
        [theory.allreduce_time(size, devices, ALPHA, BETA, algorithm) for size in (4, 1e9)]
        for algorithm in ("ring", "doubling")
    )
    assert doubling[0] < ring[0]
    assert doubling[1] > ring[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.allreduce_time(1.0, 0, 1.0, 0.0), "devices is 0"),
        (lambda: theory.allreduce_time(1.0, 2, -1.0, 0.0), r"alpha is -1\.0"),
        (lambda: theory.reduce_scatter_time(1.0, 2, 0.0, math.inf), "beta is inf"),
        (lambda: theory.all_gather_time(-1.0, 2, 0.0, 0.0), r"bytes is -1\.0"),
        (lambda: theory.allreduce_time(1.0, 2, 0.0, 0.0, "tree"), "algorithm is 'tree', where 'ring' or 'doubling'"),
        (lambda: theory.collective_cost("broadcast", 2), "collective is 'broadcast', where one of all_reduce"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
