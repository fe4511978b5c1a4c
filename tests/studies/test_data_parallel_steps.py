"""Accumulated steps and reduced gradients: predictions by hand, real ranks against them, and what verdicts follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from depthgauge import parallel
from depthgauge.studies.data_parallel import accumulation, ring, rounding, windows
from depthgauge.studies.data_parallel.accumulation import (
    ADDED,
    AFTER,
    AVERAGED,
    BACKWARD,
    BEFORE,
    NEAR,
    NO_SYNC,
    PER_ALL,
    PER_RANK,
    PLAIN,
    SCALED,
    SHORT,
    UNSYNCED,
    WAYS,
    WEIGHED,
)
from depthgauge.study import Case, Rows

STEPS, RANKS = 4, 3
SEEDS = (1, 2)
TOKENS = windows.UNEVEN[:8]
REDUCED = [(fmt, kind, ranks, 1) for fmt in rounding.FORMATS for kind in ring.GRADIENTS for ranks in (2, 3)]


# -- predictions -------------------------------------------------------------------------------------------------------


def test_factors_by_hand() -> None:
    """Two ranks of four windows, of 2, 3, 5, 8 and 13, 21, 34, 55 tokens."""
    shares = np.array(TOKENS) / 141
    square = float((shares**2).sum())
    of_rank = np.array(TOKENS) / np.repeat([18, 123], 4) / 2
    by_hand = {
        AVERAGED: 1 / 8 / square, ADDED: 4 / 8 / square, PER_RANK: float(of_rank @ shares) / square, PER_ALL: 1,
        SHORT: 1 / 2, UNSYNCED: 1, BEFORE: 1 / math.sqrt(2), SCALED: 1 / 1024, AFTER: 1, NO_SYNC: 1,
    }  # fmt: skip
    for name, factor in by_hand.items():
        assert windows.predicted(WAYS[name], 2, STEPS)["factor"] == pytest.approx(factor, rel=1e-12), name


def test_ranks_that_never_reduce_part() -> None:
    """Orthogonal gradients of R ranks: each is sqrt(R) times as long as their mean, and sqrt(2 R) from another."""
    for ranks in (2, 3, 4):
        found = windows.predicted(WAYS[UNSYNCED], ranks, STEPS)
        assert found["distance"] == pytest.approx(math.sqrt(ranks - 1))
        assert found["apart"] == pytest.approx(math.sqrt(2 * ranks))
        assert windows.predicted(WAYS[BEFORE], ranks, STEPS)["factor"] == pytest.approx(1 / math.sqrt(ranks))


def test_token_weights_by_hand() -> None:
    assert list(windows.token_weights(WAYS[AVERAGED], 2, STEPS)) == [(n, pytest.approx(141 / (8 * n))) for n in TOKENS]
    assert {round(weight, 9) for _, weight in windows.token_weights(WAYS[PER_ALL], 2, STEPS)} == {1.0}


def test_the_order_of_the_ring_by_hand() -> None:
    ranks = torch.arange(3)[:, None].expand(3, 7)
    assert ring.ordered(ranks).T.tolist() == [
        *[[2, 1, 0]] * 4, *[[0, 2, 1]] * 3,
    ]  # fmt: skip


def test_the_law_by_hand() -> None:
    one = 1 + 0.9 * torch.rand(1, 512, generator=torch.Generator().manual_seed(0))
    u = 2.0**-8  # of bfloat16: numbers in [1, 2) are 2 u apart
    assert ring.law(one, "bfloat16") == pytest.approx(2 * u / math.sqrt(12) * math.sqrt(512) / float(one.norm()))
    # Two halves: two roundings of half the size, and a sum of twice their spacing, a tie half of the time: 1/2 + 3/2.
    assert ring.law(one.expand(2, -1), "bfloat16") == pytest.approx(ring.law(one, "bfloat16") * math.sqrt(2))
    assert ring.law(one, "float32") == 0
    assert ring.law(one * 1e-9, "float16") == pytest.approx(1)  # lost altogether
    assert ring.error(ring.reduced(ring.parts(one * 1e-9, "float16")), one * 1e-9) == 1


def test_the_law_holds_for_gradients_that_it_has_not_seen() -> None:
    for ranks in (2, 16):
        values = ring.gradients(ring.DRAWN, 77)[:ranks]
        measured = ring.error(ring.reduced(ring.parts(values, "bfloat16")), values)
        assert measured == pytest.approx(ring.law(values, "bfloat16"), rel=0.15)  # 1,024 elements: 2 % a deviation
    equal = ring.gradients(ring.EQUAL, 77)
    measured = ring.error(ring.reduced(ring.parts(equal, "bfloat16")), equal)
    assert measured > 3 * ring.law(equal, "bfloat16")
    assert measured == pytest.approx(ring.equal_law(equal, "bfloat16"), rel=0.1)  # of first order


# -- ranks -------------------------------------------------------------------------------------------------------------


def both(group: parallel.Group) -> dict[str, Any]:
    asked = [(name, seed) for name in WAYS for seed in SEEDS]
    return {"steps": windows.work(group, WAYS, asked, STEPS, WEIGHED), "ring": ring.work(group, REDUCED)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the ranks found, in one launch."""
    outcome = parallel.launch(
        f"{Path(__file__).resolve()}:both", ranks=RANKS, limit=60, folder=tmp_path_factory.mktemp("ranks")
    )
    assert outcome.well, outcome.why
    answers: dict[str, Any] = outcome.answers[0]
    return answers


