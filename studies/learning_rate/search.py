"""N45: random search against a grid of as many trials, over every place of the grid and every draw of the trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import data, drawing, models, replicas, stats
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, ends
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

BETTER = Claim("N45", "hyperparameters are better searched at random than on a grid")

MARGIN = 0.005  # test accuracy: searches closer than this are as good
RATES = (1e-3, 10.0)  # range of the learning rate, on a logarithmic scale
OTHERS = {"weight decay": (1e-7, 1e-2), "momentum": (1.0, 1e-2)}  # likewise; of the momentum it is 1 - momentum
SIZES = sizes(
    "spaces lattice steps seeds", quick=(("weight decay",), 12, 40, 16), standard=(tuple(OTHERS), 24, 100, 24),
    full=(tuple(OTHERS), 36, 300, 24), tiny=(tuple(OTHERS), 4, 2, 5),
)  # fmt: skip
BY = ("space", "trials")

Scores = NDArray[np.float64]  # (rates, values of the other), in the order of the lattice


def grids(spaces: tuple[str, ...], lattice: int, steps: int, seeds: int) -> Iterator[Grid]:
    """A lattice of learning rates and of another hyperparameter, dense enough that each search takes points of it."""
    fixed: dict[str, Value] = {"dataset": "digits", "width": 16, "batch": 32, "steps": steps}
    for space in spaces:
        varied = {"lr": _spread(*RATES, lattice), "other": _spread(*OTHERS[space], lattice)}
        together = ("lr", "other", "seed") if space == "weight decay" else ("lr", "seed")
        yield Grid(varied, {**fixed, "space": space}, seeds, together, 1000)


def _spread(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in np.geomspace(low, high, count))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train one small network at each point of the lattice; a seed gives all points the same weights and order."""
    dataset = data.load(cases[0].text("dataset")).to(context.device)
    fit, validation = data.hold_out(dataset.train)
    shape, width = dataset.input_shape, cases[0].integer("width")
    model = models.build("mlp", depth=2, width=width, input_shape=shape, classes=dataset.classes)
    stack = replicas.stack(model, [case.random_seed("seed") for case in cases], device=context.device)
    rates, others = ([case.number(name) for case in cases] for name in ("lr", "other"))
    if cases[0].text("space") == "weight decay":
        optimizer = replicas.SGD(rates, momentum=0.9, weight_decay=others)
    else:
        optimizer = replicas.SGD(rates, momentum=1 - others[0])
    loop = replicas.Loop(batch=cases[0].integer("batch"), steps=cases[0].integer("steps"))
    ended = replicas.train(stack, fit.x, fit.y, optimizer, loop).stack
    for metric, part in (("validation", validation), ("test", dataset.test)):
        accuracy = replicas.evaluate(ended, part.x, part.y).accuracy
        for case, value in zip(cases, accuracy, strict=True):
            yield case.rows(metric, float(value))


# -- what a search finds -----------------------------------------------------------------------------------------------


def by_random(validation: Scores, test: Scores, trials: int) -> float:
    """Expected test score of the best by validation among so many points, drawn evenly with replacement; exact."""
    order = np.argsort(-validation, axis=None, kind="stable")
    behind = np.arange(validation.size, -1, -1) / validation.size  # share of the points that are not better
    return float(test.ravel()[order] @ -np.diff(behind**trials))


def by_grid(validation: Scores, test: Scores, side: int) -> float:
    """Mean test score of the best by validation of a grid of side x side points, over every place it can have."""
    stride = len(validation) // side
    found = []
    for i in range(stride):
        for j in range(stride):
            here = validation[i::stride, j::stride]
            found.append(test[i::stride, j::stride].flat[int(here.argmax())])
    return float(np.mean(found))


def share_of_rate(scores: Scores) -> float:
    """Share of the variance over the lattice that the learning rate alone explains."""
    return float(scores.mean(1).var() / scores.var()) if scores.var() > 0 else float("nan")


