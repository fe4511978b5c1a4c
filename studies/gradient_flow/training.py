"""Depth x sigma_w: which networks learn real digits in a small fixed budget, and whether theory knew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.lines import Line2D

from depthgauge import data, models, replicas, stats, theory
from depthgauge.frames import groups, only, params_of
from depthgauge.initialization import gaussian
from depthgauge.parts import Answer, verdict_on
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

EVALUATED = 1000  # training examples on which accuracy is taken; they hold each class alike
TRAINED = 0.5  # training accuracy from which a network counts as trained; chance is 0.1
LITTLE = 0.05  # a share of networks lost to depth up to this is hardly any
FACTOR = 1.5  # numbers within this factor of each other are called the same
SCALE_MULTIPLES = (1.0, 3.0, 6.0)


def run_training(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD on the 4,000 training digits of MNIST-5k; replicas differ in sigma_w and seed, trained as one computation."""
    shared = cases[0]
    model = models.build(
        "mlp", depth=shared.integer("depth"), width=shared.integer("width"), activation=shared.text("activation")
    )
    stack = replicas.stack(
        model,
        seeds=[case.random_seed("seed", "width", "depth") for case in cases],  # common to all sigma_w: paired
        initialize=_draw,
        device=context.device,
        sigma_w=[case.number("sigma_w") for case in cases],
    )
    digits = data.load("mnist5k").to(context.device).train
    optimizer = replicas.SGD(lr=shared.number("lr"), momentum=shared.number("momentum"))
    run = replicas.train(
        stack, digits.x, digits.y, optimizer, batch=shared.integer("batch"), steps=shared.integer("steps")
    )
    result = replicas.evaluate(run.stack, digits.x[:EVALUATED], digits.y[:EVALUATED])
    for i, case in enumerate(cases):
        yield case.rows("train_accuracy", result.accuracy[i])
        yield case.rows("train_loss", result.loss[i])
        yield case.rows("diverged", float(run.diverged_at[i] >= 0))


def _draw(module: torch.nn.Module, generator: torch.Generator, sigma_w: float) -> None:
    gaussian(sigma_w)(module, generator)


def most_replicas(case: Case) -> int:
    """Replicas a chunk, bounded by memory."""
    width, depth = case.integer("width"), case.integer("depth")
    return replicas.most_members(784 * width + (depth - 1) * width**2 + 10 * width)


def analyse_training(rows: pd.DataFrame) -> Answer:
    """The map, the depth down to which each initialization trains, and how that compares with theory."""
    params = params_of(rows, "activation", "depth", "sigma_w", "seed", "steps", "width")
    params["accuracy"] = only(rows, "train_accuracy")
    params["diverged"] = only(rows, "diverged")
    cells = []
    for (activation, depth, sigma_w), cell in groups(params, ["activation", "depth", "sigma_w"]):
        accuracy = stats.mean(cell["accuracy"].to_numpy())
        cells.append(
            {
                "activation": activation, "depth": depth, "sigma_w": sigma_w, "accuracy": accuracy.value,
                "low": accuracy.low, "high": accuracy.high, "n": accuracy.n,
                "trained": int((cell["accuracy"] >= TRAINED).sum()), "diverged": int(cell["diverged"].sum()),
                "steps": int(cell["steps"].max()), "width": int(cell["width"].max()),
            }
        )  # fmt: skip
    scales = _depth_scales(params)
    reach = _reach(params)
    return Answer(
        {"training": pd.DataFrame(cells), "depth_scales": scales, "reach": reach},
        tuple(_training_verdicts(params, reach)),
        tuple(_training_sentences(pd.DataFrame(cells), reach)),
    )


def _depth_scale(activation: str, sigma_w: float) -> float:
    """The gradient's depth scale 1/|ln chi_1|: layers over which the squared gradient changes by a factor e."""
    try:
        chi = theory.mean_field(activation, sigma_w, 0.0).chi_1
    except theory.NoFixedPoint:
        chi = theory.chi(activation, sigma_w, 1.0)  # ReLU and linear: the same at every variance
    return 1 / abs(math.log(chi)) if abs(chi - 1) > 1e-9 else math.inf


def _depth_scales(params: pd.DataFrame) -> pd.DataFrame:
    """The predicted depth scale on a grid of sigma_w that is dense where it diverges: the lines of the map."""
    found = []
    for activation, group in groups(params, "activation"):
        critical = theory.critical_sigma_w(activation, 0.0)
        low, high = group["sigma_w"].min() * 0.8, group["sigma_w"].max() * 1.2
        near = np.geomspace(1e-3, 1.0, 16)
        sigmas = np.concatenate([critical - (critical - low) * near[::-1], critical + (high - critical) * near])
        scales = [_depth_scale(activation, float(sigma_w)) for sigma_w in sigmas]
        found.append(pd.DataFrame({"activation": activation, "sigma_w": sigmas, "scale": scales, "critical": critical}))
    return pd.concat(found, ignore_index=True)


