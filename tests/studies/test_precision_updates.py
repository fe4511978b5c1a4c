"""Weights that take steps in a format, against closed forms and torch's own optimizer; verdicts on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from depthgauge import formats
from depthgauge.parts import Part
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.precision import updates
from depthgauge.studies.precision.steps import REMEDIES, Held, expected, layers
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status

STEPS, SMALL = 128, 2.0**-10  # of which 8 make one spacing of bfloat16 above 1


@pytest.fixture(scope="module")
def ends() -> dict[str, Held]:
    """4,096 weights of 1 after steps of `SMALL` each, in bfloat16."""
    held = {remedy: Held.of(torch.ones(1, 4096).double(), "bfloat16", remedy, [3]) for remedy in REMEDIES}
    for _ in range(STEPS):
        held = {remedy: one.plus(torch.full((1, 4096), SMALL).double()) for remedy, one in held.items()}
    return held


def test_small_steps_are_lost_to_nearest_and_kept_by_compensation(ends: dict[str, Held]) -> None:
    exact = 1 + STEPS * SMALL
    assert (ends["none"].weights == 1).all()
    for remedy in ("kahan", "master"):
        assert (ends[remedy].weights == exact).all()
        assert (ends[remedy].kept == exact).all()


def test_stochastic_rounding_moves_as_a_binomial(ends: dict[str, Held]) -> None:
    """Each step goes up by a spacing with probability 1/8; five standard errors of the mean of 4,096 weights."""
    spacing, chance = 2.0**-7, SMALL * 2.0**7
    jumps = (ends["stochastic"].weights - 1) / spacing
    error = math.sqrt(STEPS * chance * (1 - chance) / 4096)
    assert abs(float(jumps.mean()) - STEPS * chance) < 5 * error
    assert float(jumps.std()) == pytest.approx(error * 64, rel=0.1)


def test_a_step_without_a_remedy_is_that_of_torch_in_bfloat16() -> None:
    draws = generator(0, Purpose.WEIGHTS)
    w, gradient = (torch.randn(1, 20_000, generator=draws).bfloat16() for _ in range(2))
    parameter = torch.nn.Parameter(w.clone())
    parameter.grad = gradient
    torch.optim.SGD([parameter], lr=2.0**-8).step()
    ours = Held.of(w.double(), "bfloat16", "none", [0]).plus(-gradient.double() * 2.0**-8)
    assert torch.equal(ours.weights, parameter.detach().double())
    assert 0.1 < float((ours.weights == w).double().mean()) < 0.9


@pytest.mark.parametrize("fmt", updates.FORMATS)
def test_the_chance_of_every_update_adds_up(fmt: str) -> None:
    """Weights of both layers and updates of all sizes, drawn; five standard errors, and the table's steps."""
    draws, width, replicas = generator(1, Purpose.WEIGHTS), 16, 40
    parts = [torch.randn(replicas, a * b, generator=draws).double() * std for (a, b), std in layers(width)]
    w = formats.round(torch.cat(parts, 1), fmt)
    update = torch.exp2(-30 * torch.rand(w.shape, generator=draws).double())
    lost = (formats.round(w + update, fmt) == w).double().mean()
    assert float(lost) == pytest.approx(float(expected(fmt, update, width).mean()), abs=0.002 + 2.5 / w.numel() ** 0.5)


def rows(arrived: Callable[[str, str], float], lost: float = 0.0) -> Iterator[Rows]:
    """Two formats, every remedy, 12 seeds: what arrives, and by how much the unchanged share is off."""
    for fmt in ("bfloat16", "float8_e4m3fn"):
        for remedy in REMEDIES:
            for seed in range(12):
                params = {"optimizer": "adam", "lr": 1e-4, "format": fmt, "remedy": remedy, "seed": seed, "steps": 9}
                case, noise = Case.of({**params, "part": "updates"}), 1e-3 * math.sin(seed)
                yield case.rows("arrived", arrived(fmt, remedy) + noise)
                yield case.rows("seen", 1.0)
                yield case.rows("error", 0.0)
                if remedy == "none":
                    yield case.rows("unchanged", 0.5 + lost + noise)
                    yield case.rows("expected", 0.5)


@pytest.mark.parametrize(
    ("arrived", "arrival", "remedies"),
    [
        (lambda *_: 1.0, Status.HOLDS, Status.HOLDS),
        (lambda _, remedy: float(remedy != "none"), Status.FAILS, Status.HOLDS),
        (lambda fmt, remedy: float((fmt, remedy) != ("float8_e4m3fn", "kahan")), Status.HOLDS, Status.DEPENDS),
        (lambda *_: 0.2, Status.FAILS, Status.FAILS),
    ],
)
def test_verdicts_on_what_arrives(
    analysed: Callable[..., Any], arrived: Callable[[str, str], float], arrival: Status, remedies: Status
) -> None:
    said = analysed(updates.PART, rows(arrived)).statuses
    assert (said["arrival"], said["remedies"], said["real_updates"]) == (arrival, remedies, Status.HOLDS)


def test_real_updates_off_the_staircase_are_seen(analysed: Callable[..., Any]) -> None:
    said = analysed(updates.PART, rows(lambda *_: 1.0, lost=0.2)).statuses
    assert said["real_updates"] is Status.FAILS


def test_default_weight_decay_is_lost_in_sixteen_bits(analysed: Callable[..., Any]) -> None:
    part: Part = updates.PART
    cases = [
        case
        for grid in part.at("tiny")
        for case in grid.cases()
        if case.get("kind") == "decay" and case["size"] == updates.DEFAULT
    ]
    answers = analysed(part, part.run(cases, Context("cpu")))
    table = answers.tables["decay"].set_index("format")["value"]
    assert table["float32"] < 0.01
    assert table["bfloat16"] == table["float16"] == 1.0
