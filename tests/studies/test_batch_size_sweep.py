"""The sweep over batch sizes: both its stages at the tiny size, and its analysis where the answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch

from depthgauge import planning, replicas, theory
from depthgauge.parts import TINY
from depthgauge.reports import style
from depthgauge.studies.batch_size import best_rates, comparisons, hyperbola, noise_scales, planned, sweep, trained
from depthgauge.study import Context, Grid
from depthgauge.verdict import Status, Verdict

BATCH = (1, 4, 16, 64, 256, 1024)


def run(grids: tuple[Grid, ...]) -> list[Any]:
    chunks = [chunk for grid in grids for chunk in grid.chunks("batch_size")]
    return [row for chunk in chunks for row in sweep.run(chunk.cases, Context())]


@cache
def rows(tidy: Any) -> pd.DataFrame:
    first = run(sweep.PART.at(TINY))
    return tidy([*first, *run(sweep.PART.after(TINY, tidy(first)))])


def known(
    batch: tuple[int, ...] = BATCH, *, critical: float = 60.0, seeds: int = 8, least: float = 40.0
) -> hyperbola.Curve:
    """A curve that is a hyperbola, up to a spread of 2 %."""
    spread = np.exp(0.02 * np.random.default_rng(int(critical)).standard_normal((seeds, len(batch))))
    steps = theory.steps_at(batch, least, critical) * spread
    none = np.zeros(len(batch), dtype=bool)
    return hyperbola.Curve(
        batch, tuple(range(seeds)), steps, np.zeros(steps.shape, dtype=bool), none, np.ones(len(batch))
    )


def verdicts(answers: Any) -> dict[str, Verdict]:
    return {answer.id: answer for answer in answers if isinstance(answer, Verdict)}


@pytest.mark.slow
def test_both_stages_are_run_analysed_and_drawn(tidy: Any) -> None:
    found = list(sweep.analyse(rows(tidy)))
    tables = {answer[0]: answer[1] for answer in found if isinstance(answer, tuple)}
    given = verdicts(found)
    assert {hyperbola.HYPERBOLA.id, comparisons.COMPUTATION.id, noise_scales.PREDICTS.id} <= set(given)
    tuned = tables["tuned_runs"]
    assert set(tuned["seed"]) == set(range(5))
    assert tuned.groupby(["optimizer", "batch"])["lr"].nunique().eq(1).all()
    with style.drawing():
        drawn = {figure.name: figure.canvas for draw in sweep.PART.figures for figure in draw(tables)}
        assert {"steps_by_batch", "noise_track", "best_rates"} <= set(drawn)
        for canvas in drawn.values():
            assert isinstance(canvas, matplotlib.figure.Figure)
            assert style.png(canvas).startswith(b"\x89PNG")


@pytest.mark.slow
def test_runs_of_one_seed_begin_alike_in_every_group() -> None:
    grids = [grid for grid in sweep.PART.at(TINY) if "lr" in grid.varied]
    stacks = [trained.prepared(tuple(grid.cases())[:2], "cpu").stack for grid in grids]
    for stack in stacks[1:]:
        for name, values in stacks[0].parameters.items():
            assert torch.equal(values, stack.parameters[name])


def test_a_known_hyperbola_is_one_and_its_ends_are_predicted() -> None:
    found = {("mlp", "sgd"): known(), ("mlp", "momentum"): known(critical=120.0)}
    given = verdicts(hyperbola.described(found))
    assert given[hyperbola.HYPERBOLA.id].status is Status.HOLDS
    assert verdicts(planned.answers(found, {}))[planned.BATCHES.id].status is Status.HOLDS


def test_a_curve_that_is_none_is_refuted() -> None:
    curve = known()
    bent = hyperbola.Curve(
        curve.batch, curve.seeds, curve.steps * np.array([1, 1, 3, 1, 1, 1]), curve.late, curve.edge, curve.rates
    )
    given = verdicts(hyperbola.described({("mlp", "sgd"): bent}))
    assert given[hyperbola.HYPERBOLA.id].status in {Status.FAILS, Status.DEPENDS}


def test_a_larger_critical_batch_lengthens_and_equal_examples_are_equal_steps_at_the_smallest() -> None:
    plain = known(critical=60.0, least=40.0)
    longer = known(critical=240.0, least=10.0)  # the same least examples
    given = verdicts(comparisons.against_sgd({("mlp", "sgd"): plain, ("mlp", "momentum"): longer}))
    assert given[comparisons.LENGTHEN.id].status is Status.HOLDS
    assert given[comparisons.LENGTHEN.id].observed == pytest.approx(4, rel=0.1)
    assert given[comparisons.SMALL.id].status is Status.HOLDS
    same = verdicts(comparisons.against_sgd({("mlp", "sgd"): plain, ("mlp", "momentum"): plain}))
    assert same[comparisons.LENGTHEN.id].status is Status.FAILS


def test_what_is_saved_follows_from_the_curve() -> None:
    beyond = verdicts(comparisons.saved({("mlp", "sgd"): known(critical=5.0)}))
    assert beyond[comparisons.COMPUTATION.id].status is Status.HOLDS
    assert beyond[comparisons.STOPPED.id].status is Status.HOLDS
    before = verdicts(comparisons.saved({("mlp", "sgd"): known(critical=1e4)}))
    assert before[comparisons.COMPUTATION.id].status is Status.HOLDS  # as many examples: none saved
    assert before[comparisons.STOPPED.id].status is Status.FAILS


def test_censored_runs_and_edges_conclude_nothing() -> None:
    curve = known()
    late, edge = curve.late.copy(), curve.edge.copy()
    late[0, -1], edge[0] = True, True
    marked = hyperbola.Curve(curve.batch, curve.seeds, curve.steps, late, edge, curve.rates)
    assert verdicts(comparisons.saved({("mlp", "sgd"): marked}))[comparisons.STOPPED.id].status is Status.INCONCLUSIVE
    question = verdicts(hyperbola.described({("mlp", "sgd"): marked}))[hyperbola.HYPERBOLA.id]
    assert question.status is Status.INCONCLUSIVE


def marked(curve: hyperbola.Curve, *, late: bool = False, edge: bool = False, place: int = -1) -> hyperbola.Curve:
    """The curve with censored runs, or an open end of the rates, at one batch size."""
    ends, gone = curve.edge.copy(), curve.late.copy()
    ends[place], gone[0, place] = edge, late
    return replace(curve, edge=ends, late=gone)


@pytest.mark.parametrize("how", [{"late": True}, {"edge": True}])
def test_no_claim_of_a_curve_is_settled_by_its_bounds(how: dict[str, bool]) -> None:
    plain, longer = known(critical=60.0), known(critical=240.0, least=10.0)
    found = {("mlp", "sgd"): marked(plain, **how), ("mlp", "momentum"): longer}
    assert verdicts(comparisons.against_sgd(found))[comparisons.LENGTHEN.id].status is Status.INCONCLUSIVE
    alone = {("mlp", "sgd"): found["mlp", "sgd"]}
    answers = list(planned.answers(alone, {}))
    assert verdicts(answers)[planned.BATCHES.id].status is Status.INCONCLUSIVE
    table = dict(answer for answer in answers if isinstance(answer, tuple))["planned"]
    assert table["covered"].tolist() == [True, False]
    logs = pd.Series(np.log(60.0), index=plain.seeds)
    predicted = {("mlp", 4, each): noise_scales.Predicted(math.log(60.0), logs) for each in noise_scales.ESTIMATES}
    track = pd.DataFrame(
        [
            {"net": "mlp", "batch": 4, "step": 0, "seed": seed, **dict.fromkeys(noise_scales.METRICS, 1.0)}
            for seed in plain.seeds
        ]
    )
    for curves, status in (({("mlp", "sgd"): plain}, Status.HOLDS), (alone, Status.INCONCLUSIVE)):
        assert verdicts(noise_scales.answers(track, predicted, curves))[noise_scales.PREDICTS.id].status is status


def test_steps_that_rise_fall_no_longer() -> None:
    curve = known(critical=5.0)
    rising = replace(curve, steps=curve.steps * np.array([1, 1, 1, 1, 1, 1.5]))
    assert verdicts(comparisons.saved({("mlp", "sgd"): rising}))[comparisons.STOPPED.id].status is Status.HOLDS


def test_a_run_that_does_not_arrive_at_the_largest_batch_saves_nothing() -> None:
    """Its budget is an eighth of the steps before: half of the examples, were it all."""
    curve = known(critical=5.0)
    short = replace(curve, steps=curve.steps * np.array([1, 1, 1, 1, 1, 1 / 8]))
    for late, status in ((False, Status.FAILS), (True, Status.INCONCLUSIVE)):
        found = verdicts(comparisons.saved({("mlp", "sgd"): marked(short, late=late)}))
        assert found[comparisons.COMPUTATION.id].status is status


def test_tried_rates_count_a_run_that_did_not_arrive_as_later_than_all() -> None:
    runs = pd.DataFrame({
        "net": "mlp", "optimizer": "sgd", "batch": 4, "lr": 0.1, "seed": [-1, -2, 0], "steps": 900,
        "steps_to_target": [100.0, 900.0, 900.0], "reached": [1.0, 0.0, 0.0], "diverged": 0.0,
    })  # fmt: skip
    assert sweep.tried(runs)["median_steps"].tolist() == [math.inf]
    assert sweep.tried(runs.assign(reached=[1.0, 1.0, 0.0]))["median_steps"].tolist() == [900.0]


def test_a_best_rate_at_an_open_end_has_no_exponent() -> None:
    draws = np.random.default_rng(0).normal(0, 0.01, (5, len(BATCH)))
    pseudo = {("mlp", "sgd"): pd.DataFrame(np.log(BATCH) + draws, columns=list(BATCH))}
    for edge, status in ((False, Status.HOLDS), (True, Status.INCONCLUSIVE)):
        fits = {("mlp", "sgd"): marked(known(), edge=edge, place=0)}
        assert verdicts(best_rates.exponents(pseudo, fits))[best_rates.EXPONENTS.id].status is status
        ruled = verdicts(best_rates.saturating(
            {("mlp", "sgd"): pseudo["mlp", "sgd"][[1, 4]]},
            {("mlp", 4, "examples"): noise_scales.Predicted(math.log(1000.0), pd.Series([0.0]))}, fits,
        ))  # fmt: skip
        assert ruled[best_rates.SATURATES.id].status is status


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_exponent_of_a_power_law_is_found(power: float) -> None:
    """Scores are parabolas about B^power, with noise at the rates; the vertex lies between those that were tried."""
    rng, tried = np.random.default_rng(3), []
    for batch in BATCH:
        best = 0.037 * batch**power
        for lr in 0.01 * 2.0 ** np.arange(-4, 16):
            for seed in (-1, -2, -3, -4, -5):
                steps = math.exp(5 + math.log(lr / best) ** 2 + 0.02 * rng.standard_normal())
                tried.append(
                    {
                        "net": "mlp",
                        "optimizer": "sgd",
                        "batch": batch,
                        "lr": lr,
                        "seed": seed,
                        "steps_to_target": steps,
                        "reached": 1.0,
                    }
                )
    pseudo = best_rates.pseudo_values(best_rates.bests(pd.DataFrame(tried)))
    slopes = np.polyfit(np.log(BATCH), pseudo["mlp", "sgd"].to_numpy().T, 1)[0]
    # sd of a vertex of three points at 0.02 / sqrt(5): about 0.02; of the slope over ln 1024 the less
    assert slopes.mean() == pytest.approx(power, abs=0.02)
    assert np.exp(pseudo["mlp", "sgd"][1].mean()) == pytest.approx(0.037, rel=0.05)


def test_a_vertex_stays_beside_its_lowest_rate() -> None:
    rates = np.log([1.0, 2.0, 4.0])
    assert best_rates.vertex(rates, np.array([1.0, 0.0, 1.0])) == pytest.approx(math.log(2))
    assert best_rates.vertex(rates, np.array([2.0, 1.0, np.inf])) == pytest.approx(math.log(2))
    assert best_rates.vertex(rates, np.array([0.0, 1.0, 2.0])) == 0
    assert math.isnan(best_rates.vertex(rates, np.full(3, np.inf)))


def test_both_estimates_of_the_noise_agree_with_all_gradients() -> None:
    fit = trained.NETS["softmax"].load("cpu")
    part = type(fit)(fit.x[:60], fit.y[:60])
    stack = replicas.stack(trained.NETS["softmax"].build(fit), seeds=range(2))
    every = [torch.randperm(60, generator=torch.Generator().manual_seed(i))[: noise_scales.SMALL] for i in range(800)]
    found = noise_scales.gradients(stack, part, every)
    model = stack.module(0)
    each = []
    for x, y in zip(part.x, part.y, strict=True):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        each.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    gradients = torch.stack(each)
    assert found["noise_examples"][0] == pytest.approx(float(gradients.var(0, correction=0).sum()), rel=1e-4)
    assert found["signal_examples"][0] == pytest.approx(float(gradients.mean(0).square().sum()), rel=1e-4)
    # the mean square of 800 mini-batches of 16: a few per cent of the variance, which is 60 / 44 of what 16 leave of 60
    assert found["noise_batches"][0] == pytest.approx(found["noise_examples"][0], rel=0.12)


@pytest.mark.parametrize("base", [4, 64])
def test_a_constant_noise_scale_is_the_critical_batch(base: int) -> None:
    frame = pd.DataFrame(
        [
            {"seed": seed, "step": step, "arrival": 100.0, "noise_examples": 30.0, "signal_examples": 0.5}
            for seed in range(3) for step in (0, 10, 100)
        ]
    )  # fmt: skip
    assert noise_scales.critical(frame, base, "examples") == pytest.approx(60)


def test_a_network_is_predicted_from_its_noise_scale_and_one_batch_size() -> None:
    curve = known((16, 64, 256))
    logs = pd.Series(np.log(60.0), index=curve.seeds)
    found = {(planned.HELD, "sgd"): curve}
    guesses = list(planned.model(found, {(planned.HELD, 64, "examples"): noise_scales.Predicted(math.log(60.0), logs)}))
    assert [guess["batch"] for guess in guesses] == [16, 256]
    for guess in guesses:
        assert guess["predicted"] == pytest.approx(theory.steps_at(guess["batch"], 40, 60), rel=0.03)
        assert guess["covered"]
    assert planning.fit(curve.batch, curve.steps).steps(256) < guesses[0]["nearest"]


def test_sgd_alone_has_no_rival() -> None:
    assert not list(comparisons.against_sgd({("mlp", "sgd"): known()}))
