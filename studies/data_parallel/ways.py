"""Ways to share a training between two ranks: throughput, and whether the steps are the same. A clock is read here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, parallel, stats
from depthgauge.conditions import undecided
from depthgauge.drawing.palette import GREY
from depthgauge.frames import groups, only, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, judged
from depthgauge.studies.data_parallel.allocation import STEPS
from depthgauge.studies.data_parallel.launches import launched
from depthgauge.studies.data_parallel.measuring import measured
from depthgauge.studies.data_parallel.trainers import (
    BF16,
    DDP,
    FP16,
    FSDP,
    MICROBATCHES,
    ONE,
    PIPELINE,
    POWER,
    RANK,
    TENSOR,
    THREADS,
    VIEWS,
    Task,
)
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

FASTER = Claim(
    "data_parallel/ways_faster",
    "two ranks take a step at least 5 % faster than one process, in each way to share it",
)
SAME = Claim(
    "data_parallel/ways_same", "steps of two ranks are those of one process but for rounding, in each way to share them"
)

SHARED = (DDP, VIEWS, FSDP, FP16, POWER, TENSOR, PIPELINE)
RANKS = 2
WIDE = (512, 4096)  # examples, on CUDA
MARGIN = 1.05  # up to 5 % is no faster
NEAR = 1e-5  # of the way that the weights went: within it the steps are the same up to rounding
CONFIDENCE = 0.99
SIZES = sizes(
    "ways widths batches rounds cuda", quick=((ONE, *SHARED), (), (), 0, ()),
    standard=((ONE, *SHARED), (128, 384), (32, 512), 15, (2048,)),
    full=((ONE, *SHARED), (128, 384, 768), (32, 128, 512), 31, (2048, 4096)),
    tiny=((ONE, DDP, FSDP, PIPELINE), (16,), (8,), 10, ()),
)  # fmt: skip


def grids(
    ways: tuple[str, ...], widths: tuple[int, ...], batches: tuple[int, ...], rounds: int, cuda: tuple[int, ...]
) -> Iterator[Grid]:
    """Every way at every size of network and batch, a launch a task; wide networks where CUDA has two devices."""
    fixed: dict[str, Value] = {"depth": 4, "ranks": RANKS, "rounds": rounds}
    for some, wide, of, needs in ((ways, widths, batches, ""), ((*ways, BF16, THREADS), cuda, WIDE, f"cuda:{RANKS}")):
        if wide:
            yield Grid(
                {"width": wide, "batch": of, "way": some}, fixed, together=("way",), chunk=1000,
                exclusive=True, needs=needs,
            )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """All ways of a task in turns, task by task, in one launch; a round lasts as long as its slowest rank."""
    tasks: dict[Task, list[Case]] = {}
    for case in cases:
        tasks.setdefault(Task(*(case.integer(name) for name in ("width", "depth", "batch"))), []).append(case)
    ranks, rounds = cases[0].integer("ranks"), cases[0].integer("rounds")
    device = parallel.device_for(ranks, context.device)
    wanted = [(task, [case.text("way") for case in own]) for task, own in tasks.items()]
    found = launched(work, wanted, rounds, ranks=ranks, device=device, context=context)
    for index, own in enumerate(tasks.values()):
        for case in own:
            each = [rank[index][case.text("way")] for rank in found]
            slowest = np.max([one.seconds for one in each], axis=0)
            yield case.rows("seconds", slowest, step=np.arange(rounds))
            yield case.rows("room", float(parallel.room(device)))
            if case.text("way") != POWER:  # which calls some of its collectives in threads of gloo's, unseen
                yield case.rows("sent", float(np.mean([one.sent for one in each])))
                yield case.rows("calls", float(max(one.calls for one in each)))
            yield case.rows("distance", math.sqrt(sum(one.apart for one in each) / sum(one.gone for one in each)))


def work(group: parallel.Group, wanted: Sequence[tuple[Task, Sequence[str]]], rounds: int) -> list[Any]:
    """Measure the ways of every task in one rank."""
    return [measured(group, task, ways, rounds) for task, ways in wanted]


# -- answering ---------------------------------------------------------------------------------------------------------


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Throughput over that of one process; distance from its weights; bytes and calls of a step."""
    cases = params_of(rows, "way", "width", "batch", "depth").astype({"width": int, "batch": int, "depth": int})
    for metric in ("sent", "calls", "distance", "room"):
        cases[metric] = only(rows, metric)
    yield from _same(cases)
    timed = rows[rows["metric"] == "seconds"].sort_values("step")
    seconds = {case: own["value"].to_numpy() for case, own in groups(timed, "case")}
    yield from _faster(cases, seconds)


