"""Seconds and memory against the batch size, and the largest batch that fits, with a faked lack of memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from depthgauge import environment, timing
from depthgauge.timing.batches import _limited, _searched, rounds_in_turns
from depthgauge.timing.clocks import Work

WIDTH, CLASSES = 16, 4
BYTES = 4


def lacking(limit: int, kind: type[Exception] = torch.OutOfMemoryError) -> Callable[[int], Work]:
    """A step that needs more memory than there is above a batch."""

    def step(batch: int) -> Work:
        def work() -> None:
            if batch > limit:
                raise kind("CUDA out of memory. Tried to allocate 20.00 GiB")

        return work

    return step


def training(model: nn.Module) -> Callable[[int], Work]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step(batch: int) -> Work:
        x, y = torch.ones(batch, WIDTH), torch.zeros(batch, dtype=torch.long)

        def work() -> None:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

        return work

    return step


def test_curve_has_a_row_a_batch_ascending() -> None:
    curve = timing.batch_curve(training(nn.Linear(WIDTH, CLASSES)), [16, 1, 4, 4], rounds=6)
    assert list(curve["batch"]) == [1, 4, 16]
    assert (curve["n"] == 6).all()
    assert (curve["low"] <= curve["seconds"]).all()
    assert (curve["seconds"] <= curve["high"]).all()
    assert curve["examples_per_second"].to_numpy() == pytest.approx((curve["batch"] / curve["seconds"]).to_numpy())
    assert (curve["why"] == "").all()


def test_memory_of_a_linear_layer_is_counted_to_the_byte() -> None:
    """Its scores, their log-softmax and the gradients of both, and what does not depend on the batch."""
    peaks = timing.batch_curve(training(nn.Linear(WIDTH, CLASSES)), [64, 128, 256], rounds=1)["peak_bytes"].to_numpy()
    assert peaks[2] - peaks[1] == 2 * (peaks[1] - peaks[0])
    each = (peaks[1] - peaks[0]) / 64
    assert each in {CLASSES * BYTES * copies for copies in (2, 3)}  # as many as torch holds at once


def test_peak_tensors_counts_what_lives_at_once() -> None:
    def work() -> torch.Tensor:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b[:10]  # a view takes nothing
        d = c.repeat(50)
        del b, c
        return d

    assert timing.peak_tensors(work) == 8000
    assert timing.peak_tensors(lambda: torch.zeros(10).add_(1)) == 40


def test_a_batch_that_does_not_fit_costs_itself_and_larger_ones() -> None:
    curve = timing.batch_curve(lacking(10), [4, 8, 16, 32], rounds=6).set_index("batch")
    assert curve.loc[[4, 8], "seconds"].notna().all()
    assert curve.loc[[16, 32], "seconds"].isna().all()
    assert set(curve.loc[[16, 32], "why"]) == {
        "a batch of 16 does not fit into memory: OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"
    }
    with pytest.raises(ZeroDivisionError):
        timing.batch_curve(lacking(10, ZeroDivisionError), [4, 16], rounds=1)
    with pytest.raises(ValueError, match="a batch is 0, where a whole number >= 1"):
        timing.batch_curve(lacking(10), [0, 1])


def test_rounds_go_up_and_down() -> None:
    class Log:
        name = "log"

        def __init__(self) -> None:
            self.seen: list[Work] = []
            self.times = iter(())

        def time(self, work: Work, calls: int = 1) -> float:
            self.seen.append(work)
            return next(self.times, 0.5) * calls

    log = Log()
    works = [lambda: "a", lambda: "b", lambda: "c"]
    seconds = rounds_in_turns(log, works, 2)
    assert [work() for work in log.seen[-6:]] == ["a", "b", "c", "c", "b", "a"]
    assert (seconds == 0.5).all()
    log.times = iter([1e-4, 1e-4, 1e-4, 1e-4, 9.0, 1e-4, 1e-4, 8.0])
    assert rounds_in_turns(log, works[:1], 1) == 1e-4  # of five stretches of five calls, two of them disturbed


GPU = timing.Device("fake", synchronize=lambda: None)  # a device that launches, so that its memory is asked for


@pytest.mark.parametrize(
    ("limit", "kind"), [*((limit, torch.OutOfMemoryError) for limit in (1, 2, 3, 127, 128, 1000)), (100, MemoryError)]
)
def test_the_largest_batch_is_found_to_the_example(limit: int, kind: type[Exception]) -> None:
    found = timing.largest_batch(lacking(limit, kind), 4096, GPU)
    assert (found.batch, found.above) == (limit, limit + 1)
    assert f"a batch of {limit + 1} does not fit" in found.why


def test_the_search_is_short_and_ends_where_it_is_told() -> None:
    tried: list[int] = []

    def fits(batch: int) -> str:
        tried.append(batch)
        return "" if batch <= 3000 else "no"

    rough = _searched(fits, 1 << 20, 1.1)
    assert rough.batch is not None
    assert rough.above is not None
    assert rough.batch <= 3000 < rough.above <= 1.1 * rough.batch
    assert len(tried) < 20
    everything = timing.largest_batch(lacking(10**9), 1000, GPU)
    assert (everything.batch, everything.above) == (1000, None)
    assert everything.why == "every batch up to it fits"
    nothing = timing.largest_batch(lacking(0), 1000, GPU)
    assert (nothing.batch, nothing.above) == (0, 1)
    assert "not even one example fits" in nothing.why


def test_other_errors_pass_and_a_cpu_is_not_tried() -> None:
    with pytest.raises(ZeroDivisionError):
        timing.largest_batch(lacking(10, ZeroDivisionError), 1000, GPU)
    found = timing.largest_batch(lacking(10), 1000, "cpu")
    assert found.batch is None
    assert "ended by the system" in found.why


def test_room_for_tensors_is_what_is_free_and_what_the_allocator_holds_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: {"cuda:1": (100, 1000)}[name])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 30)
    assert timing.room_for_tensors(timing.Device("cuda:1")) == 140
    monkeypatch.setattr(environment, "available_memory", lambda: 17.0)
    assert timing.room_for_tensors("cpu") == 17


@pytest.mark.parametrize(("name", "index", "before"), [("cuda", 1, 1.0), ("cuda:0", 0, 0.8), ("cuda", 1, 0.05)])
def test_a_share_of_the_memory_is_of_one_device_and_what_was_allowed_comes_back(
    monkeypatch: pytest.MonkeyPatch, name: str, index: int, before: float
) -> None:
    shares = {0: 1.0, 1: 1.0, index: before}

    def limit(share: float, device: int) -> None:  # torch takes no "cuda" without a number
        shares[int(device)] = share

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", shares.__getitem__, raising=False)
    with _limited(timing.Device(name), 0.1):
        assert shares == {0: 1.0, 1: 1.0, index: min(before, 0.1)}
    assert shares == {0: 1.0, 1: 1.0, index: before}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_largest_batch_on_cuda_leaves_the_process_alive() -> None:
    def step(batch: int) -> Work:
        return lambda: torch.zeros(batch, 1 << 20, device="cuda")  # 4 MiB an example

    free = torch.cuda.get_device_properties("cuda").total_memory * 0.1
    found = timing.largest_batch(step, 1 << 20, "cuda", memory=0.1, ratio=1.05)
    assert found.batch is not None
    assert 0.5 * free < found.batch * 4 * 2**20 <= free
    assert torch.ones(3, device="cuda").sum() == 3
