"""Edge of stability and catapult: what they say of made-up rows, and what their networks are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from depthgauge import curvature, replicas
from depthgauge.parts import Part
from depthgauge.studies.learning_rate import catapult, descent, edge, shallow
from depthgauge.study import Context, Grid, Rows
from depthgauge.verdict import Status

Analysed = Callable[[Part, Iterable[Rows]], Any]
STEPS = np.arange(0, 101, 5)


def trainings(end: float, start: float = 0.5, optimizer: str = "GD", lr: float = 0.4) -> Iterator[Rows]:
    """Trainings whose sharpness rises from `start` to `end` times the limit, in a quarter of the steps."""
    for case in Grid({"lr": (lr,)}, {"optimizer": optimizer, "steps": 100}, 5).cases():
        noise = 1 + 1e-3 * case.integer("seed")
        rise = np.minimum(STEPS / 25, 1.0)
        yield case.rows("sharpness", edge.LIMITS[optimizer] / lr * (start + (end * noise - start) * rise), step=STEPS)


@pytest.mark.parametrize(
    ("end", "start", "expected"),
    [
        (1.0, 0.5, Status.HOLDS),
        (1.02, 0.5, Status.HOLDS),
        (0.9, 0.5, Status.FAILS),
        (1.2, 0.5, Status.FAILS),
        (1.0, 1.0, Status.INCONCLUSIVE),  # it has not risen there
    ],
)
def test_training_is_at_the_edge_where_its_mean_is_at_the_limit(
    end: float, start: float, expected: Status, analysed: Analysed
) -> None:
    for optimizer, claim in edge.CLAIMS.items():
        assert edge.LIMITS[optimizer] == pytest.approx({"GD": 2, "momentum 0.5": 3, "Adam": 38}.get(optimizer, 3.8))
        answers = analysed(edge.PART, trainings(end, start, optimizer))
        assert answers.statuses == {claim.id.rpartition("/")[2]: expected}
        assert answers.verdicts[claim.id.rpartition("/")[2]].observed == pytest.approx(end * 1.002, rel=1e-3)


def test_the_mean_is_that_of_the_last_half(analysed: Analysed) -> None:
    (row,) = analysed(edge.PART, trainings(1.0, 0.1)).tables["edge"].to_dict("records")
    assert row["value"] == pytest.approx(1.002, rel=1e-4)
    assert row["lowest"] == pytest.approx(0.1, rel=0.01)
    assert row["largest"] == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize(("end", "expected"), [(0.8, Status.HOLDS), (0.5, Status.FAILS), (1.5, Status.INCONCLUSIVE)])
def test_sharpening_counts_below_the_limit(end: float, expected: Status, analysed: Analysed) -> None:
    assert analysed(edge.PART, trainings(end, 0.5, edge.SLOW)).statuses == {"progressive": expected}


def test_a_run_that_diverges_decides_nothing(analysed: Analysed) -> None:
    rows = list(trainings(1.0))
    rows[0] = rows[0].case.rows("sharpness", np.where(STEPS > 50, np.nan, 1.0), step=STEPS)
    answers = analysed(edge.PART, rows)
    assert answers.statuses == {"edge": Status.INCONCLUSIVE}
    assert np.isnan(answers.tables["edge"]["spread"].item())  # that of the others is no figure of all


@pytest.mark.parametrize("optimizer", [replicas.SGD([0.1, 0.2], 0.9), replicas.Adam([0.01, 0.02])])
def test_descent_is_that_of_torch(optimizer: Any) -> None:
    examples = descent.digits("digits", 12)
    stack = descent.networks(4, examples.x, [1, 2])
    ends: list[Any] = []
    descent.descend(stack, examples, optimizer, [3], lambda _, part, __, loss: ends.append((part.clone(), loss)))
    trained, losses = ends[0]
    for row in range(2):
        model = stack.module(row)
        single = optimizer.single(model.parameters(), optimizer.lr[row], 0.0)
        for _ in range(3):
            single.zero_grad()
            descent.half_squared(model(examples.x), examples.y).backward()  # type: ignore[no-untyped-call]  # torch's
            single.step()
        for mine, theirs in zip(trained.parameters.values(), model.parameters(), strict=True):
            torch.testing.assert_close(mine[row], theirs.detach(), rtol=1e-4, atol=1e-6)
        after = descent.half_squared(model(examples.x), examples.y).detach()
        assert float(after) == pytest.approx(float(losses[row]), rel=1e-4)


def test_the_preconditioner_of_a_stack_is_that_of_each_alone() -> None:
    examples = descent.digits("digits", 12)
    stack = descent.networks(4, examples.x, [1])
    found: list[Any] = []

    def look(_: int, __: object, state: Any, ___: object) -> None:
        found.extend(each.clone() for each in descent.preconditioner(state) or [])

    descent.descend(stack, examples, replicas.Adam([0.01]), [3], look)
    model = stack.module(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        descent.half_squared(model(examples.x), examples.y).backward()
        optimizer.step()
    for mine, theirs in zip(found, curvature.adam_preconditioner(optimizer, model), strict=True):
        torch.testing.assert_close(mine[0].double(), theirs, rtol=1e-4, atol=1e-8)


# -- catapult ----------------------------------------------------------------------------------------------------------


def launches(ratios: dict[float, float], net: str = shallow.ONE, lost: int = 0) -> Iterator[Rows]:
    """Runs whose curvature ends at the ratio of each multiple; NaN: its loss is infinite. `lost` runs do not train."""
    for case in Grid({"multiple": tuple(ratios)}, {"net": net, "steps": 9}, 8).cases():
        ratio = ratios[case.number("multiple")] * (1 + 1e-3 * case.integer("seed"))
        left = np.inf if np.isnan(ratio) else 2.0 if case.integer("seed") < lost else 0.1
        yield case.rows("sharpness", np.array([50.0, 50.0 * ratio]), step=[0, 9])
        yield case.rows("loss", np.array([1.0, left]), step=[0, 9])
        yield case.rows("peak", 3.0)
        yield case.rows("predicted", ratio)


@pytest.mark.parametrize(
    ("ratios", "lost", "expected"),
    [
        ({1.0: 1.0, 3.0: 0.3, 3.9: 0.1, 4.1: np.nan}, 0, (Status.HOLDS, Status.HOLDS, Status.HOLDS)),
        ({1.0: 0.5, 3.0: 1.0, 8.0: 0.5, 9.0: np.nan}, 0, (Status.FAILS, Status.FAILS, Status.FAILS)),
        ({1.0: 1.0, 3.0: 0.3, 3.9: 0.1, 4.1: np.nan}, 1, (Status.HOLDS, Status.FAILS, Status.INCONCLUSIVE)),
        ({1.0: 1.0, 2.5: 0.5, 3.0: np.nan}, 0, (Status.HOLDS, Status.DEPENDS, Status.FAILS)),
        ({1.0: 1.0, 3.0: 0.3}, 0, (Status.HOLDS, Status.HOLDS, Status.INCONCLUSIVE)),
    ],
)
def test_the_window_is_read_from_curvature_and_loss(
    ratios: dict[float, float], lost: int, expected: tuple[Status, ...], analysed: Analysed
) -> None:
    statuses = analysed(catapult.PART, launches(ratios, lost=lost)).statuses
    assert tuple(statuses[name] for name in ("lazy", "catapult", "catapult_end")) == expected


def test_a_relu_network_has_an_end_and_no_verdict(analysed: Analysed) -> None:
    answers = analysed(catapult.PART, launches({1.0: 1.0, 8.0: 0.3, 12.5: np.nan}, shallow.RELU))
    assert answers.statuses == {}
    assert answers.tables["relu_end"]["end"].item() == pytest.approx(10.0)
    assert "10" in answers.sentences[0]


def test_the_end_is_half_way_to_the_first_that_diverges() -> None:
    multiples = np.array([1.0, 2.0, 8.0, 9.0])
    assert catapult.end_of(np.array([False, False, True, False]), multiples) == 4.0
    assert catapult.end_of(np.zeros(4, bool), multiples) == np.inf
    assert catapult.end_of(np.ones(4, bool), multiples) == 0.0


def test_the_largest_loss_of_a_run_that_diverges_is_infinite() -> None:
    case = next(Grid({"multiple": (30.0,)}, {"net": shallow.ONE, "width": 50, "examples": 1, "steps": 30}, 1).cases())
    peaks = [float(np.asarray(row.value)) for row in catapult.PART.run([case], Context()) if row.metric == "peak"]
    assert peaks == [np.inf]


def test_one_example_obeys_the_recursion() -> None:
    """In float64; roundings of float32 grow with the loss."""
    data = shallow.examples(shallow.ONE, 1)
    drawn = shallow.networks(shallow.ONE, 50, 1, [3, 4, 5])
    stack = replace(drawn, parameters={name: each.double() for name, each in drawn.parameters.items()})
    x, y = data.x.double(), data.y.double()
    start = np.array([each.value for each in curvature.of_replicas(stack, x, y, "mse", tolerance=1e-8)])
    rates = np.array([1.0, 2.5, 3.0]) / start
    trained = replicas.train(stack, x, y, replicas.SGD(rates.tolist()), batch=1, steps=12, loss="mse")
    losses, sharpness = shallow.predicted(trained.loss[0], start, rates, 12)
    np.testing.assert_allclose(trained.loss, losses[:12], rtol=1e-6, atol=1e-12)
    ends = [each.value for each in curvature.of_replicas(trained.stack, x, y, "mse", tolerance=1e-8)]
    np.testing.assert_allclose(ends, sharpness[12], rtol=1e-6)
    assert trained.loss[:, 2].max() > 10 * trained.loss[0, 2]