@pytest.fixture(scope="module")
def steps(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Name of a way -> what was found for each seed."""
    return {name: found["steps"][k * len(SEEDS) : (k + 1) * len(SEEDS)] for k, name in enumerate(WAYS)}


def test_every_step_is_the_predicted_one(steps: dict[str, list[dict[str, Any]]]) -> None:
    for name, way in WAYS.items():
        expected = windows.predicted(way, RANKS, STEPS)
        for one in steps[name]:
            for figure in ("factor", "distance", "apart"):
                assert one[figure] == pytest.approx(expected[figure], rel=NEAR, abs=NEAR), (name, figure)


def test_only_no_sync_around_both_passes_spares_reductions(steps: dict[str, list[dict[str, Any]]]) -> None:
    expected = {NO_SYNC: 1, PLAIN: STEPS, BACKWARD: STEPS, UNSYNCED: 0}
    for name, count in expected.items():
        assert [one["reductions"] for one in steps[name]] == [count] * len(SEEDS)
    (one, *_), (every, *_) = steps[NO_SYNC], steps[PLAIN]
    assert every["bytes"] == STEPS * one["bytes"] > 0


def test_weights_of_tokens_are_solved_for(steps: dict[str, list[dict[str, Any]]]) -> None:
    for name in WEIGHED:
        expected = [weight for _, weight in windows.token_weights(WAYS[name], RANKS, STEPS)]
        for one in steps[name]:
            np.testing.assert_allclose(one["weight"], expected, rtol=1e-4)


def test_a_reduction_has_the_bits_of_the_ring(found: dict[str, Any]) -> None:
    """Of two ranks and of three, whose inverse is rounded."""
    assert len(found["ring"]) == len(REDUCED)
    for (fmt, kind, ranks, _), one in zip(REDUCED, found["ring"], strict=True):
        if one["reduced"]:
            assert one["unlike"] == 0, (fmt, kind, ranks)
            assert one["error"] < 1e-2
        else:
            assert fmt == "bfloat16", "gloo reduces float32 and float16"


# -- verdicts ----------------------------------------------------------------------------------------------------------

SAME = {"accumulation": "holds", "window_means": "fails", "rank_tokens": "fails", "token_sums": "holds",
        "last_step": "fails", "clipping": "fails", "unscaling": "fails", "no_sync": "holds",
        "accumulation_factor": "holds", "token_weights": "holds"}  # fmt: skip


def accumulated(changed: Callable[[str, dict[str, float]], dict[str, float]]) -> Iterator[Rows]:
    """Rows as predicted, but for what is changed."""
    for name, way in WAYS.items():
        for seed in range(12):
            case = Case.of({"part": "accumulation", "row": name, "ranks": 2, "steps": STEPS, "seed": seed})
            count = 1.0 if name == NO_SYNC else STEPS
            one = windows.predicted(way, 2, STEPS) | {"ulps": 1.0, "reductions": count, "bytes": 4.0, "weight": 1.0}
            one = changed(name, one)
            weight = one.pop("weight")
            yield from (case.rows(metric, value * (1 + 1e-9 * math.sin(seed))) for metric, value in one.items())
            if name in WEIGHED:
                weights = np.array([w for _, w in windows.token_weights(way, 2, STEPS)])
                yield case.rows("weight", weights * weight, layer_index=np.arange(len(weights)))


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        (lambda _, one: one, {}),
        (
            lambda name, one: one | {"distance": 0.1} if name == PLAIN else one,
            {"accumulation": "depends"},
        ),
        (
            lambda name, one: one | {"factor": 1.0, "distance": 1e-7} if name == AVERAGED else one,
            {"window_means": "holds", "accumulation_factor": "depends"},
        ),
        (lambda name, one: one | {"reductions": 1.0} if name == BACKWARD else one, {"no_sync": "depends"}),
        (lambda _, one: one | {"weight": 1.01}, {"token_weights": "fails"}),
        (lambda name, one: one | {"distance": 0.0} if name == BEFORE else one, {"clipping": "holds"}),
    ],
)
def test_verdicts_on_accumulated_steps(
    analysed: Callable[..., Any], changed: Callable[..., Any], other: dict[str, str]
) -> None:
    said = analysed(accumulation.PART, accumulated(changed))
    assert {name: str(status) for name, status in said.statuses.items()} == SAME | other
    assert set(said.tables) == {
        "accumulation", "accumulation_distance", "accumulation_reductions", "token_weights",
    }  # fmt: skip


def rounded(exponent: float, of_law: float, unlike: float, lead: float) -> Iterator[Rows]:
    """Errors of this growth, over their law, bits that differ, and a float16 hook's error over bfloat16's."""

    def case(how: str, seed: int, **more: Any) -> Case:
        return Case.of({"part": "rounding", "how": how, "scale": 1.0, "seed": seed, **more})

    for seed in range(12):
        noise = 1 + 1e-3 * math.sin(seed)
        for fmt in rounding.FORMATS:
            for kind in ring.GRADIENTS:
                for ranks in (2, 8, 64):
                    one = case(rounding.EMULATION, seed, format=fmt, gradient=kind, ranks=ranks)
                    yield one.rows("error", of_law * noise * ranks**exponent)
                    yield one.rows("law", float(ranks**exponent))
                one = case(rounding.GROUP, seed, format=fmt, gradient=kind, ranks=2)
                yield from (one.rows(name, value) for name, value in (("reduced", 1.0), ("accepted", 1.0)))
                yield from (one.rows(name, value) for name, value in (("unlike", unlike), ("error", 0.1)))
        for fmt, value in (("float16", lead), ("bfloat16", 1.0)):
            one = case(rounding.SCALED, seed, format=fmt, gradient=ring.DIGITS, ranks=8)
            yield from (one.rows(name, value * noise) for name in ("error", "law"))


@pytest.mark.parametrize(
    ("given", "statuses"),
    [
        ((1.0, 1.0, 0.0, 1 / 8), ("holds", "holds", "holds", "holds")),
        ((0.5, 1.0, 0.0, 1.0), ("fails", "holds", "holds", "fails")),
        ((0.5, 2.0, 0.1, 1.0), ("fails", "fails", "fails", "fails")),
    ],
)
def test_verdicts_on_rounding(
    analysed: Callable[..., Any], given: tuple[float, float, float, float], statuses: tuple[str, ...]
) -> None:
    said = analysed(rounding.PART, rounded(*given)).statuses
    names = ("reduction_growth", "reduction_law", "ring_order", "compression")
    assert tuple(str(said[name]) for name in names) == statuses


def test_a_format_that_the_backend_refuses_is_named(analysed: Callable[..., Any]) -> None:
    def rows() -> Iterator[Rows]:
        for row in rounded(0.5, 1.0, 0.0, 1 / 8):
            narrow = (row.case["how"], row.case["format"]) == (rounding.GROUP, "bfloat16")
            if narrow and row.metric == "reduced":
                yield row.case.rows("reduced", 0.0)
            elif not narrow:
                yield row

    said = analysed(rounding.PART, rows())
    assert any("reduces no bfloat16" in sentence for sentence in said.sentences)
    assert set(said.tables["ring_order"]["format"]) == {"float32", "float16"}
