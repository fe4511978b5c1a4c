"""Plans: closed forms of the critical batch, linear regression of known noise scale, and what a user can get wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import depthgauge
from depthgauge import Training, nested, theory, timing
from depthgauge.parallel.links import Link
from depthgauge.planning import Plan, along, costs, plan, sharing
from depthgauge.planning.result import Point
from depthgauge.stats import Estimate
from depthgauge.timing.tensors import Alive
from depthgauge.workload import WorkloadError

FEATURES, NOISE = 8, 2.0


def regression(
    examples: int = 512, batch: int = 16, optimizer: Any = None, *, noise: float = NOISE, seed: int = 0
) -> Training:
    """Linear regression of Gaussian inputs from weights 0: y = x . 1 + noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, FEATURES, generator=generator)
    y = x.sum(1, keepdim=True) + noise * torch.randn(examples, 1, generator=generator)
    model = nn.Linear(FEATURES, 1, bias=False)
    nn.init.zeros_(model.weight)
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    return Training(model, batches, squared, optimizer and optimizer(model.parameters()))


def squared(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


# -- the critical batch ------------------------------------------------------------------------------------------------


def test_a_scale_that_stays_is_the_critical_batch() -> None:
    assert along.critical_batch([50.0] * 4, [0.25] * 4, 32) == pytest.approx(50, rel=1e-12)


def test_the_critical_batch_makes_the_sum_over_the_training_a_hyperbola() -> None:
    scales, shares, present = np.array([3.0, 40.0, 700.0]), np.array([0.2, 0.5, 0.3]), 16
    critical = along.critical_batch(scales, shares, present)
    least = shares / (1 + scales / present)
    for batch in (1, 16, 300, 1e6):
        wanted = float((least * (1 + scales / batch)).sum())  # steps, of one at the present batch size
        assert along.relative_steps(batch, present, critical) == pytest.approx(wanted, rel=1e-12)
        at_both = theory.steps_at([batch, present], least_steps=123.0, critical_batch=critical)
        assert along.relative_steps(batch, present, critical) == pytest.approx(at_both[0] / at_both[1], rel=1e-12)


def test_the_critical_batch_rises_with_every_scale() -> None:
    scales = [3.0, 40.0, 700.0]
    before = along.critical_batch(scales, [0.2, 0.5, 0.3], 16)
    for k in range(3):
        more = [*scales[:k], scales[k] * 1.5, *scales[k + 1 :]]
        assert along.critical_batch(more, [0.2, 0.5, 0.3], 16) > before


def test_steps_of_noise_alone_are_worth_nothing() -> None:
    almost = along.critical_batch([10.0, 1e12], [0.5, 0.5], 16)
    assert along.critical_batch([10.0, math.inf], [0.5, 0.5], 16) == pytest.approx(almost, rel=1e-6)
    assert along.critical_batch([math.inf, math.inf], [0.5, 0.5], 16) == math.inf
    assert along.relative_steps(64, 16, math.inf) == 0.25  # perfect scaling


def test_shares_of_the_steps_add_to_one() -> None:
    assert along.weights((10, 20, 40), 40).tolist() == pytest.approx([15 / 40, 15 / 40, 10 / 40])
    assert along.weights((10, 20, 40), 140).tolist() == pytest.approx([15 / 140, 65 / 140, 60 / 140])
    assert along.weights((0,), 7).tolist() == [1.0]


# -- a training of known noise scale -----------------------------------------------------------------------------------


def test_a_plan_of_linear_regression_has_its_noise_scale() -> None:
    """At distance d from the optimum: ((n + 1) d^2 + n s^2) / d^2 for n features and noise of variance s^2."""
    truth = FEATURES + 1 + NOISE**2  # d^2 is the number of features
    found = plan(regression(2048), batches=(16, 128), examples=2048)
    assert found.critical.low < truth < found.critical.high
    assert found.critical.value == pytest.approx(truth, rel=0.3)
    assert found.critical.n == 128  # gradients, each of 16 of the 2,048 examples
    assert {(point.examples, point.gradients) for point in found.points} == {(2048, 128)}
    row = found.rows[-1]
    assert row.steps.value == pytest.approx(1000 * (1 + found.critical.value / 128) / (1 + found.critical.value / 16))
    assert row.factor.value == pytest.approx(1000 / row.steps.value)
    largest = theory.scaled_rate([128, 16], largest_rate=1.0, noise_scale=found.critical.value)
    assert row.factor.value == pytest.approx(largest[0] / largest[1])
    assert row.steps.low < row.steps.value < row.steps.high
    assert row.factor.low < row.factor.value < row.factor.high


def test_rates_of_adam_go_by_the_root_of_those_of_sgd() -> None:
    linear, root = (
        plan(regression(optimizer=kind), batches=(16, 64), warm=0, steps=50)
        for kind in (sgd, lambda parameters: torch.optim.Adam(parameters, lr=0.003))
    )
    assert (linear.rule, root.rule) == ("linear", "square root")
    assert root.rows[-1].factor.value == pytest.approx(math.sqrt(linear.rows[-1].factor.value))
    assert root.rows[-1].rate.value == pytest.approx(0.003 * root.rows[-1].factor.value)
    assert linear.rows[0].rate.value == linear.rate == 0.01
    assert (linear.rows[0].factor.low, linear.rows[0].factor.high) == (1, 1)


def test_the_table_has_every_figure_with_its_ends() -> None:
    frame = depthgauge.plan(regression(optimizer=sgd), batches=(8, 32), devices=(1, 4), warm=4).to_frame()
    assert frame[["batch", "devices"]].to_numpy().tolist() == [[8, 1], [8, 4], [32, 1], [32, 4]]
    for name in ("steps", "examples", "step_seconds", "seconds", "learning_rate", "rate_factor"):
        assert (frame[f"{name}_low_95"] <= frame[name]).all()
        assert (frame[name] <= frame[f"{name}_high_95"]).all()
    assert frame["examples"].tolist() == pytest.approx((frame["batch"] * frame["steps"]).tolist())
    assert frame["seconds"].tolist() == pytest.approx((frame["step_seconds"] * frame["steps"]).tolist())


def test_devices_exchange_gradients_where_a_link_is_given() -> None:
    found = plan(regression(optimizer=sgd), batches=(64,), devices=(1, 4), warm=0, link="0.02,0.01")
    exchange = theory.allreduce_time(4 * FEATURES, 4, 0.02, 0.01)  # one bucket, of which nothing is hidden
    alone, together = (row.step_seconds for row in found.rows)
    assert alone.value < 0.1 < exchange < together.low < together.value < together.high
    assert [row.extrapolated for row in found.rows] == [False, True]
    assert found.to_frame()["extrapolated"].tolist() == [False, True]
    (told,) = (note for note in found.notes if note.startswith("Extrapolated"))
    assert "4 devices were not run" in told
    assert "alpha 0.02 s a message and beta 0.01 s a byte" in told
    assert "One flat link joins all devices" in told
    without = plan(regression(), batches=(4,), devices=(4,))
    assert any("no link was given" in note for note in without.notes)
    assert not any("Extrapolated" in note for note in without.notes)


def test_a_link_is_named_or_given() -> None:
    nvlink = Link.parse("nvlink")
    assert sharing.link_of("nvlink") == sharing.link_of(nvlink) == nvlink
    assert sharing.link_of(None) is None


def test_computing_hides_all_buckets_but_the_last() -> None:
    """A backward pass of two thirds of the step hides the others, or a part of them."""
    link, sizes = Link.parse("0,1e-9"), (2**20, 25 * 2**20, 3 * 2**20)
    last, every = (theory.allreduce_time(size, 8, 0.0, 1e-9) for size in (sizes[-1], sum(sizes)))
    for compute in (0.001, 0.03, 10.0):
        alone = Estimate(compute, 0.9 * compute, 1.2 * compute, 12, "median", "s")
        found = sharing.shared(alone, link, sizes, 8)
        assert found.value == pytest.approx(compute + max(last, every - compute * 2 / 3))
        assert found.low == pytest.approx(0.9 * compute + max(last, every - 0.9 * compute))
        assert found.high == pytest.approx(1.2 * compute + every)
        assert sharing.shared(alone, link, sizes, 1) == sharing.shared(alone, None, sizes, 8) == alone


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no DDP")
def test_buckets_are_those_of_ddp() -> None:
    mib = 2**18  # numbers of float32
    for counts in ([1], [10 * mib], [3, 30 * mib, mib, 12 * mib, 13 * mib, 5, mib - 5, 7], [mib // 2] * 9, [mib] * 30):
        tensors = [torch.empty(count) for count in reversed(counts)]
        own, _ = torch.distributed._compute_bucket_assignment_by_size(tensors, [2**20, 25 * 2**20])
        wanted = tuple(sum(4 * tensors[place].numel() for place in each) for each in own)
        assert sharing.buckets(4 * count for count in counts) == wanted


def test_a_link_without_intervals_is_said_to_have_none() -> None:
    points = Link("mine", Estimate(1e-5, math.nan, math.nan, 4, "points"), Estimate(1e-9, math.nan, math.nan, 4, ""))
    found = plan(regression(), batches=(16,), devices=(4,), warm=0, link=points)
    assert any("too few sizes to have intervals" in note for note in found.notes)


def test_time_and_cost_of_more_devices() -> None:
    found = plan(regression(optimizer=sgd), batches=(16, 64), devices=(1, 8), warm=0, link="100gbe")
    frame = found.to_frame()
    hours = frame["seconds"] * frame["devices"] / 3600
    assert frame["device_hours"].tolist() == pytest.approx(hours.tolist())
    assert (frame["device_hours_low_95"] <= frame["device_hours"]).all()
    for row in found.fastest:
        every = [each.seconds.value for each in found.rows if each.devices == row.devices]
        assert row.seconds.value == min(every)
    assert [row.devices for row in found.fastest] == [1, 8]
    assert found.bought.startswith("Fastest on 1 device batch ")
    assert found.bought.endswith(" device-hours (extrapolated)")
    assert f"{found.bought}." in str(found).splitlines()
    assert plan(regression(), batches=(16, 64)).bought == ""


def test_the_advice_is_one_line_with_a_number_its_interval_and_the_reason() -> None:
    found = plan(regression(1024, optimizer=sgd), devices=(1, 8), warm=1)
    row = next(row for row in found.rows if row.batch == 128)
    wanted = f"From batch 16 to 128, multiply the learning rate by {row.factor.value:.3g} [{row.factor.low:.3g}, "
    assert str(found).startswith(wanted)
    assert "not by 8, if 0.01 is the best rate at batch 16, as the gradient noise scale along the training" in str(
        found
    )
    assert " s on 8 devices in place of " in found.line
    assert found.line.endswith(" s on one")
    assert "\n" not in found.line
    assert str(found).splitlines() == [f"{found.line}.", f"{found.bought}.", *found.notes]
    with pytest.raises(ValueError, match=r"the plan has no batch size 5; it has 4, 8, 16, 32, 64, 128, 256"):
        found.advice(5)
    assert found.advice(16) == "Batch 16 is the present one: steps and learning rate stay"


def test_a_noise_scale_below_zero_is_told_by_its_lower_end() -> None:
    assert Point(100, 8.67, 5.1, 12.2, 60, 60).told == "8.67"
    assert Point(100, -368.0, 667.0, math.inf, 60, 60).told == "667 or more"


def test_without_a_signal_the_advice_is_undecided() -> None:
    """Labels of noise alone, at their best weights: no batch is large enough."""
    training = regression(64, noise=1.0)
    with torch.no_grad():
        training.model.weight.fill_(1.0)
    found = plan(training, batches=(128,))
    assert not found.decided
    assert found.critical.high == math.inf
    assert "undecided" in str(found)
    assert found.rows[0].steps.low == 1000 * 16 / 128  # perfect scaling at best
    assert found.rows[0].factor.high == 8


def test_an_optimizer_without_a_rule_gets_no_rate() -> None:
    found = plan(regression(optimizer=lambda p: torch.optim.Rprop(p, lr=0.1)), batches=(64,), warm=1)
    assert "no rule" in str(found)
    assert math.isnan(found.rows[0].rate.value)
    assert found.rows[0].steps.value > 0


# -- any training, left as it was --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Pair:
    x: Tensor
    y: Tensor


def parts(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Pair):
        return batch.x, batch.y
    return (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch[0], batch[1][0])


def test_the_memory_of_a_step_has_its_gradients_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA it is what the allocator has at its height beyond what it had before: here that of a made-up one."""
    with Alive() as heap:
        model = nn.Linear(100, 3)
        made = Training(model, [(torch.randn(2, 100), torch.randint(3, (2,)))])
        step = costs.step_of(made, made.first()[0], torch.optim.SGD(model.parameters(), lr=0.0))
        step()
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: setattr(heap, "peak", heap.now))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: heap.now)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: heap.peak)
        on_cuda = timing.peak_tensors(step, timing.Device("cuda"))
    assert on_cuda == timing.peak_tensors(step) > 4 * 3 * 101
    assert all(each.grad is None for each in model.parameters())


def test_an_example_takes_its_own_bytes_and_what_autograd_keeps_of_it() -> None:
    """Not all data of which a batch is a view, nor weights, frozen ones neither."""
    data, labels = torch.randn(1000, 8), torch.randint(2, (1000,))
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    model[2].requires_grad_(False)
    made = Training(model, [(data[:10], labels[:10])])
    made.value(made.first()[0])  # the first time it gets a copy, lest it writes
    assert costs._least_bytes(made) == 4 * 8 + 8 + 4 * 4 + 4 * 2  # the result of tanh, and that of log-softmax


@pytest.mark.parametrize("form", ["mapping", "nested", "dataclass", "iterator"])
def test_batches_of_any_form(form: str) -> None:
    tensors = regression(64).first(4)
    made: list[Any] = {
        "mapping": [{"x": x, "y": y} for x, y in tensors], "nested": [(x, [y]) for x, y in tensors],
        "dataclass": [Pair(x, y) for x, y in tensors], "iterator": [(x, [y]) for x, y in tensors],
    }[form]  # fmt: skip
    joined = costs.joined(made, 40)
    assert costs.examples_of(joined) == 40
    assert torch.equal(parts(joined)[0], torch.cat([x for x, _ in tensors])[:40])
    model = nn.Linear(FEATURES, 1)
    batches: Any = iter(made) if form == "iterator" else made

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = parts(batch)
        return (model(x) - y).square().mean()

    found = plan(Training(model, batches, loss, sgd(model.parameters())), batches=(16, 100), warm=2, examples=48)
    assert not math.isnan(found.rows[-1].seconds.value)


def state(training: Training) -> list[Any]:
    optimizer = training.optimizer
    assert optimizer is not None
    return [
        {name: value.clone() for name, value in training.model.state_dict().items()}, training.model.training,
        [(group["lr"], group["momentum"]) for group in optimizer.param_groups], len(optimizer.state),
        [p.grad for p in training.model.parameters()], torch.get_rng_state(),
    ]  # fmt: skip


def test_the_training_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    data = torch.utils.data.TensorDataset(torch.randn(96, FEATURES), torch.arange(96) % 3)
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(data, batch_size=12, shuffle=True, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    training = Training(model, loader, optimizer=optimizer)
    before, order = state(training), generator.get_state()
    found = plan(training, batches=(1, 12, 48), warm=5)
    after = state(training)
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name])
    assert before[1:-1] == after[1:-1]
    assert torch.equal(before[-1], after[-1])
    assert torch.equal(order, generator.get_state())
    assert math.isnan(found.rows[0].seconds.value)  # one example has no statistics of a batch
    assert any(note.startswith("A step on 1 example cannot be run: ValueError") for note in found.notes)


def test_the_same_training_gives_the_same_noise_scales() -> None:
    first, again = (plan(regression(optimizer=sgd), batches=(16,), warm=8) for _ in range(2))
    assert first.points == again.points
    assert [point.step for point in first.points] == list(range(1, 9))


def test_batches_of_one_example() -> None:
    found = plan(regression(64, batch=1), batches=(1, 4))
    assert found.present == 1
    assert found.rows[-1].steps.value > 250


def test_a_batch_beyond_memory_is_not_tried() -> None:
    found = plan(regression(), batches=(16, 10**12))
    assert math.isnan(found.rows[1].seconds.value)
    assert found.rows[1].steps.value > 0
    assert any("was not tried" in note for note in found.notes)


# -- what a user can get wrong -----------------------------------------------------------------------------------------


def scalars() -> Iterator[Any]:
    yield from [3.0, 4.0]


def diverging() -> Training:
    return regression(optimizer=lambda p: torch.optim.SGD(p, lr=1e30))


@pytest.mark.parametrize(
    ("made", "arguments", "told"),
    [
        (regression, {"batches": (0,)}, "batches are whole numbers from 1 on, such as (16, 64), not [0]"),
        (regression, {"batches": 16}, "batches are whole numbers from 1 on, such as (16, 64), not 16"),
        (regression, {"batches": ()}, "batches are whole numbers"),
        (regression, {"devices": (1.5,)}, "devices are whole numbers from 1 on"),
        (regression, {"batches": (3,), "devices": (2,)}, "no batch of [3] divides evenly among [2] devices"),
        (regression, {"steps": 0}, "steps is a whole number from 1 on, not 0"),
        (regression, {"warm": 3}, "without an optimizer no step can be taken"),
        (regression, {"examples": 1}, "examples is a whole number from 2 on, not 1"),
        (regression, {"link": "carrier pigeon"}, "'carrier pigeon' is no link: name one of nvlink, "),
        (regression, {"link": 1e10}, "link is a Link, its name, or 'alpha,beta' in seconds and seconds a byte"),
        (lambda: regression(1, 1), {}, "its batches hold one example"),
        (lambda: Training(nn.Linear(1, 1), scalars()), {}, "a batch is a float without any tensor"),
        (lambda: Training(nn.Linear(1, 1), []), {}, "its batches are empty"),
        (lambda: Training(nn.Linear(1, 1), [(torch.ones(2, 1), torch.ones(3))]), {}, "do not share a first dimension"),
        (lambda: Training(nn.Linear(2, 1), [(torch.ones(4, 1), torch.ones(4).long())]), {}, "a step of the training"),
        (lambda: Training(nn.Flatten(), [torch.ones(2, 1)]), {}, "the Flatten has no parameter that trains"),
        (lambda: regression(optimizer=torch.optim.LBFGS), {}, "a step of the training cannot be run: TypeError"),
        (diverging, {}, "gradients are not finite after"),
    ],
)  # fmt: skip
def test_what_a_user_can_get_wrong_is_one_sentence(made: Any, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(WorkloadError) as raised:
        plan(made(), **arguments)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_batches_that_cannot_be_joined_are_named() -> None:
    with pytest.raises(WorkloadError, match="cannot be joined: one is float32 2 x 3, another float32 2 x 4"):
        costs.joined([torch.ones(2, 3), torch.ones(2, 4)], 4)


def test_a_plan_without_tensors_is_plain_data() -> None:
    found: Plan = plan(regression(), batches=(16,))
    assert not list(nested.tensors(dataclasses.asdict(found)))
