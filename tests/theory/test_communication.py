import pytest

from depthgauge import theory


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_ring_allreduce_is_the_sum_of_its_messages(devices):
    size, bandwidth, latency = 12e6, 3e9, 2e-5
    messages = 2 * (devices - 1)
    assert theory.ring_allreduce_time(size, devices, bandwidth, latency) == pytest.approx(
        sum(latency + size / devices / bandwidth for _ in range(messages)), rel=1e-12
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.ring_allreduce_time(1.0, 0, 1.0, 0.0), "devices is 0"),
        (lambda: theory.ring_allreduce_time(1.0, 2, 0.0, 0.0), "bandwidth is 0.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
