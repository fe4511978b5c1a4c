"""Real architectures at initialization: how far the gradient reaches, with and without normalization and skips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, theory
from depthgauge.frames import layers_to_name, params_of
from depthgauge.parts import Answer, Part
from depthgauge.questions import Question, above, below, enumerated, spelled
from depthgauge.studies.gradient_flow.weight_layers import (
    KEYS, LN10, Network, by_seed, forms, norm_in_words, run, smallest, tracks,
)  # fmt: skip
from depthgauge.study import Grid
from depthgauge.target import is_factory
from depthgauge.verdict import Claim, Status

REACHED = Claim(
    "gradient_flow/architectures",
    "in the usual architectures, as they are built by default, the gradient reaches every layer neither vanished nor "
    "exploded",
)
SKIPS = Claim(
    "gradient_flow/skips",
    "skip connections narrow the range of the gradient over the layers of a network, at the same depth",
)
BATCH_NORM = Claim(
    "gradient_flow/batch_norm",
    "batch normalization makes the gradient grow toward the input at initialization, where without it PyTorch's "
    "default lets it shrink (networks without skip connections)",
)

# All of `models.names()` that have depth; linear and softmax regression and the perceptron are one weight layer each.
PLAIN = ("lenet5", "alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "nin", "googlenet", "plain_cnn")
RESIDUAL = ("mlp", "resnet18", "resnet34", "resnet50", "resnext50_32x4d")
DRAWN = ("mlp", "vgg19", "resnet50", "googlenet", "rnn", "transformer")  # one of each kind, where all were measured
LIMITS = (-9.5, 4.5)  # decades that a figure shows
REACH = 3.0  # decades of the gradient's norm between last and first layer that count as neither vanished nor exploded
BRANCHED = frozenset({"googlenet"})  # layers beside each other: a rate a layer means less there
SIZES = {
    "quick": {"seeds": 6, "batch": 32},
    "standard": {"seeds": 20, "batch": 64},
    "full": {"seeds": 40, "batch": 128},
    "tiny": {"seeds": 5, "batch": 8, "every": False},
}


def grids(seeds: int, batch: int, every: bool = True) -> Iterator[Grid]:  # noqa: FBT001, FBT002 - named in SIZES
    """Every model at its small preset, with and without batch normalization and skip connections where it has them."""
    norms, skips = {"norm": ("none", "batch")}, {"residual": (False, True)}
    for names, claims, varied in (
        (("rnn", "lstm"), (), {}),
        (PLAIN, (BATCH_NORM,), norms),
        (RESIDUAL, (BATCH_NORM, SKIPS), norms | skips),
        (("transformer",), (SKIPS,), skips),
    ):
        yield Grid(
            {"model": names if every else names[:1], **varied}, {"batch": batch}, seeds, chunk=64,
            architecture=tuple(varied), any_input=True, claims=tuple(claim.id for claim in (REACHED, *claims)),
        )  # fmt: skip


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """How far the gradient reaches in real architectures, and what skip connections and batch normalization change."""
    every, fed = tracks(rows), rows[rows["metric"] == "fed"].set_index("case")["layer"]
    profiles, table, measured = [], [], {}
    for network, cases in forms(params_of(rows, *KEYS, "seed")).items():
        own = every[every["case"].isin(cases.index)]
        seeds = measured[network] = by_seed(own, cases["seed"])
        at = {**asdict(network), "form": network.form, "fed": " or ".join(fed.reindex(cases.index).dropna().unique())}
        profiles.append(_profile(own).assign(**at))
        growth = {way: spelled(way, stats.mean(seeds[way].to_numpy())) for way in ("forward", "backward")}
        off = {"furthest": float(seeds["furthest"].median()), "where": seeds["where"].mode()[0]}
        table.append(
            {**at, "layers": seeds["layers"].iloc[0], "n": len(seeds), **growth["forward"], **growth["backward"], **off}
        )
    yield "architecture_profiles", pd.concat(profiles, ignore_index=True)
    yield "architectures", pd.DataFrame(table)
    yield from reached({n.model: s for n, s in measured.items() if n.as_built and s["layers"].iloc[0] > 1})
    yield from skips(measured)
    yield from batch_norm(measured)


def _profile(tracks: pd.DataFrame) -> pd.DataFrame:
    """Median and range over seeds, call by call, in decades of the root mean square and of the gradient's norm."""
    decades = tracks.assign(value=(tracks["log"] / LN10 / 2))
    values = decades.groupby(["direction", "layer_index", "layer"], sort=False)["value"]
    profile = values.agg(["median", "min", "max", "size"]).reset_index()
    profile["depth"] = (profile["layer_index"] - 1) / max(profile["layer_index"].max() - 1, 1)
    return profile.rename(columns={"min": "low", "max": "high", "size": "n"})


