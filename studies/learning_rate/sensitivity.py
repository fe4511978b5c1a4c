"""Sensitivity of training to the learning rate, by depth and gain, and whether chi_1 knew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from depthgauge import data, drawing, models, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.initialization import gaussian
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, below, spelled
from depthgauge.studies.learning_rate import windows
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SENSITIVE = Claim("N23", "exploding gradients make training sensitive to the learning rate")
NARROW = Claim(
    "learning_rate/window", "exploding gradients narrow the range of learning rates at which a network trains"
)
LARGEST = Claim(
    "learning_rate/largest_rate",
    "the largest learning rate that trains falls in proportion to the growth of the squared gradient, chi_1^-depth",
)
KEYS = ["activation", "depth", "sigma_w"]
METRICS = ("loss_at_start", "loss")
FACTOR = 1.1  # sensitivities nearer to each other than this are the same
DECADES = 0.25  # windows whose width differs by less are the same
SLOPE = 1 / 3  # log-log slopes nearer to -1 than this are called inverse proportion
GROWN = 1.0  # depth ln chi_1 from which gradients count as exploding: their square grows e-fold
RATES = tuple(2.0**k for k in range(-12, 4))
QUICK = {"tanh": (1.0, 2.5), "relu": (2**0.5, 1.65, 1.9)}
FINE = {"tanh": (0.7, 1.0, 1.5, 2.0, 2.5), "relu": (1.2, 2**0.5, 1.55, 1.7, 1.9)}
SIZES = sizes(
    "depths seeds steps width rates sigmas", quick=((2, 8), 8, 50, 32, RATES[3:14:2], QUICK),
    standard=((2, 4, 8, 16), 10, 160, 32, RATES, FINE), full=((2, 4, 8, 16, 32), 16, 1000, 64, RATES, FINE),
    tiny=((1, 4), 5, 3, 8, RATES[5::2], {"tanh": (1.0, 1.6, 2.0, 2.5)}),
)  # fmt: skip


def grids(
    *, depths: tuple[int, ...], seeds: int, steps: int, width: int, rates: tuple[float, ...],
    sigmas: Mapping[str, tuple[float, ...]],
) -> Iterator[Grid]:  # fmt: skip
    """Depth x sigma_w x learning rate for each activation; replicas of a depth train together."""
    for activation, sigma_w in sigmas.items():
        yield Grid(
            {"depth": depths, "sigma_w": sigma_w, "lr": rates},
            {"activation": activation, "width": width, "steps": steps, "batch": 32}, seeds, ("sigma_w", "lr", "seed"),
            lambda case: replicas.most_members((74 + (case.integer("depth") - 1) * width) * width),
        )  # fmt: skip


@torch.no_grad()
def draw(module: nn.Module, generator: torch.Generator, sigma_w: float) -> None:
    """Hidden layers from N(0, sigma_w^2 / fan-in), the output layer from N(0, 1 / fan-in)."""
    gaussian(sigma_w)(module, generator)
    module.get_submodule("output").get_parameter("weight").div_(sigma_w)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD on 8 x 8 digits; replicas differ in sigma_w, rate and seed. The loss is that of all training examples."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    fit, _ = data.hold_out(digits.train, training.HELD_OUT)
    template = models.build(
        "mlp", input_shape=digits.input_shape, classes=digits.classes, activation=shared.text("activation"),
        depth=shared.integer("depth"), width=shared.integer("width"),
    )  # fmt: skip
    stack = replicas.stack(
        template, [case.random_seed("seed", "steps", "width", "depth") for case in cases], draw, device=context.device,
        sigma_w=[case.number("sigma_w") for case in cases],
    )  # fmt: skip
    sgd = replicas.SGD([case.number("lr") for case in cases])
    trained = replicas.train(stack, fit.x, fit.y, sgd, batch=shared.integer("batch"), steps=shared.integer("steps"))
    for metric, each in zip(METRICS, (stack, trained.stack), strict=True):
        loss = replicas.evaluate(each, fit.x, fit.y).loss
        yield from (case.rows(metric, float(value)) for case, value in zip(cases, loss, strict=True))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Loss against rate, sensitivity and largest rate by depth ln chi_1, and what exploding gradients make of them."""
    runs = training.table(rows, *KEYS, "lr", "seed", metrics=METRICS)
    if runs.empty:
        return
    runs = runs.astype({"seed": int, "depth": int})
    runs["capped"] = np.fmin(runs["loss"], runs["loss_at_start"])
    grown = windows.growths(runs)
    yield "ribbons", ribbons(runs, grown)
    by_seed = [*KEYS, "seed"]
    each = windows.sensitivities(runs, by_seed).merge(windows.windows(runs, by_seed), on=by_seed).merge(grown, on=KEYS)
    yield "sensitivities", pd.DataFrame(_means(each))
    yield from against_critical(each)
    yield from proportional(each)
    yield from deepest(each)


