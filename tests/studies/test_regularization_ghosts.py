"""Ghost batches: their statistics by hand, and verdicts on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest
import torch

from depthgauge.studies.regularization import ghosts
from depthgauge.studies.regularization.invariant import TEMPERATURE, Invariant
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def test_statistics_are_those_of_the_ghost_batch_or_of_the_reference() -> None:
    x, reference = torch.randn(8, 5, dtype=torch.float64), torch.randn(50, 5, dtype=torch.float64)
    net = Invariant((5, 3), 4, reference).double()
    scores = x @ net.layers[0].weight.T  # type: ignore[operator]  # a module list's weight
    norm = torch.nn.BatchNorm1d(3, eps=1e-12, affine=False).double()
    by_hand = torch.cat([norm(scores[:4]), norm(scores[4:])])
    assert torch.allclose(net(x), TEMPERATURE * by_hand)
    ahead = reference @ net.layers[0].weight.T  # type: ignore[operator]  # likewise
    whole = TEMPERATURE * (scores - ahead.mean(0)) / ahead.std(0, correction=0)
    assert torch.allclose(net.eval()(x), whole)
    assert torch.allclose(net(x)[:1], net(x[:1]))  # it does not depend on the batch
    quiet = Invariant((5, 3), ghosts.ALL, reference).double()
    quiet.load_state_dict(net.state_dict())
    assert torch.allclose(quiet(x), whole)


def test_networks_of_both_kinds_train() -> None:
    shared = {"part": "ghosts", "lr": 0.5, "steps": 12, "width": 6, "batch": 32}
    for ghost in (4, ghosts.ALL):
        rows = ghosts.run([Case.of({**shared, "ghost": ghost, "seed": seed}) for seed in range(2)], Context())
        losses = [row.value for row in rows if row.metric == "train_loss"]
        assert len(losses) == 2
        assert all(0 < loss < 4 for loss in losses)


def made_up(gap: float, error: float, *, at_its_own: float = 1.0, quiet_rate: float = 1.0) -> Iterator[Rows]:
    """Runs with a gap and an error, relative to those without noise at the same rate; higher rates have smaller gaps.

    Networks without noise do best at `quiet_rate`, those with it at 4.0, where the gap is `at_its_own` times as large.
    """
    for ghost, lr, seed in ((g, lr, s) for g in (4, 8, ghosts.ALL) for lr in (0.5, 1.0, 4.0) for s in range(-3, 8)):
        case = Case.of({"part": "ghosts", "ghost": ghost, "lr": lr, "seed": seed})
        noisy = ghost != ghosts.ALL
        best = 4.0 if noisy else quiet_rate
        ratio = (gap * (at_its_own if lr == best else 1.0)) if noisy else 1.0
        ends = {
            "validation_accuracy": 0.9 - abs(lr - best) / 10, "train_loss": 0.5,
            "test_error": 0.3 * (error if noisy else 1) + 1e-3 * seed,
            "test_loss": 0.5 + ratio * (1 + 1e-3 * seed * noisy) / lr,
        }  # fmt: skip
        yield from (case.rows(metric, value) for metric, value in ends.items())


@pytest.mark.parametrize(
    ("gap", "error", "expected"),
    [(0.5, 0.7, ("holds", "holds")), (0.5, 1.0, ("holds", "fails")), (1.2, 1.0, ("fails", "fails"))],
)
def test_a_smaller_gap_is_told_from_a_smaller_error(
    gap: float, error: float, expected: tuple[str, str], analysed
) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(ghosts.PART, made_up(gap, error))
    assert (answers.statuses["N47"], answers.statuses["ghost"]) == (Status(expected[0]), Status(expected[1]))
    assert len(answers.sentences) == (gap < 1)
    if gap < 1:
        assert f"{gap:.2f} to {gap:.2f} of the gap" in answers.sentences[0]


def test_a_rate_that_closes_the_gap_is_no_noise_that_does(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(ghosts.PART, made_up(1.0, 1.0))  # at its own rate noise has a quarter of the gap
    assert answers.statuses["N47"] is Status.FAILS
    assert not answers.sentences
    table = answers.tables["ghosts"].query("of == 'gap of the loss'").set_index(["ghost", "lr"])
    assert table["value"].to_numpy() == pytest.approx(1.0, rel=0.01)
    assert set(table[table["judged"]].index.get_level_values("lr")) == {1.0, 4.0}
    assert analysed(ghosts.PART, made_up(0.5, 0.7, at_its_own=2.0)).statuses["N47"] is Status.DEPENDS


def test_a_rate_at_the_end_of_the_grid_is_told(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(ghosts.PART, made_up(0.5, 0.7))
    assert answers.tables["ghost_rates"].set_index("ghost")["open_ended"].to_dict() == {4: True, 8: True, -1: False}
    assert "4 with 4 (at the end of the grid" in answers.verdicts["N47"].why
    assert answers.verdicts["N47"].why.endswith("1 without noise")


def changed(rows: Iterable[Rows], wanted: Callable[[Rows], bool], value: float) -> list[Rows]:
    return [replace(row, value=value) if wanted(row) else row for row in rows]


def test_a_run_that_diverged_leaves_its_condition_undecided(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    def lost(row: Rows) -> bool:
        return row.metric.endswith("loss") and (row.case["ghost"], row.case["seed"]) == (4, 2)

    answers = analysed(ghosts.PART, changed(made_up(0.5, 0.7), lost, math.nan))
    table = answers.tables["ghosts"].query("of == 'gap of the loss' and judged").set_index("ghost")
    assert set(table.loc[4, "n"]) == set(table.loc[8, "n"]) == {8}
    assert set(table.loc[4, "answer"]) == {"inconclusive"}
    assert answers.statuses["N47"] is Status.INCONCLUSIVE
    assert "undecided: gap of the loss with statistics of 4 at rate 1, gap" in answers.verdicts["N47"].why
    assert not answers.sentences  # of 4 examples nothing can be told


def test_a_gap_below_zero_and_runs_that_all_diverged_cost_their_conditions_alone(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    def closed(row: Rows) -> bool:
        return row.metric == "test_loss" and (row.case["ghost"], row.case["lr"], row.case["seed"]) == (8, 4.0, 2)

    answers = analysed(ghosts.PART, changed(made_up(0.5, 0.7), closed, 0.4))
    assert (answers.statuses["N47"], answers.statuses["ghost"]) == (Status.INCONCLUSIVE, Status.HOLDS)
    assert "smaller: gap of the loss with statistics of 4 at rate 1" in answers.verdicts["N47"].why
    noisy = analysed(
        ghosts.PART,
        changed(
            made_up(0.5, 0.7), lambda row: row.metric.endswith("loss") and row.case["ghost"] != ghosts.ALL, math.nan
        ),
    )
    assert (noisy.statuses["N47"], noisy.statuses["ghost"]) == (Status.INCONCLUSIVE, Status.HOLDS)
