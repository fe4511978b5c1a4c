"""The gradient noise scale along training, and the critical batch size that it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.func import functional_call, grad, vmap

from depthgauge import arrival, data, drawing, noise, replicas, stats
from depthgauge.conditions import undecided
from depthgauge.frames import groups
from depthgauge.parts import Answer
from depthgauge.planning import along
from depthgauge.questions import Question, agrees, enumerated, spelled
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.batch_size.hyperbola import REFERENCE, Curves
from depthgauge.studies.batch_size.trained import prepared
from depthgauge.study import Case, Rows
from depthgauge.verdict import Claim, Sentence

PREDICTS = Claim(
    "batch_size/noise_scale",
    "the gradient noise scale along training predicts the critical batch size within a factor of 2",
)
WITHIN = 2.0  # factor: a predicted critical batch size nearer than this is the measured one
RATIO = 1.3  # between the steps at which gradients are looked at
SMALL, DRAWS = 16, 4  # examples, and mini-batches, of the estimate from two batch sizes
PLACES = 40  # of the way to the target, at which runs are averaged
ESTIMATES = ("examples", "batches")
METRICS = tuple(f"{what}_{estimate}" for what in ("noise", "signal") for estimate in ESTIMATES)


def measure(cases: Sequence[Case], device: str) -> Iterator[Rows]:
    """Train a chunk, and look at the gradients of all examples and of mini-batches until the target is reached.

    Rows of each case, by step: `noise`, the trace of the covariance of the examples' gradients, and `signal`, the
    squared norm of their mean, by each of the `ESTIMATES`; and `arrival`, the steps to the target.
    """
    made = prepared(cases, device)
    seen: dict[int, dict[str, NDArray[np.float64]]] = {}
    places = arrival.checkpoints(made.settings["steps"])
    looked = {0}
    for place in places[1:]:
        looked |= {place} if place >= RATIO * max(looked) else set()
    losses = np.full((len(places), len(cases)), np.nan)

    def inspect(step: int, rows: slice, part: replicas.Stack) -> bool:
        here = losses[places.index(step)]
        here[rows] = replicas.evaluate(part, made.on.x, made.on.y).loss
        if step in looked:
            at = seen.setdefault(step, {name: np.full(len(cases), np.nan) for name in METRICS})
            for name, values in gradients(part, made.fit, drawn(step, len(made.fit))).items():
                at[name][rows] = values
        passed = losses[: places.index(step) + 1, rows]
        return bool(((passed <= made.target).any(0) | ~np.isfinite(here[rows])).all())

    replicas.train(
        made.stack, made.fit.x, made.fit.y, made.optimizer, **made.settings, checkpoints=places, inspect=inspect
    )
    ends, reached = arrival.first_crossing(np.array(places), losses, made.target)
    for i, case in enumerate(cases):
        yield case.rows("arrival", float(ends[i]) if reached[i] else math.nan)
        steps = [step for step in sorted(seen) if reached[i] and step <= ends[i]]
        for name in METRICS:
            if steps:
                yield case.rows(name, [seen[step][name][i] for step in steps], step=steps)


def drawn(step: int, n: int) -> list[torch.Tensor]:
    """Indices of mini-batches, others at every step."""
    return [torch.randperm(n, generator=generator(step, Purpose.SAMPLE, i))[:SMALL] for i in range(DRAWS)]


def gradients(
    stack: replicas.Stack, fit: data.Examples, batches: Sequence[torch.Tensor]
) -> dict[str, NDArray[np.float64]]:
    """Noise and signal (R,) of the training examples, of all their gradients and of two batch sizes.

    The mini-batches are drawn without replacement from the N examples themselves, so that at size b the expected square
    of the mean gradient is signal + noise (1 / b - 1 / N), where that of all N is the signal without error.
    """
    found = noise.of_replicas(stack, fit.x, fit.y, population=len(fit))
    spread, signal = (np.array([getattr(each, name) for each in found]) for name in ("noise", "signal"))
    small = np.mean([squared_norms(stack, fit.x[index], fit.y[index]) for index in batches], axis=0)
    between = (small - signal) / (1 / SMALL - 1 / len(fit))
    return {"noise_examples": spread, "signal_examples": signal, "noise_batches": between, "signal_batches": signal}


def squared_norms(stack: replicas.Stack, x: torch.Tensor, y: torch.Tensor) -> NDArray[np.float64]:
    """Squared norm of the gradient of the mean loss (R,)."""

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(functional_call(stack.template, parameters, (x,)), y)

    found = vmap(grad(loss))(dict(stack.parameters))
    total = sum(each.double().flatten(1).square().sum(1) for each in found.values())
    return np.asarray(torch.as_tensor(total).cpu().numpy())


def tracks(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a run and step: network, batch size, seed, noise and signal of both estimates, arrival."""
    looked = rows[rows["metric"].isin(METRICS)]
    if looked.empty:
        return pd.DataFrame(columns=["net", "batch", "seed", "step", *METRICS, "arrival"])
    by = ["case", "net", "batch", "seed", "step"]
    wide = looked.pivot_table(index=by, columns="metric", values="value", dropna=False, observed=True)
    wide = wide.dropna(how="all").reset_index().astype({"batch": int, "step": int, "seed": int})
    ends = rows[rows["metric"] == "arrival"].set_index("case")["value"]
    return wide.assign(arrival=wide["case"].map(ends)).dropna(subset="arrival")


