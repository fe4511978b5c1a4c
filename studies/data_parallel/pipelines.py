"""Model parallelism: stages one after another, or at once on parts of a batch. A clock is read here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, parallel, stats, theory
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.studies.data_parallel.launches import launched
from depthgauge.studies.data_parallel.timelines import BACKWARD, FORWARD, NETWORK, SLEEPING, Pipe, bubble, overlap
from depthgauge.studies.data_parallel.trainers import Task
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

N32 = Claim("N32", "model parallelism runs the parts one after another; it is for models too large for one device")
BUBBLE = Claim(
    "data_parallel/bubble", "a pipeline of k stages is idle for (k - 1) / (m + k - 1) of a step of m microbatches"
)

MARGIN = 0.05  # of a step's time
STAGES = "depthgauge.studies.data_parallel.stages:work"  # by name: torch's pipelining is loaded in the ranks alone
AT_ONCE = 0.1  # of a step's time: stages that work at once for less run one after another
CONFIDENCE = 0.99
KEYS = ("kind", "stages", "schedule", "microbatches")
SHORT = tuple(  # 1F1B needs a microbatch for each stage
    Case.of({"schedule": "1F1B", "stages": stages, "microbatches": m}) for stages, m in ((2, 1), (4, 1), (4, 2))
)
SIZES = sizes(
    "kinds microbatches width depth batch rounds", quick=({}, (), 0, 0, 0, 0),
    standard=({2: (SLEEPING, NETWORK), 4: (SLEEPING,)}, (1, 2, 4, 8), 384, 4, 256, 12),
    full=({2: (SLEEPING, NETWORK), 4: (SLEEPING,)}, (1, 2, 4, 8, 16), 512, 8, 256, 31),
    tiny=({2: (SLEEPING, NETWORK)}, (1, 2), 16, 2, 8, 10),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    kinds: dict[int, tuple[str, ...]], microbatches: tuple[int, ...], width: int, depth: int, batch: int, rounds: int
) -> Iterator[Grid]:
    """Every schedule with every number of microbatches, in one launch for each number of stages."""
    for stages, some in kinds.items():
        yield Grid(
            {"kind": some, "schedule": ("GPipe", "1F1B"), "microbatches": microbatches},
            {"stages": stages, "width": width, "depth": depth, "batch": batch, "rounds": rounds},
            together=("kind", "schedule", "microbatches"), chunk=100, without=SHORT, exclusive=True,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """All pipelines of as many stages in turns: when each stage worked, and what it holds."""
    width, depth, batch, ranks, rounds = (
        cases[0].integer(name) for name in ("width", "depth", "batch", "stages", "rounds")
    )
    pipes = [Pipe(case.text("kind"), case.text("schedule"), case.integer("microbatches")) for case in cases]
    task = Task(width, depth, batch)
    device = parallel.device_for(ranks, context.device)
    found = launched(STAGES, pipes, task, rounds, ranks=ranks, device=device, context=context)
    for index, case in enumerate(cases):
        spans = [[own[0][index][place] for own in found] for place in range(rounds)]
        yield case.rows("bubble", [bubble(each) for each in spans], step=np.arange(rounds))
        yield case.rows("overlap", [overlap(each) for each in spans], step=np.arange(rounds))
        if case.text("kind") == NETWORK:
            yield case.rows("held", [float(own[1]) for own in found], layer_index=np.arange(ranks))


# -- answering ---------------------------------------------------------------------------------------------------------


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Idle shares against theory; whether the stages of a network ever work at once."""
    cases = params_of(rows, *KEYS, "width", "depth").astype({"stages": int, "microbatches": int})
    measured = {key: own.index[0] for key, own in groups(cases, list(KEYS))}
    idle = _question(rows, "bubbles", "bubble", measured)
    yield idle.table()
    words = {False: "other:", None: "undecided:"}
    each = idle.read(agrees)
    yield idle.verdict(
        BUBBLE, agrees, unit="share of a step",
        why=f"{sum(map(bool, each.values()))} of {len(idle)} pipelines are idle for that share within {MARGIN:g}"
        + idle.listed(agrees, words, 9, lead="; "),
        method=f"passes timed in every rank, equivalence with theory, margin {MARGIN:g} of a step",
    )  # fmt: skip
    networks = {key: case for key, case in measured.items() if key[0] == NETWORK}
    if networks:
        yield from _at_once(rows, cases, networks)


