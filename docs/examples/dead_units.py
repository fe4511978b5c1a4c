"""How many ReLU units are dead before training starts?

A unit is dead when no example of the data set activates it: its gradient is zero, and stays zero.
"""

import matplotlib.pyplot as plt
import torch

from depthgauge import data, models, stats
from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim, Figure, Findings, Status, Verdict

CLAIM = Claim("dead_units/bias", "a bias of 0.1 leaves fewer ReLU units dead at initialization than none, at any depth")
MARGIN = 0.01  # share of units: closer than this is the same


def run(cases, context):
    """One network a case, all digits through it once."""
    x = data.load("digits").to(context.device).train.x
    for case in cases:
        seed = case.random_seed("depth", "seed")  # the same weights with and without the bias: paired
        model = models.build("mlp", input_shape=(1, 8, 8), depth=case["depth"], width=64, init="he", seed=seed)
        h, dead = x.flatten(1), []
        with torch.no_grad():
            for layer in model.to(context.device).hidden:
                layer.linear.bias.fill_(case["bias"])
                h = layer(h)
                dead.append(float((h <= 0).all(dim=0).double().mean()))
        yield case.rows("dead", dead, layer_index=range(1, len(dead) + 1))


def analyse(frame):
    """Share of dead units over all layers, with and without the bias, on the same seeds."""
    share = frame[frame["status"] == "ok"].groupby(["depth", "bias", "seed"])["value"].mean().unstack("bias")
    share = share.dropna()  # a seed counts where both of its networks were measured
    found = {
        depth: stats.paired(own[0.0], own[0.1], margin=MARGIN, unit="share of units")
        for depth, own in share.groupby("depth")
    }
    family = dict(zip(found, stats.together(found.values()), strict=True))  # intervals that hold at every depth
    fewer = [True if c.above else False if c.effect.high < MARGIN else None for c in family.values()]
    effect, means = family[max(family)].effect, share.groupby("depth").mean()
    verdict = Verdict(
        CLAIM.id, CLAIM.text, Status(stats.combine(fewer)),
        observed=effect.value, low=effect.low, high=effect.high, unit=effect.unit, n=effect.n,
        method=f"dead without minus dead with the bias, same weights: {effect.method}",
        why="dead without and with the bias: "
        + ", ".join(f"{own[0.0]:.1%} and {own[0.1]:.1%} at depth {depth}" for depth, own in means.iterrows()),
    )  # fmt: skip
    table = share.melt(ignore_index=False, value_name="dead").reset_index()
    return Findings((verdict,), {"dead": table}, (f"Units that are {verdict.why}.",))


def plot(findings):
    """Share of dead units against depth."""
    canvas, axis = plt.subplots()
    for bias, own in findings.tables["dead"].groupby("bias"):
        line = own.groupby("depth")["dead"].agg(["mean", "min", "max"])
        axis.plot(line.index, line["mean"], marker="o", label=f"bias {bias:g}")
        axis.fill_between(line.index, line["min"], line["max"], alpha=0.2)
    axis.set(xlabel="depth (hidden layers)", ylabel="share of dead units", xticks=line.index)
    axis.legend()
    yield Figure("dead", canvas, "Deep ReLU networks start with dead units", "Line: mean; band: range over seeds.")


STUDY = Study(
    name="dead_units",
    question="How many ReLU units are dead before training starts, and does a bias help?",
    presets={"quick": (Grid({"depth": (2, 8, 32), "bias": (0.0, 0.1)}, seeds=10),)},
    run=run,
    analyse=analyse,
    plot=plot,
    claims=(CLAIM,),
    caveats=("Width 64, He initialization, the training digits of 8 x 8 pixels.",),
)
