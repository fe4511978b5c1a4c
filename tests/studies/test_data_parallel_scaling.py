"""The part on scaling: what its analysis says of seconds that follow a known law, and which layouts it measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from depthgauge.reports import style
from depthgauge.studies.data_parallel import scaling
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status

CORES = 2
NET = "mlp, width 64"

Answered = Callable[..., Any]


@dataclass(frozen=True)
class Law:
    """Seconds of a step: 10 a thousand examples, times `beside` on several ranks, and an exchange.

    Attributes:
        beside: factor of ranks that run at once.
        exchange: seconds of DDP.
        waited: of DDP that waits, as a factor.
        small: of DDP with a bucket of 0.1 MiB, as a factor.
        hidden: share of the exchange that is hidden.
    """

    beside: float = 1.0
    exchange: float = 0.01
    waited: float = 1.0
    small: float = 1.0
    hidden: float = 0.2

    def seconds(self, case: Case) -> float:
        ranks = case.integer("ranks")
        plain = case.integer("batch") / 100 * (self.beside if ranks > 1 else 1)
        if case.text("reduction") == "none":
            return plain
        factor = self.waited if case.text("reduction") == "waited" else self.small if case["bucket"] == 0.1 else 1.0
        return (plain + self.exchange) * factor


def rows_of(law: Law, *, cores: int = CORES, rounds: int = 15, widths: tuple[int, ...] = (64,)) -> Iterator[Rows]:
    noise = np.random.default_rng(5)
    asked = scaling.grids(
        nets=tuple(("mlp", width) for width in widths),
        ranks=(1, 2, 4),
        batches=(32, 64, 128),
        buckets=(0.1,),
        rounds=rounds,
        traced=(128,),
        turns=9,
    )
    for case in (case for grid in asked for case in grid.cases()):
        yield case.rows("room", float(cores))
        spread = np.exp(0.005 * noise.standard_normal(max(rounds, 9)))
        if not case.integer("turns"):
            yield case.rows("seconds", law.seconds(case) * spread[:rounds], step=np.arange(rounds))
            continue
        exchange = 0.0 if case.integer("ranks") == 1 else 0.01
        parts = {
            "computing": 1.0, "exposed": (1 - law.hidden) * exchange, "rest": 0.1, "hidden": law.hidden * exchange,
            "collectives": 1.0,
        }  # fmt: skip
        for name, value in parts.items():
            yield case.rows(name, value * spread[:9], step=np.arange(9))


@pytest.fixture
def answered(analysed: Callable[..., Any]) -> Answered:
    return lambda law, **how: analysed(scaling.PART, rows_of(law, **how))


def test_shares_of_the_ideal_are_those_of_the_law(answered: Answered) -> None:
    table = answered(Law(beside=1.1, exchange=0.1)).tables["scaling"].set_index(["scaling", "batch"])
    assert set(table["ranks"]) == {2}  # four share two cores
    for (kind, total), row in table.iterrows():
        plain = total / 100
        step = (plain / 2 if kind == "strong" else plain) * 1.1 + 0.1
        assert row["value"] == pytest.approx(plain / step / (2 if kind == "strong" else 1), rel=0.01)


@pytest.mark.parametrize(
    ("law", "status"),
    [(Law(exchange=0.01), Status.HOLDS), (Law(beside=2.0), Status.FAILS), (Law(exchange=0.15), Status.DEPENDS)],
)
def test_it_performs_well_above_eighty_per_cent(answered: Answered, law: Law, status: Status) -> None:
    assert answered(law).statuses["N31"] is status


def test_ranks_that_share_cores_are_timed_and_never_called_scaling(answered: Answered) -> None:
    said = answered(Law())
    speedup = said.tables["speedup"]
    assert set(speedup.loc[speedup["shared"], "ranks"]) == {4}
    assert any("4 ranks were timed too; they share 2 cores" in sentence for sentence in said.sentences)
    alone = answered(Law(), cores=1)
    assert set(alone.statuses.values()) == {Status.INCONCLUSIVE}  # nor is what two ranks lose on one core a loss
    assert "that have a core or a device each" in alone.verdicts["beside"].why
    assert "no two ranks measured had one each" in alone.verdicts["N31"].why
    four = answered(Law(), cores=4)
    assert set(four.tables["scaling"]["ranks"]) == {2, 4}
    assert not any("no scaling" in sentence for sentence in four.sentences)


@pytest.mark.parametrize(
    ("claim", "yes", "no"),
    [
        ("beside", Law(beside=1.0), Law(beside=1.3)),
        ("overlap", Law(waited=1.2), Law(waited=1.0)),
        ("hidden", Law(hidden=0.7), Law(hidden=0.2)),
        ("buckets", Law(small=1.3), Law(small=0.8)),
    ],
)
def test_each_claim_is_decided_by_what_it_names(answered: Answered, claim: str, yes: Law, no: Law) -> None:
    assert answered(yes).statuses[claim] is Status.HOLDS
    assert answered(no).statuses[claim] is Status.FAILS


def test_one_device_alone_leaves_claims_open_and_says_why(analysed: Callable[..., Any]) -> None:
    rows = [row for row in rows_of(Law(), cores=1) if row.metric == "room" or row.case.integer("ranks") == 1]
    said = analysed(scaling.PART, rows)
    assert set(said.statuses.values()) == {Status.INCONCLUSIVE}
    assert len(said.verdicts) == len(scaling.PART.claims)
    assert all(verdict.why for verdict in said.verdicts.values())
    assert {"speedup", "scaling", "time_lost", "overlap", "buckets", "split", "hidden"} == set(said.tables)


def test_every_figure_is_drawn_with_a_panel_a_network(answered: Answered) -> None:
    tables = answered(Law(), widths=(64, 128, 256)).tables
    with style.drawing():
        drawn = {figure.name: figure.canvas for draw in scaling.PART.figures for figure in draw(tables)}
    assert set(drawn) == {"strong_scaling", "weak_scaling", "time_lost", "overlap", "buckets", "where_time_goes"}
    for canvas in drawn.values():
        titles = [axis.get_title(loc) for axis in canvas.axes for loc in ("left", "center")]
        assert {NET, "mlp, width 128", "mlp, width 256"} <= set(titles)


def test_few_rounds_decide_nothing(answered: Answered) -> None:
    said = answered(Law(beside=2.0), rounds=4)
    assert {said.statuses[claim] for claim in ("N31", "beside", "overlap", "buckets")} == {Status.INCONCLUSIVE}


def test_what_smaller_buckets_hide_and_gain_is_told(answered: Answered) -> None:
    (told,) = (each for each in answered(Law(small=0.8)).sentences if each.startswith("With buckets of 0.1"))
    assert f"{NET} at 128 hides 20% of the exchange in place of 20% and takes 0.80 [0.80, 0.81] times as long" in told


def test_layouts_are_those_that_a_comparison_needs() -> None:
    for grid in scaling.PART.at("standard"):
        assert len(list(grid.chunks("data_parallel"))) == 1  # one launch
        few = {(case.integer("ranks"), case.text("reduction")) for case in grid.cases() if case.integer("ranks") <= 2}
        assert few == {(1, "none"), (2, "none"), (2, "overlapped"), (2, "waited")}
        many = [case for case in grid.cases() if case.integer("ranks") > 2]
        assert {case.text("reduction") for case in many} == {"overlapped"}
        assert {(case["bucket"], case.integer("turns")) for case in many} == {(None, 0)}
