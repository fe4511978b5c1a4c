"""How many ReLU units are dead before training starts?

A unit is dead when no example of the data set activates it: its gradient is zero, and stays zero.
"""

import matplotlib.pyplot as plt
import torch

from depthgauge import data, models, stats
from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim, Figure, Findings, Status, Verdict

CLAIM = Claim("dead_units/bias", "a bias of 0.1 keeps ReLU units alive: fewer are dead at initialization than without")


def run(cases, context):
    """One network a case, all digits through it once."""
    digits = data.load("digits").to(context.device).train
    for case in cases:
        seed = case.random_seed("depth", "seed")  # the same weights with and without the bias: paired
        model = models.build("mlp", input_shape=(1, 8, 8), depth=case["depth"], width=64, init="he", seed=seed)
        model.to(context.device)
        h, dead = digits.x.flatten(1), []
        with torch.no_grad():
            for layer in model.hidden:
                layer.linear.bias.fill_(case["bias"])
                h = layer(h)
                dead.append(float((h <= 0).all(dim=0).double().mean()))
        yield case.rows("dead", dead, layer_index=range(1, len(dead) + 1))


def analyse(frame):
    """Share of dead units over all layers, with and without the bias, on the same seeds."""
    share = frame.groupby(["depth", "bias", "seed"])["value"].mean()
    table = share.groupby(["depth", "bias"]).agg(["mean", "min", "max"]).reset_index()
    deepest = share.loc[frame["depth"].max()]
    effect = stats.mean((deepest.loc[0.0] - deepest.loc[0.1]).to_numpy())
    status = Status.INCONCLUSIVE
    if effect.n >= 5:
        status = Status.HOLDS if effect.low > 0 else Status.FAILS if effect.high < 0.01 else Status.INCONCLUSIVE
    verdict = Verdict(
        CLAIM.id,
        CLAIM.text,
        status,
        observed=effect.value,
        low=effect.low,
        high=effect.high,
        unit="share of units",
        n=effect.n,
        method=f"paired by seed, {effect.method}",
        why=f"at depth {frame['depth'].max()} the bias revives {effect.value:.1%} of the units",
    )
    return Findings((verdict,), {"dead": table}, (verdict.why + ".",), shown=("dead",))


def plot(findings):
    """Share of dead units against depth."""
    canvas, axis = plt.subplots(figsize=(6, 4))
    for bias, line in findings.tables["dead"].groupby("bias"):
        axis.plot(line["depth"], line["mean"], marker="o", label=f"bias {bias:g}")
        axis.fill_between(line["depth"], line["min"], line["max"], alpha=0.2)
    axis.set(xlabel="depth (hidden layers)", ylabel="share of dead units")
    axis.legend()
    yield Figure("dead", canvas, "Deep ReLU networks start with dead units", "Line: mean; band: range over seeds.")


STUDY = Study(
    name="dead_units",
    question="How many ReLU units are dead before training starts, and does a bias help?",
    presets={"quick": (Grid({"depth": (2, 8, 32), "bias": (0.0, 0.1)}, seeds=8),)},
    run=run,
    analyse=analyse,
    plot=plot,
    claims=(CLAIM,),
    caveats=("Width 64, He initialization, the 1,442 training digits of 8 x 8 pixels.",),
)
