"""Depth and final accuracy: the runs against plain PyTorch, and verdicts on made-up rows both ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from depthgauge import data, replicas, training
from depthgauge.initialization import scheme
from depthgauge.parts import Part
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.stabilizers import deeper, final, lesion, nets
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def test_a_run_is_torch_s_own() -> None:
    params = {"part": "deeper", "kind": "skips_normed", "depth": 3, "data": "digits", "width": 5, "steps": 6, "lr": 0.1}
    case = Case.of({**params, "seed": 0})
    ends = {row.metric: row.value for row in nets.run([case], Context())}
    digits = data.load("digits")
    fit, _ = data.hold_out(digits.train, training.HELD_OUT)
    seed = case.random_seed("seed", "width", "steps")
    network = nets.perceptron(nets.KINDS["skips_normed"], digits, depth=3, width=5)
    scheme("he")(network, generator(seed, Purpose.WEIGHTS))
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step, batch in enumerate(replicas.order(seed, len(fit), nets.BATCH, 6)):
        sgd.param_groups[0]["lr"] = 0.1 * (1 - step / 6)
        sgd.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(network(fit.x[batch]), fit.y[batch]))
        sgd.step()
    with torch.no_grad():
        right = nets.frozen(network, fit.x)(digits.test.x).argmax(1) == digits.test.y
    assert ends["test_accuracy"] == pytest.approx(float(right.double().mean()), abs=0.006)


def test_a_run_that_diverged_has_none_right() -> None:
    assert nets.accuracy(torch.tensor([[1.0, float("nan")]]), torch.tensor([0])) == 0
    assert nets.accuracy(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.tensor([0, 0])) == 0.5


def made_up(part: Part, accuracies: dict[tuple[str, int], float], last: int = 0) -> Iterator[Rows]:
    """Networks of these accuracies at their middle rate, at depth `last` the largest, of half as much at the others."""
    for (kind, depth), value in accuracies.items():
        best = 1.0 if depth == last else 0.1
        for lr in (0.01, 0.1, 1.0):
            for seed in range(-3, 10) if lr == best else range(-3, 0):
                case = Case.of({"part": part.name, "kind": kind, "depth": depth, "lr": lr, "seed": seed})
                end = (value if lr == best else value / 2) + 1e-4 * (seed * depth % 7)
                for metric in nets.OUTCOMES:
                    yield case.rows(metric, 0.0 if metric == "diverged" else end)


def test_degradation_is_told_from_none(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    known = {("skips", 20): 0.95, ("skips", 56): 0.96, ("plain", 20): 0.9, ("plain", 56): 0.3}
    statuses = analysed(deeper.PART, made_up(deeper.PART, known)).statuses
    assert (statuses["N26"], statuses["degradation"]) == (Status.HOLDS, Status.HOLDS)
    other = {**known, ("skips", 56): 0.8, ("plain", 56): 0.9}
    answers = analysed(deeper.PART, made_up(deeper.PART, other))
    assert (answers.statuses["N26"], answers.statuses["degradation"]) == (Status.FAILS, Status.FAILS)
    assert any("(skips): 95.0% at 20, 80.0% at 56" in text for text in answers.sentences)


@pytest.mark.parametrize(
    ("last", "deep", "status", "end"),
    [
        (56, 0.96, Status.HOLDS, "deeper"),  # a better rate would only raise the deeper network
        (56, 0.8, Status.INCONCLUSIVE, "deeper"),
        (20, 0.96, Status.INCONCLUSIVE, "shallowest"),
    ],
)
def test_a_rate_at_the_end_of_its_grid_leaves_one_direction_open(  # type: ignore[no-untyped-def]  # a fixture
    last: int, deep: float, status: Status, end: str, analysed
) -> None:
    answers = analysed(deeper.PART, made_up(deeper.PART, {("skips", 20): 0.95, ("skips", 56): deep}, last))
    assert answers.statuses["N26"] is status
    table = answers.tables["deeper"]
    assert set(table["rate_at_grid_end"]) == {end}
    assert set(table["not_worse"]) == {"true" if status is Status.HOLDS else "undecided"}


@pytest.mark.parametrize(("normed", "status"), [(0.951, Status.HOLDS), (0.98, Status.FAILS)])
def test_a_changed_final_accuracy_is_told(normed: float, status: Status, analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    known = {("plain", 3): 0.95, ("plain_normed", 3): normed, ("skips", 3): 0.95, ("skips_normed", 3): normed}
    answers = analysed(final.PART, made_up(final.PART, known))
    assert answers.statuses["N25"] is status
    assert "the study regularization" in answers.verdicts["N25"].method


@pytest.mark.parametrize("part", [deeper.PART, final.PART, lesion.PART], ids=lambda part: part.name)
def test_the_second_stage_reports_each_network_at_the_rate_that_was_best(part: Part, tidy) -> None:  # type: ignore[no-untyped-def]  # a fixture
    size = {"form": "perceptron"} if part.name == "lesion" else {"depth": 3}
    rows = []
    for kind, best in (("plain", 0.01), ("skips", 0.1)):
        for lr in (0.01, 0.1):
            for seed in (-2, -1):
                case = Case.of({"part": part.name, "kind": kind, "lr": lr, "seed": seed, "steps": 7, **size})
                rows.append(case.rows("validation_accuracy", 0.9 if lr == best else 0.5))
    assert part.second is not None
    grids = list(part.second(tidy(rows), **part.sizes["tiny"]))
    assert [(grid.fixed["kind"], grid.varied["lr"]) for grid in grids] == [("plain", (0.01,)), ("skips", (0.1,))]
    assert all((grid.seeds, grid.selection, grid.fixed["steps"]) == (5, 0, 7) for grid in grids)
