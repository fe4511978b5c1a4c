"""Is the learning rate right: sound ones, ones thirty times off, and what the optimizer's settings say."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import Training
from depthgauge.checking import Answer, Measure, check
from depthgauge.checking.questions import learning_rate
from depthgauge.checking.questions.learning_rate import branches, ladder, schedules
from depthgauge.checking.questions.learning_rate.judging import Evidence, judged, nothing
from depthgauge.checking.questions.learning_rate.learnt import learnt
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.questions.learning_rate.stability import stability
from depthgauge.checking.questions.learning_rate.warming import warmed
from depthgauge.checking.steps import losses, step

Optimizer = Callable[..., torch.optim.Optimizer]


def digits_like(batches: int = 24, examples: int = 32) -> list[tuple[Tensor, Tensor]]:
    """Four clouds of points in twelve dimensions."""
    draws = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(4, 12, generator=draws)
    found = []
    for _ in range(batches):
        classes = torch.randint(4, (examples,), generator=draws)
        found.append((centres[classes] + torch.randn(examples, 12, generator=draws), classes))
    return found


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def training(make: Optimizer = torch.optim.SGD, **settings: Any) -> Training:
    model = mlp()
    return Training(model, digits_like(), optimizer=make(model.parameters(), **settings))


def asked(which: Training) -> Answer:
    return check(which, only=["learning_rate"]).answers["learning_rate"]


def kinds_of(answer: Answer) -> set[str]:
    return {finding.kind for finding in answer.findings}


def faults_of(answer: Answer) -> set[str]:
    kinds = learning_rate.QUESTION.all_kinds
    return {finding.kind for finding in answer.findings if kinds[finding.kind].nature == "fault"}


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
        (torch.optim.Adam, {"lr": 1e-3}),
        (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}),
        (torch.optim.RMSprop, {"lr": 1e-3}),
    ],
    ids=["sgd", "nesterov", "adam", "adamw", "rmsprop"],
)
def test_a_sound_rate_has_no_fault(make: Optimizer, settings: dict[str, Any]) -> None:
    answer = asked(training(make, **settings))
    assert not faults_of(answer)
    assert settings["lr"] / 10 < answer.value < 40 * settings["lr"]
    assert math.isnan(answer.low) or answer.low < answer.value < answer.high
    assert answer.says.startswith(f"the rate {settings['lr']:.3g} takes the loss from ")


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["sgd", "adam"])
def test_a_rate_far_too_small_is_told_with_a_better_one(make: Optimizer) -> None:
    sound = 0.1 if make is torch.optim.SGD else 3e-3
    answer = asked(training(make, lr=sound / 100))
    assert faults_of(answer) == {"rate_too_small"}
    finding = answer.findings[0]
    assert finding.where == ("optimizer",)
    assert finding.tried is not None
    assert finding.tried.after < 0.7 * finding.tried.before
    assert finding.measure.value > 10
    assert sound / 10 < answer.value < 30 * sound
    assert f"set the learning rate to {answer.value:.2g}" in finding.advice


def test_a_rate_far_too_large_is_told_and_one_that_diverges_at_once() -> None:
    answer = asked(training(lr=6.0))
    assert faults_of(answer) <= {"rate_too_large", "diverges"}
    assert faults_of(answer)
    assert answer.status == "broken"
    assert answer.findings[0].measure.value < 0.3
    answer = asked(training(lr=1e5))
    assert faults_of(answer) == {"diverges"}
    assert "not finite" in answer.findings[0].text
    assert math.isfinite(answer.findings[0].tried.after)  # type: ignore[union-attr] # it was tried


def test_a_small_rate_is_sound_where_the_model_has_learnt() -> None:
    which = training(torch.optim.Adam, lr=1e-2)
    batches = which.first(24)
    for _ in range(3):
        for batch in batches:
            step(which, batch)
    tuned = Training(which.model, which.batches, optimizer=torch.optim.Adam(which.model.parameters(), lr=1e-6))
    answer = asked(tuned)
    assert not answer.findings
    losses = [tuned.value(batch).item() for batch in batches[:8]]
    assert learnt(tuned, batches[:8], losses)
    fresh = training(lr=0.1)
    assert not learnt(fresh, batches[:8], [fresh.value(batch).item() for batch in batches[:8]])


def test_a_loss_that_no_rate_lowers_is_no_progress() -> None:
    class Cut(nn.Module):
        """A model whose output hangs on one of its weights by a thread."""

        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.body(x)
            return output.detach() + 0 * output

    torch.manual_seed(0)
    model = Cut()
    answer = asked(Training(model, digits_like(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1)))
    assert faults_of(answer) == {"no_progress"}
    assert answer.status == "broken"


@pytest.mark.parametrize(
    ("make", "settings", "kind"),
    [
        (torch.optim.Adam, {"lr": 1e-3, "betas": (0.999, 0.9)}, "betas"),
        (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.999}, "momentum"),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.09}, "idle_momentum"),
        (torch.optim.AdamW, {"lr": 1e-6, "weight_decay": 1e-3}, "decay_lost"),
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 10.0}, "decay_dominates"),
        (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.5}, "decay_dominates"),
        (torch.optim.Adam, {"lr": 1e-3, "weight_decay": 100.0}, "decay_dominates"),
        (torch.optim.SGD, {"lr": 0.0}, "rate_zero"),
    ],
)
def test_settings_out_of_range_are_found(make: Optimizer, settings: dict[str, Any], kind: str) -> None:
    which = training(make, **settings)
    if not settings["lr"]:
        assert kinds_of(asked(which)) == {kind}
        return
    model = which.model
    rates = Rates.of(which.optimizer)
    gradients = check_gradients(which)
    found = [finding.kind for finding in learning_rate.groups.read(which, rates, gradients)]
    assert found == [kind]
    sound = type(which.optimizer)(model.parameters(), lr=settings["lr"])  # type: ignore[call-arg, arg-type, misc] # any of them
    assert not list(learning_rate.groups.read(Training(model, which.batches, optimizer=sound), rates, gradients))


def check_gradients(which: Training) -> Any:
    from depthgauge.checking.observing import look

    return look(which).gradients


def test_a_schedule_is_judged_at_its_peak() -> None:
    which = training(torch.optim.Adam, lr=3e-3)
    assert which.optimizer is not None
    scheduler = torch.optim.lr_scheduler.LinearLR(which.optimizer, start_factor=1e-4, total_iters=100)
    assert which.optimizer.param_groups[0]["lr"] < 1e-6
    answer = asked(which)
    assert not faults_of(answer)
    assert "the rate 0.003 (the peak of its schedule)" in answer.says
    assert scheduler.last_epoch == 0  # it is alive: without it nothing would step the rate (test_steps.py)


def test_the_largest_stable_rate_of_a_quadratic_is_two_over_its_curvature() -> None:
    x, draws = torch.diag(torch.tensor([3.0, 1.0, 0.5])), [torch.zeros(3, 1)]
    model = nn.Linear(3, 1, bias=False)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * functional.mse_loss(model(batch[0]), batch[1], reduction="sum")  # curvatures 9, 1 and 1 / 4

    for momentum, nesterov, limit in ((0.0, False, 2.0), (0.9, False, 3.8), (0.9, True, 3.8 / 2.8)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov)
        which = Training(model, [(x, draws[0])], loss, optimizer)
        found = stability(which, Rates.of(optimizer), which.first(), 30)
        assert found.value == pytest.approx(limit / 9, rel=1e-3)
        assert found.low <= found.value <= found.high
    whole = Training(model, [(x, draws[0])], loss, torch.optim.RMSprop(model.parameters()))
    assert "RMSprop" in stability(whole, Rates.of(whole.optimizer), whole.first(), 30).why


def test_the_training_is_left_as_it_was() -> None:
    which = training(torch.optim.AdamW, lr=1e-3)
    step(which, which.first()[0])
    assert which.optimizer is not None
    before = copy.deepcopy((which.model.state_dict(), which.optimizer.state_dict()))
    random = torch.get_rng_state()
    asked(which)
    after = (which.model.state_dict(), which.optimizer.state_dict())
    for one, two in zip(before[0].values(), after[0].values(), strict=True):
        assert torch.equal(one, two)
    assert str(before[1]) == str(after[1])
    assert torch.equal(random, torch.get_rng_state())


def test_what_has_no_rate_or_no_time_is_undecided() -> None:
    model = mlp()
    assert asked(Training(model, digits_like(2))).status == "undecided"
    lbfgs = asked(Training(model, digits_like(2), optimizer=torch.optim.LBFGS(model.parameters())))
    assert lbfgs.status == "undecided"
    assert "LBFGS" in lbfgs.says
    short = check(training(lr=0.1), only=["learning_rate"], budget=1e-3).answers["learning_rate"]
    assert short.status == "undecided"
    assert "larger budget" in short.says


def test_the_figure_shows_every_rate() -> None:
    answer = asked(training(lr=6.0))
    canvas = learning_rate.QUESTION.draw(answer)
    assert canvas is not None
    drawn = sum(len(line.get_xdata()) for line in canvas.axes[0].lines if line.get_marker() in {"o", "^"})  # type: ignore[arg-type] # numbers
    assert drawn == len(answer.tables["rates"])


def policy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A policy's loss, which has no floor."""
    states, actions = batch
    gain = (actions == 0).float() - 0.25
    return -(functional.log_softmax(model(states), 1).gather(1, actions[:, None]).squeeze(1) * gain).mean()


