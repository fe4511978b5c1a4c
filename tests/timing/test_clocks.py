"""Clocks on a device that works on while the host goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from depthgauge import timing
from depthgauge.environment import DeviceError

KERNEL = 3e-4


def test_events_and_a_synchronized_clock_tell_what_the_device_took(queue):
    device = queue.device()
    by_events = timing.clock(device).time(lambda: queue.launch(KERNEL), 10)
    assert by_events == pytest.approx(10 * KERNEL, rel=0.01)
    by_host = timing.DeviceClock(device).time(lambda: queue.launch(KERNEL), 10)
    assert by_host == pytest.approx(10 * KERNEL, rel=0.01)


def test_what_was_launched_before_does_not_count(queue):
    device = queue.device()
    for clock in (timing.clock(device), timing.DeviceClock(device)):
        queue.launch(1.0)
        assert clock.time(lambda: queue.launch(KERNEL)) == pytest.approx(KERNEL, rel=0.05)


def test_the_hosts_clock_alone_tells_the_launch_and_is_caught(queue):
    device = queue.device()
    bare = timing.HostClock(device)
    assert bare.time(lambda: queue.launch(KERNEL)) == pytest.approx(queue.LAUNCH, rel=0.05)
    assert timing.unfinished(bare, device, lambda: queue.launch(KERNEL)) == pytest.approx(
        KERNEL / (KERNEL + queue.LAUNCH), rel=0.05
    )
    with pytest.raises(timing.UnsynchronizedClockError, match=r"^the clock \(host\) stops too early: 98 %"):
        timing.measure(lambda: queue.launch(KERNEL), device, clock=bare)


@pytest.mark.parametrize("events", [True, False])
def test_a_right_clock_leaves_nothing_unfinished(queue, events):
    device = queue.device(events=events)
    clock = timing.clock(device) if events else timing.DeviceClock(device)
    assert timing.unfinished(clock, device, lambda: queue.launch(KERNEL), 5) < 1e-6


def test_work_on_a_second_stream_that_events_do_not_see_is_caught(queue):
    side = type(queue)()

    def both() -> None:
        queue.launch(KERNEL)
        side.free = max(side.free, queue.host) + 4 * KERNEL

    def synchronize() -> None:
        queue.host = max(queue.host, queue.free, side.free)

    device = timing.Device("fake", synchronize, queue.event, queue.now)
    with pytest.raises(timing.UnsynchronizedClockError, match="device events"):
        timing.measure(both, device)


def test_measure_keeps_the_first_call_apart_and_rounds_long_enough(queue):
    compiled = []

    def work() -> None:
        if not compiled:
            queue.host += 2.0
            compiled.append(True)
        queue.launch(KERNEL)

    told = timing.measure(work, queue.device(), rounds=7, least=5e-3)
    assert told.first == pytest.approx(2.0, rel=0.01)
    assert told.seconds == pytest.approx([KERNEL] * 7, rel=0.01)
    assert told.calls * KERNEL >= 5e-3
    assert (told.clock, told.cache) == ("device events", "warm")
    assert told.best <= told.median


def test_a_cold_cache_is_overwritten_before_each_call(monkeypatch):
    order = []
    monkeypatch.setattr("depthgauge.timing.measurement.evict", lambda _device: lambda: order.append("evict"))
    told = timing.measure(lambda: order.append("work"), rounds=3, least=0.0, warmup=0.0, cache="cold")
    assert order[-6:] == ["evict", "work"] * 3
    assert (told.calls, told.cache, len(told.seconds)) == (1, "cold", 3)


def test_evict_writes_more_than_the_last_level_holds():
    timing.evict()()


def test_the_collector_is_put_back():
    import gc

    seen = []
    timing.measure(lambda: seen.append(gc.isenabled()), rounds=1, least=0.0, warmup=0.0)
    assert not any(seen)
    assert gc.isenabled()


def test_what_a_user_can_get_wrong():
    with pytest.raises(DeviceError, match="there is no device 'cpuu'"):
        timing.measure(lambda: None, "cpuu")
    with pytest.raises(ValueError, match="at least one round"):
        timing.measure(lambda: None, rounds=0)
    with pytest.raises(ValueError, match="at least one thread"), timing.pinned(0):
        pass
    with pytest.raises(ValueError, match="may use cores"), timing.pinned(1, frozenset({10**6})):
        pass


def test_threads_and_cores_are_pinned_and_put_back():
    import os

    before, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    core = frozenset({min(allowed)})
    with timing.pinned(1, core):
        assert torch.get_num_threads() == 1
        assert os.sched_getaffinity(0) == core
        assert timing.conditions()["threads"] == 1
        assert timing.conditions()["cores"] == 1
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == (before, allowed)


def test_conditions_say_none_where_the_machine_does_not_tell(tmp_path, monkeypatch):
    module = sys.modules["depthgauge.timing.conditions"]
    monkeypatch.setattr(module, "_CPU", tmp_path)
    told = module.conditions()
    assert (told["governor"], told["mhz"], told["throttled"]) == (None, None, None)
    for name, text in {
        "cpu0/cpufreq/scaling_governor": "powersave\n",
        "cpu0/cpufreq/scaling_cur_freq": "1200000\n",
        "cpu0/thermal_throttle/core_throttle_count": "3\n",
        "cpu1/thermal_throttle/core_throttle_count": "4\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    told = module.conditions()
    assert (told["governor"], told["mhz"], told["mhz_max"], told["throttled"]) == ("powersave", 1200.0, None, 7)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_peak_memory_sees_what_was_given_back():
    size = 1 << 28
    told = timing.peak_memory(lambda: torch.ones(size // 4))
    assert told is None or 0.8 * size <= told < 1.2 * size  # other pages of the process come and go meanwhile


def test_events_are_recorded_on_the_stream_of_their_own_device(queue, monkeypatch):
    streams = []

    class Event(type(queue.event())):
        def __init__(self, *, enable_timing):
            assert enable_timing
            super().__init__(queue)

        def record(self, stream="the current device's"):
            streams.append(stream)
            super().record()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: queue.synchronize())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    seconds = timing.clock("cuda:1").time(lambda: queue.launch(KERNEL), 10)
    assert seconds == pytest.approx(10 * KERNEL, rel=0.01)
    assert streams == ["stream of cuda:1"] * 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_events_agree_with_a_synchronized_clock():
    x = torch.randn(4096, 4096, device="cuda")
    device = timing.Device.named("cuda")
    work = lambda: x @ x  # noqa: E731
    events = timing.measure(work, device).median
    assert events == pytest.approx(timing.measure(work, device, clock=timing.DeviceClock(device)).median, rel=0.1)
    with pytest.raises(timing.UnsynchronizedClockError):
        timing.measure(work, device, clock=timing.HostClock(device))
    assert timing.peak_memory(work, device) == x.numel() * 4