def critical(runs: pd.DataFrame, batch: int, estimate: str) -> float:
    """The critical batch size that the noise scale along these runs predicts.

    Every run is laid over the same shares of its way to the target; there the scale is mean noise over mean signal.
    """
    at, total = (np.arange(PLACES) + 0.5) / PLACES, np.zeros((2, PLACES))
    for _, own in groups(runs, "seed"):
        shares = own["step"] / own["arrival"]
        total += [np.interp(at, shares, own[f"{what}_{estimate}"]) for what in ("noise", "signal")]
    return along.critical_batch((total[0] / total[1]).tolist(), [1 / PLACES] * PLACES, batch)


@dataclass(frozen=True)
class Predicted:
    """A figure of several seeds, and without each of them.

    Attributes:
        whole: ln of the critical batch size that all seeds predict.
        without: the same without one, by the seed left out; NaN where a prediction is not positive.
    """

    whole: float
    without: pd.Series[float]

    def pseudo(self, function: Callable[[Any], Any] = lambda log: log) -> pd.Series[float]:
        """Jackknife pseudo-values of a function of ln critical batch size, by seed."""
        n = len(self.without)
        return pd.Series(n * function(self.whole) - (n - 1) * function(self.without.to_numpy()), self.without.index)


Predictions = Mapping[tuple[str, int, str], Predicted]


def predictions(found: pd.DataFrame) -> dict[tuple[str, int, str], Predicted]:
    """(network, batch size, estimate) -> the critical batch size predicted."""
    predicted = {}
    for (net, batch), runs in groups(found, ["net", "batch"]):
        left = {seed: runs[runs["seed"] != seed] for seed in sorted(runs["seed"].unique())}
        for estimate in ESTIMATES if len(left) > 1 else ():
            with np.errstate(invalid="ignore", divide="ignore"):
                without = {seed: float(np.log(critical(some, batch, estimate))) for seed, some in left.items()}
                whole = float(np.log(critical(runs, batch, estimate)))
            predicted[str(net), int(batch), estimate] = Predicted(whole, pd.Series(without))
    return predicted


