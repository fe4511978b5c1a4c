"""Seconds of a step on one rank and on several: speed-up, its losses, and where the time goes. A clock is read here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import stats
from depthgauge.frames import only, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, judged
from depthgauge.studies.data_parallel import layouts, overlapping, scaling_figures
from depthgauge.studies.data_parallel.overlapping import Key, Taken
from depthgauge.study import Case, Grid, Value
from depthgauge.verdict import Claim, Sentence

N31 = Claim(
    "N31",
    "data parallelism splits the batch over n devices, each with all parameters, and performs well: more than 80 % of "
    "n times the examples a second, at a fixed total batch and at a fixed batch a rank",
)
BESIDE = Claim(
    "data_parallel/beside", "two ranks that exchange nothing take as long for a step as one alone, within 5 %"
)
OVERLAP = Claim(
    "data_parallel/overlap",
    "reducing gradients while the backward pass goes on makes a step more than 5 % faster than waiting for each bucket",
)
HIDDEN = Claim("data_parallel/hidden", "computing hides more than half of the time in which gradients are exchanged")
BUCKETS = Claim("data_parallel/buckets", "no bucket size tried makes a step 5 % faster than DDP's default of 25 MiB")

WELL = 0.8  # share of the ideal
SIZES = sizes(
    "nets ranks batches buckets rounds traced turns",
    quick=((), (1, 2), (16, 32), (), 9, (), 0),
    standard=(
        (("mlp", 64), ("mlp", 512), ("lenet5", None)), (1, 2, 4), (32, 64, 128, 256), (0.1, 1), 21,
        (32, 256), 9,
    ),
    full=(
        (("mlp", 64), ("mlp", 512), ("mlp", 1024), ("lenet5", None), ("resnet18", None), ("transformer", None)),
        (1, 2, 4, 8), (8, 16, 32, 64, 128, 256), (0.1, 0.3, 1, 3, 10, 100), 25, (8, 256), 12,
    ),
    tiny=((("mlp", 8),), (1, 2), (2, 4), (0.001,), 9, (4,), 6),
)  # fmt: skip


def grids(
    *, nets: tuple[tuple[str, int | None], ...], ranks: tuple[int, ...], batches: tuple[int, ...],
    buckets: tuple[float, ...], rounds: int, traced: tuple[int, ...], turns: int,
) -> Iterator[Grid]:  # fmt: skip
    """Steps by layout, a launch a network, timed and traced; nothing runs beside."""
    varied: dict[str, tuple[Value, ...]] = {
        "ranks": ranks, "batch": batches, "reduction": ("none", "overlapped", "waited"),
        "bucket": (None, *buckets), "turns": tuple(dict.fromkeys((0, turns))),
    }  # fmt: skip
    every = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    left_out = tuple(Case.of(each) for each in every if not wanted(batches, traced, **each))
    for model, width in nets:
        yield Grid(
            {"model": (model,), **varied}, {"width": width, "rounds": rounds}, together=tuple(varied), chunk=10_000,
            architecture=("width",), any_input=True, exclusive=True, without=left_out,
        )  # fmt: skip


def wanted(
    batches: Sequence[int], traced: Sequence[int], *, ranks: Any, batch: Any, reduction: Any, bucket: Any, turns: Any
) -> bool:
    """Tell whether a layout is measured: one rank in plain training, two in all ways, more, which may share, in DDP."""
    if turns and batch not in traced:
        return False
    if bucket is not None:
        return bool(ranks == 2 and reduction == "overlapped" and batch in batches[-2:])
    if ranks == 1:
        return bool(reduction == "none")
    return bool(ranks == 2 and not (turns and reduction == "none")) or bool(reduction == "overlapped" and not turns)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Speed-up against the ideal, what two ranks lose, overlap by clock and by trace, and bucket sizes."""
    cases = params_of(rows, "model", "width", "ranks", "batch", "reduction", "bucket", "turns")
    cases["net"] = [named(row.model, row.width) for row in records(cases)]
    cases["bucket"] = pd.to_numeric(cases["bucket"]).fillna(0.0)
    most = int(only(rows, "room").max())
    taken = columns(rows, cases, "seconds")
    yield from scaled(taken, most)
    cases = cases[pd.to_numeric(cases["ranks"]) <= most]  # ranks that share a core tell nothing of the rest either
    apart = columns(rows, cases, "seconds")
    yield from overlapping.lost(BESIDE, apart)
    yield from overlapping.overlapped(OVERLAP, apart)
    yield from overlapping.bucketed(BUCKETS, apart)
    yield from overlapping.traced(HIDDEN, {part: columns(rows, cases, part) for part in layouts.PARTS}, apart)


def named(model: Any, width: Any) -> str:
    """A network in words: `mlp, width 512`."""
    return str(model) if pd.isna(width) else f"{model}, width {int(width)}"


def columns(rows: pd.DataFrame, cases: pd.DataFrame, metric: str) -> dict[Key, NDArray[np.float64]]:
    """A metric's values by layout, in the order of rounds or turns."""
    own = rows[rows["metric"] == metric].sort_values("step")
    values = {case: each["value"].to_numpy(float) for case, each in own.groupby("case", sort=False)}
    return {
        (row.net, int(row.ranks), int(row.batch), row.reduction, float(row.bucket)): values[row.Index]
        for row in records(cases)
        if row.Index in values
    }


