"""Depth x sigma_w: which networks learn real digits in a small fixed budget, and whether theory knew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import data, drawing, models, replicas, stats, theory
from depthgauge.frames import groups, only, params_of, records
from depthgauge.initialization import gaussian
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, below, spelled
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

DEEP = Claim("N03", "shallow networks hardly have stability trouble; with depth, exploding and vanishing appear")
CRITICAL = Claim(
    "gradient_flow/critical", "the networks that train deepest are those of the critical sigma_w of theory"
)
SCALE = Claim(
    "gradient_flow/depth_scale",
    "the depth down to which a network trains is proportional to the depth scale that theory predicts",
)
EVALUATED = 1000  # training examples on which accuracy is taken; they hold each class alike
TRAINED = 0.5  # training accuracy from which a network counts as trained; chance is 0.1
HARDLY = 0.25  # a share of the configurations below this is hardly any
FACTOR = 1.5  # values of sigma_w within this factor of each other are called the same
SLOPE = 1 / 3  # log-log slopes nearer to 1 than this are called proportional
MULTIPLE = 6  # of xi_c: the depth down to which Schoenholz et al. (2017) saw networks train
QUICK = {
    "tanh": (0.5, 0.75, 0.9, 1.0, 1.15, 1.5, 2.0, 2.8), "relu": (0.7, 0.95, 1.2, 2**0.5, 1.65, 1.9, 2.3, 2.8)
}  # fmt: skip
FINE = {
    "tanh": (0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.7, 1.9, 2.15, 2.4, 2.7, 3.0),
    "relu": (0.6, 0.75, 0.9, 1.05, 1.2, 1.3, 2**0.5, 1.55, 1.7, 1.85, 2.0, 2.2, 2.4, 2.7, 3.0),
}
DEPTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
SIZES = sizes(
    "depths seeds steps width sigmas", quick=((2, 4, 8, 12, 20, 32), 5, 100, 32, QUICK),
    standard=(DEPTHS, 6, 200, 64, FINE), full=((*DEPTHS, 64, 96, 128), 10, 1000, 128, FINE),
    tiny=((1, 3), 5, 3, 6, {"tanh": (1.0, 1.4)}),
)  # fmt: skip


def grids(
    depths: tuple[int, ...], seeds: int, steps: int, width: int, sigmas: Mapping[str, tuple[float, ...]]
) -> Iterator[Grid]:
    """Depth x sigma_w for each activation; replicas of a depth train together."""
    recipe = {"width": width, "steps": steps, "batch": 32, "lr": 0.01, "momentum": 0.9}
    for activation, sigma_w in sigmas.items():
        varied = {"depth": depths, "sigma_w": sigma_w}
        yield Grid(
            varied, {**recipe, "activation": activation}, seeds, ("sigma_w", "seed"),
            lambda case: replicas.most_members((784 + 10 + (case.integer("depth") - 1) * width) * width),
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD on the 4,000 training digits of MNIST-5k; replicas differ in sigma_w and seed, trained as one computation."""
    shared = cases[0]
    shape: dict[str, Any] = {"depth": shared.integer("depth"), "width": shared.integer("width")}
    stack = replicas.stack(
        models.build("mlp", **shape, activation=shared.text("activation")),
        seeds=[case.random_seed("seed", "width", "depth") for case in cases],  # common to all sigma_w: paired
        initialize=lambda module, generator, sigma_w: gaussian(sigma_w)(module, generator),
        device=context.device, sigma_w=[case.number("sigma_w") for case in cases],
    )  # fmt: skip
    digits = data.load("mnist5k").to(context.device).train
    optimizer = replicas.SGD(lr=shared.number("lr"), momentum=shared.number("momentum"))
    loop = replicas.Loop(batch=shared.integer("batch"), steps=shared.integer("steps"))
    trained = replicas.train(stack, digits.x, digits.y, optimizer, loop)
    result = replicas.evaluate(trained.stack, digits.x[:EVALUATED], digits.y[:EVALUATED])
    for i, case in enumerate(cases):
        yield case.rows("train_accuracy", result.accuracy[i])
        yield case.rows("train_loss", result.loss[i])
        yield case.rows("diverged", float(trained.diverged_at[i] >= 0))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """The map, the depth down to which each initialization trains, and how that compares with theory."""
    params = params_of(rows, "activation", "depth", "sigma_w", "seed", "steps", "width")
    params = params.astype({"depth": int, "seed": int, "steps": int, "width": int})
    params["accuracy"], params["diverged"] = only(rows, "train_accuracy"), only(rows, "diverged")
    params["trained"] = params["accuracy"] >= TRAINED
    reach = reaches(params)
    yield "training", pd.DataFrame(_cells(params))
    yield "depth_scales", pd.DataFrame(_depth_scales(params))
    yield "reach", reach
    for activation, own in groups(reach, "activation"):
        yield _in_words(activation, own)
    yield from cost_of_depth(params)
    yield from deepest(reach)
    yield from proportional(reach, params["depth"].min(), params["depth"].max())


