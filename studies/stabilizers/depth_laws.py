"""Depth laws of residual stacks at initialization: what each scheme makes of signal and gradient, and of a branch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthgauge import drawing, stats
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, enumerated
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.stabilizers import deep_stacks
from depthgauge.studies.stabilizers.deep_stacks import SCHEMES
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SHRINKS = Claim(
    "stabilizers/batch_norm_shrinks",
    "batch normalization shrinks a residual branch by the square root of its depth: at block l it holds 1 / (l + 1) of "
    "the stream",
)
GROWTH = Claim(
    "stabilizers/growth", "theory predicts how signal and gradient grow with depth under every scheme that stabilizes "
    "residual networks",
)  # fmt: skip
FACTOR = 1.2  # a growth of the whole stack within this factor of theory's is the predicted one
MARGIN = 0.1  # or one within 10 % of its logarithm, where that is more
UNJUDGED = ("norm after",)  # shown alone: from network to network its gradient varies by more than the factor
SHARE = 1.1  # factor: a share of a branch within 10 % of theory's is the predicted one
FEW = 4  # more than e, which 1/sqrt(L) tends to
SHOWN = ("plain", "1/sqrt(L)", "layer norm", "batch norm")  # whose shares are drawn
OF = {"share": "second moment", "batch_share": "variance over the batch"}  # what a branch has a share of
DIRECTIONS = ("forward", "backward")
SIZES = sizes(
    "depths seeds width inputs", quick=((8, 32), 28, 128, 32), standard=((8, 32, 128), 24, 128, 64),
    full=((8, 32, 128), 40, 256, 128), tiny=((2, 4), 6, 8, 12),
)  # fmt: skip


def grids(depths: tuple[int, ...], seeds: int, width: int, inputs: int) -> Iterator[Grid]:
    """Every scheme at every depth."""
    fixed = {"width": width, "inputs": inputs}
    yield Grid({"scheme": tuple(SCHEMES), "depth": depths}, fixed, seeds, together=("seed",), chunk=_chunk)


def _chunk(case: Case) -> int:
    """As many networks as keep their weights in some 64 MiB."""
    return max(1, 2**22 // (case.integer("depth") * case.integer("width") ** 2))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Growth of both signals over the stack in float64, and the share that every branch has in its sum."""
    shared = cases[0]
    scheme, depth, width = SCHEMES[shared.text("scheme")], shared.integer("depth"), shared.integer("width")
    seeds = [case.random_seed("seed", "width", "depth") for case in cases]  # of all schemes: paired
    drawn = deep_stacks.draw(scheme, seeds, blocks=depth, width=width, inputs=width, classes=2)
    x = torch.stack([
        torch.randn(shared.integer("inputs"), width, generator=generator(seed, Purpose.INPUTS)) for seed in seeds
    ])  # fmt: skip
    cotangent = torch.stack([
        torch.randn(shared.integer("inputs"), width, generator=generator(seed, Purpose.COTANGENT)) for seed in seeds
    ])  # fmt: skip
    parameters = {name: each.double().to(context.device) for name, each in drawn.items()}
    found = deep_stacks.streams(scheme, parameters, x.double().to(context.device).requires_grad_())
    sent = cotangent.double().to(context.device)
    (received,) = torch.autograd.grad(found[-1][0], found[0][0], sent)
    growths = {"forward": _log(found[-1][0]) - _log(found[0][0]), "backward": _log(received) - _log(sent)}
    for i, case in enumerate(cases):
        yield from (case.rows("growth", float(each[i]), direction=name) for name, each in growths.items())
        yield from _shares(
            case, scheme, [(each[i].detach(), None if b is None else b[i].detach()) for each, b in found]
        )


def _log(x: Tensor) -> Tensor:
    """The logarithm of the second moment over the units, its mean over the examples of each network."""
    return x.detach().square().mean(2).log().mean(1)


