"""The question of number formats: every fault is found and named, its sound twin is not accused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_trainings import adam, asked, batches, faults, network
from torch import Tensor, nn
from torch.nn import functional

import depthgauge
from depthgauge import Training, formats, probe
from depthgauge.checking import Status
from depthgauge.checking.questions.precision import QUESTION, asking
from depthgauge.checking.questions.precision import passes as running
from depthgauge.checking.questions.precision.operators import watched


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


def test_a_sound_training_is_fine_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MOST_FOR_LAYERS", math.inf)  # however slow this machine is now
    model = network()
    answer = asked(Training(model, batches(count=6), optimizer=adam(model)))
    assert not faults(answer)
    assert 0 < answer.low <= answer.value <= answer.high < 0.1  # bfloat16 has a unit of 2^-8
    assert "float32" in answer.says
    assert "bfloat16" in answer.says
    layers = answer.tables["layers"].set_index(["layer", "direction"])
    assert (
        layers.loc[("1", "forward"), "own"] < layers.loc[("0", "forward"), "own"]
    )  # a ReLU of a rounded input is exact
    drawn = QUESTION.draw(answer)
    assert drawn is not None
    assert len(drawn.axes[0].lines) == 5  # four directions, and the smallest normal number


class Scores(nn.Module):
    """Attention over the batch's rows whose scores are in float16."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.query = nn.Linear(16, 16)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        query = (self.size * self.query(x)).half()
        return (query @ query.T).float().softmax(-1) @ x


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_attention_that_overflows_is_named_and_float32_is_tried(size: float) -> None:
    model = nn.Sequential(Scores(size), nn.Linear(16, 4))
    answer = asked(Training(model, batches(), optimizer=adam(model)))
    if size == 1:
        assert not faults(answer)
        return
    assert faults(answer) == {"overflow": ("0",)}
    tried = answer.findings[0].tried
    assert tried is not None
    assert not math.isfinite(tried.before)
    assert math.isfinite(tried.after)


@pytest.mark.parametrize(("top", "kinds"), [(50_000.0, {"near_overflow"}), (10_000.0, {"headroom"}), (100.0, set())])
def test_room_below_the_largest_number_counts_no_masks(top: float, kinds: set[str]) -> None:
    class Capped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            half = (x / x.abs().max() * top).half()
            masked = half.masked_fill(half < 0, torch.finfo(torch.float16).min)
            return masked.clamp(min=0).float() / top

    model = nn.Sequential(Capped(), nn.Linear(16, 4))
    answer = asked(Training(model, batches(), optimizer=adam(model)))
    assert {finding.kind for finding in answer.findings} - {"slower_format"} == kinds