def ribbons(reported: pd.DataFrame, grown: pd.DataFrame) -> pd.DataFrame:
    """Median and band of the loss at each rate; each activation's smallest, critical and largest sigma_w."""
    lines = []
    for (activation, depth, sigma_w), own in groups(reported, KEYS):
        by_rate = own.pivot_table(index="seed", columns="lr", values="capped", dropna=False)
        at = {"activation": activation, "depth": depth, "sigma_w": sigma_w, "n": len(by_rate)}
        lines.append(pd.DataFrame({**at, "lr": by_rate.columns, **stats.band(by_rate.to_numpy())}))
    return pd.concat(lines, ignore_index=True).merge(grown, on=KEYS)


def _means(each: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for key, own in groups(each, KEYS):
        figures = {
            **spelled("sensitivity", stats.mean(own["sensitivity"].to_numpy(), log=True)),
            "share": own["share"].mean(), **{f"{name}_loss": own[name].median() for name in ("start", "best")},
            **spelled("largest", stats.mean(own["largest"].to_numpy(), log=True)), "decades": own["decades"].mean(),
            "none_learns": int(own["largest"].isna().sum()), "censored": int(own["censored"].sum()),
        }  # fmt: skip
        yield {**dict(zip(KEYS, key, strict=True)), **own.iloc[0][["growth", "critical"]], "n": len(own), **figures}


def _pairs(each: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame, pd.DataFrame]]:
    """(configuration, its seeds, those of the critical sigma_w), for other sigma_w of the same activation and depth."""
    for (activation, depth), own in groups(each, ["activation", "depth"]):
        critical = own[own["critical"]].set_index("seed")
        for sigma_w, other in groups(own[~own["critical"]], "sigma_w"):
            one = other.set_index("seed")
            both = one.index.intersection(critical.index)
            yield (activation, depth, sigma_w), one.loc[both], critical.loc[both]


def against_critical(each: pd.DataFrame) -> Iterator[Answer]:
    """N23 and the window: exploding networks against those of the critical sigma_w, seed by seed."""
    more, wider, shares = {}, {}, {}
    for key, one, critical in _pairs(each):
        if one["growth"].iloc[0] >= GROWN:
            pair = one["sensitivity"], critical["sensitivity"]
            more[key] = stats.paired(*pair, log=True, margin=FACTOR, test="t")
            wider[key] = stats.paired(one["decades"], critical["decades"], margin=DECADES, test="t")
            shares[key] = one["share"].median(), critical["share"].median()
    if not more:
        return
    label = "{activation} of depth {depth} at sigma_w = {sigma_w:.3g}"
    against = "against the critical sigma_w of one depth, where the squared gradient grows e-fold, paired t by seed"
    question = Question.of("sensitive", KEYS, more, label=label, reference="the critical network")
    yield question.table()
    words = {True: "more sensitive:", False: f"not by {FACTOR - 1:.0%} or less:", None: "undecided:"}
    yield question.verdict(
        SENSITIVE, above, unit="times the critical network's", says=windows.by_network(question, above),
        why=f"of {len(question)} exploding networks, {question.listed(above, words)}"
        + windows.of_gain([shares[key] for key, c in question.members.items() if above(c)]),
        method=f"Wortsman's sensitivity {against}, log ratio, margin {FACTOR:g}",
    )  # fmt: skip
    question = Question.of("narrower", KEYS, wider, label=label, reference="no difference")
    yield question.table()
    words = {True: "a narrower window:", False: f"none narrower by {DECADES:g} decades:", None: "undecided:"}
    yield question.verdict(
        NARROW, below, unit="decades of rates above the critical network's",
        why=f"of {len(question)} exploding networks, {question.listed(below, words)}",
        method=f"{windows.METHOD}; width {against}, margin {DECADES:g} decades",
    )  # fmt: skip


def proportional(each: pd.DataFrame) -> Iterator[Answer]:
    """Slope of ln largest rate on depth ln chi_1 over sigma_w from the critical on, where this spans GROWN or more."""
    asked, used = {}, {}
    for key, own in groups(each[(each["growth"] > 0) | each["critical"]], ["activation", "depth"]):
        table = own.pivot_table(index="seed", columns="growth", values="largest", dropna=False)
        learned = table.loc[:, table.notna().all() & (own.groupby("growth")["censored"].sum() == 0)]
        if learned.shape[1] > 2 and np.ptp(learned.columns) >= GROWN:
            slope = stats.slopes(learned.columns, np.log(learned.to_numpy(float))).slope
            asked[key] = stats.against(slope, -1.0, margin=SLOPE)
            used[key] = {"sigmas": learned.shape[1], "left_out": table.shape[1] - learned.shape[1]}
    question = Question.of("largest_slope", ["activation", "depth"], asked, label="{activation} of depth {depth}")
    if not question:
        return
    yield question.table(used)
    values = ", ".join(f"{name} {value:.2g}" for name, value in question.read(lambda c: c.effect.value).items())
    rule = "inversely proportional to the growth for"
    words = {True: f"the largest rate is {rule}", False: f"the largest rate is not {rule}", None: "undecided for"}
    yield question.verdict(
        LARGEST, agrees, unit="slope of ln rate on depth ln chi_1",
        why=f"{question.listed(agrees, words)} (slopes: {values})",
        method=f"least squares by seed over the sigma_w from the critical on at which every seed learns, margin "
        f"{SLOPE:.2g}; {windows.METHOD}",
    )  # fmt: skip


