"""The rates at which a classifier learns, its sensitivity to them, and what mean-field theory says of its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from depthgauge import stats, theory
from depthgauge.conditions import explained
from depthgauge.frames import groups
from depthgauge.questions import Question
from depthgauge.stats import Comparison

CHANCE = math.log(10)  # loss of a classifier of ten classes that knows nothing
LEARNED = 0.9  # of that loss: a network that ends below it has learned something
METHOD = (
    f"a network learns that ends below {LEARNED:g} of the loss of chance; ends of the window by straight lines over ln "
    "rate, losses above chance counted as chance"
)


def windows(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row a group: the window of rates at which its networks learn, looked for from either end of the grid.

    Args:
        runs: one row a (by, `lr`), with `loss`; not finite where a run diverged.
        by: columns, the seed among them.

    Returns:
        `by`; `largest` and `smallest` rate, NaN where the network learns at none; `decades` between them, then 0; and
        `censored`, 1 where it learns at the largest rate that was tried, so that a larger one may do as well.
    """
    rows = []
    for key, own in groups(runs, list(by)):
        line = own.sort_values("lr")
        logs, loss = np.log(line["lr"].to_numpy(float)), np.fmin(line["loss"].to_numpy(float), CHANCE)
        down, side = stats.crossing(-logs[::-1], loss[::-1], LEARNED * CHANCE)
        up, _ = stats.crossing(logs, loss, LEARNED * CHANCE)
        largest, smallest = (math.nan, math.nan) if side > 0 else (math.exp(-down), math.exp(up))
        decades = 0.0 if side > 0 else math.log10(largest / smallest)
        ends = {"largest": largest, "smallest": smallest, "decades": decades, "censored": float(side < 0)}
        rows.append({**dict(zip(by, key, strict=True)), **ends})
    return pd.DataFrame(rows)


def up_to(largest: pd.Series[float]) -> str:
    """Up to which rate a network learns, the median of several: one that learns at none stays among them, as 0."""
    middle = largest.fillna(0.0).median()
    return f"up to a rate of {middle:.2g}" if middle > 0 else "at none of the rates tried"


def sensitivities(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean over rates of min(loss, loss at start) minus the least, of each network; and as a share of what it can gain.

    Args:
        runs: one row a (by, `lr`), with `loss_at_start`, and `capped`, the smaller of that and the loss.
        by: columns, the seed among them.
    """
    lines = runs.groupby(by, sort=False)
    table = lines.agg(mean=("capped", "mean"), best=("capped", "min"), start=("loss_at_start", "first")).reset_index()
    sensitivity = table["mean"] - table["best"]
    return table.assign(sensitivity=sensitivity, share=sensitivity / (table["start"] - table["best"]))


def growths(runs: pd.DataFrame) -> pd.DataFrame:
    """Logarithm of the growth of the squared gradient, depth ln chi_1, and whether sigma_w is nearest to the critical.

    Args:
        runs: with the columns `activation`, `depth` and `sigma_w`.
    """
    table = runs[["activation", "depth", "sigma_w"]].drop_duplicates()
    logs = [
        math.copysign(1 / theory.depth_scales(name, sigma_w, 0.0)[1], sigma_w - theory.critical_sigma_w(name, 0.0))
        for name, sigma_w in zip(table["activation"], table["sigma_w"], strict=True)
    ]
    table = table.assign(growth=table["depth"] * logs)
    critical = table["growth"].abs().groupby([table["activation"], table["depth"]]).transform("min")
    return table.assign(critical=table["growth"].abs() == critical)


def printed(activation: str) -> str:
    """An activation's name as sentences have it."""
    return {"relu": "ReLU"}.get(activation, activation)


def by_network(question: Question, reading: Callable[[Comparison], bool | None]) -> str:
    """Under which activation and depth it is true, whatever sigma_w."""
    answers = {(f"{a} of depth {d}", sigma_w): reading(c) for (a, d, sigma_w), c in question.members.items()}
    return explained(("network", "sigma_w"), answers, lambda key: "{} at sigma_w = {:.3g}".format(*key))


def of_gain(shares: Sequence[tuple[float, float]]) -> str:
    """Say of more sensitive networks what share of the gain (own, critical) it is: nats grow with the loss at start."""
    if not shares:
        return ""
    own, critical = (
        " to ".join(dict.fromkeys(f"{end(each):.0%}" for end in (min, max))) for each in zip(*shares, strict=True)
    )
    return (
        "; in nats, of which exploding networks have more at the start: of what a network can gain an average rate "
        f"costs the more sensitive {own}, and the critical ones {critical}"
    )