def reached(built: Mapping[str, pd.DataFrame]) -> Iterator[Answer]:
    """In how many seeds of each architecture, and in how many architectures, does the gradient reach every layer?"""
    if not built:
        return
    inside = {model: int((seeds["furthest"].abs() <= REACH).sum()) for model, seeds in built.items()}  # NaN is not near
    asked = {(model,): stats.coverage(inside[model], len(seeds), 0.5) for model, seeds in built.items()}
    each = Question.of("reached", ("model",), asked, label="{model}", reference="half")
    yield each.table()
    count = sum(2 * inside[model] > len(seeds) for model, seeds in built.items())
    pooled = Question.of(
        "reached_architectures", ("architectures",), {("all",): stats.coverage(count, len(built), 0.5)},
        label="{architectures} architectures", reference="half", counted="architectures",
    )  # fmt: skip
    yield pooled.table()
    places = {}
    for model, seeds in built.items():
        middle = seeds["furthest"].median()
        place = "no gradient" if middle == -math.inf else f"1e{middle:+.0f}" if math.isfinite(middle) else f"{middle:g}"
        places[model] = model if inside[model] == len(seeds) else f"{model} ({place} at {seeds['where'].mode()[0]})"
    words = {True: "it does in", False: "it leaves that range in", None: "it is undecided for"}
    answers = {model: above(each.members[(model,)]) for model in built}
    listed = [f"{word} {enumerated((places[m] for m in built if answers[m] is value), 20)}"
              for value, word in words.items() if value in answers.values()]  # fmt: skip
    verdict = pooled.verdict(
        REACHED, above, unit="share of architectures",
        why=f"does the gradient's norm stay within a factor of {10**REACH:,.0f} of that at the output? "
        f"{'; '.join(listed)} (in brackets the norm furthest off, relative to the output's, and its layer)",
        method=f"every call of a weight layer within {REACH:g} decades; an architecture is decided where the exact "
        f"interval over its seeds, for all {len(built)} at once, leaves a half out; the figure counts architectures in "
        "which most seeds stay inside",
    )  # fmt: skip
    yield replace(verdict, status=Status(stats.combine(answers.values())))
    yield (
        f"At initialization the gradient's norm stays within a factor of {10**REACH:,.0f} of that at the output in "
        f"{count} of {len(built)} architectures as they are built by default."
    )


