"""The catapult: a learning rate too large for the curvature at the start, and the curvature that is found then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import curvature, drawing, replicas, stats
from depthgauge.frames import groups, only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, below, every, listed, spelled
from depthgauge.studies.learning_rate import shallow
from depthgauge.studies.learning_rate.shallow import LINEAR, ONE, RELU
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

LAZY = Claim(
    "learning_rate/lazy",
    "below 2 / curvature at the start, training leaves the curvature of a wide two-layer linear network as it is",
)
CATAPULT = Claim(
    "learning_rate/catapult",
    "between 2 and 4 / curvature at the start, the curvature of a wide two-layer linear network falls, and it trains",
)
END = Claim(
    "learning_rate/catapult_end",
    "a wide two-layer linear network trains at learning rates up to 4 / curvature at the start, and diverges above",
)
WINDOW = (2.0, 4.0)  # learning rate times curvature at the start
MARGIN = 1.1  # curvatures within 10 % of each other are the same
END_MARGIN = 1.15  # ends of the window within 15 % are the same; rates that are tried lie up to 20 % apart
TOLERANCE = 0.01  # of a sharpness, relative
DEAD = 1e-6  # of the curvature at the start: a network with less has no unit left that answers, and does not train
LOOKS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)  # numbers of updates at which it is measured, beside the last

LOW = (0.5, 1.0, 1.5, 2.25, 2.5, 3.0, 3.5)
AROUND = (*LOW, 3.75, 4.25, 4.5, 5.0)
FAR = (*LOW, 4.2, *(round(4.2 * 1.2**k, 1) for k in range(1, 13)))  # to 37
SIZES = sizes(
    "nets width examples seeds steps", quick=({ONE: AROUND}, 1000, 1, 12, 150),
    standard=({ONE: AROUND, LINEAR: AROUND, RELU: FAR}, 1000, 16, 8, 150),
    full=({ONE: AROUND, LINEAR: AROUND, RELU: FAR}, 4000, 64, 16, 1000),
    tiny=({ONE: (1.0, 3.0, 5.0), LINEAR: (1.0, 3.0), RELU: (1.0, 40.0)}, 20, 3, 5, 20),
)  # fmt: skip


def grids(nets: Mapping[str, tuple[float, ...]], width: int, examples: int, seeds: int, steps: int) -> Iterator[Grid]:
    """Every network at its multiples of 1 / curvature at the start."""
    for net, multiples in nets.items():
        fixed: dict[str, Value] = {"net": net, "width": width, "examples": examples, "steps": steps}
        yield Grid({"multiple": multiples}, fixed, seeds, ("multiple", "seed"), chunk=200)


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    """Loss and sharpness along training, all seeds and rates of a network at once."""
    shared = cases[0]
    net, steps = shared.text("net"), shared.integer("steps")
    data = shallow.examples(net, shared.integer("examples"))
    seeds = [case.random_seed("seed", "width") for case in cases]  # the same weights at every rate
    width, inputs, each = shared.integer("width"), data.x.shape[1], list(dict.fromkeys(seeds))
    found = curvature.of_replicas(shallow.networks(net, width, inputs, each), data.x, data.y, "mse")
    sharp = dict(zip(each, (one.value for one in found), strict=True))
    start = np.array([sharp[seed] for seed in seeds])
    rates = np.array([case.number("multiple") for case in cases]) / start
    looks = [*(step for step in (LOOKS if net == ONE else LOOKS[:1]) if step < steps), steps]
    sharpness = np.full((len(looks), len(cases)), np.nan)
    sharpness[0] = start

    def inspect(step: int, rows: slice, part: replicas.Stack) -> None:
        if step:
            found = curvature.of_replicas(part, data.x, data.y, "mse", tolerance=TOLERANCE)
            sharpness[looks.index(step), rows] = [one.value for one in found]

    stack = shallow.networks(net, width, inputs, seeds)
    loop = replicas.Loop(batch=len(data), steps=steps, loss="mse", checkpoints=looks, inspect=inspect)
    trained = replicas.train(stack, data.x, data.y, replicas.SGD(rates.tolist()), loop)
    final = replicas.evaluate(trained.stack, data.x, data.y, loss="mse").loss
    losses = np.concatenate([trained.loss, final[None]])
    theory = shallow.predicted(losses[0], start, rates, steps) if net == ONE else None
    for row, case in enumerate(cases):
        yield case.rows("sharpness", sharpness[:, row], step=looks)
        yield case.rows("loss", losses[looks, row], step=looks)
        yield case.rows("peak", float(np.nan_to_num(losses[:, row], nan=np.inf).max() / losses[0, row]))
        if theory is not None:
            yield case.rows("predicted", float(theory[1][-1, row] / start[row]))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Curvature at the end over that at the start, by learning rate, and where the window ends."""
    runs = params_of(rows, "net", "multiple", "seed", "steps").astype({"multiple": float})
    lines = {
        metric: rows[rows["metric"] == metric].pivot_table(index="case", columns="step", values="value", dropna=False)
        for metric in ("sharpness", "loss")
    }
    ends = {metric: wide.loc[runs.index].iloc[:, [0, -1]].to_numpy() for metric, wide in lines.items()}
    with np.errstate(invalid="ignore"):
        runs["ratio"], runs["left"] = (pair[:, 1] / pair[:, 0] for pair in (ends["sharpness"], ends["loss"]))
    runs["diverged"] = ~np.isfinite(runs["left"])
    runs["dead"] = runs["ratio"] < DEAD
    runs["trained"] = (runs["left"] < 1) & ~runs["dead"]
    runs["ratio"] = runs["ratio"].mask(runs["diverged"])
    runs["peak"], runs["predicted"] = only(rows, "peak"), only(rows, "predicted")
    yield "catapult_curves", curves(runs)
    yield "catapult_tracks", tracks(runs, lines)
    yield from within(runs)
    yield from upper_ends(runs)


def curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Curvature that is left, and the largest loss, by network and learning rate: middle 90 % of what converged."""
    found = []
    for (net, multiple), own in groups(runs, ["net", "multiple"]):
        kept = own[~own["diverged"] & ~own["dead"]]
        for quantity, name in (("curvature at the end", "ratio"), ("largest loss", "peak")):
            if len(kept):
                band = {end: values[0] for end, values in stats.band(kept[[name]].to_numpy()).items()}
                theory = kept["predicted"].median() if name == "ratio" and net == ONE else np.nan
                found.append({"quantity": quantity, "net": net, "multiple": multiple, **band, "predicted": theory})
    return pd.DataFrame(found)


def tracks(runs: pd.DataFrame, lines: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Curvature and loss along training, over those at the start, of the network on one example."""
    found = []
    for multiple, own in groups(runs[runs["net"] == ONE], "multiple"):
        for quantity, metric in (("curvature", "sharpness"), ("loss", "loss")):
            part = lines[metric].loc[own.index].dropna(axis=1, how="all")
            part = part.div(part.iloc[:, 0], axis=0).replace([np.inf], np.nan).dropna(axis=1)
            line = {"quantity": quantity, "multiple": multiple, "step": part.columns, **stats.band(part.to_numpy())}
            found.append(pd.DataFrame(line))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def within(runs: pd.DataFrame) -> Iterator[Answer]:
    """Curvature below the window and within it."""
    asked, further = {}, {}
    for (net, multiple), own in groups(runs[runs["multiple"] < WINDOW[1]], ["net", "multiple"]):
        asked[net, multiple] = stats.against(own["ratio"].to_numpy(), 1.0, log=True, margin=MARGIN)
        further[net, multiple] = {
            "trained": int(own["trained"].sum()), "diverged": int(own["diverged"].sum()),
            "largest_loss": own["peak"].median(), "theory": own["predicted"].median(),
        }  # fmt: skip
    label = "rate x curvature {multiple:g} ({net})"
    question = Question.of(
        "catapult", ("net", "multiple"), asked, label=label, family=lambda net, **_: net, reference="unchanged"
    )
    if not question:
        return
    yield question.table(further)
    linear = question.where(net=(ONE, LINEAR))
    method = (
        f"largest eigenvalue of the Hessian, end over start, log scale, margin a factor of {MARGIN:g}, t over seeds"
    )
    if lazy := linear.select(lambda multiple, **_: multiple < WINDOW[0]):
        words = {True: "kept at", False: "changed at", None: "undecided at"}
        yield lazy.verdict(
            LAZY, agrees, unit="times that at the start", why=f"the curvature is {lazy.listed(agrees, words, 6)}",
            method=method,
        )  # fmt: skip
    if thrown := linear.select(lambda multiple, **_: multiple > WINDOW[0]):
        answers = {key: every((below(c), further[key]["trained"] == c.effect.n)) for key, c in thrown.members.items()}
        told = {thrown.words(key): answer for key, answer in answers.items()}
        words = {True: "the curvature falls and the network trains at", False: "not so at", None: "undecided at"}
        yield thrown.verdict(
            CATAPULT, answers, unit="times that at the start", why=listed(told, words, 12),
            method=f"{method}; a run trains where its loss ends below that at the start",
        )  # fmt: skip


