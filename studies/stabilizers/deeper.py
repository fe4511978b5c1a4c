"""Depth: whether a deeper network ends as well as a shallower one, with and without skips and batch normalization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.conditions import WORDS
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, below, listed, spelled
from depthgauge.stats import Comparison
from depthgauge.studies.stabilizers import nets
from depthgauge.study import Grid
from depthgauge.verdict import Claim, Sentence

DEEP = Claim(
    "N26", "residual networks can be trained very deep; the more complex model is not worse than the simple one"
)
DEGRADED = Claim(
    "stabilizers/degradation", "without skip connections a deeper network ends with a higher training error than a "
    "shallower one",
)  # fmt: skip
MARGIN = 0.02  # of accuracy: a network within it of the shallowest is not worse
MEASURED = {"train_accuracy": "training", "test_accuracy": "test"}
SIZES = sizes(
    "dataset depths width steps seeds", quick=("digits", (), 0, 0, 0), standard=("digits", (20, 56, 110), 16, 300, 12),
    full=("mnist5k", (20, 56, 110, 220), 32, 2000, 24), tiny=("digits", (2, 4), 4, 4, 5),
)  # fmt: skip


def grids(**size: Any) -> Iterator[Grid]:
    """Perceptrons of every kind and depth, at every rate."""
    yield from nets.grids(**size)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Accuracy of every deeper network against the shallowest of its kind, at rates of their own."""
    tuned = nets.tuned(rows, MARGIN)
    if tuned.empty:  # those alone that choose a rate
        yield "depths", tuned
        return
    yield "depths", pd.DataFrame(_errors(tuned))
    question = Question.of(
        "deeper", ("network", "depth", "measured"), dict(_asked(tuned)), counted="seeds",
        label="{network}, {depth} layers, {measured}", reference="as right as the shallowest",
        family=lambda network, **_: network.startswith("skips"),
    )  # fmt: skip
    if question:
        ends = _grid_ends(tuned)
        answers = {key: no_worse(c, ends[key[:2]]) for key, c in question.members.items()}
        yield question.table({
            key: {"rate_at_grid_end": ends[key[:2]], "not_worse": WORDS[answer]} for key, answer in answers.items()
        })  # fmt: skip
        yield from _answers(question, answers, tuned)