def _sides(lattice: int) -> list[int]:
    return [side for side in (2, 3, 4, 6) if lattice % side == 0 and side < lattice]


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Test accuracy that random search finds minus that of a grid of as many trials, by space and number of trials."""
    asked, further, curve = {}, {}, []
    for space, own in groups(rows, "space"):
        lattices = _lattices(own)
        if not lattices:
            continue
        share = float(np.mean([share_of_rate(validation) for validation, _ in lattices]))
        for side in _sides(len(lattices[0][0])):
            drawn, gridded = (
                np.array([search(validation, test, trials) for validation, test in lattices])
                for search, trials in ((by_random, side**2), (by_grid, side))
            )
            asked[space, side**2] = stats.paired(drawn, gridded, margin=MARGIN, test="t")
            further[space, side**2] = {"rate_share": share, "as_good_from": _matching(lattices, float(gridded.mean()))}
            for name, values in (("random", drawn), ("grid", gridded)):
                each, (low, high) = stats.mean(values), ends(0.95)
                curve.append({"space": space, "trials": side**2, "search": name, "n": each.n, "value": each.value,
                              low: each.low, high: each.high})  # fmt: skip
    yield "found", pd.DataFrame(curve)
    label = "{trials} trials over rate and {space}"
    question = Question.of("searches", BY, asked, label=label, reference="no difference")
    if not question:
        return
    yield question.table(further)
    for space in dict.fromkeys(key[0] for key in question.members):
        fewest = {trials: row["as_good_from"] for (name, trials), row in further.items() if name == space}
        if enough := [trials for trials, n in fewest.items() if np.isfinite(n)]:
            trials = enough[len(enough) // 2]
            yield Sentence(
                f"Over learning rate and {space} random search takes {fewest[trials]:.0f} trials to find what a grid "
                f"of {trials} finds.",
                claims=(BETTER.id,),
            )
    words = {True: "better for", False: "not better for", None: "undecided for"}
    rate = {space: row["rate_share"] for (space, _), row in further.items()}
    shares = ", ".join(f"{value:.0%} over rate and {space}" for space, value in rate.items())
    yield question.verdict(
        BETTER, above, unit="test accuracy",
        why=f"random search is {question.listed(above, words, 8)}; of the variance the rate alone explains {shares}",
        method="expected test accuracy of the best by validation, random minus grid, paired t by seed, margin "
        f"{MARGIN:g}",
    )  # fmt: skip


def _matching(lattices: Sequence[tuple[Scores, Scores]], target: float) -> float:
    """Fewest random trials whose expected score is the target; NaN for more than 200."""
    for trials in range(1, 201):
        if np.mean([by_random(validation, test, trials) for validation, test in lattices]) >= target:
            return float(trials)
    return float("nan")


def _lattices(own: pd.DataFrame) -> list[tuple[Scores, Scores]]:
    """Validation and test scores of each seed whose lattice is complete."""
    lattices = []
    for _, seed in groups(own, "seed"):
        wide = [
            seed[seed["metric"] == metric].pivot_table(index="lr", columns="other", values="value").to_numpy()
            for metric in ("validation", "test")
        ]
        square = len(own["lr"].unique()), len(own["other"].unique())
        if all(each.shape == square and square[0] == square[1] and np.isfinite(each).all() for each in wide):
            lattices.append((wide[0], wide[1]))
    return lattices


@drawing.figure(
    "found", "Test accuracy that random search and a grid find, by number of trials",
    "Expected test accuracy of the trial that is best by validation, mean of the seeds with 95 % intervals; a grid has "
    "every place that it can have.",
)  # fmt: skip
def draw_found(found: pd.DataFrame) -> Any:
    """Accuracy found by either search, by number of trials."""
    axes = {"xscale": "log", "xlabel": "trials", "ylabel": "test accuracy found"}
    return drawing.panels(found, "space", drawing.estimates, at="trials", by="search", joined=True, axes=axes)


METHOD = """**Search.** One hidden layer of 16 units on 8 x 8 digits, SGD with momentum 0.9 where that is not searched.
Every point of a dense lattice is trained, so that the expectation over all searches is exact: a random search draws
points evenly, a grid takes every so many-th row and column, from every start."""
PART = Part("search", (BETTER,), SIZES, grids, run, analyse, (draw_found,), METHOD)
