"""What is left of a run: learnt by part, from pilots and from runs like it."""

from __future__ import annotations

import pytest

from depthgauge.costs import Part
from depthgauge.remaining import Cost
from depthgauge.study import Case, Chunk, Grid


def _chunks(part: str, **varied: tuple[int, ...]) -> list[Chunk]:
    return list(Grid(varied, {"part": part}).chunks("s"))


def _seconds(chunk: Chunk) -> float:
    return 0.01 * float(chunk.cases[0].number("depth")) ** 2


def test_heavy_cases_that_come_last_are_foreseen_from_light_ones() -> None:
    chunks = _chunks("a", depth=(1, 2, 4, 8, 16, 32, 64))
    cost = Cost(chunks)
    for chunk in (chunks[0], chunks[3], chunks[6], chunks[1]):  # pilots spread over the grid, and one more
        cost.learn(chunk, _seconds(chunk))
    left = sum(map(_seconds, (chunks[2], chunks[4], chunks[5])))
    assert cost.left(1) == pytest.approx(left, rel=0.35)  # a mean of all would say 31 s, where 12.96 s are left


def test_what_earlier_runs_cost_is_the_estimate_before_the_first_chunk() -> None:
    first = {"s": [*_chunks("a", depth=(1, 2, 3, 4)), *_chunks("b", depth=(1, 2))]}
    table = {"s": {"quick": {"a": Part(cases=2, seconds=10.0, second=6.0), "b": Part(cases=2, alone=5.0)}}}
    cost = Cost.of(first, "quick", table, waiting={"s"})
    cost.expect(first["s"])
    speed = 20.0 + 5.0 + 12.0  # seconds of one worker, on the table's machine
    here = cost.left(1)
    assert here is not None
    cost.second.clear()
    rest = cost.left(1)
    assert rest is not None
    assert here / rest == pytest.approx(speed / 25.0)


def test_a_machine_twice_as_slow_is_noticed_in_parts_that_have_not_begun() -> None:
    a, b = _chunks("a", depth=tuple(range(1, 41))), _chunks("b", depth=tuple(range(1, 41)))
    cost = Cost([*a, *b], known={("s", "a"): 1.0, ("s", "b"): 1.0})
    for chunk in a:
        cost.learn(chunk, 2.0)
    assert cost.left(1) == pytest.approx(80.0, rel=0.1)
    assert cost.share == pytest.approx(0.5, rel=0.1)


def test_a_long_part_with_few_light_chunks_done_is_not_nearly_over() -> None:
    """So it was: `about 9 s left` for ten minutes."""
    chunks = _chunks("a", depth=tuple(range(1, 101)))
    cost = Cost(chunks, known={("s", "a"): 6.0})
    for chunk in chunks[:10]:
        cost.learn(chunk, 0.1)
    left = cost.left(1)
    assert left is not None
    assert left > 100


def test_stopped_chunks_and_timed_ones_count_as_what_they_are() -> None:
    beside, alone = _chunks("a", depth=(1, 2, 3, 4)), [Chunk("s", (Case.of({"part": "t", "n": 1}),), exclusive=True)]
    cost = Cost([*beside, *alone], known={("s", "a"): 1.0, ("s", "t"): 3.0})
    assert cost.left(2) == pytest.approx(4 / 2 + 3)
    for chunk in beside:
        cost.drop(chunk)
    assert cost.left(2) == pytest.approx(3)
