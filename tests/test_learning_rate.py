"""The range test: quadratics whose lowest rate is known, any module and optimizer, and every way not to decide."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depthgauge import Training, learning_rate
from depthgauge.learning_rate import FACTOR, FRACTION, Found, judged, marks, rates_between, smoothed
from depthgauge.workload import WorkloadError

RATES = rates_between(1e-4, 100.0)


class Quadratic(nn.Module):
    """One weight vector; a batch is a curvature, a tensor of one number."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), start, dtype=torch.float64))


def energy(model: nn.Module, batch: Tensor) -> Tensor:
    weight = next(model.parameters())
    return batch.to(weight.dtype).mean() * weight.square().sum() / 2


def curvatures(values: list[float]) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


def quadratic(curvature: float = 1.0, batches: int = 8) -> Training:
    return Training(Quadratic(), curvatures([curvature] * batches), energy)


def descended(curvature: float, rates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Losses before each step of gradient descent from weights of 1 at rising rates, in closed form."""
    factors = np.concatenate([[1.0], np.cumprod(1 - rates[:-1] * curvature)])
    return 1.5 * curvature * factors**2


# -- the curve ---------------------------------------------------------------------------------------------------------


def test_rates_rise_by_one_factor_and_reach_the_last() -> None:
    assert RATES[0] == 1e-4
    assert RATES[-1] >= 100.0 > RATES[-2] / FACTOR
    np.testing.assert_allclose(np.diff(np.log(RATES)), math.log(FACTOR))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 5.0), (1.0, math.inf), (math.nan, 1.0)])
def test_rates_that_span_no_decade_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="ten times as large"):
        rates_between(low, high)


def test_a_centred_mean_keeps_straight_lines_and_what_is_not_finite() -> None:
    line = np.arange(20.0)
    np.testing.assert_allclose(smoothed(line)[2:-2], line[2:-2])
    cut = np.where(line < 15, line, np.nan)
    assert np.isfinite(smoothed(cut)).tolist() == (line < 15).tolist()


def test_the_curve_of_a_quadratic_is_read_where_its_formula_has_it() -> None:
    """The weight's factors are 1 - rate: its size falls up to a rate of 2, and is back where it was far beyond."""
    change = descended(1.0, RATES) - 1.5
    curve = marks(RATES, change, 1.5)
    assert curve.falls
    assert curve.rises
    assert 2.0 <= curve.lowest <= 2.0 * FACTOR**2  # the mean of five steps, its middle
    assert curve.steepest < curve.lowest
    assert curve.fall == pytest.approx(1.5, rel=0.01)


def test_batches_that_differ_do_not_look_like_a_fall() -> None:
    """What misleads a finder that looks at the losses: of batches ten times apart, while nothing is learnt."""
    losses = np.random.default_rng(0).uniform(1.0, 10.0, len(RATES))
    assert not marks(RATES, losses - losses, float(losses.mean())).falls


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", [0.5, 1.0, 40.0])
def test_what_is_found_scales_with_the_inverse_of_the_curvature(curvature: float) -> None:
    found = learning_rate.find(quadratic(curvature))
    assert not found.undecided
    assert found.low < found.value < found.high
    assert 2.0 / FACTOR <= found.value * curvature / FRACTION <= 2.0 * FACTOR**2
    np.testing.assert_allclose(
        found.change[0][:40] + 1.5 * curvature, descended(curvature, found.rates)[:40], rtol=1e-9
    )


def test_a_sweep_ends_where_the_loss_rises_however_far_it_falls() -> None:
    over = learning_rate.far([0.1, -3.0, 0.3, math.inf, -math.inf, math.nan], np.array([0.05, -0.1, 0.05]))
    assert over.tolist() == [False, False, True, True, True, True]
    below = Training(Quadratic(), curvatures([1.0] * 8), lambda model, batch: energy(model, batch) - 1.4)
    found, same = (learning_rate.find(each, low=0.02) for each in (below, quadratic()))  # one falls from 0.1 to -1.4
    assert found.suggestions == pytest.approx(same.suggestions)
    assert (found.low, found.high) == pytest.approx((same.low, same.high))


def test_repetitions_without_spread_leave_the_spread_of_the_rule() -> None:
    found = learning_rate.find(quadratic())
    assert len(set(found.suggestions)) == 1
    assert found.high / found.value == pytest.approx(found.value / found.low)
    rule = 2.0595 * learning_rate.SPREAD * math.sqrt(27 / 26)  # t(0.975, 25), and a 27th condition about the mean of 26
    assert math.log(found.high / found.value) == pytest.approx(rule, rel=1e-3)


def apart(*logs: float) -> Found:
    """The answer of repetitions whose curvatures are that far apart."""
    curvature = np.exp(logs)
    return judged(RATES, np.stack([descended(each, RATES) / each - 1.5 for each in curvature]), 1.5, 8)


def test_a_spread_of_the_repetitions_widens_the_interval() -> None:
    """To the root of the two squares: that of Student's t on logarithms, and that of the rule."""
    same, found = apart(0, 0, 0, 0, 0), apart(-0.6, -0.3, 0, 0.3, 0.6)
    assert not found.undecided
    own = np.log(found.suggestions).std(ddof=1) * 2.7764 / math.sqrt(5)  # t(0.975, 4)
    rule = math.log(same.high / same.value)
    assert math.log(found.high / found.value) == pytest.approx(math.hypot(own, rule), rel=1e-4)


def test_repetitions_that_disagree_decide_nothing() -> None:
    found = apart(-1, -0.5, 0, 0.5, 2)
    assert "differs by a factor of" in found.undecided
    assert math.isnan(found.value)
    assert str(found).startswith("learning rate undecided: ")


def test_a_sweep_that_ends_too_early_asks_for_a_higher_end() -> None:
    found = learning_rate.find(quadratic(), low=1e-3, high=0.5)
    assert "give a higher `high`" in found.undecided


def test_a_loss_that_does_not_fall_decides_nothing() -> None:
    found = learning_rate.find(Training(Quadratic(0.0), curvatures([1.0] * 8), lambda m, b: 1.0 + energy(m, b)))
    assert "falls at no rate" in found.undecided


def test_few_batches_decide_nothing() -> None:
    assert learning_rate.find(quadratic(batches=1)).undecided.startswith("1 batch is too few")
    assert learning_rate.find(quadratic(batches=4)).undecided.startswith("4 batches are too few")


def test_the_curve_is_a_table() -> None:
    found = learning_rate.find(quadratic())
    table = found.to_frame()
    assert list(table) == ["rate", "loss", "sd", "n"]
    assert table["n"].iloc[0] == 5
    assert table["loss"].iloc[0] == pytest.approx(1.5, rel=1e-3)
    assert table["rate"].is_monotonic_increasing
    assert table["sd"].max() < 1e-9 * table["loss"].max()


# -- a user's training -------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Batch norm and dropout: buffers and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def examples(count: int = 20, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=draws)
    labels = [torch.randint(3, (size,), generator=draws) for _ in range(count)]
    return [(centres[y] + 0.5 * torch.randn(size, 8, generator=draws), y) for y in labels]


def net() -> Net:
    torch.manual_seed(0)
    return Net()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3), foreach=False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_is_left_as_it_was(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1) if name == "SGD" else None
    training = Training(model, examples(), optimizer=optimizer)
    training.value(training.first()[0]).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, random = repr(optimizer.state_dict()), torch.get_rng_state()
    found = learning_rate.find(training)
    assert not found.undecided, found
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert repr(optimizer.state_dict()) == state
    assert torch.equal(torch.get_rng_state(), random)
    assert scheduler is None or scheduler.last_epoch == 0
    assert model.training


