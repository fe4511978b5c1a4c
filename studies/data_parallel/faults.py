"""Faults of ranks: what ends a group, who is named for it, and what is left behind."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from depthgauge import drawing, parallel
from depthgauge.drawing.palette import GREY
from depthgauge.frames import only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import enumerated, judged
from depthgauge.studies.data_parallel import planted
from depthgauge.studies.data_parallel.planted import FAULTS
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence, Status, Verdict

END = Claim(
    "data_parallel/faults_end",
    "a group of which a rank dies, hangs or raises has ended at most 10 s after its time-out",
)
NAMED = Claim(
    "data_parallel/faults_named", "the report on a broken group names the rank at fault and how that rank ended"
)
CLEAN = Claim("data_parallel/faults_clean", "no process of a group is left running, however the group ended")
NEXT = Claim(
    "data_parallel/faults_next",
    "after groups that ended by a fault, and with torchrun's usual ports taken, the next group computes the right mean",
)
SLACK = 10.0  # seconds beyond the time-out
SOUND = "none, usual ports taken"
QUESTIONS = {END: "ended in time", NAMED: "named", CLEAN: "left nothing", NEXT: "next computes"}
SIZES = sizes(
    "faults ranks", quick=((), (2,)), standard=(tuple(FAULTS), (2,)), full=(tuple(FAULTS), (2, 4)),
    tiny=(("raises",), (2,)),
)  # fmt: skip


def grids(faults: tuple[str, ...], ranks: tuple[int, ...]) -> Iterator[Grid]:
    """Every fault, one group after another, and at the end a sound group; nothing runs beside."""
    if faults:
        yield Grid({"ranks": ranks, "fault": faults}, {"device": "cpu"}, together=("fault",), chunk=100, exclusive=True)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """The end of each group: its culprit, in words too; seconds from the fault to the last process; what still runs."""
    for case in sorted(cases, key=lambda case: list(FAULTS).index(case.text("fault"))):
        fault, ranks = FAULTS[case.text("fault")], case.integer("ranks")
        with (
            tempfile.TemporaryDirectory(dir=context.scratch) as folder,
            nullcontext() if fault.does else planted.taken(),
        ):
            note = Path(folder) / "fault"
            outcome = parallel.launch(
                planted.reduce, case.text("fault"), str(note), ranks=ranks, device=case.text("device"),
                patience=fault.patience, limit=fault.limit, folder=Path(folder),
            )  # fmt: skip
            ended = time.time()
            since = float(note.read_text()) if note.exists() else math.nan
        culprit = outcome.culprit
        named = culprit is not None and (culprit.rank, culprit.status) == (ranks - 1, fault.status)
        yield case.rows("named", float(named if fault.does else outcome.well), layer=outcome.why or "all ended well")
        yield case.rows("seconds", ended - since)
        yield case.rows("processes", float(len(outcome.processes)))
        yield case.rows("left", float(sum(map(planted.runs, outcome.processes))))
        yield case.rows("answers", float(sum(answer == (ranks + 1) / 2 for answer in outcome.answers)))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """One row a group, and to each question how many groups answer it well."""
    table = params_of(rows, "fault", "ranks").astype({"ranks": int})
    for metric in ("named", "seconds", "processes", "left", "answers"):
        table[metric] = only(rows, metric)
    table["said"] = rows[rows["metric"] == "named"].set_index("case")["layer"]
    table["time_out"] = [FAULTS[fault].time_out for fault in table["fault"]]
    order = {name: place for place, name in enumerate(FAULTS)}
    table = table.sort_values(
        ["fault", "ranks"], key=lambda column: column.map(order) if column.name == "fault" else column
    )
    broken, sound = table[table["fault"] != SOUND], table[table["fault"] == SOUND]
    yield "faults", table[["fault", "ranks", "said", "seconds", "time_out", "left"]].reset_index(drop=True)
    asked = {
        END: broken.set_index("fault")["seconds"] <= broken.set_index("fault")["time_out"] + SLACK,
        NAMED: broken.set_index("fault")["named"] == 1,
        CLEAN: table.set_index("fault")["left"] == 0,
        NEXT: sound.set_index("fault")["answers"] == sound.set_index("fault")["ranks"],
    }
    if sound.empty:
        yield Verdict(
            NEXT.id, NEXT.text, Status.NOT_MEASURED, why="no sound group was started at this size of the study"
        )
    asked = {claim: answers for claim, answers in asked.items() if len(answers)}
    yield counted(asked)
    slowest = broken.assign(beyond=broken["seconds"] - broken["time_out"])["beyond"].max()
    told = {
        END: f"the last process ended at most {slowest:.1f} s after the time-out" if len(broken) else "",
        NAMED: "the fault was always the last rank's",
        CLEAN: f"{table['processes'].sum():g} processes were looked up by their ids after their groups",
        NEXT: f"the group after {len(broken)} others reduced to the exact mean in every rank",
    }
    lacking = [name for name in FAULTS if name != SOUND and name not in set(broken["fault"])]
    for claim, answers in asked.items():
        failed = enumerated(answers.index[~answers])
        found = f"not so: {failed}" if failed else f"so in {len(answers)} of {len(answers)} groups"
        found += f"; undecided, as these were not planted: {', '.join(lacking)}" if lacking else ""
        yield judged(
            claim, [*answers, *(None for _ in lacking)], f"{told[claim]}; {found}",
            observed=float(answers.mean()), n=len(answers), counted="groups", unit="share of groups",
            table="faulty_groups", condition=QUESTIONS[claim], answer="all" if answers.all() else "not all",
            method="faults planted in the last rank amid an all-reduce; counted, nothing is sampled",
        )  # fmt: skip
    said = dict(zip(broken["fault"], broken["said"], strict=True))
    if said:
        fault = "hangs" if "hangs" in said else next(iter(said))
        yield Sentence(
            f"Where a rank {'is ' if fault == 'killed' else ''}{fault}, the report on its group says: {said[fault]}.",
            claims=(NAMED.id,),
        )


def counted(asked: dict[Claim, Any]) -> tuple[str, pd.DataFrame]:
    """Question -> number of groups, and of those that answer it well."""
    return "faulty_groups", pd.DataFrame(
        [
            {"question": QUESTIONS[claim], "n": len(answers), "value": float(answers.sum()),
             "answer": "all" if answers.all() else "not all"}
            for claim, answers in asked.items()
        ]
    )  # fmt: skip


@drawing.figure(
    "faults", "Seconds from a rank's fault to the end of its group",
    f"Dots: seconds from the fault to the end of the last process. Bars: time-out; pale: with {SLACK:g} s of slack.",
)  # fmt: skip
def draw_faults(faults: pd.DataFrame) -> Any:
    """Seconds to the end, by fault."""
    shown = faults[faults["fault"] != SOUND].assign(group=lambda own: own["ranks"].astype(str) + " ranks")

    def form(axis: Any, own: pd.DataFrame, **_: Any) -> None:
        places = range(len(own))
        axis.barh(places, own["time_out"] + SLACK, color=GREY, alpha=0.25, height=0.6, label="allowed")
        axis.barh(places, own["time_out"], color=GREY, alpha=0.6, height=0.6, label="time-out")
        axis.plot(own["seconds"], places, "o", color="C0", label="ended")
        axis.set_yticks(places, own["fault"])
        axis.invert_yaxis()

    return drawing.panels(shown, "group", form, axes={"xlabel": "seconds after the fault"})


METHOD = f"""**Faults.** Real groups of ranks, started by torchrun, reduce {planted.NUMBERS / 1e6:g} million numbers
{planted.STEPS} times by gloo. While all-reduce {planted.AT + 1} is under way the last rank is killed (SIGKILL), raises,
crashes in native code (SIGSEGV), exits, hangs, or returns as if its data were at their end. Where others have to notice
it, a collective waits {FAULTS["hangs"].patience:g} s for them, or the ranks have {FAULTS["outlasts the limit"].limit:g}
s. Seconds count from the fault to when torchrun and all ranks have ended; then each is looked up by its process id. At
the end a sound group reduces while another holds the ports {planted.USUAL_PORTS[0]} and {planted.USUAL_PORTS[1]} of
loopback. Nothing is decided before every kind of fault was planted."""
PART = Part("faults", (END, NAMED, CLEAN, NEXT), SIZES, grids, run, analyse, (draw_faults,), METHOD, shown=("faults",))
