"""What is seen of a step, against closed forms and torch's own rounding; verdicts on made-up rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depthgauge import probe
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.precision import loss_scales, passes
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status

CASE = Case.of({"part": "loss_scales", "network": "mlp", "seed": 0, "steps": 2, "batch": 32})


class Step:
    """One watched step of a small network, and the network as it was before."""

    def __init__(self, scale: float = 1.0) -> None:
        draws = generator(5, Purpose.INPUTS)
        self.x, self.y = torch.randn(32, 20, generator=draws), torch.arange(32) % 10
        self.model = nn.Sequential(nn.Linear(20, 200), nn.Tanh(), nn.Linear(200, 10))
        for weight in self.model.parameters():
            nn.init.normal_(weight, 0.0, 0.05, generator=draws)
        self.before = copy.deepcopy(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        with probe.track(self.model, optimizer=self.optimizer) as self.record:
            passes.backward(self.model, self.x, self.y, scale)
            self.optimizer.step()

    @property
    def gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self.model.parameters() if weight.grad is not None]


@pytest.fixture(scope="module")
def step() -> Step:
    return Step()


def values(rows: Iterable[Rows]) -> dict[tuple[str, str], float]:
    return {(row.metric, str(row.direction or row.layer)): float(np.max(row.value)) for row in rows}


def test_second_moments_vanish_below_two_to_the_minus_seven_and_a_half(step: Step) -> None:
    """(1 - b2) g^2 rounds to zero up to 2^-25: |g| up to 2^-12.5 / sqrt(0.001), which is 2^-7.517."""
    gradients = torch.cat([gradient.flatten() for gradient in step.gradients]).double()
    limit = 2.0**-12.5 / math.sqrt(1 - 0.999)
    assert math.log2(limit) == pytest.approx(-7.5, abs=0.02)
    expected = float((gradients.abs() <= limit).double().mean())
    assert 0.05 < expected < 0.95
    found = values(passes.losses(CASE, 0, step.record, step.optimizer))
    assert found["float16 under", "exp_avg_sq"] == pytest.approx(expected, abs=1.5 / len(gradients))
    assert found["float16 under", "weight_gradient"] == float((gradients.half() == 0).double().mean())


@pytest.mark.parametrize("power", [-12, -8, 22])
def test_the_map_is_torch_s_rounding(step: Step, power: int) -> None:
    rows = {row.metric: float(np.asarray(row.value)[0]) for row in passes.chart(CASE, step.record, ["0"])}
    outputs = step.record.fractions("float16", 2.0**power)
    outputs = outputs[(outputs["layer"] == "0") & (outputs["direction"] == "activation_gradient")].iloc[0]
    rounded = [(gradient * 2.0**power).half() for gradient in step.gradients[:2]]
    under = [float((one == 0).double().mean()) for one in rounded]
    over = [float(one.isinf().double().mean()) for one in rounded]
    assert max(*under, *over) > 0
    assert rows[f"float16 under at {power}"] == max(*under, outputs["under"])
    assert rows[f"float16 over at {power}"] == max(*over, outputs["over"])


@pytest.mark.parametrize(("gradient", "finite"), [(2.0**-7, True), (2.0**-8, False)])
def test_a_step_of_adam_in_float16_divides_by_zero_where_the_second_moment_vanishes(
    gradient: float, finite: bool
) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float16))
    weight.grad = torch.full_like(weight, gradient)
    torch.optim.Adam([weight]).step()
    assert bool(weight.isfinite().all()) is finite


def test_a_real_pass_is_as_its_own_record_says_and_not_as_another(step: Step) -> None:
    """A record of gradients 64 times as large takes the greatest scale 64 times too small: nothing overflows there."""
    own = list(passes.real(CASE, step.record, copy.deepcopy(step.before), step.x, step.y))
    assert [float(row.value) for row in own if row.metric == "as_predicted"] == [1.0] * 4
    assert [float(row.value) for row in own if row.metric == "overflows"] == [0.0, 0.0, 0.0, 1.0]
    assert max(float(row.value) for row in own if row.metric == "excess") <= passes.LOST
    other = passes.real(CASE, Step(64.0).record, copy.deepcopy(step.before), step.x, step.y)
    assert [float(row.value) for row in other if row.metric == "as_predicted"][-1] == 0.0


def rows(
    headroom: float, right: bool = True, excess: float = 0.0, moment: float = 0.5, first: float = 0.2
) -> Iterator[Rows]:
    for seed in range(9):
        case = Case.of({"part": "loss_scales", "network": "mlp", "seed": seed, "steps": 2})
        noise = 0.01 * math.sin(seed)
        for step in (0, 2):
            yield case.rows("headroom", headroom + noise, step=step)
            for end, value in (("least", 3.0 + seed % 2), ("greatest", 3.0 + seed % 2 + headroom)):
                found = value if headroom >= 0 else math.nan
                yield case.rows(f"float16 {end}", found, layer="a.weight", direction="weight_gradient", step=step)
            for kind in passes.KINDS:
                share = {"exp_avg_sq": moment, "exp_avg": first}.get(kind, 0.2) + noise * (kind == "exp_avg_sq")
                yield case.rows("float16 under", share, direction=kind, step=step)
        for place in passes.PLACES if headroom >= 0 else ():
            yield case.rows("overflows", float(place == "twice the greatest"), layer=place, step=0)
            yield case.rows("as_predicted", float(right), layer=place, step=0)
            yield case.rows("excess", excess, layer=place, step=0)


def test_verdicts_both_ways(analysed: Callable[..., Any]) -> None:
    part = loss_scales.PART
    good = analysed(part, rows(4.0)).statuses
    assert set(good.values()) == {Status.HOLDS}
    assert len(good) == len(part.claims)
    assert analysed(part, rows(-4.0)).statuses["loss_scale"] is Status.FAILS
    bad = analysed(part, rows(4.0, right=False, excess=0.05, moment=0.2)).statuses
    assert (bad["overflow"], bad["safe_scale"], bad["second_moment"]) == (Status.FAILS,) * 3
    # the first moment is one of a step's values, too
    assert analysed(part, rows(4.0, first=0.5)).statuses["second_moment"] is Status.FAILS


def test_networks_without_a_safe_scale_are_not_passed_over_in_silence(analysed: Callable[..., Any]) -> None:
    lost = (Case.of({**dict(row.case.params), "network": "lstm"}).rows(row.metric, math.nan, layer="a.weight",
            direction="weight_gradient", step=row.step) for row in rows(-4.0) if row.metric.startswith("float16 ")
            and not row.metric.endswith("under"))  # fmt: skip
    said = analysed(loss_scales.PART, [*rows(4.0), *lost]).verdicts
    for claim in ("overflow", "safe_scale"):
        assert said[claim].why.endswith("without a safe scale, and so without a pass, are lstm (9 of 9)")


class Grouped(nn.Linear):
    """A layer that tells its parameters as groups of an optimizer."""

    def parameters(self) -> Any:  # type: ignore[override]  # as users' modules do
        return [{"params": [self.weight]}, {"params": [self.bias], "weight_decay": 0.0}]


def test_layers_have_their_own_parameters_however_they_tell_them() -> None:
    assert list(passes.owners(nn.Sequential(Grouped(3, 2), nn.ReLU()))) == ["0"]


@pytest.mark.parametrize(("headroom", "least", "greatest"), [(4.0, 16.0, 128.0), (0.0, math.nan, math.nan)])
def test_scales_that_suit_every_seed(
    analysed: Callable[..., Any], headroom: float, least: float, greatest: float
) -> None:
    """Seeds begin at 2^3 and 2^4 in turn: with one safe scale each there is none for all."""
    table = analysed(loss_scales.PART, rows(headroom)).tables["loss_scales"]
    assert table["least"].tolist() == pytest.approx([least] * 2, nan_ok=True)
    assert table["greatest"].tolist() == pytest.approx([greatest] * 2, nan_ok=True)
    assert table["saved"].tolist() == [9, 9]