def _same(cases: pd.DataFrame) -> Iterator[Answer]:
    """Distance of the weights from those of one process, in parts of the way that these went."""
    own = cases[cases["way"] != ONE]
    if own.empty:
        return
    table = pd.DataFrame({
        "way": own["way"], "width": own["width"], "batch": own["batch"], "value": own["distance"],
        "answer": np.where(own["distance"] <= NEAR, "the same", "another"),
    }).reset_index(drop=True)  # fmt: skip
    yield "ways_steps", table
    by_way = {str(way): bool((each["answer"] == "the same").all()) for way, each in groups(table, "way")}
    furthest = table.groupby("way", sort=False)["value"].max()
    far = table.iloc[int(table["value"].to_numpy().argmax())]
    each = "; ".join(
        f"{word} {', '.join(f'{way} ({furthest[way]:.1e})' for way, same in by_way.items() if same is kept)}"
        for kept, word in ((True, "the same:"), (False, "another:")) if kept in by_way.values()
    )  # fmt: skip
    yield judged(
        SAME, by_way, each, observed=float(far["value"]), n=len(table), counted="trainings",
        table="ways_steps", answer=str(far["answer"]), predicted=0.0,
        unit="share of the distance that the weights travel",
        condition=f"{far['way']}, width {far['width']}, batch {far['batch']}",
        method=f"weights after {STEPS} steps from one start, distance over that which one process has gone, at the "
        f"most over all tasks; the same within {NEAR:g}",
    )  # fmt: skip


def _faster(cases: pd.DataFrame, seconds: dict[Any, Any]) -> Iterator[Answer]:
    """Paired by round: seconds of one process over those of two ranks."""
    asked, further = {}, {}
    for (width, batch), own in groups(cases, ["width", "batch"]):
        alone = own.index[own["way"] == ONE]
        if not len(alone):
            continue
        one = seconds[alone[0]]
        for each in records(own[own["way"] != ONE]):
            key = each.way, width, batch
            asked[key] = stats.paired(
                one, seconds[each.Index], log=True, margin=MARGIN, confidence=CONFIDENCE, test="median"
            )
            further[key] = {
                "milliseconds": 1e3 * float(np.median(seconds[each.Index])),
                "examples_per_second": batch / float(np.median(seconds[each.Index])),
                "calls": each.calls, "sent": each.sent / Task(width, each.depth, batch).bytes,
            }  # fmt: skip
    if not asked:
        return
    question = Question.of(
        "ways", ("way", "width", "batch"), asked, label="{way} at width {width}, batch {batch}",
        reference="one process", counted="rounds",
    )  # fmt: skip
    yield question.table(further)
    if (room := cases["room"].min()) < RANKS:
        shared = "a core" if room == 1 else f"{room:g} cores"
        yield judged(FASTER, (), f"the {RANKS} ranks share {shared}, so that their times decide nothing")
        return
    words = {True: "at least 5 % faster than one process is", False: "not 5 % faster is", None: "undecided:"}
    yield question.verdict(
        FASTER, above, unit="times the throughput of one process", why=question.listed(above, words),
        method=f"all ways in turns, the slowest rank counts, median of paired log-ratios, margin {MARGIN:g}",
    )  # fmt: skip
    said = [*question.read(above).values()]
    yield Sentence(
        f"On this machine two ranks take a step more than {MARGIN - 1:.0%} faster than one process in "
        f"{said.count(True)} of {len(said)} combinations of way and size, and not in {said.count(False)}"
        f"{undecided(said)}.",
        claims=(FASTER.id,),
    )


def _form(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    drawing.estimates(axis, rows, "way", **options)
    axis.axvline(1, color=GREY, lw=0.8, zorder=0)


@drawing.figure(
    "ways", "Throughput of two ranks over that of one process, by the way they share a step",
    f"Throughput of two ranks in multiples of that of one process on the same batch, medians of paired rounds, "
    f"{CONFIDENCE:.0%} intervals that hold at once.",
)  # fmt: skip
def draw_ways(ways: pd.DataFrame) -> Any:
    """Throughput by way, a panel for each size of the network."""
    return drawing.panels(ways, "width", _form, by="batch", axes={"xscale": "log", "xlabel": "times one process"})


METHOD = f"""**Ways.** One training (four feed-forward blocks, SGD with momentum, one batch of all ranks together) by
one process and by two ranks, one thread each: DDP, DDP whose gradients are views of its buckets, FSDP2 (a unit of
`fully_shard` a block), hooks that reduce in fp16 or by PowerSGD of rank {RANK}, tensor parallelism (columns, then rows,
in each block), and a pipeline of two stages, 1F1B with {MICROBATCHES} microbatches. All run in the same processes, in
turns, up in one round and down in the next, begun together; the slowest rank counts. Two ranks use two cores and one
process uses one; where there is one core, no verdict is given. Rounds are of one launch: what changes from launch to
launch is not in the intervals. Where the machine has a CUDA device for each rank they talk by NCCL, which never ran
here; else by gloo on the CPU. The bf16 hook takes NCCL alone, and `nn.DataParallel` several CUDA devices: these two
have rows on such a machine alone, at larger sizes. With gloo, PowerSGD keeps all gradients in one bucket: it starts
collectives in callbacks, and those of several buckets differ in order from rank to rank. They run in gloo's threads
besides, so that what PowerSGD sends is counted in the part *shares* alone."""
PART = Part("ways", (FASTER, SAME), SIZES, grids, run, analyse, (draw_ways,), METHOD, shown=("ways", "ways_steps"))
