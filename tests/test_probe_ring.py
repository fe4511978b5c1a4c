"""The first value that is not finite: where it is born, the rows that led to it, and a ring of the last rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from depthgauge import probe
from depthgauge.probe import compiled, record, session
from depthgauge.probe.plain import PlainKernel

pytestmark = pytest.mark.filterwarnings("ignore::depthgauge.probe.NonFiniteWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["compiled", "plain"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    make: dict[str, Callable[[], Any]] = {
        "compiled": compiled.CompiledKernel,
        "plain": PlainKernel,
    }
    monkeypatch.setattr(session, "kernel_for", lambda _device: make[request.param]())


class Backward(torch.autograd.Function):
    """The identity, whose gradient becomes NaN in one place."""

    @staticmethod
    def forward(_context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[0, 0] = math.nan
        return gradient


class Net(nn.Module):
    """Four layers; what `fault` names happens in step 3."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.mask = nn.Identity()
        self.fault = fault
        self.step = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        faulty = self.step == 3 and self.training
        hidden = self.first(x).tanh()
        if faulty and self.fault == "forward":
            hidden = hidden * torch.tensor([math.inf] + [1.0] * 7)  # each unit of the next layer gets inf or -inf
        hidden = self.second(hidden)
        if faulty and self.fault == "backward":
            hidden = Backward.apply(hidden)
        hidden = torch.where(torch.tensor([True] * 7 + [False]), hidden, -math.inf) if self.fault == "mask" else hidden
        return torch.as_tensor(self.third(self.mask(hidden).exp()))