def _shares(case: Case, scheme: deep_stacks.Scheme, found: list[tuple[Tensor, Tensor | None]]) -> Iterator[Rows]:
    """Second moment, and variance over the batch, of a branch over that of the sum, at powers of two."""
    if case.text("scheme") not in SHOWN:
        return
    for block in (2**k for k in range(len(found).bit_length()) if 2**k < len(found)):
        total, branch = found[block]
        assert branch is not None
        yield case.rows("share", float(branch.square().mean() / total.square().mean()), layer_index=block)
        if scheme.norm == "batch":
            spread = float(branch.var(0).mean() / total.var(0).mean())
            yield case.rows("batch_share", spread, layer_index=block)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Growth against theory's, and the share of a branch against 1 / (l + 1)."""
    params = params_of(rows, "scheme", "depth", "width").astype({"depth": int})  # a part beside has none
    values = rows[rows["metric"] == "growth"].pivot_table(index="case", columns="direction", values="value")
    asked: dict[tuple[str, int, str], stats.Comparison] = {}
    lines = []
    for (scheme, depth), networks in groups(params, ["scheme", "depth"]):
        law = SCHEMES[scheme].law(depth, float(networks["width"].max()))
        ends = {"forward": law.forward[-1] / law.forward[0], "backward": law.backward[0]}
        for direction in DIRECTIONS:
            predicted = math.log(ends[direction])
            sample = values.loc[networks.index, direction].to_numpy()
            compared = stats.against(sample, predicted, margin=max(math.log(FACTOR), MARGIN * abs(predicted)))
            if scheme not in UNJUDGED:
                asked[scheme, depth, direction] = compared
            lines.append({
                "scheme": scheme, "depth": depth, "direction": direction, "n": len(sample),
                "value": compared.effect.value, "low_95": compared.effect.low, "high_95": compared.effect.high,
                "predicted": predicted,
                "spread": float(sample.std(ddof=1)) if len(sample) > 1 else math.nan,
            })  # fmt: skip
    yield "growth", (grown := pd.DataFrame(lines))
    question = Question.of(
        "growth_law", ("scheme", "depth", "direction"), asked, label="{scheme} with {depth} blocks {direction}",
        counted="networks",
    )  # fmt: skip
    yield question.table()
    within = f"a factor of {FACTOR:g}, or {MARGIN:.0%} of its logarithm"
    yield question.prediction(GROWTH, "growths", within=within, unit="ln growth")
    yield from _told(grown)
    yield from shrinking(rows, params)


def _told(grown: pd.DataFrame) -> Iterator[Sentence]:
    deepest = grown[grown["depth"] == grown["depth"].max()].pivot_table(
        index="scheme", columns="direction", values=["value", "predicted", "spread"], sort=False, dropna=False
    )
    ends = np.exp(deepest["value"])
    few = ends.index[ends.max(axis=1) < FEW]
    two = ends.map(lambda value: f"{float(f'{value:.2g}'):,g}")  # two digits, an exponent beyond a million alone
    words = ", ".join(
        f"{name} by {own['forward']} and {own['backward']}" for name, own in two.iterrows() if name not in few
    )
    blocks = int(grown["depth"].max())
    yield Sentence(
        f"Over {blocks} residual blocks the squares of signal and gradient grow by: {words}; by less than {FEW} under "
        f"{enumerated(list(few), 9)}.",
        figure="growth", claims=(GROWTH.id,),
    )  # fmt: skip
    spread, law = deepest["spread"]["backward"], deepest["predicted"]["backward"]
    if {"norm after", "DeepNorm"} <= set(spread.index):
        after = ends["backward"]["norm after"]
        scattered = (
            f", and scatters between networks by a factor of {math.exp(spread['norm after']):.2g} (standard deviation);"
            f" with DeepNorm's factors by one of {math.exp(spread['DeepNorm']):.3g}"
        )  # fmt: skip
        yield Sentence(
            f"With a norm after each of {blocks} sums the gradient's square {'shrinks' if after < 1 else 'grows'} to "
            f"{after:.2g} of what goes in (geometric mean), where theory has {math.exp(law['norm after']):.2g}"
            + (f"{scattered}." if math.isfinite(spread["norm after"]) else "."),
            figure="growth",
        )  # fmt: skip


def shrinking(rows: pd.DataFrame, params: pd.DataFrame) -> Iterator[Answer]:
    """Shares of the deepest stacks by block; those of batch normalization against the exact laws."""
    depth = int(params["depth"].max())
    deepest = params[params["depth"] == depth]
    lines, asked = [], {}
    for scheme, networks in groups(deepest, "scheme"):
        if scheme not in SHOWN:
            continue
        law = SCHEMES[scheme].law(depth)
        own = rows[rows["case"].isin(networks.index)]
        own = own[own["metric"].isin(["share", "batch_share"])].astype({"layer_index": int})
        for (metric, block), found in groups(own, ["metric", "layer_index"]):
            predicted = float((law.share if metric == "share" else law.batch_share)[block - 1])
            values = found["value"].to_numpy()
            measured = stats.mean(values)
            lines.append({
                "scheme": scheme, "of": OF[metric], "block": block, "n": len(values), "value": measured.value,
                "low_95": measured.low, "high_95": measured.high, "predicted": predicted,
            })  # fmt: skip
            if scheme == "batch norm":
                reference = predicted if metric == "batch_share" else 1 / (block + 1)
                asked[metric, block] = stats.against(values, reference, log=True, margin=SHARE)
    yield "branch_shares", pd.DataFrame(lines)
    question = Question.of(
        "batch_norm_shares", ("measure", "block"), asked, label="{measure} at block {block}", counted="networks",
        family=lambda measure, **_: measure,
    )  # fmt: skip
    if question:
        yield question.table()
        yield from _verdict(question)