def skips(measured: Mapping[Network, pd.DataFrame]) -> Iterator[Answer]:
    """Decades between largest and smallest gradient of the layers that both have: with skip connections - without."""
    asked = {}
    for network, having in measured.items():
        lacking = _find(measured, network.model, network.norm, "without")
        if network.skips == "with" and lacking is not None:
            both = having.index.intersection(lacking.index)
            ends = (_spread(having, lacking).loc[both], _spread(lacking, having).loc[both])
            # medians, chosen beforehand: where a layer gets no gradient at all, decades are infinite
            asked[network.model, norm_in_words(network.norm)] = stats.paired(*ends, test="median")
    if not asked:
        return
    question = Question.of("skips", ("model", "norm"), asked, label="{model} ({norm})", reference="no_difference")
    yield question.table()
    words = {True: "they make it smaller in", False: "larger in", None: "no difference is established in"}
    yield question.verdict(
        SKIPS, below, unit="decades", why=question.listed(below, words, most=20),
        method="decades between the largest and the smallest gradient norm of the common layers, with minus without; "
        "median of the pairs, sign test",
    )  # fmt: skip
    narrower, wider = (sum(map(bool, question.read(reading).values())) for reading in (below, above))
    furthest = question.members[question.furthest].effect
    yield (
        f"Skip connections narrow the range of the gradient's norm over the layers in {narrower} of {len(question)} pairs "
        f"of networks and widen it in {wider}; in {question.words(question.furthest)} it changes by {furthest.value:.1f} "
        "decades."
    )


def _find(measured: Mapping[Network, pd.DataFrame], *made: str) -> pd.DataFrame | None:
    return next((seeds for n, seeds in measured.items() if (n.model, n.norm, n.skips) == made), None)


