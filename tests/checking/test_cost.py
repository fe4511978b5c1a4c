"""Cost: phases that are known to be slow, counts against closed forms, and savings that are tried and put back."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import depthgauge
from depthgauge import Training, stats
from depthgauge.checking import Answer, Status
from depthgauge.checking.questions.cost import QUESTION, phases, room, saying, trying
from depthgauge.timing import Device

WIDTH, CLASSES, BATCH = 32, 4, 16


class Slow:
    """Batches, each of which takes some seconds to come."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(50):
            time.sleep(self.seconds)
            yield torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def training(batches: Any = None, model: nn.Module | None = None, loss: Any = None) -> Training:
    model = model or net()
    batches = [(torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,)))] * 3 if batches is None else batches
    return Training(model, batches, loss, torch.optim.Adam(model.parameters(), lr=1e-3))


def asked(user: Training, budget: float = 6) -> Answer:
    return depthgauge.check(user, only=["cost"], budget=budget).answers["cost"]


def test_a_loader_that_is_slower_than_the_step_is_found() -> None:
    answer = asked(training(Slow(0.01)))

    assert (answer.status, answer.findings[0].kind, answer.where) == (Status.LOOK, "slow_loader", ("batches",))
    assert 10 <= answer.findings[0].measure.value < 100  # a sleep is as long as it says, or longer on a busy machine
    assert answer.value > 10
    assert answer.unit == "ms"
    table = answer.tables["phases"].set_index("phase")
    assert table.loc["loader", "share"] > 0.5
    assert table.loc[["loader", "forward", "backward", "optimizer"], "share"].sum() == pytest.approx(1.0)


def test_batches_that_are_there_are_no_finding() -> None:
    answer = asked(training())

    assert "slow_loader" not in {finding.kind for finding in answer.findings}
    assert answer.low <= answer.value <= answer.high
    assert "a step takes" in answer.says
    assert "matrix products" in answer.says
    assert "each example more" in answer.says


def test_an_iterator_is_not_timed_and_said_so() -> None:
    answer = asked(training(iter([(torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,)))] * 4)))

    assert "the loader was not timed" in answer.says
    assert "loader " not in answer.says.partition(";")[0]


def test_arithmetic_of_linear_layers_is_counted_exactly() -> None:
    user = training()
    found = phases.arithmetic(user, user.first()[0])

    forward = 2 * BATCH * (WIDTH * 64 + 64 * CLASSES)
    weights, inputs = forward, 2 * BATCH * 64 * CLASSES  # the first layer's input has no gradient
    assert (found.flops, found.dtype) == (forward + weights + inputs, "float32")


def test_memory_grows_by_what_an_example_keeps() -> None:
    user = training(model=nn.Sequential(nn.Linear(WIDTH, 4096), nn.ReLU(), nn.Linear(4096, CLASSES)))
    found = room.room(user, user.first()[0], Device("cpu"))

    hidden = 4 * 4096
    assert hidden <= found.each <= 5 * hidden
    assert found.largest > BATCH
    assert list(found.table["batch"]) == [BATCH, BATCH // 2]


def test_memory_of_a_pass_has_its_gradients_whatever_a_step_before_has_left() -> None:
    user = training(model=nn.Linear(WIDTH, 4096))
    user.value(user.first()[0]).backward()
    later = room.room(user, user.first()[0], Device("cpu")).bytes
    assert user.model.weight.grad is not None
    user.model.zero_grad()
    assert room.room(user, user.first()[0], Device("cpu")).bytes == later > 4 * 4096 * (WIDTH + 1)


def test_a_training_that_takes_no_other_number_of_examples_is_still_timed() -> None:
    model = nn.Sequential(nn.Flatten(0), nn.Linear(BATCH * WIDTH, BATCH * CLASSES), nn.Unflatten(0, (BATCH, CLASSES)))
    answer = asked(training(model=model))

    assert answer.value > 0
    assert "each example more" not in answer.says
    assert answer.status in {Status.FINE, Status.LOOK}


def test_the_fused_optimizer_takes_the_same_steps() -> None:
    models = [net() for _ in range(2)]
    for model, fused in zip(models, (False, True), strict=True):
        optimizer = trying.rebuilt(torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.3), fused=fused)
        assert optimizer.param_groups[0]["lr"] == 0.02
        for _ in range(3):
            model(torch.ones(2, WIDTH)).sum().backward()
            optimizer.step()

    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def saved(ratio: float, kind: str = "fused_optimizer", per: float = 1.0) -> trying.Saving:
    rng = np.random.default_rng(0)
    times = np.exp(0.01 * rng.standard_normal((8, 2)))
    return trying.Saving(kind, "another way", stats.time_ratio(ratio * times, times[::-1]), 2e-3, 1e-2, per)


