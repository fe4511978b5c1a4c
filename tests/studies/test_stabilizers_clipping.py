"""Clipped gradients: bounds and training against torch by hand, the exact point of rest, made-up rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate

from depthgauge import models, replicas, theory
from depthgauge.data import Examples
from depthgauge.studies.stabilizers import clip_bias, clipped, clipping
from depthgauge.studies.stabilizers.clipped import Clipping
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status


@pytest.mark.parametrize("way", [Clipping("none"), Clipping("norm", 0.5), Clipping("value", 0.02)])
def test_a_replica_is_trained_as_torch_trains_it(way: Clipping) -> None:
    template = models.build("mlp", input_shape=(6,), classes=3, depth=2, width=5)
    stack = replicas.stack(template, [4, 5])
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    trained, cut, _ = clipped.train(stack, Examples(x, y), torch.tensor([0.3, 0.1]), way, batch=8, steps=6)
    alone, bitten = stack.module(1), 0
    sgd = torch.optim.SGD(alone.parameters(), 0.1)
    for indices in replicas.order(5, 40, 8, 6):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(alone(x[indices]), y[indices]).backward()
        before = torch.nn.utils.get_total_norm([each.grad for each in alone.parameters() if each.grad is not None])
        if way.way == "norm":
            torch.nn.utils.clip_grad_norm_(alone.parameters(), way.level)
        elif way.way == "value":
            torch.nn.utils.clip_grad_value_(alone.parameters(), way.level)
        after = torch.nn.utils.get_total_norm([each.grad for each in alone.parameters() if each.grad is not None])
        bitten += int(after < 0.99 * before)
        sgd.step()
    for here, there in zip(trained.module(1).parameters(), alone.parameters(), strict=True):
        assert torch.allclose(here, there, atol=1e-5)
    assert float(cut[1]) == pytest.approx(bitten / 6)
    assert torch.equal(
        next(iter(stack.parameters.values())), next(iter(replicas.stack(template, [4, 5]).parameters.values()))
    )


def test_adaptive_bounds_hold_for_every_unit_and_normalized_gradients_have_norm_one() -> None:
    weights = [torch.randn(2, 4, 3), torch.zeros(2, 4)]
    gradients = [10 * torch.randn(2, 4, 3), torch.randn(2, 4)]
    bounded = Clipping("adaptive", 0.1)(gradients, weights)
    assert torch.allclose(bounded[0].norm(dim=2), 0.1 * weights[0].norm(dim=2))
    assert torch.allclose(bounded[1].norm(dim=1), torch.full((2,), 0.1 * clipped.FLOOR))
    assert torch.allclose(clipped.norms(Clipping("normalized")(gradients, weights)), torch.ones(2))
    assert torch.equal(Clipping("adaptive", 1e9)(gradients, weights)[0], gradients[0])


@pytest.mark.parametrize("name", list(clip_bias.LAWS))
def test_the_expected_clipped_gradient_is_the_integral_over_the_law(name: str) -> None:
    law = clip_bias.LAWS[name]
    found = theory.clipped_mean(law.cdf, 0.3, 1.5)
    direct = integrate.quad(lambda u: np.clip(0.3 - law.inverse(u), -1.5, 1.5), 0, 1, limit=200)[0]
    assert found == pytest.approx(direct, abs=1e-4)
    rest = theory.clipped_rest(law.cdf, 1.5)
    assert theory.clipped_mean(law.cdf, rest, 1.5) == pytest.approx(0, abs=1e-9)
    assert (abs(rest) < 1e-6) == law.symmetric
    with pytest.raises(ValueError, match="clipped at 0"):
        theory.clipped_mean(law.cdf, 0.0, 0.0)


def test_clipping_before_unscaling_clips_at_the_bound_over_the_scale() -> None:
    found = clip_bias.clipped_scaled(3, 256.0)
    assert found["gradient"] > 1
    assert found["right"] == pytest.approx(1.0, rel=1e-4)
    assert found["wrong"] == pytest.approx(1 / 256, rel=1e-4)
    assert found["predicted"] == 1 / 256


def made_up(wider: float, other: float | None = None) -> Iterator[Rows]:
    """Losses of networks that learn at 4 rates without clipping, and at `wider` times as many with it.

    With an `other` there is a second way, of which that many are for seeds that choose, as many as without for others.
    """
    ways = ("none", "norm 1") if other is None else ("none", "norm 1", "value 1")
    for network in clipping.NETWORKS:
        for way in ways:
            for seed in (-2, -1, *range(8)):
                times = {"none": 1.0, "norm 1": wider, "value 1": (other or 1.0) if seed < 0 else 1.0}[way]
                for k, lr in enumerate(clipping.RATES):
                    learns = 5 <= k < 5 + 4 * times + (seed % 2)
                    parameters = {"part": "clipping", "network": network, "way": way, "lr": lr, "seed": seed}
                    case = Case.of({**parameters, "width": 8, "steps": 4, "batch": 32})
                    loss = 0.2 + 0.01 * k if learns else math.nan if k > 10 else 2.0
                    for metric, value in (("loss", loss), ("clipped", 0.5), ("kept", 0.7)):
                        yield case.rows(metric, value)


def test_wider_windows_hold_the_claim_and_equal_ones_refute_it(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    wide = analysed(clipping.PART, made_up(2.0))
    assert wide.statuses["N07"] is Status.HOLDS
    assert any("50% of the steps" in text for text in wide.sentences)
    assert analysed(clipping.PART, made_up(1.0)).statuses["N07"] is Status.FAILS


def test_the_widest_window_is_chosen_by_seeds_that_are_not_reported(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(clipping.PART, made_up(1.5, other=2.0))
    told = "without clipping and over 4.5 with value clipping at 1, which other seeds had as the widest of 2 ways"
    assert all(told in text for text in answers.sentences)
    assert answers.verdicts["N07"].says.startswith("true for 1, false for 1 of 2 ways in the explosive network; ")


def test_undecided_ways_are_counted_with_what_they_change(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    verdict = analysed(clipping.PART, (row for row in made_up(1.25))).verdicts["N07"]
    assert (
        verdict.says
        == "undecided for 1 of 1 ways in the explosive network; undecided for 1 of 1 ways in the tame network"
    )
    assert "the undecided change it by +1.0 to +1.0 in the explosive network" in verdict.why


def rested(shift: float) -> Iterator[Rows]:
    for law in clip_bias.LAWS:
        for seed in range(10):
            case = Case.of({"part": "clip_bias", "law": law, "largest": 1.0, "steps": 9, "kind": "rest", "seed": seed})
            yield case.rows("rest", theory.clipped_rest(clip_bias.LAWS[law].cdf, 1.0) + shift + 1e-3 * (seed - 4.5))
            yield case.rows("cut", 0.3)


def test_a_point_of_rest_elsewhere_refutes_theory(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    assert analysed(clip_bias.PART, rested(0.0)).statuses["clipping_bias"] is Status.HOLDS
    assert analysed(clip_bias.PART, rested(0.2)).statuses["clipping_bias"] is Status.FAILS
    assert "rests within 0.0012 of it" in analysed(clip_bias.PART, rested(0.00123)).sentences[0]


def test_runs_that_diverged_stay_in_the_medians(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = [
        replace(row, value=math.nan)
        if row.metric == "loss" and row.case["way"] == "norm 1" and 0 <= row.case.integer("seed") < 5 else row
        for row in made_up(2.0)
    ]  # fmt: skip
    shares = analysed(clipping.PART, rows).tables["clip_shares"].set_index(["network", "way"]).loc[("tame", "norm 1")]
    assert (shares["loss"], shares["largest"], shares["smallest"]) == (math.inf, 0.0, math.inf)  # of 5 in 8