def test_the_same_call_finds_the_same() -> None:
    first, second = (learning_rate.find(Training(net(), examples())) for _ in range(2))
    assert first.suggestions == second.suggestions
    np.testing.assert_array_equal(first.change, second.change)
    assert learning_rate.find(Training(net(), examples()), seed=1).suggestions != first.suggestions


def test_groups_keep_the_ratios_of_their_rates() -> None:
    """A group at a tenth of the other's rate is swept at a tenth; the answer is the larger one's."""
    seen: set[float] = set()
    model = net()

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.add(round(self.param_groups[0]["lr"] / self.param_groups[1]["lr"], 9))
            return super().step(closure)

    optimizer = Watched(
        [{"params": model.body.parameters(), "lr": 0.01}, {"params": model.head.parameters(), "lr": 0.1}]
    )
    learning_rate.find(Training(model, examples(), optimizer=optimizer))
    assert seen == {0.1}


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    learning_rate.find(quadratic(), progress=lambda done, of: told.append((done, of)))
    assert told == [(k, 5) for k in range(1, 6)]


def test_no_more_batches_are_taken_than_a_sweep_has_steps() -> None:
    taken: list[int] = []

    def endless() -> Any:
        while True:
            taken.append(1)
            yield torch.tensor([1.0])

    found = learning_rate.find(Training(Quadratic(), endless(), energy), low=1e-2, high=10.0)
    assert len(taken) == found.batches == len(found.rates)


def stepped(make: Callable[[Any], torch.optim.Optimizer]) -> Training:
    model = Quadratic()
    return Training(model, curvatures([1.0] * 5), energy, make(model.parameters()))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (lambda: Training(nn.Linear(2, 2).requires_grad_(requires_grad=False), [torch.ones(1, 2)] * 5), "no parameter"),
        (
            lambda: Training(Quadratic(), curvatures([math.inf] * 5), energy),
            "the loss is inf before the first step",
        ),
        (lambda: Training(Quadratic(), [], energy), "empty"),
        (lambda: stepped(torch.optim.LBFGS), "closure"),
        (lambda: stepped(partial(torch.optim.SGD, lr=0.0)), "every rate"),
        (
            lambda: Training(Quadratic(), curvatures([1.0] * 5), energy, torch.optim.SGD([torch.ones(1)], lr=0.1)),
            "the optimizer holds no parameter of the model",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_tested_is_one_sentence(training: Any, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        learning_rate.find(training())


def test_four_repetitions_are_too_few() -> None:
    with pytest.raises(ValueError, match="whole number >= 5"):
        learning_rate.find(quadratic(), repetitions=4)


def test_a_transformer_of_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=11, n_positions=8)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.arange(8).repeat(4, 1)
    batches = [{"input_ids": (tokens + k) % 11, "labels": (tokens + k) % 11} for k in range(8)]
    found = learning_rate.find(Training(model, batches, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3)))
    assert isinstance(found, Found)
    assert not found.undecided, found
    assert 1e-4 < found.value < 1.0
