"""Growing the batch in place of decaying the learning rate: is the loss the same after as many examples?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, replicas, stats
from depthgauge.drawing.palette import FAINT
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, enumerated
from depthgauge.studies.batch_size import perceptrons
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

GROWING = Claim(
    "batch_size/growing",
    "multiplying the batch size by a factor gives the same loss per epoch as dividing the learning rate by it",
)

MARGIN = 1.1  # factor of a loss: phases that end closer than this end the same
FACTOR = 4  # of the batch size, or of the rate, from one phase to the next
PHASES = 3  # of equally many examples; the first is the same for all
PLACES = 8  # of a phase's curve
ARMS = {"rate decays": (1, FACTOR), "batch grows": (FACTOR, 1), "neither": (1, 1)}  # times the batch, over the rate
LOSSES = ("training", "test")
SIZES = sizes(
    "dataset width batch steps rates seeds", quick=("digits", 32, 16, 192, (2**-5, 2**-3), 8),
    standard=("digits", 32, 16, 384, (2**-6, 2**-5, 2**-4, 2**-3, 2**-2), 12),
    full=("mnist5k", 64, 16, 1024, (2**-7, 2**-6, 2**-5, 2**-4, 2**-3, 2**-2), 12),
    tiny=("digits", 8, 4, 32, (2**-3,), 5),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    dataset: str, width: int, batch: int, steps: int, rates: tuple[float, ...], seeds: int
) -> Iterator[Grid]:
    """Every arm at every rate; `steps` are those of a phase at the first batch size."""
    size: dict[str, Value] = {"data": dataset, "width": width, "depth": 2, "batch": batch, "steps": steps}
    for arm in ARMS:
        yield Grid(
            {"lr": rates},
            {**perceptrons.MODEL, **size, "arm": arm},
            seeds,
            perceptrons.TOGETHER,
            perceptrons.most_replicas,
        )


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train phase after phase by plain SGD, each from the last one's weights on, with its own order of the examples."""
    task, shared = perceptrons.task(cases[0], context), cases[0]
    larger, smaller = ARMS[shared.text("arm")]
    stack, total = task.drawn(cases), shared.integer("steps")
    for phase in range(PHASES):
        steps = total // larger**phase
        places = [steps * k // PLACES for k in range(1, PLACES + 1)]
        curve = np.full((PLACES, len(cases)), np.nan)

        def inspect(
            updates: int, rows: slice, part: replicas.Stack,
            places: list[int] = places, curve: np.ndarray[Any, np.dtype[np.float64]] = curve,
        ) -> None:  # fmt: skip
            curve[places.index(updates), rows] = replicas.evaluate(part, task.fit.x, task.fit.y).loss

        stack = replicas.train(
            stack, task.fit.x, task.fit.y, replicas.SGD([case.number("lr") / smaller**phase for case in cases]),
            batch=shared.integer("batch") * larger**phase, steps=steps, checkpoints=places, inspect=inspect,
            order_seeds=[case.random_seed("data", "seed") + phase for case in cases],
        ).stack  # fmt: skip
        test = replicas.evaluate(stack, task.test.x, task.test.y)
        seen = shared.integer("batch") * total * (phase + np.arange(1, PLACES + 1) / PLACES)
        for i, case in enumerate(cases):
            yield case.rows("curve", curve[:, i], step=np.round(seen).astype(int))
            ends = {"training_loss": curve[-1, i], "test_loss": test.loss[i], "test_accuracy": test.accuracy[i]}
            yield from (case.rows(metric, float(value), step=phase + 1) for metric, value in ends.items())


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Losses at the end of each phase after the first: growing batch, and neither, over decaying rate."""
    rows = rows.assign(lr=pd.to_numeric(rows["lr"]), seed=pd.to_numeric(rows["seed"]))
    yield "growing_curves", pd.DataFrame(list(bands(rows)))
    grown, control = (
        _question(rows, arm, name) for arm, name in (("batch grows", "growing"), ("neither", "unchanged"))
    )
    if not grown or not control:
        return
    yield grown.table()
    yield control.table()
    telling = {key for key, c in control.members.items() if c.beyond}
    told = grown.select(lambda **key: tuple(key.values()) in telling) or grown
    blunt = enumerated((grown.words(key) for key in grown.members if key not in telling), 20)
    words = {True: "both ways end alike, within the margin, in", False: "different by more in", None: "undecided in"}
    low, high = (end(c.effect.value for c in told.members.values()) for end in (min, max))
    yield told.verdict(
        GROWING, agrees if telling else dict.fromkeys(told.members), unit="times the loss with decaying rate",
        why=f"{told.listed(agrees, words, 20)}; ratios from {low:.3f} to {high:.3f}"
        + (f"; left out, as to leave both as they are is not shown to matter there: {blunt}" * bool(blunt)),
        method=f"loss at the end of a phase, geometric mean of paired ratios by seed, t, margin {MARGIN:g}, batch or "
        f"rate changed by a factor of {FACTOR}, where to leave both as they are is beyond the margin",
    )  # fmt: skip
    if telling:
        yield Sentence(
            f"A batch {FACTOR} times as large does what a learning rate {FACTOR} times as small does: its losses are "
            f"the same within {_furthest(told):.1%} (95 % intervals)."
            if all(map(agrees, told.members.values()))
            else f"A batch {FACTOR} times as large in place of a learning rate {FACTOR} times as small ends at "
            f"{low:.2f} to {high:.2f} times the loss.",
            "growing", (GROWING.id,),
        )  # fmt: skip


def _furthest(question: Question) -> float:
    """The furthest end of an interval from the same loss."""
    return max(max(abs(1 - c.effect.low), abs(c.effect.high - 1)) for c in question.members.values())


def _question(rows: pd.DataFrame, arm: str, name: str) -> Question:
    """An arm's losses over those with decaying rate, at the end of each phase that differs."""
    asked = {}
    for lr, some in groups(rows, "lr"):
        for phase in range(2, PHASES + 1):
            for loss in LOSSES:
                found = some[(some["metric"] == f"{loss}_loss") & (some["step"] == phase)]
                wide = found.pivot_table(index="seed", columns="arm", values="value", dropna=False)
                if {arm, "rate decays"} <= set(wide):
                    wide = wide[[arm, "rate decays"]].dropna()
                    asked[lr, phase, loss] = stats.paired(
                        wide[arm], wide["rate decays"], log=True, margin=MARGIN, test="t"
                    )
    return Question.of(
        name, ("lr", "phase", "loss"), asked, label="{loss} loss from rate {lr:.3g} in phase {phase}", reference="same"
    )


def bands(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Median and middle 90 % of seeds of every training loss, by arm, rate and examples seen."""
    curve = rows[rows["metric"] == "curve"]
    for (lr, arm, examples), own in groups(curve, ["lr", "arm", "step"]):
        band = {name: float(values[0]) for name, values in stats.band(own[["value"]].to_numpy()).items()}
        yield {"lr": lr, "arm": arm, "examples": examples, **band}


@drawing.figure(
    "growing_curves", "Training loss where the rate decays, where the batch grows, and where neither does",
    "Training loss by examples seen, median and middle 90 % of seeds. After a third and after two thirds the rate is "
    f"divided by {FACTOR}, or the batch multiplied by it, or neither. Lines that agree cover each other.",
)  # fmt: skip
def draw_curves(growing_curves: pd.DataFrame) -> Any:
    """Curves by arm, a panel a rate."""
    axes = {"yscale": "log", "xlabel": "examples seen", "ylabel": "training loss"}
    return drawing.panels(growing_curves, "lr", drawing.profile, x="examples", by="arm", axes=axes)


def _ratios(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    axis.axhspan(1 / MARGIN, MARGIN, color=FAINT, zorder=0, lw=0, label=f"margin, a factor of {MARGIN:g}")
    drawing.estimates(axis, rows, **options)


@drawing.figure(
    "growing", "Loss at the end where the batch grows, and where neither does, over that with a decaying rate",
    "Ratio of the loss to that with decaying rate at the end of the last phase, mean over pairs of one seed, with "
    "intervals that hold at once.",
)  # fmt: skip
def draw_ends(growing: pd.DataFrame, unchanged: pd.DataFrame) -> Any:
    """Ratios at the end by rate, a panel a loss."""
    both = pd.concat([growing.assign(arm="batch grows"), unchanged.assign(arm="neither")])
    shown = both[both["phase"] == PHASES].assign(loss=lambda table: table["loss"] + " loss")
    axes = {"xscale": "log", "yscale": "log", "xlabel": "learning rate at the start", "ylabel": "ratio of losses"}
    return drawing.panels(shown, "loss", _ratios, at="lr", by="arm", axes=axes)


METHOD = f"""**Growing.** Three phases of as many examples, by plain SGD without momentum. After the first the rate is
divided by {FACTOR} from phase to phase, or the batch multiplied by {FACTOR}, or neither. Each phase goes on from the
last one's weights, with an order of the examples of its own, from the same seeds for all. Smith et al. (2017,
arXiv:1711.00489) propose the exchange. Margin: a factor of {MARGIN:g} of the loss. Where neither of both ends at
another loss, the comparison is one that could have told."""
PART = Part(
    "growing", (GROWING,), SIZES, grids, run, analyse, (draw_curves, draw_ends), METHOD, shown=("growing",)
)  # fmt: skip
