"""Bounds and penalties, count and range, depth and width: networks by hand, and verdicts on made-up rows both ways."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

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


def made_up(bounded: float, deep: float, fitted: float = 0.1) -> Iterator[Rows]:
    """Rows of ten seeds: errors with a weak bound over those with a penalty, and the gap of deep networks.

    `fitted` is the training error with a bound; with a penalty it is 0.1.
    """
    for seed in range(10):
        jitter = math.exp(0.01 * math.sin(seed))
        for penalty in size.LINEAR:
            yield Case.of({"kind": "linear", "penalty": penalty, "seed": seed}).rows("distance", 1e-12 * jitter)
        for ratio in (size.FEW, size.MANY):
            for penalty in size.PENALTIES:
                norm = ratio * 10 / (1 + 1e4 * penalty)
                at = {"kind": "penalty", "ratio": ratio, "depth": 1, "penalty": penalty, "lr": 0.01, "seed": seed}
                test = (0.3 + 0.02 * norm) * jitter
                values = (0.1, test, 0.3, 0.1, norm, fitted, test * (bounded if penalty < 1e-2 else 1))
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
    assert (
        "layers the share wrong is 31 points higher on new digits than on those fitted; with one, 41"
        in (answers.sentences[0])
    )
    assert len(answers.tables["limits_path"]) == 2 * 2 * len(size.PENALTIES)


def test_a_bound_that_fits_more_at_the_same_norm_is_said_to(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(size.PART, made_up(bounded=1.5, deep=0.3, fitted=1e-8))
    assert "errs 1.50 times as much on new digits: its training error is 1e-08" in answers.sentences[0]
    train = answers.tables["limits_path"].set_index("limit")["train"]
    assert train["bound"].dropna().to_numpy() == pytest.approx(1e-8)


def tried(gain: float, at_end: float = 1e-4) -> Iterator[Rows]:
    """Rates of networks by two other seeds: at one penalty the highest is best, by this much of the training error."""
    for penalty, lr, seed in ((p, r, s) for p in size.PENALTIES for r in size.RATES for s in (-2, -1)):
        at = {"kind": "penalty", "ratio": size.MANY, "depth": 1, "penalty": penalty, "lr": lr, "seed": seed}
        train = 0.6 - gain * (size.RATES.index(lr) if penalty == at_end else lr == 0.01)
        yield from (Case.of(at).rows(m, v) for m, v in zip(size.METRICS[:5], (train, 1.0, 0.3, 0.1, 0.0), strict=True))


def at_the_highest_rate(rows: Iterable[Rows], penalty: float) -> Iterator[Rows]:
    """The rows, those of large networks with this penalty at the highest rate."""
    for row in rows:
        at = dict(row.case.params)
        if (at["kind"], at.get("ratio"), at["penalty"]) == ("penalty", size.MANY, penalty):
            row = Case.of({**at, "lr": max(size.RATES)}).rows(row.metric, row.value)  # noqa: PLW2901 - or as it is
        yield row


@pytest.mark.parametrize("gain", [0.01, 0.2])
def test_nothing_is_concluded_where_a_rate_beyond_the_grid_may_fit_better(gain: float, analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = at_the_highest_rate(made_up(bounded=1.0, deep=0.0), 1e-4)
    answers = analysed(size.PART, [*rows, *tried(gain), *few()])
    path = answers.tables["limits_path"].set_index(["parameters", "penalty", "limit"])
    end = path.loc[(size.NAMES[size.MANY], 1e-4, "bound")]
    assert (end["at_edge"], end["open_ended"]) == (True, gain > 0.05)
    assert path["at_edge"].sum() == 2
    assert answers.statuses["N42"] is (Status.INCONCLUSIVE if gain > 0.05 else Status.HOLDS)
    assert ("beyond the grid" in answers.verdicts["N42"].why) == (gain > 0.05)


def few() -> Iterator[Rows]:
    """The seeds that choose of all other networks, at the one rate of the rows made up."""
    for kind, ratio in (("penalty", size.FEW), ("depth", size.FEW), ("depth", size.MANY)):
        settings = [(1, p) for p in size.PENALTIES] if kind == "penalty" else [(d, 0.0) for d in size.DEPTHS]
        for (depth, penalty), seed in ((each, s) for each in settings for s in (-2, -1)):
            at = {"kind": kind, "ratio": ratio, "depth": depth, "penalty": penalty, "lr": 0.01, "seed": seed}
            yield from (Case.of(at).rows(m, v) for m, v in zip(size.METRICS[:5], (0.1, 1, 0.3, 0.1, 9), strict=True))


def test_counts_and_ranges_wait_for_a_rate_beyond_the_grid_of_networks_without_a_penalty(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = at_the_highest_rate(made_up(bounded=1.0, deep=0.0), 0.0)
    answers = analysed(size.PART, [*rows, *tried(0.2, 0.0), *few()])
    gaps = answers.tables["size_gaps"].set_index("model").loc[size.NAMES[size.MANY]]
    assert set(gaps["what"]) == {"count", "range"}
    assert set(gaps["answer"]) == {"inconclusive"}
    assert "the gap grows with the number" not in answers.verdicts["N42"].says.partition("undecided")[0]


def test_a_sentence_on_a_rate_at_the_end_of_the_grid_says_so(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = at_the_highest_rate(made_up(bounded=1.5, deep=0.3, fitted=1e-8), 1e-4)
    (told, _) = analysed(size.PART, [*rows, *tried(0.2), *few()]).sentences
    assert "(penalty 0.0001; its learning rate ends the grid, and one beyond it may fit better)" in told


def test_a_network_that_diverged_leaves_its_condition_undecided(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    def lost(row: Rows) -> bool:
        at = dict(row.case.params)
        return at["seed"] == 3 and at.get("ratio") == size.MANY and at["penalty"] == 1e-3 and "test" in row.metric

    rows = [replace(row, value=math.nan) if lost(row) else row for row in made_up(bounded=1.0, deep=0.0)]
    tables = analysed(size.PART, rows).tables
    for name in ("limits", "size_gaps"):
        own = tables[name].query("penalty == 0.001").set_index("model").loc[size.NAMES[size.MANY]]
        assert (own["n"], own["answer"]) == (10, "inconclusive")