def _spread(seeds: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Decades of the norm between the largest and the smallest gradient, over the layers that the other has too."""
    common = [layer for layer in seeds["logs"].iloc[0] if layer in other["logs"].iloc[0]]
    values = [[line[layer] for layer in common] for line in seeds["logs"]]
    return pd.Series(np.ptp(values, axis=1) / LN10 / 2, seeds.index)


def batch_norm(measured: Mapping[Network, pd.DataFrame]) -> Iterator[Answer]:
    """Growth of the squared gradient a layer against 0, with batch normalization and without; no skip connections."""
    asked, chains = {}, {}
    for network, having in measured.items():
        lacking = _find(measured, network.model, "none", network.skips)
        if network.norm == "batch" and network.skips != "with" and lacking is not None:
            for word, seeds in (("with", having), ("without", lacking)):
                asked[network.model, word] = stats.against(seeds["backward"].to_numpy(), 0.0)
            chains[network.model] = (network.model not in BRANCHED, having["layers"].iloc[0])
    if not asked:
        return
    label = "{model} {batch normalization} batch normalization"
    question = Question.of("batch_norm", ("model", "batch normalization"), asked, label=label, reference="unchanged")
    yield question.table()
    turned = []
    for model in chains:
        having, lacking = question.members[model, "with"], question.members[model, "without"]
        turned.append(True if having.above and lacking.below else False if having.below or lacking.above else None)
    words = {True: "the squared gradient grows toward the input in", False: "shrinks in", None: "is undecided in"}
    deepest = max(chains, key=lambda model: chains[model])
    verdict = question.verdict(
        BATCH_NORM, above, shown=(deepest, "with"), unit="ln a layer", why=question.listed(above, words, most=14),
        method="line through ln of the squared gradient over weight layers, one a seed; t against 0; theory for fully "
        f"connected ReLU layers at a large batch: {_theory_of_batch_norm():.3f} (Yang et al. 2019)",
    )  # fmt: skip
    yield replace(verdict, status=Status(stats.combine(turned)))
    yield (
        "Batch normalization turns a gradient that shrinks toward the input into one that grows in "
        f"{turned.count(True)} of {len(turned)} architectures without skip connections."
    )


def _theory_of_batch_norm() -> float:
    """At a large batch, since a channel is normalized over the pixels of the batch as well."""
    return math.log(theory.batch_norm_growth("relu", math.inf))


def _caption(profiles: pd.DataFrame) -> str:
    made = (
        "as its factory makes it" if is_factory(name) else "at its small preset" for name in profiles["model"].unique()
    )
    steps = [name for name in ("rnn", "lstm") if name in set(profiles["model"])]
    recurrent = (
        f" ({' and '.join(steps)}: the layer of the input, then that of the state step by step)" if steps else ""
    )
    return (
        f"Each model {' or '.join(dict.fromkeys(made))}, fed {' or '.join(profiles['fed'].unique())}; weight layers from "
        f"input to output in the order in which they run{recurrent}. Backward: the norm of the gradient with respect to "
        "each layer's output, relative to the last layer's; forward: the root mean square of the output. Median of "
        f"{profiles['n'].min()} seeds; a gap is a layer without any signal."
    )


@drawing.figure(
    "architectures", "What reaches each weight layer of an architecture at initialization depends on its form", _caption
)
def profiles(architecture_profiles: pd.DataFrame) -> Any:
    """The gradient layer by layer, one panel an architecture; signal and gradient of a single one."""
    finite = architecture_profiles.replace([math.inf, -math.inf], math.nan)
    names = list(dict.fromkeys(finite["model"]))
    single = len(names) == 1
    if not single:
        chosen = DRAWN if set(DRAWN) <= set(names) else names
        finite = finite[(finite["direction"] == "backward") & finite["model"].isin(chosen)]
    named = layers_to_name(finite[finite["form"] == finite["form"].iloc[0]])
    ticks = (named["depth"], named["layer"]) if single else ((0, 0.5, 1), ("in", "", "out"))
    axes = {
        "xticks": ticks[0],
        "xticklabels": ticks[1],
        "xlabel": "layer",
        "ylabel": r"$\log_{10}$ size",
        "ylim": LIMITS,
    }
    canvas = drawing.panels(
        finite,
        "direction" if single else "model",
        drawing.profile,
        by="form",
        x="depth",
        band="range over seeds",
        axes=axes,
    )
    for axis in canvas.axes if single else ():
        axis.tick_params(axis="x", rotation=90)
    return canvas


@drawing.figure(
    "architecture_rates", "How fast the gradient of real architectures grows or shrinks toward the input",
    lambda architectures: "Slope of ln of the squared gradient norm over weight layers (rnn and lstm: over steps), 95 % t "
    f"interval over {architectures['n'].min()} seeds. Theory, for fully connected ReLU layers: ln 1/6 a layer, 1/3 from "
    "the variance of nn.Linear's weights times 1/2 from ReLU; with batch normalization Yang et al. 2019 at a large batch.",
)  # fmt: skip
def growths(architectures: pd.DataFrame) -> Any:
    """The rate a layer at which each architecture's gradient grows or shrinks, beside theory's."""
    own = architectures.rename(columns={"backward_low_95": "low_95", "backward_high_95": "high_95"})
    if not np.isfinite(own["backward"]).any():
        return None
    axes = {"xlabel": "growth of the squared gradient toward the input, ln a layer"}
    canvas = drawing.panels(own, "", drawing.estimates, by="form", at="model", value="backward", axes=axes)
    for value, style, label in (
        (math.log(1 / 6), "--", "default, ReLU"),
        (_theory_of_batch_norm(), ":", "batch norm, ReLU"),
    ):
        canvas.axes[0].axvline(value, color="0.35", lw=1.2, ls=style, label=f"theory: {label}")
    drawing.legend(canvas)
    return canvas


PART = Part(
    "architectures", (REACHED, SKIPS, BATCH_NORM), SIZES, grids, run, analyse, (profiles, growths), """
**Architectures.** Models at their small preset and PyTorch's default initialization, in training mode, on a batch of
real digits; a module of your own as its factory makes it, on what it says it takes (the figure names it). The backward
pass starts from a random linear functional of the outputs; for a Training of your own, from its loss. The probe gives
the second moment of the output of every weight layer and of the gradient with respect to it. Gradients are compared by
the squared norm of one example's, the quantity that a layer of fan-in scaled weights multiplies by a factor whatever
its shape. Without linear_regression, softmax_regression and perceptron, which have one weight layer.
""",
    preflight=smallest,
)  # fmt: skip
