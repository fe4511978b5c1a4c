"""All that a training's loss, optimizer and hooks reach is put back, and what is too large for it is told."""

from __future__ import annotations

import copy
import functools
import itertools
import sys
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import depthgauge
from depthgauge import Training, reaching
from depthgauge.checking import attributes, card
from depthgauge.checking.attributes import attributes_kept, left_changed
from depthgauge.checking.questions.reproducibility.calls import recorded
from depthgauge.checking.steps import step
from depthgauge.reaching import Reached

STEP, MEAN = 0, torch.zeros(())
Loss = Callable[[nn.Module, Any], Tensor]
Numbers = Callable[[], list[Any]]


def net(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


def plain(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def stepped(model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer | None = None) -> Training:
    batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(3)]
    training = Training(model, batches, loss, optimizer or torch.optim.Adam(model.parameters(), 0.01))
    with attributes_kept(training), training.untouched():
        for batch in training.first(3):
            step(training, batch)
    return training


# -- modules, optimizers, schedulers -----------------------------------------------------------------------------------


def gan(model: nn.Module) -> tuple[Loss, Numbers]:
    critic = net(2, 1)
    other = torch.optim.Adam(critic.parameters(), 0.1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        other.zero_grad()
        critic(model(batch[0]).detach()).mean().backward()
        other.step()
        return critic(model(batch[0])).mean()

    return loss, lambda: [*critic.parameters(), len(other.state), *(each.grad for each in critic.parameters())]


def teacher(model: nn.Module) -> tuple[Loss, Numbers]:
    follower = copy.deepcopy(model).requires_grad_(False)

    def follow(weights: Any) -> None:
        for ours, theirs in zip(follower.parameters(), weights, strict=True):
            ours.lerp_(theirs.detach(), 0.1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        follow(model.parameters())
        return plain(model, batch) + functional.mse_loss(model(batch[0]), follower(batch[0]))

    return loss, lambda: list(follower.parameters())


def hidden(model: nn.Module) -> tuple[Loss, Numbers]:
    model.others = [nn.BatchNorm1d(2)]

    def loss(model: Any, batch: Any) -> Tensor:
        return functional.cross_entropy(model.others[0](model(batch[0])), batch[1])

    return loss, lambda: [model.others[0].num_batches_tracked, model.others[0].running_mean]


@pytest.mark.parametrize("make", [gan, teacher, hidden])
def test_modules_and_optimizers_that_a_loss_reaches(make: Callable[[nn.Module], tuple[Loss, Numbers]]) -> None:
    model = net(4, 2)
    loss, numbers = make(model)
    before = copy.deepcopy(numbers())
    stepped(model, loss)
    assert all(a == b if a is None else bool(torch.as_tensor(a == b).all())
               for a, b in zip(before, numbers(), strict=True))  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_a_schedule_that_the_loss_steps() -> None:
    model = net(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    parts = [LinearLR(optimizer, 0.5, total_iters=2), CosineAnnealingLR(optimizer, 10)]
    schedule = SequentialLR(optimizer, parts, [2])
    before = copy.deepcopy(schedule.state_dict())

    def loss(model: nn.Module, batch: Any) -> Tensor:
        schedule.step()
        return plain(model, batch)

    stepped(model, loss, optimizer)
    assert schedule.state_dict() == before
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_an_average_that_a_hook_of_the_optimizer_makes() -> None:
    model = net(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    before = copy.deepcopy(average.state_dict())
    stepped(model, plain, optimizer)
    assert all(torch.equal(each, before[name]) for name, each in average.state_dict().items())


def test_a_hook_of_a_module() -> None:
    model, seen = net(4, 2), SimpleNamespace(calls=0)

    def count(*_: Any) -> None:
        seen.calls += 1

    model[0].register_forward_hook(count)
    stepped(model, plain)
    assert seen.calls == 0


# -- numbers by name ---------------------------------------------------------------------------------------------------


def warm() -> float:
    global STEP, MEAN  # noqa: PLW0603 - as a user's schedule has it
    STEP += 1
    MEAN = 0.9 * MEAN + STEP
    return min(1.0, STEP / 1000)


def twice(function: Loss) -> Loss:
    @functools.wraps(function)
    def both(model: nn.Module, batch: Any) -> Tensor:
        return function(model, batch) + 0 * sum(warm() for _ in range(2))

    return both


class Counting:
    calls = 0
    seen: tuple[int, ...] = ()

    @classmethod
    def count(cls) -> None:
        cls.calls += 1
        cls.seen = (*cls.seen, cls.calls)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self.count()
        return warm() * plain(model, batch)


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, batch: warm() * plain(model, batch),
        twice(plain),
        functools.partial(lambda scale, model, batch: scale() * plain(model, batch), warm),
        Counting().loss,
    ],
)
def test_globals_of_functions_that_the_loss_calls(loss: Loss) -> None:
    mean = MEAN
    stepped(net(4, 2), loss)
    assert (STEP, Counting.calls, Counting.seen) == (0, 0, ())
    assert MEAN is mean


def test_attributes_of_functions_and_of_other_modules_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    state: Any = ModuleType("state_of_the_users")
    state.step = 0
    monkeypatch.setitem(sys.modules, state.__name__, state)
    space: dict[str, Any] = {"state": state, "plain": plain}
    code = "def loss(model, batch):\n state.step += 1\n loss.step = getattr(loss, 'step', 0) + 1\n"
    exec(f"{code} return plain(model, batch)", space)  # a module of its own
    stepped(net(4, 2), space["loss"])
    assert state.step == 0
    assert not hasattr(space["loss"], "step")


# -- tensors of containers ---------------------------------------------------------------------------------------------


class Slots:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Table(dict[str, int]):
    def __setitem__(self, name: str, value: int) -> None:
        super().__setitem__(name.upper(), value)


def test_arrays_slots_and_containers_of_the_users() -> None:
    array, slots, table, mapping = np.zeros(3), Slots(), Table(), UserDict(count=0)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        np.add(array, 1, out=array)
        slots.count += 1
        table["seen"] = slots.count
        mapping["count"] += 1
        return plain(model, batch)

    stepped(net(4, 2), loss)
    assert (array.tolist(), slots.count, table, mapping["count"]) == ([0, 0, 0], 0, {}, 0)


class Averaging:
    def __init__(self, model: nn.Module) -> None:
        self.shadow = {"weights": [each.detach().clone() for each in model.parameters()]}
        self.bank = torch.zeros(9000, 128)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        for ours, theirs in zip(self.shadow["weights"], model.parameters(), strict=True):
            ours.lerp_(theirs.detach(), 0.1)
        out = model(batch[0])
        value = functional.cross_entropy(out + self.bank[: len(out), :2], batch[1])
        self.bank[: len(out), :2] = out.detach()
        return value


def test_tensors_in_containers_and_larger_ones() -> None:
    model = net(4, 2)
    averaging = Averaging(model)
    stepped(model, averaging.loss)
    assert all(torch.equal(*pair) for pair in zip(averaging.shadow["weights"], model.parameters(), strict=True))
    assert not averaging.bank.any()


@pytest.mark.parametrize("large", [True, False])
def test_what_is_too_large_is_told(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(attributes, "LARGE", 10_000)
    model = net(4, 2)
    training = stepped(model, Averaging(model).loss)
    found = depthgauge.check(training, only=("reproducibility",), budget=2)
    told = "The check has left `loss.bank` changed: too large to be put back."
    assert (told in card.notes(found)) == large
    assert ("two equal runs: `loss.bank` is written to" in found.answers["reproducibility"].says) == large
    assert not {"unseeded", "order_of_sums"} & {each.kind for each in found.answers["reproducibility"].findings}


def test_a_module_that_is_too_large_is_not_copied_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "LARGEST", 16)
    model, large = net(4, 2), net(4, 4, 2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            large[1].bias += 1
        return plain(model, batch) + 0 * large(batch[0]).detach().mean()

    training = stepped(model, loss)
    found = Reached.of([model], loss, None, [])
    assert ([name for name, _ in found.large], found.modules) == (["large"], [])
    with attributes_kept(training), left_changed(training) as changed, training.untouched():
        training.value(training.first()[0])
    assert changed == ["large.1.bias"]
    monkeypatch.undo()
    assert Reached.of([model], loss, None, []).modules == [large]


# -- what is left alone ------------------------------------------------------------------------------------------------


def test_what_watches_a_training_is_none_of_its_objects() -> None:
    model = net(4, 2)
    training = Training(model, [(torch.randn(8, 4), torch.randint(2, (8,)))], plain)
    with recorded(model, lambda tensor: tensor.sum()) as events, attributes_kept(training), training.untouched():
        training.value(training.first()[0])
    assert events


def test_the_walk_ends() -> None:
    model: Any = net(4, 2)
    circle: dict[str, Any] = {"model": model, "step": warm}
    circle["self"] = model.circle = circle
    circle["gone"] = weakref.proxy(net(1, 1))  # which raises at any look

    def stream() -> Iterator[int]:
        yield 1

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return plain(model, batch) if circle and len(long) else loss(model, batch)

    long = [torch.zeros(1)] * 3 + [stream] * 30_000
    found = Reached.of([model], loss, None, iter([1]))
    assert not found.modules
    assert not found.iterates
    assert any(each is circle for each in found.containers)
    assert {name for name, _ in found.tensors} <= {"MEAN"}


def test_a_gan_whose_other_half_has_its_own_optimizer_is_sound() -> None:
    model = net(4, 2)
    found = depthgauge.check(stepped(model, gan(model)[0]), only=("signal", "reproducibility"), budget=3)
    kinds = {each.kind for answer in found.asked for each in answer.findings}
    assert not kinds & {"left_out", "not_in_optimizer", "unregistered", "unseeded", "order_of_sums"}