def _errors(tuned: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (network, depth), own in groups(tuned, ["network", "depth"]):
        for metric, name in MEASURED.items():
            error = stats.mean(1 - own[metric].to_numpy())
            yield {"network": network, "depth": depth, "measured": name, "n": len(own), "lr": own["lr"].iloc[0],
                   "diverged": int(own["diverged"].sum()), **spelled("error", error)}  # fmt: skip


def _asked(tuned: pd.DataFrame) -> Iterator[tuple[tuple[str, int, str], Comparison]]:
    for network, own in groups(tuned, "network"):
        by_depth = {depth: lines.set_index("seed") for depth, lines in groups(own.sort_values("depth"), "depth")}
        first, *others = by_depth.values()
        for deep in others:
            both = deep.index.intersection(first.index)
            for metric, name in MEASURED.items():
                pair = stats.paired(deep.loc[both, metric], first.loc[both, metric], margin=MARGIN, test="t")
                edge = deep["at_edge"].any() or first["at_edge"].any()
                yield (network, int(deep["depth"].iloc[0]), name), training.unsettled(pair, edge)


def _grid_ends(tuned: pd.DataFrame) -> dict[tuple[str, int], str]:
    """Which of a deeper network and the shallowest of its kind has a rate beyond which a better one may lie."""
    edges = {key: bool(own["at_edge"].any()) for key, own in groups(tuned, ["network", "depth"])}
    least = tuned.groupby("network")["depth"].min()
    words = {(False, False): "", (True, False): "deeper", (False, True): "shallowest", (True, True): "both"}
    return {(name, depth): words[edge, edges[name, least[name]]] for (name, depth), edge in edges.items()}


def no_worse(comparison: Comparison, grid_end: str = "") -> bool | None:
    """Above the lower end of the margin with the whole interval; below it with what was measured beyond doubt.

    Args:
        comparison: of the deeper network with the shallowest, which concludes nothing at a grid's end.
        grid_end: whose rate is one: the deeper network's accuracy can only rise by a better one, which speaks for it.
    """
    if comparison.effect.low > -MARGIN:
        return True if grid_end in {"", "deeper"} else None
    return False if comparison.below else None


def _answers(question: Question, answers: dict[tuple[Any, ...], bool | None], tuned: pd.DataFrame) -> Iterator[Answer]:
    method = (
        f"accuracy at the end minus that of the shallowest network of its kind, paired t by seed, margin {MARGIN:.0%}; "
        "rates chosen by other seeds; a run that diverged has 0 right"
    )
    residual = question.select(lambda network, **_: network.startswith("skips"))
    plain = question.select(lambda network, **_: network.startswith("plain"))
    if residual:
        told = {residual.words(key): answers[key] for key in residual.members}
        yield residual.verdict(
            DEEP, told, unit="difference in accuracy",
            method=f"true where it is not worse, also where the deeper network's rate is at the end of its grid, as a "
            f"better rate would only raise its accuracy: {method}",
            why=listed(told, {False: "worse than the shallowest:", True: "not worse:", None: "open:"}),
        )  # fmt: skip
    training_error = plain.where(measured="training")
    if training_error:
        yield training_error.verdict(
            DEGRADED, below, unit="difference in accuracy", method=f"true where it is lower: {method}",
            why=training_error.listed(below, {True: "higher error than the shallowest:", False: "not higher:"}, 8),
        )  # fmt: skip
    yield from _sentences(tuned)


def _sentences(tuned: pd.DataFrame) -> Iterator[Answer]:
    """Test accuracy by depth, a sentence a network."""
    for network, own in groups(tuned, "network"):
        means = own.groupby("depth")["test_accuracy"].mean()
        ends = ", ".join(f"{value:.1%} at {depth}" for depth, value in means.items())
        yield Sentence(
            f"Mean test accuracy of narrow networks by number of layers ({network}): {ends}.",
            figure="depths", claims=(DEEP.id if network.startswith("skips") else DEGRADED.id,),
        )  # fmt: skip


@drawing.figure(
    "depths", "Training and test error by depth, with and without skips and batch normalization",
    lambda depths: f"Errors at the end, each at its own rate; means of {depths['n'].min()} seeds, 95 % intervals. "
    "A random answer is wrong in 90 % of cases. What is less than half of the least is drawn at that half.",
)  # fmt: skip
def draw_depths(depths: pd.DataFrame) -> Any:
    """Error by depth, a panel for training and one for test."""
    axes = {"xscale": "log", "yscale": "log", "ylabel": "error", "xlabel": "layers"}
    least = depths.loc[depths["error"] > 0, "error"].min()
    shown = depths.assign(
        error=depths["error"].clip(lower=least / 2), error_low_95=depths["error_low_95"].clip(least / 2)
    )
    return drawing.panels(
        shown, "measured", drawing.estimates, at="depth", by="network", value="error", axes=axes, joined=True
    )


METHOD = f"""**Depth.** Multilayer perceptrons in pre-activation order, an embedding and blocks of one layer, drawn by
He's scheme: plain, with batch normalization, with skips, and with both. Without normalization, branches of residual
networks start divided by the square root of their number. SGD with momentum {nets.MOMENTUM:g}, a rate that falls to 0
over the steps, tuned by other seeds for each network and depth. In the end batch normalization takes the statistics of
the training set."""
PART = Part("deeper", (DEEP, DEGRADED), SIZES, grids, nets.run, analyse, (draw_depths,), METHOD, second=nets.second)
