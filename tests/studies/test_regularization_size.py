"""Bounds and penalties, count and range, depth and width: networks by hand, and verdicts on made-up rows both ways."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from depthgauge import data
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.regularization import balls, fits, size
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status


@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_the_least_error_in_a_ball_is_that_of_the_penalty_whose_solution_touches_it(penalty: float) -> None:
    assert balls.apart(*balls.regression(30, 6, seed=1), penalty) < 1e-9
    assert balls.apart(*balls.regression(30, 6, seed=1), penalty, steps=1) > 1e-3  # it is descent that finds it


@pytest.mark.parametrize("depth", [1, 3])
def test_a_network_is_trained_as_it_would_be_alone(depth: int) -> None:
    plan = fits.Plan(width=5, depth=depth, steps=6, rate=0.01, penalty=0.01)
    ends = fits.networks(7, plan, [1, 2])[1]
    picked, labels, source = (generator(2, p) for p in (Purpose.SAMPLE, Purpose.LABELS, Purpose.WEIGHTS))
    train = data.load("digits").train
    order = torch.randperm(len(train), generator=picked)[:14].view(2, 7)
    noisy, other = torch.rand(2, 7, generator=labels) < 0.2, torch.randint(1, 10, (2, 7), generator=labels)
    drawn = [torch.randn(2, i, o, generator=source) * math.sqrt(2 / i) for i, o in itertools.pairwise(plan.sizes)]
    found = []
    for k in range(2):
        x, y = fits._inputs(train.x)[order[k]] / 8, (train.y[order[k]] + noisy[k] * other[k]) % 10
        layers = [torch.nn.Linear(i, o) for i, o in itertools.pairwise(plan.sizes)]
        for layer, matrix in zip(layers, drawn, strict=True):
            layer.weight.data, layer.bias.data = matrix[k].T * (8 if layer is layers[0] else 1), layer.bias.data * 0
        net = torch.nn.Sequential(*[m for layer in layers for m in (layer, torch.nn.ReLU())][:-1])
        adam = torch.optim.Adam(net.parameters(), 0.01)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 6)
        for _ in range(6):
            adam.zero_grad()
            penalty = 0.01 * sum(p.square().sum() for p in net.parameters())
            ((net(x) - one_hot(y, 10)).square().sum(1).mean() + penalty).backward()
            adam.step()
            falling.step()
        found.append((net(x) - one_hot(y, 10)).square().sum(1).mean().item())
    assert ends.train == pytest.approx(np.mean(found), rel=1e-3)


def test_a_bound_is_kept_and_a_wide_one_does_nothing() -> None:
    plan = fits.Plan(width=5, depth=1, steps=4, rate=0.01)
    free, bounded = fits.networks(7, plan, [1])[0], fits.networks(7, plan, [1], [2.0, 1e6])[0]
    assert bounded.norms[0] == pytest.approx(2.0)
    assert bounded.norms[1] == pytest.approx(free.norms[1], rel=1e-5)


def test_a_width_gives_the_parameters_that_are_asked_for() -> None:
    for depth in (1, 2, 4):
        sizes = fits.Plan(fits.width_of(8000, depth), depth, 1, 0.1).sizes
        assert sum((i + 1) * o for i, o in itertools.pairwise(sizes)) == pytest.approx(8000, rel=0.02)


def made_up(bounded: float, deep: float) -> Iterator[Rows]:
    """Rows of ten seeds: errors with a bound over those with a penalty, and the gap of deep networks."""
    for seed in range(10):
        jitter = math.exp(0.01 * math.sin(seed))
        for penalty in size.LINEAR:
            yield Case.of({"kind": "linear", "penalty": penalty, "seed": seed}).rows("distance", 1e-12 * jitter)
        for ratio in (size.FEW, size.MANY):
            for penalty in size.PENALTIES:
                norm = ratio * 10 / (1 + 1e4 * penalty)
                at = {"kind": "penalty", "ratio": ratio, "depth": 1, "penalty": penalty, "lr": 0.01, "seed": seed}
                test = (0.3 + 0.02 * norm) * jitter
                values = (0.1, test, 0.3, 0.1, norm, 0.1, bounded * test)
                yield from (Case.of(at).rows(m, v) for m, v in zip(size.METRICS, values, strict=True))
            for depth in size.DEPTHS:
                at = {"kind": "depth", "ratio": ratio, "depth": depth, "penalty": 0.0, "lr": 0.01, "seed": seed}
                wrong = 0.01 * jitter + (0.4 if depth == 1 else deep)
                yield from (Case.of(at).rows(m, v) for m, v in zip(size.METRICS[:5], (0, 1, wrong, 0, 9), strict=True))


def test_verdicts_follow_the_errors(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(size.PART, made_up(bounded=1.0, deep=0.0))
    assert answers.statuses == {"N42": Status.HOLDS, "ball": Status.HOLDS, "N44": Status.HOLDS}
    assert not answers.sentences
    answers = analysed(size.PART, made_up(bounded=1.5, deep=0.3))
    assert answers.statuses == {"N42": Status.DEPENDS, "ball": Status.HOLDS, "N44": Status.FAILS}
    assert "overfit, too" in answers.sentences[0]
    assert len(answers.tables["limits_path"]) == 2 * 2 * len(size.PENALTIES)