class SGD(torch.optim.SGD):
    """One whose update may be infinite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.model = model

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        if self.model.fault == "update" and self.model.step == 3:
            self.model.first.weight.fill_(math.inf)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 6) -> None:
    for step in range(steps):
        model.step = step
        optimizer.zero_grad()
        if step == 3 and model.fault == "weight":
            with torch.no_grad():
                model.second.weight[1, 2] = math.nan
        model(torch.randn(7, 5)).square().mean().backward()
        optimizer.step()


FAULTS = {
    # fault: layer, direction, parameter, kind, number of values, weights
    "forward": ("second", "activation", None, "inf", 56, ()),
    "backward": ("second", "activation_gradient", None, "nan", 1, ()),
    "weight": ("second", "activation", None, "nan", 7, ("second.weight",)),
    "update": ("first", "update", "weight", "inf", 40, ()),
}


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True))


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("last", [1, 5, 21, 10_000])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_ring_holds_exactly_the_last_rows_up_to_the_first_that_is_not_finite(fault: str, last: int) -> None:
    records, lengths = [], []
    for most in (None, last):
        torch.manual_seed(1)
        model = Net(fault)
        optimizer = SGD(model)
        counts: list[int] = []
        with probe.track(
            model, optimizer=optimizer, last=most, on_step=lambda each, to=counts: to.append(len(each))
        ) as own:
            train(model, optimizer)
        records.append(own)
        lengths.append(counts)
    full, ring = records
    first, whole = ring.first_nonfinite(), full.first_nonfinite()
    assert first is not None
    assert whole is not None
    layer, direction, parameter, kind, number, weights = FAULTS[fault]
    assert (first.step, first.layer, first.direction, first.parameter) == (3, layer, direction, parameter)
    assert (first.kind, first.weights) == (kind, weights)
    assert first.row[["nans", "positive_infinities", "negative_infinities"]].sum() == number
    # As many rows as asked for, to the fault and no further, out of those of a record that keeps them all.
    frame = full.to_frame()
    faults = frame[["nans", "positive_infinities", "negative_infinities"]].sum(axis=1) > 0
    at = int(faults.to_numpy().argmax()) + 1
    same(first.chain, frame.iloc[max(0, at - last) : at])
    same(ring.to_frame(), first.chain)
    same(whole.chain, frame.iloc[at - record.CHAIN : at])
    # In steps before, the last rows seen; in the step of the fault, the chain; and none after.
    assert lengths[1][:3] == [min(last, length) for length in lengths[0][:3]]
    assert lengths[1][3:] == [min(last, at)]


def test_without_an_optimizer_a_weight_is_seen_before_its_activation() -> None:
    model = Net("none")
    with torch.no_grad():
        model.second.weight[1, 2] = math.nan
    with probe.track(model, last=3) as own:
        model(torch.randn(7, 5)).sum().backward()
    first = own.first_nonfinite()
    assert first is not None
    assert (first.layer, first.direction, first.parameter) == ("second", "weight", "weight")


@pytest.mark.parametrize("how", ["half", "autocast"])
def test_an_overflow_of_float16_is_found_in_the_layer_where_it_happens(how: str) -> None:
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(6)))
    for layer in model:
        nn.init.constant_(layer.weight, 1.0)
    x = torch.ones(2, 16)
    if how == "half":
        model, x = model.half(), x.half()
    with probe.track(model, last=21) as own, torch.autocast("cpu", torch.float16, enabled=how == "autocast"):
        model(x)
    first = own.first_nonfinite()
    assert first is not None
    assert (first.layer, first.direction, first.kind) == ("3", "activation", "inf")  # 16^4 is 65536
    assert first.chain["max"].iloc[-4:-1].tolist() == [16.0, 256.0, 4096.0]


def test_finite_rows_have_no_first() -> None:
    model = Net("none")
    optimizer = SGD(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with probe.track(model, optimizer=optimizer, last=21) as own:
            train(model, optimizer)
    assert own.first_nonfinite() is None
    assert len(own) == 21
    with probe.track(model) as own:
        model(torch.randn(1, 5))
    assert own.first_nonfinite() is None


# When it is told, and how.


def test_the_warning_comes_at_the_end_of_the_step_and_names_the_line_and_the_chain() -> None:
    model = Net("forward")
    optimizer = SGD(model)
    told: list[int] = []
    with warnings.catch_warnings(record=True) as caught, probe.track(model, optimizer=optimizer, last=4):
        warnings.simplefilter("always")
        for _ in range(6):
            train(model, optimizer, steps=1)
            model.step = 3
            model(torch.randn(7, 5)).square().mean().backward()
            optimizer.step()
            told.append(len(caught))
    assert told == [1] * 6  # in the second step
    assert caught[0].category is probe.NonFiniteWarning
    assert caught[0].filename == __file__
    sentence, heads, *lines = str(caught[0].message).splitlines()
    assert sentence == (
        "step 1: the activation of 'second' is the first tensor that is not finite (56 of 56 values, inf)"
    )
    assert heads.split() == ["step", "tensor", "direction", "min", "max", "not_finite"]
    assert [line.split()[:3] for line in lines] == [
        ["0", "third.weight", "update"],
        ["0", "third.bias", "update"],
        ["1", "first", "activation"],
        ["1", "second", "activation"],
    ]


def test_where_warnings_are_errors_the_training_stops_after_the_step() -> None:
    model = Net("backward")
    optimizer = SGD(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", probe.NonFiniteWarning)
        with (
            pytest.raises(probe.NonFiniteWarning, match="step 3: the activation gradient of 'second'") as caught,
            probe.track(model, optimizer=optimizer, last=21),
        ):
            train(model, optimizer)
    assert model.step == 3
    assert not hasattr(caught.value, "__notes__")
    train(model, optimizer)  # no hook is left


def test_an_exception_that_ends_the_block_gets_the_chain_as_a_note() -> None:
    model = Net("forward")
    optimizer = SGD(model)

    def run(last: int | None) -> None:
        with probe.track(model, optimizer=optimizer, last=last):
            model.step = 3
            if not model(torch.randn(7, 5)).isfinite().all():
                raise FloatingPointError("the loss is not finite")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FloatingPointError) as caught:
            run(21)
        assert caught.value.__notes__[0].startswith("depthgauge: step 0: the activation of 'second'")
        with pytest.raises(FloatingPointError) as caught:
            run(None)
        assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("tail", ["forward", "evaluation"])
def test_what_happens_after_the_last_step_is_told_at_the_end(tail: str) -> None:
    model = Net("forward")
    optimizer = SGD(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with probe.track(model, optimizer=optimizer, last=21) as own:
            train(model, optimizer, steps=2)
            model.step = 3
            if tail == "evaluation":
                model.second.weight.data.fill_(math.nan)
                model.eval()
            model(torch.randn(7, 5))
            assert not caught
    assert [str(each.message)[:6] for each in caught] == ["step 2"]
    assert own.first_nonfinite() is not None


@pytest.mark.parametrize("clears", [False, True])
def test_what_was_found_stays_where_each_step_is_cleared(clears: bool) -> None:
    model = Net("backward")
    optimizer = SGD(model)
    steps: list[set[int]] = []

    def write(own: probe.Record) -> None:
        steps.append(set(own.to_frame()["step"]))
        if clears:
            own.clear()

    with probe.track(model, optimizer=optimizer, last=30, on_step=write) as own:
        train(model, optimizer)
    first = own.first_nonfinite()
    assert first is not None
    assert steps == ([{0}, {1}, {2}, {3}] if clears else [{0}, {0, 1}, {1, 2}, {2, 3}])
    assert set(first.chain["step"]) == steps[-1]
    assert len(own) == (0 if clears else 30)


def test_last_below_one_ends_in_a_sentence() -> None:
    for last in (1.5, math.nan, True):
        with pytest.raises(ValueError, match="keeps no row"), probe.track(nn.Identity(), last=last):
            pass
    with pytest.raises(ValueError, match="last=0 keeps no row"), probe.track(nn.Identity(), last=0):
        pass


# What is not meant.


@pytest.mark.parametrize("last", [None, 40])
def test_minus_infinity_of_a_module_without_weights_may_be_a_mask(last: int | None) -> None:
    model = Net("mask")
    optimizer = SGD(model)
    with probe.track(model, optimizer=optimizer, last=last) as own:
        train(model, optimizer)
    assert (own.to_frame()["negative_infinities"] > 0).any()
    assert own.first_nonfinite() is None
    with probe.track(model, optimizer=optimizer, last=last) as own:
        model.second.weight.data.fill_(-3e38)  # an overflow, downwards only
        model(torch.full((1, 5), 1e9))
    first = own.first_nonfinite()
    assert first is not None
    assert (first.layer, first.kind) == ("second", "inf")


def scaled(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, steps: int, order: str) -> None:
    for _ in range(steps):
        if order == "first":
            optimizer.zero_grad()
        loss = model(torch.randn(7, 5)).square().mean() * 1e3
        if order == "between":
            optimizer.zero_grad()
        scaler.scale(loss).backward()
        optimizer.param_groups[0]["lr"] = 1e-6
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("last", [None, 21])
@pytest.mark.parametrize("order", ["first", "between"])
def test_a_step_that_a_scaler_skips_is_not_meant(order: str, last: int | None) -> None:
    """From a scale of 2^127, gradients are infinite at first, in steps that are skipped, or will be."""
    model = Net("forward")
    optimizer = SGD(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-4)
    with probe.track(model, optimizer=optimizer, scaler=scaler, last=last) as own:
        for _ in range(3):
            scaled(model, optimizer, scaler, 1, order)
            frame = own.to_frame()
        assert frame["skipped"].any()
        assert scaler.get_scale() < 2.0**127
        assert own.first_nonfinite() is None
        scaled(model, optimizer, scaler, 4, order)
        model.step = 3
        scaled(model, optimizer, scaler, 1, order)
    first = own.first_nonfinite()
    assert first is not None
    assert (first.step, first.layer, first.direction) == (7, "second", "activation")


def test_gradients_that_stay_infinite_down_to_loss_scale_one_are_meant() -> None:
    model = Net("backward")
    model.step = 3
    optimizer = SGD(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, backoff_factor=0.5)
    with probe.track(model, optimizer=optimizer, scaler=scaler, last=21) as own:
        scaled(model, optimizer, scaler, 8, "first")
    first = own.first_nonfinite()
    assert first is not None
    assert (first.step, first.layer, first.direction, first.kind) == (4, "second", "activation_gradient", "nan")


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_scaled_gradients_of_a_step_that_is_not_skipped_are_meant(with_optimizer: bool) -> None:
    model = Net("backward")
    optimizer = SGD(model)
    ends: list[int] = []
    with probe.track(
        model,
        optimizer=optimizer if with_optimizer else None,
        scaler=2.0**10,
        last=21,
        on_step=lambda own: ends.append(len(set(own.to_frame()["step"]))),
    ) as own:
        train(model, optimizer, steps=5)
    first = own.first_nonfinite()
    assert first is not None
    assert (first.step, first.layer, first.direction) == (3, "second", "activation_gradient")
    assert len(ends) == 4
    with probe.track(model, scaler=2.0**10) as own:
        model.step = 3
        model(torch.randn(7, 5)).sum().backward()
    first = own.first_nonfinite()
    assert first is not None
    assert first.step == 0


# Memory.


@pytest.mark.usefixtures("each_kernel")
def test_a_long_training_needs_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "NOTES", 20)
    model = Net("none")
    optimizer = SGD(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1, growth_factor=2.0**8)
    held, notes = [], []

    def look(own: probe.Record) -> None:
        held.append(own._kernels[0]._ledger.held)
        notes.append(len(own._scales) + len(own._skipped) + len(own._late))

    with probe.track(model, optimizer=optimizer, scaler=scaler, last=9, on_step=look) as own:
        scaled(model, optimizer, scaler, 240, "between")
    assert len(held) == 240
    assert max(held) < 9 + 1024 + 50
    assert max(notes) < 250  # of the steps whose rows are held; of all steps there are more than 400
    assert len(own) == 9
    assert own.to_frame()["step"].max() == 239
    assert own.first_nonfinite() is None