def test_no_rate_is_too_small_of_a_loss_without_a_floor_of_a_game_and_of_an_optimizer_that_warms_up() -> None:
    model, critic = mlp(), mlp()
    adam = torch.optim.Adam(model.parameters(), 1e-4)

    def fools(generator: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.softplus(-critic(batch[0] + generator(batch[0]).repeat(1, 3))).mean()

    for which in (
        Training(model, digits_like(), policy, adam),
        Training(model, digits_like(), fools, adam),
        training(torch.optim.RAdam, lr=1e-4),
    ):
        assert not faults_of(asked(which))


def test_no_rate_is_judged_of_a_loss_that_gains_weigh() -> None:
    """Its value lies about zero, and no fall of it is progress: neither is none of it a fault."""
    gains = torch.Generator().manual_seed(3)
    batches = [(x, torch.randn(len(x), 4, generator=gains)) for x, _ in digits_like(12)]

    def bandit(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        policy = torch.distributions.Categorical(logits=model(batch[0]))
        action = policy.sample()
        gain = batch[1].gather(1, action[:, None])[:, 0]
        return -(policy.log_prob(action) * gain).mean()

    for rate in (3e-3, 0.3):
        model = mlp()
        assert not faults_of(asked(Training(model, batches, bandit, torch.optim.Adam(model.parameters(), rate))))


def test_a_rate_that_shakes_a_training_late_is_too_large() -> None:
    """Adam gets far with it in the first steps, and noise keeps the loss up: smaller ones get further."""
    draws = torch.Generator().manual_seed(2)
    slopes = torch.randn(12, 1, generator=draws)
    inputs = torch.randn(60, 4, 12, generator=draws)
    batches = [(x, torch.tanh(x @ slopes)) for x in inputs]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(model(batch[0])[:, :1], batch[1])

    found = {}
    for rate in (1e-2, 0.15):
        model = mlp()
        which = Training(model, batches, loss, torch.optim.Adam(model.parameters(), rate))
        rates = Rates.of(which.optimizer)
        start = math.fsum(which.value(batch).item() for batch in batches[:8]) / 8
        found[rate] = branches.compared(which, rates, batches, 2000, start)
    assert not branches.too_large(found[1e-2])
    assert branches.recovers(found[1e-2])
    assert branches.too_large(found[0.15])
    assert found[0.15].best < 1
    assert found[0.15].late(1.0) > 2 * found[0.15].late(found[0.15].best)


def test_a_rate_is_not_too_small_whose_gain_is_of_batches_by_heart() -> None:
    """Labels that inputs hardly tell: a larger rate learns eight batches by heart, and nothing of new ones."""
    draws = torch.Generator().manual_seed(4)
    batches = [(torch.randn(16, 12, generator=draws), torch.randint(4, (16,), generator=draws)) for _ in range(96)]
    model = mlp()
    which = Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), 1e-5))
    assert not faults_of(asked(which))
    few = Training(mlp(), batches[:8])
    few = Training(few.model, few.batches, optimizer=torch.optim.Adam(few.model.parameters(), 1e-5))
    assert faults_of(asked(few)) == {"rate_too_small"}, "there are no other batches"