def test_a_saving_counts_by_its_share_of_the_step() -> None:
    assert saved(0.5).expected == pytest.approx(0.9, abs=0.01)  # half of a fifth
    assert saved(1.6, per=2.0).expected == pytest.approx(0.96, abs=0.01)
    finding = saying.saving(saved(0.25))
    assert finding is not None
    assert finding.status is Status.LOOK
    assert finding.expected == "15 % less time a step"
    small = saying.saving(dataclasses.replace(saved(0.25), before=2e-4, step=1e-3))
    assert small is not None
    assert small.status is Status.FINE, "0.15 ms a step is told, and nothing to look at"
    assert saying.saving(saved(0.9)) is None  # 2 % of a step


def test_threads_are_tried_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    user, given, counts = training(), [4], []
    monkeypatch.setattr(torch, "get_num_threads", lambda: given[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (counts.append(count), given.__setitem__(0, count)))
    found = phases.phases(user, 6, lambda: True)
    saving = trying.Tries(user, user.first()[0], found, lambda _: True)._threads()

    assert saving is not None
    assert saving.what == "torch.set_num_threads(1) in place of 4"
    assert {1, 4} == set(counts)
    assert counts[-1] == 4


def test_numbers_that_are_read_are_counted_and_matter_on_an_accelerator() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0])
        scores.sum().item()
        return functional.cross_entropy(scores, batch[1]) * float(scores.detach().mean() < 100)

    user = training(loss=loss)
    with user.untouched(), trying.waits() as counts:
        user.value(user.first()[0]).backward()

    assert counts[0] == 2
    frame = pd.DataFrame({"forward": [1.0], "backward": [1.0]})
    assert saying.synchronizing(2, phases.Phases(frame, Device("cpu"), loads=True)) is None
    accelerator = Device("cuda:0", synchronize=lambda: None)
    finding = saying.synchronizing(2, phases.Phases(frame, accelerator, loads=True))
    assert finding is not None
    assert finding.status is Status.LOOK


def test_anomaly_mode_is_told() -> None:
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        finding = saying.anomaly_mode()
    assert finding is not None
    assert finding.kind == "anomaly_mode"
    assert saying.anomaly_mode() is None


def test_everything_is_left_as_it_was() -> None:
    user = training(
        model=nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, CLASSES))
    )
    before, state, threads = copy.deepcopy(user.model.state_dict()), torch.get_rng_state(), torch.get_num_threads()

    asked(user)

    assert all(torch.equal(a, b) for a, b in zip(before.values(), user.model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(parameter.grad is None for parameter in user.model.parameters())
    assert user.optimizer is not None
    assert not user.optimizer.state


def test_a_step_that_is_longer_than_its_time_says_so() -> None:
    ticks = itertools.count()
    seen = SimpleNamespace(seconds=2.0, batch=None)
    of_time = {"clock": SimpleNamespace(left=5.0), "load": 0.0, "pace": "a pass takes 2 s"}
    subject: Any = SimpleNamespace(**of_time, seen=seen, training=None, ticks=ticks)
    answer = QUESTION.ask(subject)

    assert answer.status is Status.UNDECIDED
    assert "2 s" in answer.says


def test_images_lie_channels_last_only_where_that_is_tried() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, CLASSES))
    user = training([(torch.randn(BATCH, 3, 8, 8), torch.randint(CLASSES, (BATCH,)))] * 3, model)
    strides = model[0].weight.stride()
    found = phases.phases(user, 6, lambda: True)
    tries = trying.Tries(user, user.first()[0], found, lambda _: True)
    saving = tries._channels_last()

    assert saving is not None or tries.skipped
    assert model[0].weight.stride() == strides


def test_a_picture_shows_each_phase() -> None:
    canvas = QUESTION.draw(asked(training()))

    assert canvas is not None
    assert len(canvas.axes[0].patches) == len(phases.PHASES)
