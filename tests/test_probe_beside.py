"""Reading beside the step: the rows are those of reading at once, bit for bit, or the difference is told."""

import contextlib
import copy
import gc
import os
import random
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from depthgauge import probe
from depthgauge.probe import beside, compiled

WIDE = 64
LEAST = 1 << 10  # numbers, here


@pytest.fixture(autouse=True)
def _two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a processor left for the thread, whatever machine this is, and hand small tensors over."""
    if not beside.copy_by_system(np.zeros(1).ctypes.data, np.zeros(1).ctypes.data, 8):
        pytest.skip("the system copies no memory")
    monkeypatch.setattr(beside, "pays", lambda: True)
    monkeypatch.setattr(beside, "LEAST", LEAST)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The slots of tensors that were handed over."""
    slots: list[int] = []

    def put(kernel, tensor, slot, *labels, before=beside.BesideKernel._put):
        done = before(kernel, tensor, slot, *labels)
        slots.extend([slot] * done)
        return done

    monkeypatch.setattr(beside.BesideKernel, "_put", put)
    return slots


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
def kernel():
    """A kernel by itself, whose slots may all wait, and what it missed in `missed`."""
    missed = []
    kernel = beside.BesideKernel(lambda slot, error: missed.append((slot, str(error))))
    kernel.missed = missed
    kernel._may = dict.fromkeys(range(64), True)
    yield kernel
    kernel.close()


@pytest.mark.parametrize("build", [plain, Clipped])
@pytest.mark.parametrize("options", [{}, {"last": 7}, {"every": 2}])
def test_rows_are_those_of_reading_at_once(build, options, handed_over):
    model = build()
    one = train(copy.deepcopy(model), **options)
    other = train(model, overlap=True, **options)
    assert_same(one, other)
    assert other.unread == ()
    assert len(set(handed_over)) == (8 if build is plain else 6)  # of it, but for what is overwritten


def test_rows_are_read_and_cleared_within_the_block(handed_over):
    frames = ([], [])
    for overlap in (False, True):

        def take(record, frames=frames[overlap]):
            frames.append(record.to_frame())
            record.clear()

        train(plain(), on_step=take, overlap=overlap)
    assert all(a["count"].equals(b["count"]) and len(a) == len(b) for a, b in zip(*frames, strict=True))
    assert handed_over


def test_a_change_in_place_that_comes_later_is_told_once_and_the_next_are_read_at_once(monkeypatch):
    """Where it comes before the reading, which waits for it here; a row that is there by then is right, and stays."""
    model, changed = plain(), threading.Event()

    def row_of(*job, before=beside._row_of):
        changed.wait(30)
        return before(*job)

    def within(step, out):
        out = out.mul_(0.5) if step >= 2 else out
        changed.set()
        return out

    monkeypatch.setattr(beside, "_row_of", row_of)
    one = train(copy.deepcopy(model), within=within)
    model.register_forward_pre_hook(lambda *_: changed.clear())
    with pytest.warns(probe.UnreadWarning, match="1 tensors of '3' were left out"):
        other = train(model, within=within, overlap=True)
    assert [(each.layer, each.reason, each.tensors) for each in other.unread] == [("3", beside.CHANGED, 1)]
    frame = one.to_frame()
    left_out = (frame["step"] == 2) & (frame["layer"] == "3") & (frame["direction"] == "activation")
    assert left_out.sum() == 1
    assert frame[~left_out].reset_index(drop=True).equals(other.to_frame())


def test_an_exception_in_the_middle_of_a_pass_leaves_rows_and_no_thread():
    model, records = plain(), []

    def fail(step, out):
        if step == 3:
            raise KeyError("stop")
        return out

    def take(record):
        records[-1].append(rows_of(record))

    for overlap in (False, True):
        records.append([])
        with pytest.raises(KeyError):
            train(copy.deepcopy(model), within=fail, on_step=take, overlap=overlap)
    for before, after in zip(*records, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("depthgauge-probe")]