def _reach(params: pd.DataFrame) -> pd.DataFrame:
    """Trainable depth by activation, sigma_w and seed: where accuracy first falls through TRAINED, in log-depth.

    `censored` marks the two ends: not even the shallowest trains, or the deepest still does.
    """
    found = []
    for (activation, sigma_w, seed), line in groups(params, ["activation", "sigma_w", "seed"]):
        deepening = line.sort_values("depth")
        depth, accuracy = deepening["depth"].to_numpy(float), deepening["accuracy"].to_numpy(float)
        below = np.flatnonzero(accuracy < TRAINED)
        if below.size == 0 or below[0] == 0:
            reach, censored = float(depth[-1] if below.size == 0 else depth[0]), True
        else:
            k = int(below[0])
            share = (accuracy[k - 1] - TRAINED) / (accuracy[k - 1] - accuracy[k])
            reach, censored = float(np.exp(np.log(depth[k - 1]) + share * np.log(depth[k] / depth[k - 1]))), False
        found.append(
            {
                "activation": activation, "sigma_w": sigma_w, "seed": seed, "reach": reach, "censored": censored,
                "scale": _depth_scale(activation, float(sigma_w)),
                "critical": theory.critical_sigma_w(activation, 0.0),
            }
        )  # fmt: skip
    return pd.DataFrame(found)


def _training_verdicts(params: pd.DataFrame, reach: pd.DataFrame) -> Iterator[Verdict]:
    shallow, deep = int(params["depth"].min()), int(params["depth"].max())
    share = params.assign(trained=params["accuracy"] >= TRAINED).pivot_table(
        index="depth", columns="seed", values="trained", aggfunc="mean"
    )
    at_shallow, lost = (
        stats.mean(share.loc[shallow].to_numpy()),
        stats.mean((share.loc[shallow] - share.loc[deep]).to_numpy()),
    )
    status = Status.INCONCLUSIVE
    if lost.has_interval and at_shallow.has_interval:
        if lost.low > LITTLE:
            status = Status.HOLDS if at_shallow.low >= 0.9 else Status.DEPENDS
        elif lost.high < LITTLE:
            status = Status.FAILS
    yield verdict_on(
        "N03", status,
        f"over the same range of sigma_w, {at_shallow.value:.0%} of the networks of depth {shallow} train and "
        f"{share.loc[deep].mean():.0%} of those of depth {deep}"
        + (f"; depth costs networks, but those of depth {shallow} fail too" if status is Status.DEPENDS else ""),
        observed=lost.value, low=lost.low, high=lost.high, unit="share of networks lost to depth", n=lost.n,
        method=f"share over sigma_w and activation by seed; 95 % t interval over seeds of depth {shallow} minus depth "
        f"{deep}; trained: accuracy of at least {TRAINED:g}",
    )  # fmt: skip
    slopes, best = {}, {}
    for activation, own in groups(reach, "activation"):
        usable = own[~own["censored"] & np.isfinite(own["scale"])]
        slope = [
            np.polyfit(np.log(line["scale"]), np.log(line["reach"]), 1)[0]
            for _, line in usable.groupby("seed")
            if line["sigma_w"].nunique() >= 4
        ]
        slopes[activation] = stats.mean(np.array(slope))
        deepest = own[own["reach"] == own.groupby("seed")["reach"].transform("max")]
        best[activation] = stats.mean((deepest.groupby("seed")["sigma_w"].mean() / own["critical"].iloc[0]).to_numpy())
    yield _factor_verdict(
        "gradient_flow/depth_scale", slopes,
        what="log-log slope of trainable depth against predicted depth scale", called="proportional",
        unit="slope (1: proportional)",
        method="least squares over the sigma_w whose trainable depth lies inside the depths tried, one slope a seed",
    )  # fmt: skip
    yield _factor_verdict(
        "gradient_flow/critical", best,
        what="sigma_w that trains deepest, divided by the critical sigma_w of theory", called="the same", unit="ratio",
        method="argmax over the grid of sigma_w by seed, ties averaged",
    )  # fmt: skip