def test_a_rate_that_is_scaled_from_one_is_not_judged_and_one_that_warms_up_is_judged_with_its_warm_up() -> None:
    which = training(torch.optim.Adam, lr=1.0)
    torch.optim.lr_scheduler.LambdaLR(which.optimizer, lambda step: 1e-3 * min(1.0, (step + 1) / 100))  # type: ignore[arg-type] # there is one
    assert not faults_of(asked(which))
    which = training(torch.optim.SGD, lr=0.1)
    assert not branches.warming(Rates.of(which.optimizer))
    torch.optim.lr_scheduler.LinearLR(which.optimizer, start_factor=1e-3, total_iters=100)  # type: ignore[arg-type] # as above
    rates = Rates.of(which.optimizer)
    assert branches.warming(rates)
    grown = branches.grow(which, rates, which.first(8), (1.0,), steps=40, start=1.0)
    assert grown.losses[1.0][1] > 0.9 * grown.losses[1.0][0]
    assert grown.late(1.0) < 0.7 * grown.losses[1.0][0]


def test_a_loss_that_takes_gradients_of_its_own_has_its_rate_judged() -> None:
    def penalty(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0].clone().requires_grad_()
        scores = model(x)
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return functional.cross_entropy(scores, batch[1]) + slope.square().mean()

    model = mlp()
    answer = asked(Training(model, digits_like(), penalty, torch.optim.Adam(model.parameters(), 1e-2)))
    assert answer.status == "fine"