def test_an_error_of_the_thread_ends_the_step(monkeypatch):
    def fail(_reader, _address, _numbers, slot, *_):
        raise MemoryError(f"slot {slot}")

    monkeypatch.setattr(beside.Reader, "row_of", fail)
    with pytest.raises(RuntimeError, match="beside the step has failed") as caught:
        train(plain(), overlap=True)
    assert isinstance(caught.value.__cause__, MemoryError)


def test_another_thread_is_read_at_once(handed_over):
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
        assert not handed_over
        passes()
        optimizer.step()
    frame = record.to_frame()
    assert len(frame) == 4 * 9
    assert not frame.duplicated(["step", "layer", "call"]).any()
    assert handed_over


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_copy_of_the_process_goes_on_without_the_thread():
    model = plain()

    def fork(step, out):
        if step == 2:
            pids.append(os.fork())
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


def test_what_is_not_read_when_another_thread_copies_the_process_is_told(kernel, monkeypatch):
    going = threading.Event()
    monkeypatch.setattr(beside.Reader, "row_of", lambda *_: going.wait(10) and None)
    kernel.observe(torch.ones(LEAST), 3, 0, 0)
    worker = kernel._worker
    kernel.orphan()
    assert kernel.missed == [(3, beside.FORKED)]
    kernel.observe(torch.ones(LEAST), 3, 0, 0)
    assert kernel.read().words[:, 0].tolist() == [3]
    going.set()
    worker.shutdown()


def test_what_waits_is_bounded_and_let_go(kernel, monkeypatch):
    monkeypatch.setattr(beside, "HELD", 8 * LEAST)
    for slot, each in enumerate(torch.randn(40, LEAST).unbind()):
        kernel.observe(each, slot, 0, 0)
        assert kernel._nbytes <= 8 * LEAST
    assert kernel.read().words[:, 0].tolist() == list(range(40))
    assert not kernel._held
    assert kernel._nbytes == 0


def test_a_first_step_keeps_no_memory():
    tensor = torch.randn(LEAST)
    kernel = beside.BesideKernel(lambda *_: None)
    kernel.observe(tensor, 0, 0, 0)
    assert [each.untyped_storage().nbytes() for each, *_ in kernel._trial] == [0]
    tensor.mul_(2)
    kernel.end_step()
    assert kernel._may == {0: False}
    kernel.close()


def test_memory_that_is_taken_away_is_told(kernel, monkeypatch):
    """A program may free, move or overwrite what waits: nothing is read that is not its own, and no process ends."""
    going = threading.Event()
    row_of = beside.Reader.row_of
    monkeypatch.setattr(beside.Reader, "row_of", lambda *each: going.wait(10) and row_of(*each))
    n = 1 << 20  # so much is given back to the system at once
    freed, moved, changed, same = tensors = [torch.full((n,), 2.0) for _ in range(4)]
    for slot, each in enumerate(tensors):
        kernel.observe(each, slot, 0, 0)
    freed.untyped_storage().resize_(0)
    moved.data = torch.zeros(3)
    changed.zero_()
    going.set()
    assert kernel.read().words[:, 0].tolist() == [1, 3]
    assert kernel.read().number(probe.record.layout.SUM).tolist() == [2.0 * n, 2.0 * n]
    assert kernel.missed == [(0, beside.CHANGED), (2, beside.CHANGED)]
    assert same[0] == 2


def test_rows_keep_their_order_when_cleared_and_trimmed(kernel):
    now = compiled.CompiledKernel()
    number = torch.ones(LEAST)
    for step in range(40):
        for each in (kernel, now):
            each.observe(number if step % 3 else number[:7] * torch.inf, step % 2, step, 0)
    assert len(kernel.nonfinite()) == len(now.nonfinite()) == 14
    np.testing.assert_array_equal(kernel.read().words, now.read().words)
    kernel.observe(number, 0, 50, 0)
    kernel.clear(keep=39)
    assert kernel.read().words[:, 1].tolist() == [39, 50]
    for step in range(2000):
        kernel.observe(number if step % 100 == 0 else number[:1], 0, step, 0)
    kernel.trim(10)
    assert kernel.read().words[:, 1].tolist() == list(range(1990, 2000))


