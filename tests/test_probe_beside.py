"""Reading beside the step: the rows are those of reading at once, bit for bit, or the difference is told."""

import copy
import os
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from depthgauge import models, probe
from depthgauge.probe import beside, compiled
from depthgauge.probe.rows import ROWS_A_BLOCK

WIDE = 512  # x 32 examples: enough to be handed over


@pytest.fixture(autouse=True)
def _two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a processor left for the thread, whatever machine this is."""
    monkeypatch.setattr(beside, "pays", lambda: True)


class Clipped(nn.Module):
    """A net that overwrites in place what a module returned."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU(inplace=True), nn.Linear(WIDE, WIDE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mul_(2)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE))


def train(model, *, steps=4, within=lambda _step, out: out, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    with probe.track(model, optimizer=optimizer, **options) as record:
        for step in range(steps):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            out = within(step, model(torch.randn(32, WIDE, generator=generator)))
            out.square().mean().backward()
            optimizer.step()
    return record


def rows_of(record):
    rows = probe.record.layout.joined(record._parts())
    return rows.words, rows.keys, rows.counts


def assert_same(one, other):
    assert one._slots == other._slots
    for a, b in zip(rows_of(one), rows_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def handed_over(monkeypatch):
    """Number of the places whose tensors were handed over at the end of the last block."""
    last = []

    def stop(kernel, before=beside.BesideKernel.stop):
        last[:] = [sum(may == beside.READY for may in kernel._may)]
        return before(kernel)

    monkeypatch.setattr(beside.BesideKernel, "stop", stop)
    return lambda: last[0]


@pytest.mark.parametrize("build", [plain, Clipped])
@pytest.mark.parametrize("options", [{}, {"last": 7}, {"every": 2}])
def test_rows_are_those_of_reading_at_once(build, options, handed_over):
    model = build()
    one = train(copy.deepcopy(model), **options)
    other = train(model, overlap=True, **options)
    assert_same(one, other)
    assert other.unread == ()
    assert handed_over() == (8 if build is plain else 6)  # of it, but for what is overwritten


@pytest.mark.parametrize("name", ["googlenet", "lstm", "resnet18", "transformer"])
def test_rows_of_the_repositorys_models(name, monkeypatch, handed_over):
    monkeypatch.setattr(beside, "LEAST", 1)
    monkeypatch.setattr(beside, "CHUNK", 1 << 10)
    records = []
    for overlap in (False, True):
        training = models.training(name, preset="small", batch=2)
        torch.manual_seed(0)  # of dropout
        optimizer = torch.optim.SGD(training.model.parameters(), lr=0.01)
        with probe.track(training.model, optimizer=optimizer, overlap=overlap) as record:
            for _ in range(2):
                training.value(training.first()[0]).backward()
                optimizer.step()
        records.append(record)
    assert_same(*records)
    assert handed_over()


def test_a_loop_that_changes_the_output_in_place():
    model = plain()

    def within(_step, out):
        return out.mul_(0.5)

    one, other = train(copy.deepcopy(model), within=within), train(model, within=within, overlap=True)
    assert_same(one, other)
    assert other.unread == ()


def test_a_change_in_place_that_comes_later_is_told_and_the_next_are_read_at_once():
    model = plain()

    def within(step, out):
        return out.mul_(0.5) if step >= 2 else out

    one = train(copy.deepcopy(model), within=within)
    with pytest.warns(probe.UnreadWarning, match="1 tensors of '3' were left out"):
        other = train(model, within=within, overlap=True)
    assert [(each.layer, each.reason, each.tensors) for each in other.unread] == [("3", beside.CHANGED, 1)]
    left_out = (
        (one.to_frame()["step"] == 2) & (one.to_frame()["layer"] == "3") & (one.to_frame()["direction"] == "activation")
    )
    assert left_out.sum() == 1
    assert one.to_frame()[~left_out].reset_index(drop=True).equals(other.to_frame())


def test_an_exception_leaves_rows_and_no_thread():
    model, records = plain(), []

    def fail(step, out):
        if step == 3:
            raise KeyError("stop")
        return out

    for overlap in (False, True):
        with pytest.raises(KeyError):
            train(copy.deepcopy(model), within=fail, on_step=records.append, overlap=overlap)
    assert_same(records[0], records[-1])
    assert not [thread for thread in threading.enumerate() if thread.name == "depthgauge-probe"]


def test_rows_are_read_and_cleared_within_the_block():
    model, frames = plain(), ([], [])
    for overlap in (False, True):

        def take(record, frames=frames[overlap]):
            assert len(record) == len(record.to_frame())
            frames.append(record.to_frame())
            record.clear()

        train(copy.deepcopy(model), on_step=take, overlap=overlap)
    assert all(a.equals(b) for a, b in zip(*frames, strict=True))


def test_another_thread_is_read_at_once():
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(32, WIDE)

    def passes():
        for _ in range(3):
            model(x).square().mean().backward()

    with probe.track(model, optimizer=optimizer, directions="activation", overlap=True) as record:
        passes()
        optimizer.step()
        thread = threading.Thread(target=passes)
        thread.start()
        thread.join()
        passes()
        optimizer.step()
    frame = record.to_frame()
    assert len(frame) == 4 * 9
    assert not frame.duplicated(["step", "layer", "call"]).any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_goes_on_without_the_thread():
    model = plain()

    def fork(step, out):
        if step == 2:
            child = os.fork()
            pids.append(child)
        return out

    one, pids = train(copy.deepcopy(model)), []
    try:
        other = train(model, within=fork, overlap=True)
        assert_same(one, other)
    except BaseException:
        if pids == [0]:
            os._exit(1)
        raise
    if pids == [0]:
        os._exit(0)
    assert os.waitpid(pids[0], 0)[1] == 0


def test_what_waits_is_bounded_and_let_go():
    numbers = torch.randn(40, beside.LEAST)
    kernel = beside.BesideKernel(lambda *_: None, held=4 * beside.LEAST)
    kernel._may = bytearray([beside.READY] * 40)
    for slot, each in enumerate(numbers.unbind()):
        kernel.observe(each, slot, 0, 0)
        assert kernel._nbytes <= 4 * beside.LEAST
    assert kernel.read().words[:, 0].tolist() == list(range(40))
    assert not kernel._held
    assert kernel._nbytes == 0
    kernel.stop()


def test_a_full_ledger_is_put_aside_and_the_order_stays():
    number = torch.ones(64)
    beside_kernel, now = beside.BesideKernel(lambda *_: None), compiled.CompiledKernel()
    beside_kernel._may = bytearray([beside.READY, beside.NEVER])
    for step in range(ROWS_A_BLOCK + 300):
        for kernel in (beside_kernel, now):
            kernel.observe(number, step % 7 == 0, step, 0)
    rows = now.read()
    np.testing.assert_array_equal(beside_kernel.read().words, rows.words)
    beside_kernel.observe(number, 0, 5, 0)
    beside_kernel.clear(keep=5)
    assert beside_kernel.read().words[:, 1].tolist() == [5, 5]
    beside_kernel.observe(number * torch.inf, 0, 6, 0)
    assert len(beside_kernel.nonfinite()) == 1
    beside_kernel.trim(10_000)
    beside_kernel.stop()


def test_kinds_that_are_read_at_once():
    kernel = beside.BesideKernel(lambda *_: None)
    kernel._may = bytearray([beside.READY] * 8)
    wide = torch.randn(4, beside.LEAST)
    with torch.inference_mode():
        inferred = wide + 1
    kinds = [wide.double(), wide.t(), wide.bfloat16(), wide.to_sparse(), inferred, torch._neg_view(wide)]
    for slot, each in enumerate(kinds):
        kernel.observe(each, slot, 0, 0)
    assert kernel._worker is None
    assert kernel.read().words[:, 3].tolist() == [wide.numel()] * len(kinds)


def test_a_worker_that_sleeps_is_woken():
    kernel = beside.BesideKernel(lambda *_: None)
    kernel._may = bytearray([beside.READY])
    for _ in range(2):
        for _ in range(9):
            kernel.observe(torch.ones(beside.LEAST), 0, 0, 0)
        time.sleep(0.05)
    assert kernel._worker.done == 16
    assert len(kernel.read().words) == 18
    kernel.stop()


def test_without_a_processor_to_spare_it_reads_at_once(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 << 20)
    record = train(plain(), overlap=True)
    assert isinstance(record._kernels[0], compiled.CompiledKernel)


def test_places_are_used_again(monkeypatch):
    monkeypatch.setattr(beside, "CAPACITY", 8)
    monkeypatch.setattr(beside, "CHUNK", 1)
    kernel = beside.BesideKernel(lambda *_: None)
    kernel._may = bytearray([beside.READY])
    number = torch.ones(16)
    for step in range(3000):
        kernel.observe(number, 0, step, 0)
    assert kernel.read().words[:, 1].tolist() == list(range(3000))
    kernel.stop()


def test_a_kernel_without_its_thread_reads_at_once():
    kernel = beside.BesideKernel(lambda *_: None)
    kernel._may = bytearray([beside.READY])
    for step in range(3):
        kernel.observe(torch.ones(16), 0, step, 0)
    kernel.drain()
    kernel.orphan()
    kernel.observe(torch.ones(16), 0, 3, 0)
    assert kernel._worker is None
    assert kernel.stop().read().words[:, 1].tolist() == [0, 1, 2, 3]