def test_a_ladder_that_was_cut_short_accuses_no_rate() -> None:
    """A rate that is too large: without the time for smaller ones, nothing is said of them."""
    user = training(torch.optim.Adam, lr=3.0)
    rates = Rates.of(user.optimizer)
    one = ladder.climb(user, rates, user.first(8), 6, lambda _: False)
    assert not one.whole
    seen = Evidence(rates, one, None, "", Measure())
    assert nothing(one)
    assert [finding.kind for finding in judged(seen)] == ["not_measured"]
    going = itertools.chain([True, True], itertools.repeat(False))
    down = ladder.climb(user, rates, user.first(8), 6, lambda _: next(going))
    factors = [rung.factor for rung in down.rungs]
    assert factors == pytest.approx([0.01, 0.1, 1.0]), "a rate that raises the loss is lowered first"


@pytest.mark.parametrize(("decay", "told"), [(0.5, True), (1e-2, False)])
def test_a_penalty_that_holds_the_loss_up_is_tried(decay: float, told: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=decay)
    found = check(Training(model, digits_like(), None, optimizer), only=["learning_rate"]).answers["learning_rate"]
    assert ("decay_dominates" in {each.kind for each in found.findings}) is told


def climbed(which: Training, factor: float, fall: float | None = None) -> tuple[Rates, ladder.Ladder, list[object]]:
    """One rung at so many times the peak; with a made-up fall where one is given, by way of a high loss."""
    assert which.optimizer is not None
    rates, batches = Rates.of(which.optimizer), list(which.batches)[:4]
    before = losses(which, batches)
    rung = ladder.rung(which, rates.times(factor), batches, ladder.STEPS, before)
    if fall is not None:
        rung = ladder.Rung(1.0, (50.0,) * ladder.STEPS, fall, 0.01)
    return rates, ladder.Ladder((rung,), ladder.STEPS, before), batches


def test_a_schedule_that_holds_the_rate_near_0_is_told_by_what_it_reaches() -> None:
    which = training(torch.optim.Adam, lr=3e-3)
    assert which.optimizer is not None
    which.optimizer.param_groups[0].update(lr=3e-7, initial_lr=3e-3)
    rates, rungs, batches = climbed(which, 1.0)
    (finding,) = schedules.low(which, rates, batches, rungs, 5)
    assert finding.kind == "idle_schedule"
    assert "of the best rate's fall" in finding.text
    assert not list(schedules.low(which, rates, batches, replace(rungs, steps=3), 5))
    assert "no weight moves" in schedules.idle(rates, 5).text


def test_a_rise_at_the_start_that_a_warm_up_avoids_is_told() -> None:
    which = training(torch.optim.SGD, lr=0.1)
    rates, rungs, batches = climbed(which, 1.0, fall=-5.0)
    (finding,) = warmed(which, rates, batches, rungs)
    assert (finding.kind, finding.where) == ("warm_up", ("optimizer",))
    assert finding.tried is not None
    assert finding.tried.after < finding.tried.before
    _, well, _ = climbed(which, 1.0, fall=1e9)
    assert not list(warmed(which, rates, batches, well))
    _, calm, _ = climbed(which, 1e-6)
    assert not list(warmed(which, rates, batches, calm))


def test_branches_differ_where_one_is_lower_in_each_block() -> None:
    draws = torch.Generator().manual_seed(0)
    low = (0.5 + 0.01 * torch.randn(192, generator=draws)).tolist()
    jumping = [each + (100.0 if place == 150 else 0.2) for place, each in enumerate(low)]
    noisy = (torch.tensor(low)[torch.randperm(192, generator=draws)] + 0.001).tolist()
    seen = branches.Branches({0.1: tuple(low), 1.0: tuple(jumping)}, 192, 3.0)
    assert seen.clear
    assert branches.too_large(seen)
    assert not branches.Branches({0.1: tuple(low), 1.0: tuple(noisy)}, 192, 3.0).clear