def test_kinds_that_are_read_at_once(kernel, handed_over):
    wide = torch.randn(4, LEAST)
    with torch.inference_mode():
        inferred = wide + 1
    kinds = [wide.double(), wide.t(), wide.bfloat16(), wide.to_sparse(), inferred, torch._neg_view(wide), wide[:, :9]]
    for slot, each in enumerate(kinds):
        kernel.observe(each, slot, 0, 0)
    assert not handed_over
    assert kernel.read().words[:, 3].tolist() == [each.numel() for each in kinds]


def test_without_a_thread_it_reads_at_once(kernel):
    kernel._worker.shutdown()
    kernel.observe(torch.ones(LEAST), 0, 0, 0)
    assert kernel.read().words[:, 0].tolist() == [0]


def test_without_a_processor_to_spare_it_reads_at_once(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 << 20)
    assert type(train(plain(), overlap=True)._kernels[0]) is compiled.CompiledKernel


def test_a_handle_that_is_dropped_ends_its_thread():
    model = plain()
    block = probe.track(model, overlap=True)
    block.__enter__()
    for _ in range(3):
        model(torch.randn(32, WIDE)).square().mean().backward()
    del block
    kernel = beside.BesideKernel(lambda *_: None)
    kernel._may = {0: True}
    kernel.observe(torch.ones(1 << 20), 0, 0, 0)
    (thread,) = kernel._worker._threads
    del kernel
    thread.join(10)
    assert not thread.is_alive()


def test_a_thread_that_reads_waits_for_nobody(kernel):
    """Garbage may be collected there, and with it a block that nobody ended."""
    kernel.observe(torch.ones(LEAST), 0, 0, 0)
    other = beside.BesideKernel(lambda *_: None)
    other._may = {0: True}
    other.observe(torch.ones(LEAST), 0, 0, 0)
    kernel._worker.submit(kernel.close).result(10)
    other._worker.submit(kernel._collect).result(10)
    other.close()
    assert len(kernel.read().words) == 1


END = """
import torch
from torch import nn
from depthgauge import probe
from depthgauge.probe import beside
beside.pays = lambda: True
model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256))
block = probe.track(model, overlap=True)
record = block.__enter__()
for _ in range(3):
    model(torch.randn(4096, 256))
model.register_forward_hook(lambda *_: exit(7))
model(torch.randn(4096, 256))
"""


@pytest.mark.slow  # PyTorch is imported anew
def test_a_process_may_end_while_a_tensor_waits():
    command = [sys.executable, "-X", "faulthandler", "-c", END]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (7, "")


def hurried(seed: int, overlap: bool):
    """A few steps of random nuisances, the same for each seed."""
    draws = random.Random(seed)
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU(inplace=seed % 2 == 0), nn.Linear(WIDE, WIDE), nn.Tanh())
    with torch.no_grad():
        for number, each in enumerate(model.parameters()):
            each.copy_(torch.randn(each.shape, generator=torch.Generator().manual_seed(number)) / 8)
    late, stop = draws.randrange(8), draws.randrange(8)

    def within(step, out):
        if draws.random() < 0.3:
            model(out.detach())
        if step == stop:
            raise KeyError(step)
        return (out * 1.0).mul_(2) if step >= late else out

    frames = []

    def take(record):
        frames.append(rows_of(record))
        record.clear()

    with contextlib.suppress(KeyError):
        train(model, steps=5, within=within, overlap=overlap, on_step=take)
    return frames


def test_many_blocks_in_threads_while_garbage_is_collected():
    ended, faults = threading.Event(), []

    def many(first: int) -> None:
        try:
            for seed in range(first, first + 3):
                for one, other in zip(hurried(seed, False), hurried(seed, True), strict=True):
                    for a, b in zip(one, other, strict=True):
                        np.testing.assert_array_equal(a, b)
        except BaseException as fault:  # noqa: BLE001 - told below
            faults.append(fault)

    def collect() -> None:
        while not ended.wait(0.01):
            gc.collect(0)

    collector = threading.Thread(target=collect)
    threads = [threading.Thread(target=many, args=(first,)) for first in (0, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in (collector, *threads):
            each.start()
        for each in threads:
            each.join()
    ended.set()
    collector.join()
    assert faults == []
