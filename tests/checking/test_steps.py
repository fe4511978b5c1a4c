"""The optimizer's own step, schedules, averages of weights, modes of parts: planted faults beside their sound twins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from depthgauge import Training
from depthgauge.checking.observing import look
from depthgauge.checking.questions.data import parts, passing
from depthgauge.checking.questions.learning_rate import groups, schedules, stepping, still
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.questions.reproducibility.handing import handed_on
from depthgauge.checking.questions.signal import averages

Kinds = set[str]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(count)]


def walked(optimizer: Callable[[Any], torch.optim.Optimizer]) -> Kinds:
    model = network()
    training = Training(model, batches(), optimizer=optimizer(model.parameters()))
    before = copy.deepcopy(model.state_dict())
    made = stepping.walk(training, Rates.of(training.optimizer), training.first(3), lambda: 60.0)
    assert made.steps > 2 * stepping.FEWEST
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    return {each.kind for each in stepping.findings(made)}


class Plain(torch.optim.SGD):
    def zero_grad(self) -> None:  # type: ignore[override] # as many write it
        super().zero_grad()


class Kept(torch.optim.Adam):
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leave the gradients."""


class Pulled(torch.optim.SGD):
    """Every fifth step goes half the way back to where the last such step ended; `all_cleared` is what is left out."""

    def __init__(self, parameters: Any, all_cleared: bool) -> None:
        super().__init__(parameters, 0.01)
        self.slow = [each.detach().clone() for each in self.param_groups[0]["params"]]
        self.all_cleared, self.count = all_cleared, 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.all_cleared:
            super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.count += 1
        for slow, each in zip(self.slow, self.param_groups[0]["params"], strict=True):
            if self.count % 5 == 0:
                each.copy_(slow.lerp_(each, 0.5))


