"""Steps in narrow formats: updates that are lost, gradients that are clipped, scales that are looked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_trainings import adam, asked, batches, faults, network
from torch import Tensor, nn
from torch.nn import functional

import depthgauge
from depthgauge import Training


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


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
            elif act == "a":  # by the weights' norm, as adaptive clipping does
                for each in held:
                    nn.utils.clip_grad_norm_([each], 0.1 * max(each.detach().norm().item(), 1e-3))
            else:
                for each in held:
                    each.grad.div_(self.scale)
        super().step(closure)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("order", "scale", "found"), [
    ("cu", 65536.0, True), ("cu", 256.0, True), ("uc", 65536.0, False), ("u", 65536.0, False), ("c", 1.0, False),
    ("au", 65536.0, True), ("ua", 65536.0, False), ("ua", 1024.0, False),
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


def test_hooks_that_clip_what_is_scaled() -> None:
    model = network()
    for each in model.parameters():
        each.register_hook(lambda gradient: gradient.clamp(-1, 1))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return 65536.0 * functional.cross_entropy(model(batch[0]), batch[1])

    answer = asked(Training(model, batches(), loss, Clipping(model.parameters(), 65536.0, "u")))
    assert faults(answer) == {"clipped_scaled": ("optimizer",)}


class Growing(nn.Module):
    """Multiplies by a number in float16 that a large rate drives up."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(200.0))

    def forward(self, x: Tensor) -> Tensor:
        return ((self.factor.half() * x.half()).square().float() + 1).log()


def test_an_overflow_of_a_later_step_is_found() -> None:
    torch.manual_seed(1)  # a head that asks for larger numbers
    model = nn.Sequential(Growing(), nn.Linear(16, 1))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model[1](model[0](batch[0].clamp(-1, 1))) - 20).square().mean()

    optimizer = torch.optim.Adam(
        [{"params": [model[0].factor], "lr": 10.0}, {"params": model[1].parameters()}], lr=1e-3
    )
    answer = asked(Training(model, batches(), loss, optimizer))
    assert faults(answer)["overflow"] == ("0",)
    assert "float32" in answer.findings[0].text