def _question(rows: pd.DataFrame, name: str, metric: str, measured: dict[Any, Any]) -> Question:
    asked = {}
    for key, case in measured.items():
        values = rows.loc[(rows["case"] == case) & (rows["metric"] == metric), "value"].to_numpy()
        predicted = theory.pipeline_bubble(key[1], key[3]) if metric == "bubble" else 0.0
        asked[key] = stats.against(
            values, predicted, margin=MARGIN if metric == "bubble" else AT_ONCE, confidence=CONFIDENCE, test="median"
        )
    return Question.of(
        name, KEYS, asked, label="{stages} {kind} stages by {schedule}, m = {microbatches}", counted="rounds",
        reference="predicted" if metric == "bubble" else "one after another",
        family=lambda kind, **_: kind,
    )  # fmt: skip


def _at_once(rows: pd.DataFrame, cases: pd.DataFrame, measured: dict[Any, Any]) -> Iterator[Answer]:
    """N32: one after another, where no time is shared; and what a stage holds of what one process would."""
    shared = _question(rows, "overlaps", "overlap", measured)
    case = next(iter(measured.values()))
    held = rows.loc[(rows["case"] == case) & (rows["metric"] == "held"), "value"]
    whole = 3 * Task(int(cases.loc[case, "width"]), int(cases.loc[case, "depth"]), 1).bytes
    share = float(held.max() / whole)
    yield shared.table()
    words = {True: "one after another:", False: "at once for a part of the time:", None: "undecided:"}
    yield shared.verdict(
        N32, agrees, unit="share of a step",
        why=f"{shared.listed(agrees, words, 9)}; a stage holds {share:.2f} of the bytes that one process holds",
        method=f"share of a step in which two stages work, by the clocks of both ranks, margin {AT_ONCE:g}",
    )  # fmt: skip
    ends = [c.effect.value for key, c in shared.members.items() if key[3] == max(k[3] for k in shared.members)]
    yield Sentence(
        f"Two stages of a pipeline work at once for {min(ends):.0%} to {max(ends):.0%} of a step of "
        f"{max(key[3] for key in shared.members)} microbatches; each holds {share:.2f} of one process's bytes.",
        claims=(N32.id,),
    )


@drawing.figure(
    "bubbles", "Idle share of a pipeline's step, by the number of microbatches",
    f"Idle share of a step, medians of rounds with {CONFIDENCE:.0%} intervals that hold at once; sleeping: stages that "
    "take known times and no core. Dashed: (k - 1) / (m + k - 1).",
)  # fmt: skip
def draw_bubbles(bubbles: pd.DataFrame) -> Any:
    """Idle shares by microbatches, a panel for each kind and number of stages."""
    named = bubbles.assign(pipeline=[f"{s} {kind} stages" for s, kind in zip(bubbles["stages"], bubbles["kind"])])  # noqa: B905 - columns
    axes = {"xscale": "log", "xlabel": "microbatches", "ylabel": "idle share of a step", "ylim": (0, 1)}
    return drawing.panels(named, "pipeline", drawing.estimates, at="microbatches", by="schedule", axes=axes)


METHOD = f"""**Pipelines.** Stages by torch.distributed.pipelining, one in a rank, GPipe and 1F1B; each notes when a
pass begins and ends, by the clock that the processes of a machine share. The idle share is that of all ranks from the
first pass to the last; pipelines are run in turns. Stages of one kind only sleep ({1e3 * FORWARD:g} ms forward,
{1e3 * BACKWARD:g} ms backward): equal times on any machine, so that the schedule alone is measured. Those of the other
are halves of a network of feed-forward blocks, on one thread each; their passes differ, messages take time, and small
microbatches cost more an example. Where stages are more than cores they share them, which changes when their passes
end. Rounds are of one launch. Parts run one after another where two stages work at the same time for less than
{AT_ONCE:.0%} of a step. Bytes held are weights, gradients and momentum, as torch's allocator hands them out."""
PART = Part(
    "pipelines", (N32, BUBBLE), SIZES, grids, run, analyse, (draw_bubbles,), METHOD, shown=("bubbles", "overlaps")
)  # fmt: skip
