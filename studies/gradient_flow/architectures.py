"""Real architectures at initialization: how far the gradient reaches, with and without normalization and skips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import numpy as np
import pandas as pd

from depthgauge import stats
from depthgauge.conditions import explained, tallied, undecided
from depthgauge.frames import params_of
from depthgauge.models.forms import Form, by_form
from depthgauge.parts import Answer, Part, sizes
from depthgauge.probe.passage import by_seed, furthest, log_signals, middle, profile, spread
from depthgauge.questions import Question, above, below, enumerated, every, listed, spelled
from depthgauge.studies.gradient_flow import architecture_figures
from depthgauge.studies.gradient_flow.architecture_figures import BATCH_NORM_GROWTH
from depthgauge.studies.gradient_flow.weight_layers import run
from depthgauge.study import Grid
from depthgauge.verdict import FEWEST, Claim, Sentence

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
REACH = 3.0  # decades of the gradient's norm between last and first layer that count as neither vanished nor exploded
BRANCHED = frozenset({"googlenet"})  # layers beside each other: a rate a layer means less there
SIZES = sizes(
    "seeds batch every", quick=(6, 32, True), standard=(20, 64, True), full=(40, 128, True), tiny=(5, 8, False)
)


def grids(seeds: int, batch: int, every: bool) -> Iterator[Grid]:
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
    """Reach of the gradient in real architectures, and what skip connections and batch normalization change."""
    calls = rows.set_index(["case", "layer"])
    elements, moments = (calls[calls["metric"] == metric] for metric in ("elements", "second_moment"))
    moments = moments.assign(second_moment=moments["value"], elements=elements["value"])
    signals = log_signals(moments.reset_index())
    fed, profiles, table, measured = rows[rows["metric"] == "fed"].set_index("case")["layer"], [], [], {}
    for network, cases in by_form(params_of(rows, "model", "norm", "residual")).items():
        own = signals[signals["case"].isin(cases.index)]
        backward = measured[network] = by_seed(own, "backward")
        at = {**asdict(network), "form": network.words, "fed": " or ".join(fed.reindex(cases.index).dropna().unique())}
        profiles.append(profile(own).assign(**at))
        slopes = {"forward": growth(by_seed(own, "forward")), "backward": -growth(backward)}
        forward_columns, backward_columns = (spelled(way, stats.mean(slope)) for way, slope in slopes.items())
        size = {"layers": backward.shape[1], "n": len(backward)}
        size["without_gradient"] = int((~np.isfinite(backward)).any(axis=1).sum())
        far = dict(zip(("furthest", "where"), middle(furthest(backward)), strict=True))
        table.append({**at, **size, **forward_columns, **backward_columns, **far})
    yield "architecture_profiles", pd.concat(profiles, ignore_index=True)
    yield "architectures", pd.DataFrame(table)
    built = {n.model: furthest(lines) for n, lines in measured.items() if n.as_built and lines.shape[1] > 1}
    for question in (reached(built) if built else (), skips(measured), batch_norm(measured)):
        yield from question


def growth(lines: pd.DataFrame) -> np.ndarray:
    """Slope of ln a layer toward the output, one a seed, through the finite layers; NaN for fewer than three."""
    layers = np.arange(lines.shape[1])
    return stats.slopes(layers, lines.to_numpy()).slope if len(layers) > 2 else np.full(len(lines), math.nan)


def reached(built: Mapping[str, pd.DataFrame]) -> Iterator[Answer]:
    """In how many seeds of each architecture, and in how many architectures, does the gradient reach every layer?"""
    inside = {model: int((off["decades"].abs() <= REACH).sum()) for model, off in built.items()}  # NaN is not near
    asked = {(model,): stats.coverage(inside[model], len(off), 0.5) for model, off in built.items()}
    each = Question.of("reached", ("model",), asked, label="{model}", reference="half of them")
    count = sum(2 * inside[model] > len(off) for model, off in built.items())
    pooled = Question.share("reached_architectures", count, len(built), counted="architectures")
    yield each.table()
    yield pooled.table()
    answers, furthest = {}, {}
    for (model, off), answer in zip(built.items(), each.read(above).values(), strict=True):
        decades, layer = middle(off)
        power = f"1e{decades:+.0f}" if math.isfinite(decades) else f"{10.0**decades:g}"
        left = inside[model] < len(off)
        answers[model + f" ({power} at {layer})" * left] = answer
        furthest[model] = f" ({power} of it at {layer})" * left
    words = {True: "it does in", False: "it leaves that range in", None: "undecided for"}
    brackets = " (in brackets the norm furthest off in the middle seed, relative to the output's, and its layer)"
    why = (
        f"the gradient's norm is to stay within a factor of {10**REACH:,.0f} of that at the output: "
        f"{listed(answers, words, 20)}{brackets * any(inside[model] < len(off) for model, off in built.items())}"
    )
    method = (
        f"every call of a weight layer within {REACH:g} decades; exact interval over the seeds of each architecture, "
        "simultaneous for all"
    )
    if len(built) < FEWEST:  # architectures that are too few to count: their seeds carry the answer
        yield each.verdict(REACHED, above, unit="share of seeds", why=why, method=method)
        told = enumerated(
            f"{inside[model]} of {len(off)} seeds of {model}{furthest[model]}" for model, off in built.items()
        )
        told = f"the gradient's norm stays within a factor of {10**REACH:,.0f} of the output's in {told}"
    else:
        method = f"{method}; the figure counts architectures in which most seeds stay inside"
        yield pooled.verdict(
            REACHED, answers, unit="share of architectures", why=why, method=method, says=_which(each)
        )  # fmt: skip
        told = (
            f"the gradient reaches every layer within a factor of {10**REACH:,.0f} in {count} of {len(built)} common "
            "architectures"
        )
    yield Sentence(f"As built by default, {told}.", "architectures", (REACHED.id,))


def _which(each: Question) -> str:
    """The architectures that the gradient reaches, and the others, by name; their number where all are alike."""
    answers = {key: above(c) for key, c in each.members.items()}
    if len(set(answers.values())) > 1:
        return explained(each.by, answers, each.words)
    return tallied(each.read(above), "architectures")


def skips(measured: Mapping[Form, pd.DataFrame]) -> Iterator[Answer]:
    """Decades between largest and smallest gradient of the layers that both have: with skip connections - without."""
    asked, plain = {}, {(n.model, n.norm): lines for n, lines in measured.items() if n.skips == "without"}
    for network, having in measured.items():
        lacking = plain.get((network.model, network.norm))
        if network.skips == "with" and lacking is not None:
            both = having.index.intersection(lacking.index)
            ends = (spread(having, lacking).loc[both], spread(lacking, having).loc[both])
            # medians, chosen beforehand: where a layer gets no gradient at all, decades are infinite
            asked[network.model, network.norm_in_words] = stats.paired(*ends, test="median")
    if not asked:
        return
    question = Question.of("skips", ("model", "norm"), asked, label="{model} ({norm})", reference="no difference")
    yield question.table()
    words = {1: "skip connections narrow the range in", 0: "widen it in", None: "no difference is established in"}
    yield question.verdict(
        SKIPS, below, unit="decades", says=tallied(question.read(below), "pairs of networks"),
        why=question.listed(below, words, most=20),
        method="decades between the largest and the smallest gradient norm of the common layers, with minus without",
    )  # fmt: skip
    yield Sentence(_skips_in_words(question), "architectures", (SKIPS.id,))


def _skips_in_words(question: Question) -> str:
    effects = [comparison.effect for comparison in question.members.values()]
    if not any(math.isfinite(end) for effect in effects for end in (effect.low, effect.high)):
        few = min(effect.n for effect in effects)
        return (
            f"{few} {'seed is' if few == 1 else 'seeds are'} too few to tell whether skip connections narrow the "
            f"range of the gradient's norm over the layers in any of {len(question)} pairs of networks."
        )
    answers, key = list(question.read(below).values()), question.furthest
    furthest = question.members[key].effect.value
    return (
        f"Skip connections narrow the gradient's range over the layers in {answers.count(True)} of {len(question)} "
        f"pairs of networks: in {question.words(key)} it is {abs(furthest):.2g} decades "
        f"{'narrower' if furthest < 0 else 'wider'}{undecided(answers, 'pairs')}."
    )


def batch_norm(measured: Mapping[Form, pd.DataFrame]) -> Iterator[Answer]:
    """Growth of the squared gradient a layer against 0, with batch normalization and without; no skip connections."""
    asked, chains = {}, {}
    plain = {(n.model, n.skips): lines for n, lines in measured.items() if n.norm == "none"}
    for network, having in measured.items():
        lacking = plain.get((network.model, network.skips))
        if network.norm == "batch" and network.skips != "with" and lacking is not None:
            for word, lines in (("with", having), ("without", lacking)):
                asked[network.model, word] = stats.against(-growth(lines), 0.0)
            chains[network.model] = (network.model not in BRANCHED, having.shape[1])
    if not asked:
        return
    by, label = ("model", "batch_norm"), "{model} {batch_norm} it"
    question = Question.of("batch_norm", by, asked, label=label, reference="unchanged")
    yield question.table()
    pairs = {model: (question.members[model, "with"], question.members[model, "without"]) for model in chains}
    turned = {model: every((above(having), below(lacking))) for model, (having, lacking) in pairs.items()}
    words = {True: "the squared gradient grows toward the input in", False: "shrinks in", None: "is undecided in"}
    yield question.verdict(
        BATCH_NORM, turned, shown=(max(chains, key=chains.__getitem__), "with"), unit="ln a layer",
        says=tallied(turned, "architectures"),
        why=f"with batch normalization and without it, {question.listed(above, words, most=28)}",
        method="slope of ln of the squared gradient over weight layers, by seed; theory for fully connected ReLU "
        f"layers with batch normalization: {BATCH_NORM_GROWTH:.3f} (Yang et al. 2019, a large batch)",
    )  # fmt: skip
    yield Sentence(
        "Batch normalization turns a gradient that shrinks toward the input into one that grows in "
        f"{list(turned.values()).count(True)} of {len(turned)} architectures without skip connections"
        f"{undecided(turned.values())}.",
        "architectures",
        (BATCH_NORM.id,),
    )


METHOD = """
**Architectures.** Models at their small preset and PyTorch's default initialization, in training mode, on real digits;
a module of your own as its factory makes it, on what it says it takes. The backward pass starts from a random linear
functional of the outputs, or from the loss of your Training. The gradient is that of one example. Models of one weight
layer are left out. A slope goes through the layers with a finite signal; *without gradient* are the seeds in which some
layer gets none.
"""
FIGURES = (architecture_figures.layers, architecture_figures.growths)
PART = Part(
    "architectures", (REACHED, SKIPS, BATCH_NORM), SIZES, grids, run, analyse, FIGURES, METHOD,
    preflight=lambda case: case.but(batch=2, seed=0),  # two digits: what batch normalization needs
)  # fmt: skip