def _verdict(question: Question) -> Iterator[Answer]:
    moments, spreads = question.where(measure="share"), question.where(measure="batch_share")
    last = max(block for _, block in moments.members)
    share, spread = moments.members["share", last].effect, spreads.members["batch_share", last].effect
    yield moments.verdict(
        SHRINKS, agrees, unit="of the second moment",
        why=f"at block {last} the branch holds {share.value:.3g} of the stream, where 1 / (l + 1) is "
        f"{1 / (last + 1):.3g}; without a norm it holds 1 / 2 everywhere",
        method=f"second moment of the branch over that of the sum, geometric mean over networks, within a factor of "
        f"{SHARE:g} of 1 / (l + 1), the law of a stream that starts at 1 and gains 1 a block",
    )  # fmt: skip
    held = all(spreads.read(agrees).values())
    yield Sentence(
        f"With batch normalization the branch of block {last} holds {share.value:.2%} of the stream's second moment "
        f"(1 / (l + 1) is {1 / (last + 1):.2%}), and {spread.value:.2%} of its variance over the batch; "
        + ("theory has both: a ReLU's outputs are alike by 1 / pi." if held else "theory does not have all of it."),
        figure="branch_shares", claims=(SHRINKS.id,),
    )  # fmt: skip


@drawing.figure(
    "growth", "How signal and gradient grow with depth under each scheme",
    lambda growth: f"Growth of the second moments over the stack, mean of {growth['n'].min()} networks, 95 % "
    "intervals; ticks: theory. Linear within 1. Norm after is not judged.",
)  # fmt: skip
def draw_growth(growth: pd.DataFrame) -> Any:
    """Ln growth, a row a scheme, a panel a depth, signal beside gradient."""
    axes = {"xscale": "symlog", "xlabel": "ln growth"}
    shown = growth.assign(blocks=growth["depth"].map("{} blocks".format))
    return drawing.panels(shown, "blocks", drawing.estimates, at="scheme", by="direction", axes=axes, shared="both")


@drawing.figure(
    "branch_shares", "Batch and layer normalization leave a branch 1 / (l + 1) of the stream",
    lambda branch_shares: f"Share of block l's branch in the sum, mean of {branch_shares['n'].min()} networks, 95 % "
    "intervals; dashed: exact laws at infinite width.",
)  # fmt: skip
def draw_shares(branch_shares: pd.DataFrame) -> Any:
    """Shares by block, a panel a scheme."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "block l", "ylabel": "share of the branch"}
    return drawing.panels(branch_shares, "scheme", drawing.estimates, at="block", by="of", axes=axes, shared="both")


METHOD = f"""**Depth laws of residual stacks.** Pre-activation blocks x' = a x + s f(x) at initialization, f two times
ReLU and He's weights, independent normal inputs of second moment 1, float64, one draw for all schemes. Plain: a = s =
1. 1/sqrt(L): s. Fixup (Zhang et al. 2019): last weights 0. SkipInit (De and Smith 2020) and ReZero (Bachlechner et
al. 2021): a learned s that starts at 0, one scheme in these blocks. LayerScale (Touvron et al. 2021): a learned
factor a unit, 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 beyond, behind layer normalization. DeepNorm (Wang et al.
2022): a norm after the sum, a = L^(1/4), weights times (4 L)^(-1/4), for L branches. Norms before the branch (batch
normalization before each ReLU) or after the sum, without gains. Theory: `theory.residual_growth`. Growth: of the
second moment over the units, mean over examples of its logarithm; the predicted one within a factor of {FACTOR:g}, or
{MARGIN:.0%} of its logarithm where that is more. With a norm after unscaled sums the gradient differs too much
between networks for that; it is shown, not judged."""
PART = Part(
    "depth_laws", (SHRINKS, GROWTH), SIZES, grids, run, analyse, (draw_growth, draw_shares), METHOD
)  # fmt: skip