def _factor_verdict(
    claim: str, found: Mapping[str, stats.Estimate], *, what: str, called: str, unit: str, method: str
) -> Verdict:
    """Is each of these numbers 1, within a factor of FACTOR? `called` is the word for one that is."""
    told: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for name, estimate in found.items():
        interval = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.has_interval else ""
        told[_is_one(estimate)].append(f"{name} ({estimate.value:.2f}{interval})")
    status = Status(stats.combine([answer for answer, names in told.items() for _ in names]))
    first = next(iter(found))
    words = {True: f"{called} within a factor of {FACTOR:g} for", False: "not for", None: "undecided for"}
    if not told[True]:
        words[False] = f"not {called} within a factor of {FACTOR:g} for"
    parts = [f"{words[answer]} {', '.join(names)}" for answer, names in told.items() if names]
    return verdict_on(
        claim, status, f"{what}: {', '.join(parts)}",
        observed=found[first].value, low=found[first].low, high=found[first].high, predicted=1.0, unit=unit,
        n=found[first].n,
        method=f"{method}; 95 % t interval over seeds inside [1/{FACTOR:g}, {FACTOR:g}]; the figure is {first}'s",
    )  # fmt: skip


def _is_one(estimate: stats.Estimate) -> bool | None:
    if not estimate.has_interval:
        return None
    if estimate.low > 1 / FACTOR and estimate.high < FACTOR:
        return True
    return False if estimate.high < 1 / FACTOR or estimate.low > FACTOR else None


def _training_sentences(cells: pd.DataFrame, reach: pd.DataFrame) -> Iterator[str]:
    for activation, own in groups(reach, "activation"):
        middle = own.groupby("sigma_w")["reach"].median()
        least, most = middle.index[int(middle.argmin())], middle.index[int(middle.argmax())]
        yield (
            f"A {activation} network learns MNIST in {cells['steps'].max()} steps down to about {middle[most]:.0f} "
            f"layers at sigma_w = {most:.3g} (theory's critical value: {own['critical'].iloc[0]:.3g}), and down to "
            f"about {middle[least]:.0f} at sigma_w = {least:.3g}."
        )


def _cells(centres: np.ndarray) -> np.ndarray:
    """Edges of the cells around sorted centres: half-way between neighbours, mirrored at the ends."""
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def plot_training(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """The map: depth x sigma_w, colour = training accuracy, lines = multiples of the predicted depth scale."""
    if "training" not in tables:
        return
    training, scales = tables["training"], tables["depth_scales"]
    activations = list(dict.fromkeys(training["activation"]))
    canvas, axes = plt.subplots(1, len(activations), figsize=(5.4 * len(activations), 4.8), sharey=True, squeeze=False)
    mesh = None
    for axis, activation in zip(axes[0], activations, strict=True):
        grid = training[training["activation"] == activation].pivot_table(
            index="depth", columns="sigma_w", values="accuracy"
        )
        sigma, depth = grid.columns.to_numpy(float), grid.index.to_numpy(float)
        edges = 2 ** _cells(np.log2(depth))
        mesh = axis.pcolormesh(
            _cells(sigma), edges, grid.to_numpy(), cmap="magma", vmin=0.1, vmax=1.0, rasterized=True, shading="flat"
        )
        axis.set(yscale="log", ylim=(edges[0], edges[-1]), xlim=(_cells(sigma)[0], _cells(sigma)[-1]))
        own = scales[scales["activation"] == activation]
        for multiple, style in zip(SCALE_MULTIPLES, ("-", "--", ":"), strict=True):
            reach = multiple * own["scale"].to_numpy(float)
            axis.plot(own["sigma_w"], np.minimum(reach, 1e6), color="white", lw=1.8, ls=style)
        axis.axvline(own["critical"].iloc[0], color="white", lw=0.8, alpha=0.6)
        top = {"y": 0.97, "color": "white", "fontsize": "small", "va": "top", "transform": axis.transAxes}
        axis.text(x=0.02, s="gradients\nvanish", ha="left", **top)
        axis.text(x=0.98, s="gradients\nexplode", ha="right", **top)
        axis.set_yticks(depth, [f"{value:g}" for value in depth])
        axis.minorticks_off()
        axis.set(xlabel=r"$\sigma_w$ (weights from N(0, $\sigma_w^2$ / fan-in))", title=activation)
        axis.grid(visible=False)
    axes[0, 0].set_ylabel("depth (hidden layers)")
    handles = [
        Line2D([], [], color="0.35", ls=style, lw=1.8, label=rf"{multiple:g} $\times$ predicted depth scale")
        for multiple, style in zip(SCALE_MULTIPLES, ("-", "--", ":"), strict=True)
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    assert mesh is not None
    canvas.colorbar(mesh, ax=list(axes[0]), label="training accuracy", pad=0.02)
    seeds, steps = int(training["n"].min()), int(training["steps"].max())
    yield Figure(
        "training_map",
        canvas,
        "How deep a network still trains is written in its initialization",
        f"Each cell: mean training accuracy over {seeds} seeds after {steps} steps of SGD on MNIST (chance is 0.1). "
        "Lines: multiples of the depth scale that mean-field theory predicts from the activation and sigma_w alone; "
        "it diverges at the critical sigma_w (thin line). To its left gradients vanish, to its right they explode.",
    )