# -- speed-up ----------------------------------------------------------------------------------------------------------


def scaled(taken: Taken, most: int) -> Iterator[Answer]:
    """Speed-up at a fixed total batch and at a fixed batch a rank; the claim is asked of ranks with a core each."""
    shares: dict[tuple[str, str, int, int], NDArray[np.float64]] = {}
    for (net, ranks, batch, reduction, bucket), seconds in taken.items():
        if reduction != "overlapped" or bucket:
            continue
        for kind, total, alone in (("strong", ranks * batch, ranks * batch), ("weak", batch, batch)):
            single = taken.get((net, 1, alone, "none", 0.0))
            if single is not None:
                shares[kind, net, total, ranks] = single / seconds / (ranks if kind == "strong" else 1)
    table = []
    for key in dict.fromkeys(key[:3] for key in shares):
        table.append({**dict(zip(("scaling", "net", "batch"), key, strict=True)), **_speed(1, np.ones(1), most)})
        table += [
            {"scaling": key[0], "net": key[1], "batch": key[2], **_speed(place[3], share, most)}
            for place, share in shares.items()
            if place[:3] == key
        ]
    table.sort(key=lambda row: (row["scaling"], row["net"], row["batch"], row["ranks"]))
    yield "speedup", pd.DataFrame(table)
    asked = {
        key: stats.against(share, WELL, log=True, test="median") for key, share in shares.items() if key[3] <= most
    }
    question = Question.of(
        "scaling", ("scaling", "net", "batch", "ranks"), asked, reference="80 % of the ideal", counted="rounds",
        label="{scaling} scaling of {net} at {batch} on {ranks} ranks",
    )  # fmt: skip
    if not question:
        cores = "a core or a device" if most == 1 else f"{most} cores or devices"
        yield question.table()
        yield judged(N31, (), why=f"this machine has {cores}, so that no two ranks measured had one each")
        return
    yield question.table(
        {key: {"ideal": 1.0, "speedup": key[3] * c.effect.value} for key, c in question.members.items()}
    )
    words = {
        True: "more than 80 % of the ideal speed-up for",
        False: "80 % of the ideal speed-up is not reached for",
        None: "undecided for",
    }
    yield question.verdict(
        N31, above, unit="share of the ideal", why=question.listed(above, words, 4),
        method=f"examples a second over those of plain training on one rank, over the number of ranks, all in turns in "
        f"one launch, order statistics, against {WELL:g}; ranks that share a core are not asked",
    )  # fmt: skip
    values = [c.effect.value for c in question.members.values()]
    yield Sentence(
        f"With a core or a device for each rank, data parallelism reached {min(values):.0%} to {max(values):.0%} of "
        "the ideal speed-up, by network and batch.",
        "strong_scaling", (N31.id,),
    )  # fmt: skip
    if beyond := sorted({key[3] for key in shares if key[3] > most}):
        yield Sentence(
            f"Steps of {' and '.join(map(str, beyond))} ranks were timed too; they share {most} cores or devices, and "
            "what they show is no scaling."
        )


def _speed(ranks: int, share: NDArray[np.float64], most: int) -> dict[str, Any]:
    speed = stats.median(ranks * share)
    low, high = (1.0, 1.0) if ranks == 1 else (speed.low, speed.high)
    return {
        "ranks": ranks, "n": speed.n, "value": speed.value, "low_95": low, "high_95": high, "predicted": float(ranks),
        "shared": ranks > most,
    }  # fmt: skip


MILLISECONDS = 1e3 * layouts.STRETCH
METHOD = f"""**Scaling.** A network's steps (zero_grad, forward, backward, SGD with momentum) in every layout, in one
launch of torchrun: plain training on one rank; plain training on two ranks at once; DDP; DDP whose backward pass
waits for each bucket (a communication hook in Python that reduces at once, whose own cost counts as waiting); DDP
with other bucket sizes. All are timed in turns, up in one round and down in the next; each duration is the slowest
rank's, the mean of a stretch of at least {MILLISECONDS:g} ms behind a barrier and an untimed step. Ranks that take no
part sleep. Strong scaling divides a total batch among the ranks, weak scaling gives each rank the same; the ideal is
as many times the examples a second of plain training on one rank as there are ranks. Ranks get a thread each. More
ranks than cores are timed, marked, and no verdict rests on them. Rounds are of one launch: what changes from launch
to launch, such as where data lie in memory, is not in the intervals.

**Where the time goes.** Steps of the same layouts under torch.profiler, in turns, {layouts.TRACED} a turn. A step is
divided into computing (an operator runs; on CUDA a kernel), exposed communication (a collective is under way and
nothing computes, waiting for the other rank included), and the rest: Python, dispatch, autograd, DDP's copies into
and out of its buckets. Communication that computing hides is a part of computing, and not free on a CPU, where a
collective takes its own time of the cores. The profiler slows short operators: the table has the step without it
beside. The part has not been run on several GPUs."""
PART = Part(
    "scaling", (N31, BESIDE, OVERLAP, HIDDEN, BUCKETS), SIZES, grids, layouts.measured, analyse,
    scaling_figures.FIGURES, METHOD, shown=("scaling", "time_lost"),
)  # fmt: skip