def _in_words(activation: str, reach: pd.DataFrame) -> Sentence:
    """How deep an activation's networks train from the best weights and from the worst; medians of the runs."""
    middle = reach.groupby("sigma_w")[["reach", "censored"]].median().sort_values("reach", ascending=False)
    best, worst = records(middle.iloc[[0, -1]].reset_index())
    return Sentence(
        f"A {activation} network trains down to {_layers(best)} from weights of scale sigma_w = {best.sigma_w:.3g} "
        f"(theory's best: {reach['critical'].iloc[0]:.3g}), down to {_layers(worst)} from {worst.sigma_w:.3g}.",
        "training_map",
        (CRITICAL.id,),
    )


def _layers(reach: Any) -> str:
    bound = {-1: "fewer than ", 0: "", 1: "at least "}[int(np.sign(reach.censored))]
    return f"{bound}{reach.reach:.0f} layers"


def _cells(params: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (activation, depth, sigma_w), cell in groups(params, ["activation", "depth", "sigma_w"]):
        at = {"activation": activation, "depth": depth, "sigma_w": sigma_w, "n": len(cell)}
        trained = stats.rate(int(cell["trained"].sum()), len(cell))
        counts = {"diverged": int(cell["diverged"].sum()), "steps": cell["steps"].max(), "width": cell["width"].max()}
        yield {**at, "accuracy": cell["accuracy"].mean(), **spelled("trained", trained), **counts}


def _depth_scales(params: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Predicted on a grid of sigma_w that is dense where the scales diverge: the lines of the map."""
    near = np.geomspace(1e-3, 1.0, 16)
    for activation, group in groups(params, "activation"):
        critical = theory.critical_sigma_w(activation, 0.0)
        low, high = group["sigma_w"].min() * 0.8, group["sigma_w"].max() * 1.2
        for sigma_w in (*(critical - (critical - low) * near[::-1]), *(critical + (high - critical) * near)):
            xi_c, xi_gradient = theory.depth_scales(activation, sigma_w, 0.0)
            yield {"activation": activation, "sigma_w": sigma_w, "xi_c": xi_c, "xi_gradient": xi_gradient}


def reaches(params: pd.DataFrame) -> pd.DataFrame:
    """Trainable depth by activation, sigma_w and seed: where accuracy first falls through TRAINED, in log-depth.

    `censored` is -1 where not even the shallowest trains (the reach is less), 1 where the deepest still does (more).
    """
    keys, lines = ["activation", "sigma_w", "seed"], []
    for key, own in groups(params, keys):
        line = own.sort_values("depth")
        reach, censored = stats.crossing(np.log(line["depth"].to_numpy(float)), line["accuracy"], TRAINED)
        at = {**dict(zip(keys, key, strict=True)), "reach": math.exp(reach), "censored": censored}
        xi_c, _ = theory.depth_scales(key[0], key[1], 0.0)
        lines.append({**at, "xi_c": xi_c, "critical": theory.critical_sigma_w(key[0], 0.0)})
    return pd.DataFrame(lines)


def cost_of_depth(params: pd.DataFrame) -> Iterator[Answer]:
    """N03: in how many configurations do most shallow networks fail, and in how many does depth cost most of them?"""
    shallow, deep = params["depth"].min(), params["depth"].max()
    share = params.pivot_table(index=["activation", "sigma_w"], columns="depth", values="trained", aggfunc="mean")
    trains, fails = share[shallow] > 0.5, share[deep] <= 0.5
    trouble = (f"most networks of depth {shallow} fail",)
    lost = (f"most networks of depth {shallow} train and most of depth {deep} fail",)
    counts = {trouble: int((~trains).sum()), lost: int((trains & fails).sum())}
    asked = {key: stats.coverage(count, len(share), HARDLY) for key, count in counts.items()}
    question = Question.of(
        "cost_of_depth", ("event",), asked, label="{event}", reference="hardly any", counted="initializations",
    )  # fmt: skip
    yield question.table()
    answers = {"depth costs": above(question.members[lost])}
    if not (quiet := below(question.members[trouble])):  # hardly any shallow network fails: that decides nothing more
        answers["shallow networks train"] = quiet
    yield question.verdict(
        DEEP, answers, shown=lost, unit="share of initializations",
        says=f"depth costs most networks in {counts[lost]} of {len(share)} initializations, shallow ones fail in "
        f"{counts[trouble]}",
        why=f"of {len(share)} initializations (activation and sigma_w), {counts[lost]} lose most of their networks "
        f"between depth {shallow} and depth {deep}, and {counts[trouble]} train few even at depth {shallow}",
        method=f"exact binomial intervals; hardly any: fewer than {HARDLY:.0%}; a network trains that reaches an "
        f"accuracy of {TRAINED:g}",
    )  # fmt: skip

    yield Sentence(
        f"{counts[lost]} of {len(share)} initializations train most of their networks of depth {shallow} and lose most "
        f"at depth {deep}.", "training_map", (DEEP.id,),
    )  # fmt: skip


def deepest(reach: pd.DataFrame) -> Iterator[Answer]:
    """The sigma_w that trains deepest, by seed, over the critical one; ties are averaged, NaN where none trains."""
    asked = {}
    for activation, own in groups(reach, "activation"):
        best = own[(own["reach"] == own.groupby("seed")["reach"].transform("max")) & (own["censored"] >= 0)]
        at = np.exp(np.log(best["sigma_w"]).groupby(best["seed"]).mean()).reindex(own["seed"].unique()).to_numpy()
        tried = np.sort(own["sigma_w"].unique())
        step, critical = (tried[1:] / tried[:-1]).max(initial=1.0), np.full(len(at), own["critical"].iloc[0])
        asked[(activation,)] = stats.paired(at, critical, log=True, margin=FACTOR, resolution=step, test="t")
    question = Question.of("deepest", ("activation",), asked, label="{activation}", reference="critical value")
    yield question.table()
    words = {True: "the critical one for", False: "another for", None: "undecided for"}
    yield question.verdict(
        CRITICAL, agrees, unit="times the critical sigma_w",
        why=f"the sigma_w that trains deepest is, to within a factor of {FACTOR:g}, {question.listed(agrees, words)}",
        method=f"argmax over sigma_w by seed, ties averaged; log-ratio, margin a factor of {FACTOR:g}",
    )  # fmt: skip


def proportional(reach: pd.DataFrame, shallow: int, deep: int) -> Iterator[Answer]:
    """Slope of ln reach on ln xi_c, over the sigma_w for which theory alone puts 6 xi_c inside the depths tried."""
    asked, used = {}, {}
    for activation, own in groups(reach[(MULTIPLE * reach["xi_c"]).between(shallow, deep)], "activation"):
        if own["sigma_w"].nunique() > 2:
            slopes = stats.censored_slopes(np.log(own["xi_c"]), np.log(own["reach"]), own["censored"], own["seed"])
            asked[(activation,)] = stats.against(slopes, 1.0, margin=SLOPE)
            used[(activation,)] = {"sigmas": own["sigma_w"].nunique(), "censored": int((own["censored"] != 0).sum())}
    question = Question.of("depth_scale", ("activation",), asked, label="{activation}", reference="proportionality")
    if question:
        yield question.table(used)
        words = {True: "proportional for", False: "not proportional for", None: "undecided for"}
        values = ", ".join(f"{name} {value:.2g}" for name, value in question.read(lambda c: c.effect.value).items())
        yield question.verdict(
            SCALE, agrees, unit="log-log slope (1: proportional)",
            why="trainable depth against the depth scale xi_c of Schoenholz et al. (2017): "
            f"{question.listed(agrees, words)} (slopes: {values})",
            method=f"censored normal regression of ln depth on ln xi_c, over the sigma_w with {shallow} <= {MULTIPLE} "
            f"xi_c <= {deep}; jackknife over seeds; margin {SLOPE:.2g}",
        )  # fmt: skip


@drawing.figure(
    "training_map", "How deep a network trains goes with its initialization",
    lambda training, _: f"Each cell: mean training accuracy over {training['n'].min()} seeds after "
    f"{training['steps'].max()} steps of SGD on MNIST (chance is 0.1). Lines: multiples of the depth scales that "
    "theory predicts, of the gradient (1/|ln chi_1|) and of the correlation (xi_c; none for ReLU above its critical "
    "sigma_w). Where they diverge sigma_w is critical: to its left gradients vanish, to its right they explode.",
)  # fmt: skip
def training_map(training: pd.DataFrame, depth_scales: pd.DataFrame) -> Any:
    """Depth x sigma_w, colour = training accuracy, lines = multiples of the predicted depth scales."""
    one, six, xi_c = r"$1\,/\,|\ln\chi_1|$", r"$6\,/\,|\ln\chi_1|$", r"$6\,\xi_c$"
    lines = ((one, "xi_gradient", 1), (six, "xi_gradient", 6), (xi_c, "xi_c", 6))
    over = pd.concat(depth_scales.assign(line=line, depth=by * depth_scales[xi]) for line, xi, by in lines)
    axes: dict[str, Any] = {"over": over.assign(depth=over["depth"].clip(upper=1e6)), "axes": {"yscale": "log"}}
    return drawing.panels(training, "activation", drawing.heat, x="sigma_w", y="depth", value="accuracy", **axes)


METHOD = """
**Training.** Networks that differ in sigma_w alone start from the same draws and train on the same mini-batches; each
seed has its own. The *reach* is the depth at which accuracy falls through 0.5. The predicted depth scale is xi_c of
Schoenholz et al. (2017), the layers over which the correlation of two inputs settles (sigma_b = 0). Proportional: a
log-log slope of 1; a reach beyond the depths tried is censored.
"""
PART = Part("training", (DEEP, CRITICAL, SCALE), SIZES, grids, run, analyse, (training_map,), METHOD)
