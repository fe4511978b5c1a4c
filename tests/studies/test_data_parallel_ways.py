"""Ways to share a step: real ranks against one process, pretended ones against formulas, analyses of made-up rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from depthgauge import parallel, theory
from depthgauge.studies.data_parallel import (
    STUDY,
    accumulation,
    model,
    pipelines,
    rounding,
    same,
    scaling,
    shares,
    ways,
)
from depthgauge.studies.data_parallel.allocation import bytes_of
from depthgauge.studies.data_parallel.launches import answers
from depthgauge.studies.data_parallel.measuring import Measured, measured
from depthgauge.studies.data_parallel.stages import held, timelines
from depthgauge.studies.data_parallel.timelines import NETWORK, SLEEPING, Pipe, bubble, overlap
from depthgauge.studies.data_parallel.trainers import DDP, FP16, FSDP, ONE, POWER, TENSOR, THREADS, VIEWS, Task, trainer
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status

TASK = Task(width=16, depth=2, batch=8)
EXACT = (DDP, VIEWS, FSDP, TENSOR, ways.PIPELINE)
ROUNDS = 15

# -- real ranks --------------------------------------------------------------------------------------------------------


def rank(group: parallel.Group) -> tuple[dict[str, Measured], list[list[Any]], int]:
    """Everything that a rank does for these parts, once."""
    found = measured(group, TASK, (ONE, *ways.SHARED, THREADS), 2)
    pipes = [Pipe(SLEEPING, "GPipe", 2), Pipe(NETWORK, "1F1B", 4)]
    return found, timelines(group, pipes, TASK, 2), held(group, Task(64, 2, 4))


@pytest.fixture(scope="module")
def ranks() -> Sequence[Any]:
    return answers(parallel.launch(f"{__file__}:rank", ranks=2, limit=60))


@pytest.mark.alone
def test_two_ranks_take_the_steps_of_one_process(ranks: Sequence[Any]) -> None:
    for way in (ONE, *ways.SHARED, THREADS):
        each = [own[0][way] for own in ranks]
        apart = math.sqrt(sum(one.apart for one in each) / sum(one.gone for one in each))
        if way in EXACT or way in {ONE, THREADS}:
            assert apart < 1e-5, way
        else:
            assert (1e-5 if way == FP16 else 1e-2) < apart < 1, way
        assert all((one.seconds > 0).all() and len(one.seconds) == 2 for one in each)


@pytest.mark.alone
def test_a_real_group_sends_what_a_pretended_one_does(ranks: Sequence[Any]) -> None:
    for way in (ONE, *(way for way in shares.WAYS if way != POWER)):
        found = [own[0][way] for own in ranks]
        assert found[0].sent == found[1].sent
        if way != ONE:
            assert found[0].sent / TASK.bytes == pytest.approx(shares.predicted_sent(way, 2, 16, 2, 8))
    stages = [own[0][ways.PIPELINE] for own in ranks]
    assert [one.sent for one in stages] == [4 * 8 * 16, 4 * 8 * 16]  # activations forward, their gradients backward
    assert [one.calls for one in stages] == [8, 8]


@pytest.mark.alone
def test_every_pass_of_every_stage_is_noted(ranks: Sequence[Any]) -> None:
    for pipe, microbatches in enumerate((2, 4)):
        for place in range(2):
            spans = [own[1][pipe][place] for own in ranks]
            assert [each.shape for each in spans] == [(2 * microbatches, 2)] * 2
            assert 0 <= bubble(spans) < 1
            assert all((np.diff(each.ravel()) >= 0).all() for each in spans)
    assert all(own[1][0][0][0, 1] - own[1][0][0][0, 0] > 0.007 for own in ranks)  # it slept


@pytest.mark.alone
def test_a_stage_holds_half(ranks: Sequence[Any]) -> None:
    for own in ranks:
        assert own[2] == pytest.approx(1.5 * Task(64, 2, 4).bytes, rel=0.02)


# -- one process that pretends -----------------------------------------------------------------------------------------


def case_of(way: str, count: int) -> Case:
    return Case.of({"way": way, "ranks": count, "width": 40, "depth": 2, "examples": 1})


@pytest.fixture(scope="module")
def counted() -> list[Rows]:
    return list(shares.run([case_of(way, count) for count in (2, 8) for way in shares.WAYS], Context()))


def test_bytes_are_those_of_the_formulas(counted: list[Rows], analysed: Callable[..., Any]) -> None:
    tables = analysed(shares.PART, counted).tables
    assert len(tables["sent"]) == len(tables["held"]) == 12
    assert tables["sent"]["value"].to_numpy() == pytest.approx(tables["sent"]["predicted"].to_numpy(), rel=1e-12)
    known = tables["held"].dropna(subset=["predicted"])
    assert known["value"].to_numpy() == pytest.approx(known["predicted"].to_numpy(), rel=shares.NEAR)
    power = tables["held"].set_index("way").loc[POWER, "value"]
    assert (power > 5).all()  # error feedback, on top of what DDP holds
    assert (tables["held"]["peak"] >= tables["held"]["value"]).all()


def test_what_is_claimed_of_bytes(counted: list[Rows], analysed: Callable[..., Any]) -> None:
    found = analysed(shares.PART, counted)
    assert found.statuses == {"sent": Status.HOLDS, "held": Status.DEPENDS}
    assert "other for DDP (4" in found.verdicts["held"].why
    padded = analysed(shares.PART, shares.run([case_of(FSDP, 64)], Context()))
    assert padded.statuses == {"sent": Status.FAILS, "held": Status.FAILS}
    assert "FSDP2 pads weights" in padded.sentences[-1]


def test_bytes_of_a_trace() -> None:
    def change(at: float, count: int, place: int) -> dict[str, Any]:
        return {"name": "[memory]", "ts": at, "args": {"Bytes": count, "Addr": place}}

    step = {"name": "the step that is looked at", "ph": "X", "ts": 10.0, "dur": 5.0}
    before = [change(1, 100, 1), change(2, 900, 2), change(3, -900, 2), change(4, -700, 9)]  # 9 is older than the trace
    within = [change(11, 40, 2), change(12, 30, 3), change(13, -30, 3)]
    assert bytes_of([*before, step, *within, change(20, -40, 2)]) == (100, 170)


def test_a_way_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="'DPP' is no way to train; these are: one process, DDP"):
        trainer("DPP", TASK, parallel.Group(0, 1, torch.device("cpu")))


def test_ranks_without_a_device_each_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [parallel.device_for(2, "cuda:0"), parallel.device_for(4, "cuda"), parallel.device_for(2, "cpu")] == [
        "cuda",
        "cpu",
        "cpu",
    ]


def test_a_rank_that_dies_is_named() -> None:
    ends = (parallel.End(0, "ok"), parallel.End(1, "died", "SIGKILL"))
    with pytest.raises(RuntimeError, match="rank 1 died: SIGKILL"):
        answers(parallel.Outcome((None, None), ends, 1.0))


@pytest.mark.parametrize("part", [same, scaling, accumulation, rounding, ways, pipelines, model])
def test_every_launch_has_time_for_the_largest_size(part: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def launch(*_: object, **options: Any) -> None:
        asked.update(options)
        raise RuntimeError("launched")

    monkeypatch.setattr(parallel, "launch", launch)
    chunk = next(chunk for grid in part.PART.at("full") for chunk in grid.chunks("data_parallel"))
    with pytest.raises(RuntimeError, match="launched"):
        list(part.PART.run(chunk.cases, Context()))
    # Four ranks on two cores build several hundred DDPs: a minute, which a call by hand has, is not enough.
    assert 1800 <= asked["limit"] < STUDY.time_limit
    assert asked["patience"] >= 60


# -- spans -------------------------------------------------------------------------------------------------------------


def gpipe(stages: int, microbatches: int) -> list[np.ndarray]:
    """Passes of one second each, all forward ones and then all backward ones."""
    forward = [[(s + i, s + i + 1) for i in range(microbatches)] for s in range(stages)]
    turn = microbatches + stages - 1
    back = [[(turn + stages - 1 - s + i, turn + stages - s + i) for i in range(microbatches)] for s in range(stages)]
    return [np.array(one + other, dtype=float) for one, other in zip(forward, back, strict=True)]


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 3), (2, 1), (2, 8), (4, 8)])
def test_bubble_and_overlap_of_spans(stages: int, microbatches: int) -> None:
    spans = gpipe(stages, microbatches)
    assert bubble(spans) == pytest.approx(theory.pipeline_bubble(stages, microbatches), abs=1e-12)
    if stages == 2:
        assert overlap(spans) == pytest.approx((microbatches - 1) / (microbatches + 1))


def pipes(excess: float, shared: float) -> Iterator[Rows]:
    noise = 0.005 * np.random.default_rng(0).standard_normal(ROUNDS)
    for kind in (SLEEPING, NETWORK):
        for m in (1, 4):
            case = Case.of({
                "kind": kind, "stages": 2, "schedule": "GPipe", "microbatches": m, "width": 16, "depth": 2,
            })  # fmt: skip
            yield case.rows("bubble", theory.pipeline_bubble(2, m) + noise + excess * (kind == NETWORK))
            yield case.rows("overlap", np.abs(noise) + shared if m > 1 else np.zeros(ROUNDS))
            if kind == NETWORK:
                yield case.rows("held", [1.5 * TASK.bytes] * 2, layer_index=[0, 1])


def test_model_parallelism_is_one_after_another_with_one_microbatch(analysed: Callable[..., Any]) -> None:
    found = analysed(pipelines.PART, pipes(0.0, 0.4))
    assert found.statuses == {"bubble": Status.HOLDS, "N32": Status.DEPENDS}
    assert "one after another: 2 network stages by GPipe (m = 1); at once" in found.verdicts["N32"].why
    assert "a stage holds 0.50 of the bytes" in found.verdicts["N32"].why
    never = analysed(pipelines.PART, pipes(0.3, 0.0))
    assert never.statuses == {"bubble": Status.DEPENDS, "N32": Status.HOLDS}


# -- throughput --------------------------------------------------------------------------------------------------------


def timed(
    factors: dict[str, float], distance: dict[str, float], noise: float = 0.01, room: float = 2.0
) -> Iterator[Rows]:
    draws = np.random.default_rng(1)
    for way, factor in factors.items():
        case = Case.of({"way": way, "width": 16, "batch": 8, "depth": 2})
        yield case.rows("seconds", 0.01 * factor * np.exp(noise * draws.standard_normal(ROUNDS)), step=range(ROUNDS))
        yield case.rows("sent", 4.0 * TASK.bytes)
        yield case.rows("calls", 3.0)
        yield case.rows("room", room)
        yield case.rows("distance", distance.get(way, 1e-7))


def test_ways_that_are_faster_and_that_are_not(analysed: Callable[..., Any]) -> None:
    found = analysed(ways.PART, timed({ONE: 1.0, DDP: 0.6, FSDP: 2.0}, {}))
    assert found.statuses == {"ways_faster": Status.DEPENDS, "ways_same": Status.HOLDS}
    table = found.tables["ways"].set_index("way")
    assert table.loc[DDP, "value"] == pytest.approx(1 / 0.6, rel=0.02)
    assert table.loc[DDP, "sent"] == 4
    assert "in 1 of 2 combinations of way and size, and not in 1." in found.sentences[0]
    assert analysed(ways.PART, timed({ONE: 1.0, DDP: 0.6}, {})).statuses["ways_faster"] is Status.HOLDS
    assert analysed(ways.PART, timed({ONE: 1.0, DDP: 1.0}, {})).statuses["ways_faster"] is Status.FAILS
    unclear = analysed(ways.PART, timed({ONE: 1.0, DDP: 0.9}, {}, noise=0.5))
    assert unclear.statuses["ways_faster"] is Status.INCONCLUSIVE


def test_ranks_that_share_a_core_decide_nothing_about_throughput(analysed: Callable[..., Any]) -> None:
    found = analysed(ways.PART, timed({ONE: 1.0, DDP: 2.0}, {}, room=1.0))
    assert found.statuses == {"ways_faster": Status.INCONCLUSIVE, "ways_same": Status.HOLDS}
    assert "the 2 ranks share a core" in found.verdicts["ways_faster"].why
    assert not found.sentences
    assert len(found.tables["ways"]) == 1


def test_ways_that_take_another_step(analysed: Callable[..., Any]) -> None:
    found = analysed(ways.PART, timed({ONE: 1.0, DDP: 1.0, FP16: 1.0}, {FP16: 3e-4}))
    assert found.statuses["ways_same"] is Status.DEPENDS
    assert found.verdicts["ways_same"].why == "the same: DDP (1.0e-07); another: DDP with fp16 hook (3.0e-04)"
    assert found.verdicts["ways_same"].observed == 3e-4