def deepest(each: pd.DataFrame) -> Iterator[Sentence]:
    """Tell the largest rate of the deepest networks: critical, and those whose gradients explode most."""
    deep = each[each["depth"] == each["depth"].max()]
    for activation, own in groups(deep[deep["activation"] == "relu"], "activation"):
        most = own[own["sigma_w"] == own["sigma_w"].max()]
        yield Sentence(
            f"A {windows.printed(activation)} network of depth {own['depth'].iloc[0]} whose gradients explode (sigma_w "
            f"= {own['sigma_w'].max():.3g}) learns {windows.up_to(most['largest'])}, a critical one "
            f"{windows.up_to(own.loc[own['critical'], 'largest'])}.",
            claims=(LARGEST.id,),
        )


@drawing.figure(
    "sensitivity", "How sensitive training is to its learning rate, by the growth of its gradients",
    lambda sensitivities: "Mean over a fixed grid of rates of min(loss, loss at start), minus the least loss; "
    f"geometric mean of {sensitivities['n'].min()} seeds, 95 % intervals; a point a sigma_w. To the right of 0 "
    "mean-field theory has gradients explode, to its left vanish, by this power of e for their square.",
)  # fmt: skip
def draw_sensitivity(sensitivities: pd.DataFrame) -> Any:
    """Sensitivity against depth ln chi_1, by depth."""
    axes = {"xlabel": r"depth $\ln\chi_1$", "ylabel": "sensitivity, nats", "yscale": "log"}
    options: dict[str, Any] = {"at": "growth", "by": "depth", "value": "sensitivity", "joined": True}
    return drawing.panels(sensitivities, "activation", drawing.estimates, axes=axes, shared="", **options)


@drawing.figure(
    "largest_rate", "The largest learning rate at which a network learns, by the growth of its gradients",
    lambda sensitivities: f"Geometric mean of {sensitivities['n'].min()} seeds, where all learn, 95 % intervals. "
    "Dashed: in inverse proportion to the growth of the squared gradient, from the critical sigma_w of the same depth.",
)  # fmt: skip
def draw_largest(sensitivities: pd.DataFrame) -> Any:
    """Largest rate against depth ln chi_1, by depth, and the rate that inverse proportion has."""
    keys = ["activation", "depth"]
    critical = sensitivities[sensitivities["critical"]].set_index(keys)[["largest", "growth"]]
    shown = sensitivities.join(critical.add_suffix("_critical"), on=keys)
    grown = shown["growth"] - shown["growth_critical"]
    shown["predicted"] = (shown["largest_critical"] * np.exp(-grown)).where(grown >= 0)
    axes = {"xlabel": r"depth $\ln\chi_1$", "ylabel": "largest learning rate", "yscale": "log"}
    options: dict[str, Any] = {"at": "growth", "by": "depth", "value": "largest", "theory": shown}
    return drawing.panels(shown, "activation", drawing.estimates, axes=axes, shared="", **options)


@drawing.figure(
    "ribbons", "The loss after training against the learning rate, by depth and initialization",
    lambda ribbons: f"Median and middle 90 % of {ribbons['n'].min()} seeds; a run that diverged or rose counts with "
    "its loss at the start. Each activation's smallest, critical and largest sigma_w.",
)  # fmt: skip
def draw_ribbons(ribbons: pd.DataFrame) -> Any:
    """Loss against rate, a panel an initialization."""
    ends = ribbons.groupby("activation")["sigma_w"].transform
    shown = ribbons[ribbons["critical"] | ribbons["sigma_w"].isin([*ends("min"), *ends("max")])]
    order = shown.sort_values(["activation", "sigma_w"])
    named = order.assign(
        at=[f"{a}, $\\sigma_w$ = {s:.3g}" for a, s in zip(order["activation"], order["sigma_w"], strict=True)]
    )
    axes = {"xscale": "log", "ylabel": "training loss, nats", "yscale": "log"}
    return drawing.panels(named, "at", drawing.profile, by="depth", x="lr", axes=axes)


METHOD = f"""**Sensitivity.** Networks of `depth` hidden layers, weights from N(0, sigma_w²/fan-in), those of the
output layer from N(0, 1/fan-in), trained by SGD on 8 x 8 digits at every rate of a grid. Sensitivity as in Wortsman et
al. (2023, "Small-scale proxies for large-scale Transformer training instabilities", arXiv:2309.14322): mean over the
grid of min(loss, loss at start) minus the least loss, of each network by itself. It is that of this grid and this
budget of steps. chi_1 is mean-field theory's growth a layer of the squared gradient, at the fixed point of the
variance; {GROWN:g} of depth ln chi_1 is a growth by e. What counts as learned, and sizes, were chosen after a trial run
with other seeds. The largest rate is that of so many steps, and lies between two of the grid."""
FIGURES = (draw_sensitivity, draw_largest, draw_ribbons)
PART = Part("sensitivity", (SENSITIVE, NARROW, LARGEST), SIZES, grids, run, analyse, FIGURES, METHOD)
