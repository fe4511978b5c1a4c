"""The question of number formats: every fault is found and named, its sound twin is not accused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import depthgauge
from depthgauge import Training, formats, probe
from depthgauge.checking import Answer, Status
from depthgauge.checking.questions.precision import KINDS, QUESTION
from depthgauge.checking.questions.precision import passes as running
from depthgauge.checking.questions.precision.operators import watched

FAULTS = {name for name, kind in KINDS.items() if kind.nature == "fault"}


def batches(dtype: torch.dtype = torch.float32, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(16 * count, 16, generator=generator)
    labels = rows[:, :4].argmax(1)
    return [(rows[i : i + 16].to(dtype), labels[i : i + 16]) for i in range(0, len(rows), 16)]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def asked(training: Training, budget: float = 4) -> Answer:
    return depthgauge.check(training, only="precision", budget=budget).answers["precision"]


def faults(answer: Answer) -> dict[str, tuple[str, ...]]:
    assert all(finding.kind in QUESTION.all_kinds for finding in answer.findings)
    return {finding.kind: finding.where for finding in answer.findings if finding.kind in FAULTS}


def adam(model: nn.Module, **settings: Any) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), **{"lr": 1e-3, **settings})


def test_a_sound_training_is_fine_with_figures() -> None:
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


def test_adam_in_float16_divides_by_zero() -> None:
    model = network().half()
    answer = asked(Training(model, batches(torch.float16), optimizer=adam(model)))
    assert "optimizer" in faults(answer)["lost_epsilon"]
    larger = network().half()
    assert not faults(asked(Training(larger, batches(torch.float16), optimizer=adam(larger, eps=1e-3))))


@pytest.mark.parametrize(("rate", "lost"), [(1e-5, True), (1e-2, False)])
def test_updates_below_the_last_place_of_bfloat16(rate: float, lost: bool) -> None:
    model = network().bfloat16()
    answer = asked(Training(model, batches(torch.bfloat16), optimizer=adam(model, lr=rate)))
    assert ("lost_updates" in faults(answer)) == lost
    if lost:
        finding = answer.findings[0]
        assert {"0.weight", "2.weight"} <= set(finding.where)
        assert finding.tried is not None
        assert finding.tried.after > finding.tried.before
        predicted = depthgauge.theory.lost_update_fraction("bfloat16", 0.14, rate)
        assert finding.measure.value == pytest.approx(predicted, abs=0.1)


class Master(torch.optim.SGD):
    """Keeps float32 copies of its weights, as a state of theirs."""

    def step(self, _: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for each in group["params"]:
                state = self.state[each]
                state.setdefault("master", each.detach().float().clone())
                state["master"] -= group["lr"] * each.grad.float()
                each.data.copy_(state["master"])


class Stochastic(torch.optim.SGD):
    """Rounds to a neighbour with the probability of the distance."""

    def step(self, _: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for each in group["params"]:
                moved = each.detach().float() - group["lr"] * each.grad.float()
                bits = moved.view(torch.int32) + torch.randint(0, 1 << 16, moved.shape, dtype=torch.int32)
                each.data.copy_((bits & ~0xFFFF).view(torch.float32))


@pytest.mark.parametrize("kind", [Master, Stochastic, torch.optim.SGD])
def test_what_rounding_takes_may_be_kept(kind: type[torch.optim.SGD]) -> None:
    model = network().bfloat16()
    answer = asked(Training(model, batches(torch.bfloat16), optimizer=kind(model.parameters(), lr=1e-4)))
    assert ("lost_updates" in faults(answer)) == (kind is torch.optim.SGD)


def test_float32_updates_are_the_rates_fault_alone() -> None:
    model = network()
    assert set(faults(asked(Training(model, batches(), optimizer=adam(model, lr=1e-11))))) == {"lost_updates"}
    warm = adam(model, lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(warm, lambda step: step / 1000)  # the first rate is 0
    assert not faults(asked(Training(model, batches(), optimizer=warm)))
    trained = torch.optim.SGD(model.parameters(), lr=1e-11)  # as with a gradient that has vanished
    assert not faults(asked(Training(model, batches(), optimizer=trained)))


class Clipping(torch.optim.SGD):
    def __init__(self, parameters: Any, scale: float, order: str, **settings: Any) -> None:
        super().__init__(parameters, lr=0.1, **settings)
        self.scale, self.order = scale, order

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [each for group in self.param_groups for each in group["params"]]
        for act in self.order:
            if act == "c":
                nn.utils.clip_grad_norm_(held, 0.5)
            else:
                for each in held:
                    each.grad.div_(self.scale)
        super().step(closure)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("order", "scale", "found"), [
    ("cu", 65536.0, True), ("cu", 256.0, True), ("uc", 65536.0, False), ("u", 65536.0, False), ("c", 1.0, False),
])  # fmt: skip
def test_clipping_before_unscaling(order: str, scale: float, found: bool, momentum: float) -> None:
    model = network()
    optimizer = Clipping(model.parameters(), scale, order, momentum=momentum, weight_decay=0.1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return scale * functional.cross_entropy(model(batch[0]), batch[1])

    answer = asked(Training(model, batches(), loss, optimizer))
    assert faults(answer) == ({"clipped_scaled": ("optimizer",)} if found else {})
    if found:
        assert f"{scale:.4g}" in answer.findings[0].text


class Searching(torch.optim.SGD):
    """Multiplies the loss by a scale, and lowers it where gradients overflow, as GradScaler does."""

    def __init__(self, parameters: Any, scale: float) -> None:
        super().__init__(parameters, lr=0.1)
        self.scale = scale

    def step(self, _: Any = None) -> None:  # type: ignore[override]
        held = [each for group in self.param_groups for each in group["params"]]
        if not all(each.grad.isfinite().all() for each in held):
            self.scale /= 64
            return
        for each in held:
            each.grad.div_(self.scale)
        super().step()


@pytest.mark.parametrize(("scale", "kinds"), [(2.0**26, {"scale_search"}), (2.0**8, set())])
def test_a_loss_scaler_that_searches_is_sound(scale: float, kinds: set[str]) -> None:
    model = network()
    optimizer = Searching(model.parameters(), scale)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return optimizer.scale * functional.cross_entropy(model(batch[0]), batch[1])

    answer = asked(Training(model, batches(), loss, optimizer))
    assert not faults(answer)
    assert kinds <= {finding.kind for finding in answer.findings} <= kinds | {"slower_format", "small_gradients"}
    assert optimizer.scale == scale


def test_a_scale_that_nothing_lowers_is_a_fault() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return 2.0**26 * functional.cross_entropy(model(batch[0]), batch[1])

    model = network()
    assert "overflow" in faults(asked(Training(model, batches(), loss, adam(model))))


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