def answers(found: pd.DataFrame, predicted: Predictions, fits: Curves) -> Iterator[Answer]:
    """The noise scale by step; does it predict the critical batch size?"""
    track = table(found, fits)
    yield "noise_track", track
    if track.empty:
        return
    asked, further = {}, {}
    for (net, batch, estimate), figure in predicted.items():
        pseudo = figure.pseudo()
        curve = fits.get((net, REFERENCE))
        if curve is None or not set(pseudo.index) & set(curve.seeds):
            continue
        measured = pd.Series(curve.fit.pseudo[:, 1], index=curve.seeds)
        both = pseudo.index.intersection(measured.index)
        pair = (np.exp(each[both].to_numpy()) for each in (pseudo, measured))
        asked[net, batch, estimate] = curve.settled(stats.paired(*pair, log=True, margin=WITHIN, test="t"))
        further[net, batch, estimate] = {
            **spelled("predicted_batch", stats.mean(np.exp(pseudo.to_numpy()), log=True)),
            **spelled("critical_batch", curve.fit.critical_batch),
        }
    label = "{net} trained at batch {batch} by {estimate}"
    every = Question.of(
        "noise_prediction", ("net", "batch", "estimate"), asked, label=label, reference="measured",
        family=lambda estimate, **_: estimate,
    )  # fmt: skip
    if not every:
        return
    yield every.table(further)
    named = replace(every, label="{net} trained at batch {batch}")
    question, other = (named.where(estimate=name) for name in ESTIMATES)
    ratios = enumerated((f"{k} {c.effect.value:.2f}" for k, c in question.read(lambda c: c).items()), 12)
    off, said = sorted(c.effect.value for c in question.members.values()), [*question.read(agrees).values()]
    yield Sentence(
        "Predicted from the noise of the gradients along training, the critical batch size is "
        f"{' to '.join(dict.fromkeys(f'{end:.2f}' for end in (off[0], off[-1])))} times the measured one; within a "
        f"factor of {WITHIN:g} is shown in {said.count(True)} of {len(said)} cases{undecided(said)}.",
        claims=(PREDICTS.id,),
    )
    compared = enumerated((f"{c.effect.value:.2f}" for c in other.members.values()), 12)
    yield question.verdict(
        PREDICTS, agrees, unit="times the critical batch size of the sweep",
        why=f"predicted over measured: {ratios}"
        + question.listed(agrees, {False: "beyond the margin:", None: "undecided:"}, 8, lead="; ")
        + f"; two batch sizes in place of all gradients give {compared}",
        method="mean noise over mean signal of the runs at each share of their way, averaged over the steps that they "
        f"are worth without noise; ratio of jackknife pseudo-values by seed, paired t on logarithms, margin {WITHIN:g}",
    )  # fmt: skip


def table(found: pd.DataFrame, fits: Curves) -> pd.DataFrame:
    """One row a step and estimate: the ratio of means with its interval, and how many single noises are negative."""
    rows = []
    for (net, batch, step), runs in groups(found, ["net", "batch", "step"]):
        curve = fits.get((net, REFERENCE))
        for estimate in ESTIMATES:
            noises, signals = runs[f"noise_{estimate}"].to_numpy(), runs[f"signal_{estimate}"].to_numpy()
            if len(runs) < 2 * found.loc[found["net"] == net, "seed"].nunique() / 3:
                continue  # those still on their way are the slow ones
            n, scale = len(runs), noises.mean() / signals.mean()
            left = (noises.sum() - noises) / (signals.sum() - signals) if n > 1 else np.array([math.nan])
            with np.errstate(invalid="ignore", over="ignore"):  # negative estimates have no logarithm, and no interval
                spread = stats.mean(np.exp(n * np.log(scale) - (n - 1) * np.log(left)), log=True)
            rows.append({
                "net": net, "batch": batch, "estimate": estimate, "step": int(step), "n": n, "scale": scale,
                "scale_low_95": spread.low, "scale_high_95": spread.high, "negative": int((noises < 0).sum()),
                **({} if curve is None else spelled("critical_batch", curve.fit.critical_batch)),
            })  # fmt: skip
    return pd.DataFrame(rows)


@drawing.figure(
    "noise_track", "The gradient noise scale along training, beside the critical batch size",
    lambda noise_track: "Trace of the covariance of the examples' gradients over the squared mean gradient, mean over "
    f"mean of {noise_track['n'].min()} runs or more at the tuned rate of SGD, with 95 % jackknife intervals. Line and "
    "band: critical batch size of the sweep.",
)  # fmt: skip
def draw_track(noise_track: pd.DataFrame) -> Any:
    """Noise scale by step, a panel a network and batch size."""
    shown = noise_track.assign(panel=noise_track["net"] + ", trained at B = " + noise_track["batch"].astype(str))
    shown = shown.astype({"step": float}).sort_values(["net", "batch"], kind="stable")
    axes = {"xscale": "symlog", "yscale": "log", "xlabel": "step", "ylabel": "examples"}
    return drawing.panels(shown, "panel", _beside, axes=axes)


def _beside(axis: Any, rows: pd.DataFrame) -> None:
    drawing.estimates(axis, rows[rows["scale"] > 0], at="step", by="estimate", value="scale", joined=True)
    if "critical_batch" in rows:
        low, high = drawing.interval(rows, "critical_batch")
        axis.axhline(rows["critical_batch"].iloc[0], color="0.3", lw=1, label="critical batch size")
        if np.isfinite(rows[[low, high]].iloc[0]).all():
            axis.axhspan(rows[low].iloc[0], rows[high].iloc[0], color="0.85", zorder=0)
