"""The bubble against schedules that are played through, place by place."""

from __future__ import annotations

import pytest

from depthgauge import theory

Action = tuple[str, int]  # F or B, and the microbatch


def gpipe(_: int, __: int, microbatches: int) -> list[Action]:
    return [("F", i) for i in range(microbatches)] + [("B", i) for i in range(microbatches)]


def one_forward_one_backward(stage: int, stages: int, microbatches: int) -> list[Action]:
    first = min(microbatches, stages - stage)
    order = [("F", i) for i in range(first)]
    for i in range(microbatches - first):
        order += [("B", i), ("F", first + i)]
    return order + [("B", i) for i in range(microbatches - first, microbatches)]


def idle_share(orders: list[list[Action]], forward: float, backward: float) -> float:
    """Idle share of all stages from the first pass to the last, each begun as soon as what it needs is there."""
    stages = len(orders)
    ended: dict[tuple[str, int, int], float] = {}
    clocks, places = [0.0] * stages, [0] * stages
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        for stage, order in enumerate(orders):
            while places[stage] < len(order):
                kind, batch = order[places[stage]]
                before = (kind, stage + (-1 if kind == "F" else 1), batch)
                outside = not 0 <= before[1] < stages
                if not outside and before not in ended:
                    break
                start = max(clocks[stage], 0.0 if outside else ended[before])
                clocks[stage] = ended[kind, stage, batch] = start + (forward if kind == "F" else backward)
                places[stage] += 1
    return 1 - len(orders[0]) / 2 * (forward + backward) / max(clocks)


@pytest.mark.parametrize("order", [gpipe, one_forward_one_backward])
@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (1, 5), (2, 1), (2, 8), (4, 4), (4, 9), (8, 64)])
@pytest.mark.parametrize("backward", [1.0, 2.0, 3.5])
def test_bubble_is_that_of_schedules(order, stages, microbatches, backward):
    orders = [order(stage, stages, microbatches) for stage in range(stages)]
    assert theory.pipeline_bubble(stages, microbatches) == pytest.approx(idle_share(orders, 1.0, backward), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.pipeline_bubble(0, 4), "stages is 0"),
        (lambda: theory.pipeline_bubble(2, 0), "microbatches is 0"),
        (lambda: theory.pipeline_bubble(2, 1.5), "microbatches"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