class Normed(nn.Module):
    """Root-mean-square normalization in float16, whose squares overflow and whose quotient hides it."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        x = (self.size * x).half()
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3)).float()


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_an_overflow_that_is_swallowed_is_found(size: float) -> None:
    model = nn.Sequential(nn.Linear(16, 16), Normed(size), nn.Linear(16, 4))
    answer = asked(Training(model, batches(), optimizer=adam(model)))
    assert faults(answer) == ({} if size == 1 else {"overflow": ("1",)})
    assert math.isfinite(
        depthgauge.check(Training(model, batches()), only="precision", budget=4).answers["precision"].value
    )


class Unit(nn.Module):
    def __init__(self, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.epsilon, self.dtype = epsilon, dtype

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return (x / (x.norm(dim=-1, keepdim=True) + self.epsilon)).float()


@pytest.mark.parametrize(
    ("epsilon", "dtype", "zeros", "status"),
    [
        (1e-8, torch.float16, True, Status.BROKEN),
        (1e-8, torch.float16, False, Status.LOOK),
        (1e-3, torch.float16, True, None),
        (1e-8, torch.bfloat16, True, None),
        (1e-8, torch.float32, True, None),
    ],
)
def test_an_epsilon_that_float16_loses(epsilon: float, dtype: torch.dtype, zeros: bool, status: Status | None) -> None:
    assert formats.round(1e-8, "float16") == 0
    assert formats.round(1e-8, "bfloat16") > 0
    model = nn.Sequential(Unit(epsilon, dtype), nn.Linear(16, 4))
    data = batches()
    if zeros:
        data[0][0][:3] = 0
    answer = asked(Training(model, data, optimizer=adam(model)))
    assert faults(answer) == ({} if status is None else {"lost_epsilon": ("0",)})
    if status is not None:
        assert answer.status is status


def root_of_zero(x: Tensor) -> Tensor:
    return x + (x - x).square().sum(-1, keepdim=True).sqrt()


def logarithm_of_zero(x: Tensor) -> Tensor:
    return (x.relu() * 0).log()


class Called(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(16, 16), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


@pytest.mark.parametrize("function", [root_of_zero, logarithm_of_zero])
def test_what_is_not_finite_is_named(function: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Linear(16, 16), Called(function), nn.Linear(16, 4))
    where = faults(asked(Training(model, batches(), optimizer=adam(model))))["nonfinite"]
    assert where[0].startswith("1")


def test_inputs_and_weights_that_are_not_finite() -> None:
    model, data = network(), batches()
    data[0][0][2, 3] = math.nan
    assert faults(asked(Training(model, data, optimizer=adam(model)))) == {"nonfinite": ("batches",)}
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf
    assert faults(asked(Training(model, batches()))) == {"nonfinite": ("2.weight",)}


def test_gradients_below_float16_are_counted() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return 1e-7 * functional.cross_entropy(model(batch[0]), batch[1])

    model = network()
    answer = asked(Training(model, batches(), loss, torch.optim.SGD(model.parameters(), lr=0.1)))
    assert "0.weight" in faults(answer)["underflow"]


def test_a_float32_pass_has_no_narrow_numbers() -> None:
    """Casts, autocast blocks and weights are all widened, and are what they were afterwards."""
    model = nn.Sequential(Scores(1.0), nn.Linear(16, 4)).bfloat16()
    training = Training(model, batches(), narrow_loss)
    with training.untouched(), watched(model) as seen:
        running.widen(training.modules)
        running.run(training, running.widened(training.first()[0]), running.wide())
    assert seen.made == {"float32"}
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    with training.untouched(), watched(model) as seen:
        training.value(training.first()[0])
    assert "bfloat16" in seen.made


def narrow_loss(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return functional.cross_entropy(model(batch[0].to(model[1].weight.dtype)).float(), batch[1])


def test_everything_is_put_back() -> None:
    model = network().bfloat16()
    optimizer = adam(model, lr=1e-5)
    training = Training(model, batches(torch.bfloat16), optimizer=optimizer)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    random, hooks = torch.get_rng_state(), [dict(each._forward_hooks) for each in model.modules()]
    enter = torch.autocast.__enter__
    asked(training)
    after = model.state_dict()
    assert all(torch.equal(each, after[name]) and each.dtype is after[name].dtype for name, each in before.items())
    assert not optimizer.state
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert all(each.grad is None for each in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert hooks == [dict(each._forward_hooks) for each in model.modules()]
    assert torch.autocast.__enter__ is enter


def test_what_is_compiled_is_recorded_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `probe.track` refuses the activations of what `torch.compile` has fused; importing that takes seconds."""
    track = probe.track

    def refusing(*args: Any, **settings: Any) -> Any:
        if settings.get("directions") is None:
            raise ValueError("torch.compile fuses the activations away")
        return track(*args, **settings)

    monkeypatch.setattr(probe, "track", refusing)
    model = network().bfloat16()
    for optimizer in (adam(model, lr=1e-5), None):
        training = Training(model, batches(torch.bfloat16), optimizer=optimizer)
        answer = asked(training)
        assert ("lost_updates" in faults(answer)) == (optimizer is not None)
        assert set(answer.tables["formats"]["direction"]) >= {"weight", "weight_gradient"}


def test_too_little_time_is_undecided() -> None:
    model = network()
    answer = asked(Training(model, batches(), optimizer=adam(model)), budget=1e-6)
    assert answer.status is Status.UNDECIDED
    assert "larger budget" in answer.advice