class InPlace(Kept):
    """The gradients themselves are the momentum: a step leaves nine tenths of them."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ARG002 - torch asks for it
        for each in self.param_groups[0]["params"]:
            each.sub_(0.01 * each.grad)
            each.grad.mul_(0.9)


class Gathering(torch.optim.SGD):
    """Moves weights by the sum of four gradients; `clear` is what is left out."""

    def __init__(self, parameters: Any, clear: bool) -> None:
        super().__init__(parameters, 0.01)
        self.sums: dict[Tensor, Tensor] = {}
        self.clear, self.micro = clear, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ARG002 - torch asks for it
        self.micro += 1
        for each in self.param_groups[0]["params"]:
            self.sums[each] = self.sums.get(each, torch.zeros_like(each)) + each.grad
        if self.micro % 4 == 0:
            for each, total in self.sums.items():
                each.sub_(0.01 * total)
            if self.clear:
                self.sums.clear()


class Skipping(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ARG002 - torch asks for it
        for each in self.param_groups[0]["params"]:
            if each.dim() == 1:
                each.sub_(0.01 * each.grad)


class Clamping(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for each in self.param_groups[0]["params"]:
            each.grad.clamp_(0, 1)
        super().step(closure)


class Cleared(torch.optim.Adam):
    """Adam whose moments are 0 after every step, or after every second one."""

    def __init__(self, parameters: Any, every: int) -> None:
        super().__init__(parameters, 0.01)
        self.every, self.count = every, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.count += 1
        for held in self.state.values():
            if self.count % self.every == 0:
                held["exp_avg"].zero_()
                held["exp_avg_sq"].zero_()


class Averaging(torch.optim.Optimizer):
    """Steps by an average of gradients times the rate; `how` it is multiplied, or what is kept instead."""

    def __init__(self, parameters: Any, how: str) -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.how = how

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ARG002 - torch asks for it
        for each in self.param_groups[0]["params"]:
            state = self.state[each]
            average = state.setdefault("average", torch.zeros_like(each))
            if self.how == "last step":
                average.copy_(0.01 * each.grad)
            elif self.how == "heavy ball":
                average.mul_(0.9).add_(each.grad, alpha=0.01)
            else:
                average.mul_(0.9).add_(each.grad, alpha=0.1)
                each.sub_((average if self.how == "in place" else average.clone()).mul_(0.01))
                continue
            each.sub_(average)


@pytest.mark.parametrize(("optimizer", "found"), [
    (lambda p: Averaging(p, "in place"), {"momentum_wiped"}), (lambda p: Averaging(p, "of a copy"), set()),
    (lambda p: Averaging(p, "heavy ball"), set()), (lambda p: Averaging(p, "last step"), set()),
    (lambda p: Pulled(p, all_cleared=False), {"endless_sum"}), (lambda p: Pulled(p, all_cleared=True), set()),
    (InPlace, set()), (Plain, set()),
    (lambda p: Cleared(p, 1), {"moments_cleared"}), (lambda p: Cleared(p, 2), set()),
    (Kept, {"endless_sum"}), (lambda p: Gathering(p, clear=False), {"endless_sum"}), (Skipping, {"never_moved"}),
    (Clamping, {"uneven_step"}), (lambda p: Gathering(p, clear=True), set()), (torch.optim.Adam, set()),
    (lambda p: torch.optim.SGD(p, 0.01, momentum=0.99, weight_decay=0.1), set()), (torch.optim.Rprop, set()),
    (lambda p: torch.optim.Adam(p, betas=(0.0, 0.9)), set()),
])  # fmt: skip
def test_the_step_as_a_black_box(optimizer: Callable[[Any], torch.optim.Optimizer], found: Kinds) -> None:
    assert walked(optimizer) == found


def test_a_schedule_that_nothing_steps() -> None:
    def warm(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)

    lost, kept = (torch.optim.SGD(network().parameters(), 0.1) for _ in range(2))
    warm(lost)
    scheduler = warm(kept)
    for optimizer, told in ((lost, True), (kept, False)):
        rates = Rates.of(optimizer)
        assert schedules.unsteered(optimizer, rates, rates.present) == told
        assert not schedules.unsteered(optimizer, rates, (0.001,))  # which own steps have raised
    assert scheduler.optimizer is kept
    third = torch.optim.SGD(network().parameters(), 0.1)
    torch.optim.lr_scheduler.LinearLR(third)  # from a third
    assert not schedules.unsteered(third, Rates.of(third), Rates.of(third).present)


def test_settings_that_undo_a_training() -> None:
    model = network()
    for settings, kind in (({"momentum": 0.9, "dampening": 1.0}, "dampened"), ({"maximize": True}, "maximizes")):
        training = Training(model, batches(), optimizer=torch.optim.SGD(model.parameters(), 0.1, **settings))
        seen, rates = look(training), Rates.of(training.optimizer)
        found = (*groups.read(training, rates, seen.gradients), *groups.maximizes(training, seen))
        assert {each.kind for each in found} == {kind}

    def reward(model: nn.Module, batch: Any) -> Tensor:
        return -functional.cross_entropy(model(batch[0]), batch[1])

    up = Training(model, batches(), reward, torch.optim.SGD(model.parameters(), 0.1, maximize=True))
    assert not list(groups.maximizes(up, look(up)))


@pytest.mark.parametrize(("rate", "found"), [(0.0, "group_at_zero"), (1e-9, "still_group"), (1e-3, "")])
def test_a_group_that_hardly_moves(rate: float, found: str) -> None:
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    parts_of = [{"params": model[0].parameters(), "lr": rate}, {"params": model[2].parameters()}]
    training = Training(model, batches(), optimizer=torch.optim.SGD(parts_of, 0.1))
    told = [each.kind for each in still.groups(training, Rates.of(training.optimizer))]
    assert told == [found] * bool(found)  # a lowest layer at 0 may be meant


@pytest.mark.parametrize(("share", "found"), [(0.0, {"still_average"}), (0.01, set()), (1.0, {"no_average"})])
def test_a_target_network_follows_by_an_average(share: float, found: Kinds) -> None:
    model = nn.ModuleDict({"online": nn.Linear(6, 4)})
    model["target"] = copy.deepcopy(model["online"]).requires_grad_(False)

    def loss(model: Any, batch: Any) -> Tensor:
        for kept, new in zip(model["target"].parameters(), model["online"].parameters(), strict=True):
            kept.data.mul_(1 - share).add_(share * new.data)
        return functional.mse_loss(model["online"](batch[0]), 0.9 * model["target"](batch[0]) + 1)

    training = Training(model, batches(), loss, torch.optim.SGD(model["online"].parameters(), 0.1))
    assert {each.kind for each in averages.findings(training)} == found


@pytest.mark.parametrize(("kept", "found"), [(0.999, {"still_average"}), (0.9, set())])
def test_an_average_in_bfloat16_that_rounds_away(kept: float, found: Kinds) -> None:
    model = nn.ModuleDict({"online": nn.Linear(6, 24)})
    model["target"] = copy.deepcopy(model["online"]).requires_grad_(False).to(torch.bfloat16)

    def loss(model: Any, batch: Any) -> Tensor:
        for own, new in zip(model["target"].parameters(), model["online"].parameters(), strict=True):
            own.data.mul_(kept).add_(new.data.to(own.dtype), alpha=1 - kept)
        return functional.mse_loss(model["online"](batch[0]), 0.9 * model["target"](batch[0].bfloat16()).float() + 1)

    training = Training(model, batches(), loss, torch.optim.SGD(model["online"].parameters(), 0.1))
    assert {each.kind for each in averages.findings(training)} == found


def test_a_target_network_that_is_copied_is_meant() -> None:
    model = nn.ModuleDict({"online": nn.Linear(6, 4)})
    model["target"] = copy.deepcopy(model["online"]).requires_grad_(False)

    def loss(model: Any, batch: Any) -> Tensor:
        model["target"].load_state_dict(model["online"].state_dict())
        return functional.mse_loss(model["online"](batch[0]), 0.9 * model["target"](batch[0]) + 1)

    assert not list(averages.findings(Training(model, batches(), loss, torch.optim.SGD(model.parameters(), 0.1))))


def _eval(model: nn.Sequential) -> nn.Module:
    whole = nn.Sequential(model, nn.Dropout(0.1))
    model.eval()
    return whole


def _momentum(value: float) -> Callable[[nn.Sequential], nn.Module]:
    def change(model: nn.Sequential) -> nn.Module:
        model[1].momentum = value
        return model

    return change


class Noise(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.rate, self.training)


@pytest.mark.parametrize(("change", "found"), [
    (_eval, {"part_in_eval"}), (_momentum(0.0), {"statistics_still"}), (_momentum(0.99), {"statistics_of_one_batch"}),
    (lambda model: nn.Sequential(Noise(0.97), model), {"heavy_noise"}), (_momentum(0.1), set()),
    (lambda model: nn.Sequential(Noise(0.1), model), set()),
])  # fmt: skip
def test_parts_and_their_modes(change: Callable[[nn.Sequential], nn.Module], found: Kinds) -> None:
    model = change(network())
    training = Training(model, batches(), optimizer=torch.optim.SGD(model.parameters(), 0.1))
    batch = training.first()[0]
    assert {each.kind for each in parts.findings(training, passing.make(training, batch), batch)} == found


class Remembering(nn.Module):
    def __init__(self, *, rows: bool) -> None:
        super().__init__()
        self.cell, self.head, self.rows = nn.GRUCell(6, 8), nn.Linear(8, 3), rows
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x, self.state)
        kept = state.detach()
        self.state = kept if self.rows else kept.mean(0).expand_as(kept)
        return self.head(state)


@pytest.mark.parametrize(("rows", "shuffle", "told"), [(True, True, True), (True, False, False), (False, True, False)])
def test_a_state_of_rows_that_goes_over_to_a_batch_drawn_at_random(rows: bool, shuffle: bool, told: bool) -> None:
    data = TensorDataset(torch.randn(64, 6), torch.randint(3, (64,)))
    training = Training(Remembering(rows=rows), DataLoader(data, 16, shuffle=shuffle))
    assert (handed_on(training) > 0) == told