def upper_ends(runs: pd.DataFrame) -> Iterator[Answer]:
    """The learning rate from which on a network does not train, half-way between neighbours that were tried."""
    asked, relu = {}, pd.DataFrame()
    for net, own in groups(runs, "net"):
        trained = own.pivot_table(index="seed", columns="multiple", values="trained").sort_index(axis=1)
        ends = np.array([end_of(line < 1, trained.columns.to_numpy(float)) for line in trained.to_numpy(float)])
        if net != RELU:
            asked[(net,)] = stats.against(ends, WINDOW[1], log=True, margin=END_MARGIN)
        else:
            end = stats.mean(ends, log=True)
            relu = pd.DataFrame([{"net": net, "n": end.n, **spelled("end", end)}])
    question = Question.of("catapult_end", ("net",), asked, label="{net}")
    if question:
        yield question.table()
        yield question.prediction(END, "ends", within=f"a factor of {END_MARGIN:g}", unit="learning rate x curvature")
    yield "relu_end", relu
    for row in relu.to_dict("records"):
        linear = [c.effect.value for c in question.members.values()]
        yield Sentence(
            f"A wide ReLU network of one hidden layer trains up to a learning rate of {row['end']:.3g} / curvature at "
            "the start" + (f", a linear one up to {max(linear):.2g}." if linear else ".")
            if np.isfinite(row["end"])
            else "Wide ReLU networks of one hidden layer trained, some of them, at every rate tried.",
            claims=(END.id,),
        )


def end_of(lost: NDArray[np.bool_], multiples: NDArray[np.float64]) -> float:
    """Geometric mean of the first multiple that does not train and of the one below it; infinite where all do."""
    first = int(np.argmax(lost))
    if not lost.any():
        return np.inf
    return float(np.sqrt(multiples[first] * multiples[first - 1])) if first else 0.0


@drawing.figure(
    "catapult", "Curvature after training, and the largest loss on the way, by learning rate",
    "Largest eigenvalue of the Hessian at the end, and the largest loss on the way, over those at the start, against "
    "learning rate times curvature at the start: median and middle 90 % of the runs that neither diverge nor end dead.",
)  # fmt: skip
def draw_catapult(catapult_curves: pd.DataFrame) -> Any:
    """End and peak by learning rate, a line a network."""
    named = {"multiple": "learning rate x curvature at the start"}
    axes = {"yscale": "log", "xscale": "log", "ylabel": "times that at the start"}
    return drawing.panels(
        catapult_curves.rename(columns=named), "quantity", drawing.profile, by="net", x=named["multiple"], axes=axes,
        shared="",
    )  # fmt: skip


@drawing.figure(
    "catapult_tracks", "Curvature and loss along training, by learning rate times curvature at the start",
    "A linear network of one hidden layer on one example, by learning rate times curvature at the start: median and "
    "middle 90 % of the seeds, until one of them is infinite. The axis ends at 1,000 times less and 10,000 times more.",
)  # fmt: skip
def draw_tracks(catapult_tracks: pd.DataFrame) -> Any:
    """Curvature and loss by step."""
    some = catapult_tracks[catapult_tracks["multiple"].isin((1.0, 2.25, 3.0, 3.75, 4.5))]
    shown = some.assign(**{end: some[end].clip(1e-9, 1e9) for end in ("low", "median", "high")})
    axes = {
        "yscale": "log",
        "xlabel": "step",
        "ylabel": "times that at the start",
        "xlim": (0, 32),
        "ylim": (1e-3, 1e4),
    }
    shown = shown.rename(columns={"multiple": "learning rate x curvature"})
    return drawing.panels(shown, "quantity", drawing.profile, by="learning rate x curvature", x="step", axes=axes)


METHOD = f"""**Catapult.** A network of one hidden layer without biases, linear or ReLU, of one output; weights from
N(0, 1) divided by the root of the width at the output. Squared error on one example, or on digits with targets 1 (from
the digit 5 on) and -1; all examples at every step. The curvature at the start is the largest eigenvalue of each seed's
own Hessian, and its learning rates are multiples of 1 over that. Lewkowycz et al. (2020, "The large learning rate phase
of deep learning: the catapult mechanism", arXiv:2003.02218) find for wide linear networks: below 2 the curvature stays,
between 2 and 4 the loss rises until the curvature has fallen, above 4 training diverges. On one example both obey a
recursion of two numbers, which is the theory that is drawn. Curvatures within {MARGIN - 1:.0%} are the same; the window
ends half-way between the first multiple that does not train and the one below, margin a factor of {END_MARGIN:g}. For
ReLU networks the end is measured and held against nothing. A run trains where its loss ends finite and below that at
the start, and some curvature is left: none is where all of its ReLU units are off. Rates and margins were set with
trial runs of these sizes in view."""
PART = Part(
    "catapult", (LAZY, CATAPULT, END), SIZES, grids, run, analyse, (draw_catapult, draw_tracks), METHOD,
    shown=("catapult", "catapult_end", "relu_end"),
)  # fmt: skip
