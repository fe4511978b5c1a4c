"""Transformers: QK-norm, z-loss and warm-up, by what they do to the loss over three decades of the learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import data, drawing, models, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, below, spelled
from depthgauge.studies.stabilizers.recipes import WARM, Z_WEIGHT, logits, schedule, with_z_loss
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

QK_NORM = Claim(
    "stabilizers/qk_norm",
    "QK-norm slows the growth of attention logits with the learning rate, and makes the loss less sensitive to it",
)
Z_LOSS = Claim(
    "stabilizers/z_loss",
    "the z-loss keeps log Z nearer to zero, and makes the loss less sensitive to the learning rate",
)
WARMUP = Claim("stabilizers/warmup", "a post-LN transformer needs learning-rate warm-up, and a pre-LN one does not")
METRICS = ("loss_at_start", "loss", "logit", "log_z")
NATS = 0.05  # of training loss: less is no difference
FACTOR = 2.0  # attention logits that grow by less than this factor more, or less, grow alike
NEARER = 1.1  # log Z that is within 10 % is as far from zero
CLIP = 1.0  # largest norm of a gradient, as theirs
WATCHED = 200  # training examples over which logits are taken
RATES = tuple(float(f"{3e-4 * 10 ** (k / 2):.2g}") for k in range(7))  # 3e-4 to 3e-1, the range that they chose
SIZES = sizes(
    "depth width seeds steps batch rates", quick=(0, 0, 0, 0, 0, ()), standard=(4, 16, 10, 120, 16, RATES),
    full=(6, 32, 12, 600, 32, RATES), tiny=(1, 8, 5, 3, 8, RATES[:3:2]),
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A transformer's order and stabilizers."""

    order: str = "pre"
    qk_norm: bool = False
    z_loss: bool = False
    warm: bool = True


VARIANTS = {
    "pre": Variant(), "qk_norm": Variant(qk_norm=True), "z_loss": Variant(z_loss=True), "pre_cold": Variant(warm=False),
    "post": Variant("post"), "post_cold": Variant("post", warm=False),
}  # fmt: skip
NAMES = {
    "pre": "pre-LN", "qk_norm": "pre-LN, QK-norm", "z_loss": "pre-LN, z-loss", "pre_cold": "pre-LN, no warm-up",
    "post": "post-LN", "post_cold": "post-LN, no warm-up",
}  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    depth: int, width: int, seeds: int, steps: int, batch: int, rates: tuple[float, ...]
) -> Iterator[Grid]:  # fmt: skip
    """Every variant at every rate; at quick there are none."""
    if rates:
        fixed = {"depth": depth, "width": width, "steps": steps, "batch": batch}
        yield Grid({"variant": tuple(VARIANTS), "lr": rates}, fixed, seeds, ("lr", "seed"), 40, selection=3)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Adam on 8 x 8 digits, read row by row."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    variant, steps = VARIANTS[shared.text("variant")], shared.integer("steps")
    fit, _ = data.hold_out(digits.train, training.HELD_OUT)
    template = models.build(
        "transformer", input_shape=digits.input_shape, classes=digits.classes, vocabulary=None, each_step=False,
        fused=False, heads=2, order=variant.order, qk_norm=variant.qk_norm, depth=shared.integer("depth"),
        width=shared.integer("width"),
    )  # fmt: skip
    seeds = [case.random_seed("seed", "width", "depth") for case in cases]  # of all variants: paired
    stack = replicas.stack(template, seeds, device=context.device)
    loop = replicas.Loop(
        batch=shared.integer("batch"), steps=steps, clip=CLIP, schedule=schedule(steps, warm=variant.warm),
        loss=with_z_loss if variant.z_loss else "cross_entropy",
    )  # fmt: skip
    adam = replicas.Adam([case.number("lr") for case in cases], betas=(0.9, 0.95))
    ended = replicas.train(stack, fit.x, fit.y, adam, loop).stack
    start, end = (replicas.evaluate(each, fit.x, fit.y).loss for each in (stack, ended))
    for i, case in enumerate(cases):
        logit, log_z = logits(ended.module(i), fit.x[:WATCHED])
        for metric, value in zip(METRICS, (start[i], end[i], logit, log_z), strict=True):
            yield case.rows(metric, float(value))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Loss, attention logits and log Z by rate; what each stabilizer changes, seed by seed."""
    runs = training.table(rows, "variant", "lr", "seed", metrics=METRICS).astype({"seed": int})
    runs = runs.assign(variant=runs["variant"].map(NAMES), capped=np.fmin(runs["loss"], runs["loss_at_start"]))
    runs = training.tunable(runs.assign(score=-runs["capped"]), ["variant"])
    if runs.empty:
        return
    reported = runs[runs["seed"] >= 0]
    yield "transformer_rates", pd.DataFrame(_curves(reported))
    figures = summaries(reported)
    yield "transformer_sensitivity", pd.DataFrame(_sensitivities(figures))
    yield from against_plain(figures, QK_NORM, NAMES["qk_norm"], "growth", FACTOR)
    yield from against_plain(figures, Z_LOSS, NAMES["z_loss"], "log_z", NEARER)
    yield from warmup(training.tuned(runs, ["variant"], score="score"))


def _curves(reported: pd.DataFrame) -> Iterator[dict[str, Any]]:
    shown = {"capped": "training loss, nats", "logit": "largest attention logit", "log_z": "mean of |log Z|, nats"}
    for column, what in shown.items():
        for (variant, lr), own in groups(reported, ["variant", "lr"]):
            middle = stats.band(own[column].fillna(np.inf).to_numpy()[:, None])
            at = {"what": what, "variant": variant, "lr": lr, "n": len(own)}
            yield {**at, **{name: float(value[0]) for name, value in middle.items()}}


def summaries(reported: pd.DataFrame) -> pd.DataFrame:
    """Summarize each variant's seeds over the rates.

    `sensitivity`: mean over rates of the loss, at most that at the start, minus the least; `growth`: the largest
    attention logit at the last rate over that at the first; `log_z`: mean over rates.
    """
    whole = reported.fillna({"logit": np.inf, "log_z": np.inf})  # "first" and "last" would pass over what is no number
    lines = whole.sort_values("lr").groupby(["variant", "seed"], sort=False)
    table = lines.agg(
        mean=("capped", "mean"), best=("capped", "min"), first=("logit", "first"), last=("logit", "last"),
        log_z=("log_z", "mean"),
    )  # fmt: skip
    return table.assign(sensitivity=table["mean"] - table["best"], growth=table["last"] / table["first"]).reset_index()


def _sensitivities(figures: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for variant, own in groups(figures, "variant"):
        sensitivity = spelled("sensitivity", stats.mean(own["sensitivity"].to_numpy()))
        rest = {name: own[name].median() for name in ("best", "growth", "log_z")}
        yield {"variant": variant, "n": len(own), **sensitivity, **rest}


TOLD = {"growth": "growth of the attention logits", "log_z": "distance of log Z from zero"}
HOW = {
    "growth": "the largest attention logit grows {:,g}-fold from the lowest rate to the highest, {:,g}-fold without it",
    "log_z": "log Z lies {:,g} nats from zero, {:,g} without it",
}


def against_plain(figures: pd.DataFrame, claim: Claim, name: str, other: str, margin: float) -> Iterator[Answer]:
    """A stabilizer against the plain pre-LN transformer: the loss's sensitivity, and what it is made to hold down."""
    by_variant = {variant: own.set_index("seed") for variant, own in groups(figures, "variant")}
    if not {name, NAMES["pre"]} <= set(by_variant):
        return
    one, plain = by_variant[name].align(by_variant[NAMES["pre"]], join="inner", axis=0)
    asked = {
        ("sensitivity of the loss",): stats.paired(one["sensitivity"], plain["sensitivity"], margin=NATS, test="t"),
        (TOLD[other],): stats.paired(one[other], plain[other], log=True, margin=margin, test="median"),
    }
    table = claim.id.rpartition("/")[2]
    question = Question.of(table, ("what",), asked, label="{what}", reference="the same")
    yield question.table()
    change = question.members["sensitivity of the loss",].effect
    told = HOW[other].format(*(float(f"{each[other].median():.3g}") for each in (one, plain)))
    means = [f"{each['sensitivity'].mean():.3f}" for each in (one, plain)]
    yield question.verdict(
        claim, below, shown=("sensitivity of the loss",),
        unit={("sensitivity of the loss",): "nats more than without it", (TOLD[other],): "times that without it"},
        why=f"{told} (medians); the sensitivity is {means[0]} in place of {means[1]} nats",
        method=f"sensitivity: mean over rates of {RATES[0]:g} to {RATES[-1]:g} of the training loss, at most that at "
        f"the start, minus the least, paired t by seed, margin {NATS:g} nats; {TOLD[other]}: median of ratios, "
        f"margin a factor of {margin:g}; lower is true",
    )  # fmt: skip
    yield Sentence(
        f"Over learning rates from {RATES[0]:g} to {RATES[-1]:g}, in a {name.replace(', ', ' transformer with ')}, "
        f"{told} (medians); the mean loss is {means[0]} nats above the best in place of {means[1]}, a change of "
        f"{change.told('+.3f')}.",
        figure="transformer_stabilizers", claims=(claim.id,),
    )  # fmt: skip


def warmup(tuned: pd.DataFrame) -> Iterator[Answer]:
    """The loss without warm-up minus that with it, each at its own tuned rate, in either order."""
    by_variant = {variant: own.set_index("seed") for variant, own in groups(tuned, "variant")}
    asked, further = {}, {}
    for order in ("pre", "post"):
        if {NAMES[order], NAMES[f"{order}_cold"]} <= set(by_variant):
            cold, warm = by_variant[NAMES[f"{order}_cold"]].align(by_variant[NAMES[order]], join="inner", axis=0)
            lost = stats.paired(cold["capped"], warm["capped"], margin=NATS, test="median")
            asked[f"{order}-LN",] = training.unsettled(lost, cold["at_edge"].any() or warm["at_edge"].any())
            ends = {f"cold_{name}": cold[name].median() for name in ("capped", "lr")}
            further[f"{order}-LN",] = ends | {f"warm_{name}": warm[name].median() for name in ("capped", "lr")}
    question = Question.of("warmup_by_order", ("order",), asked, label="{order}", reference="no loss")
    if not question:
        return
    yield question.table(further)
    needs = question.read(above)
    answers = {name: None if told is None else told == (name == "post-LN") for name, told in needs.items()}
    told = "; ".join(
        f"{order} {row['cold_capped']:.3g} at a rate of {row['cold_lr']:g}, with warm-up {row['warm_capped']:.3g} at "
        f"{row['warm_lr']:g}" for (order,), row in further.items()
    )  # fmt: skip
    yield question.verdict(
        WARMUP, answers, unit="nats lost without warm-up", why=f"training loss without warm-up: {told} (medians)",
        method=f"needed where the loss at the tuned rate is more than {NATS:g} nats higher without it; median of "
        "pairs by seed; rates chosen by other seeds; true of post-LN where it is needed, of pre-LN where it is not",
    )  # fmt: skip

    for (order,), found in question.members.items():
        effect = found.effect
        if not np.isfinite([effect.low, effect.high]).all():
            continue
        yield Sentence(
            f"Each at its own learning rate, a small {order} transformer without warm-up ends "
            f"{effect.told('+.2f')} nats of training loss above one with it.",
            figure="transformer_warmup", claims=(WARMUP.id,),
        )  # fmt: skip


def _panels(rates: pd.DataFrame, names: Mapping[str, str], by: str) -> Any:
    """Figures by rate, a panel each, of the variants that have a name."""
    axes = {"xscale": "log", "yscale": "log", "ylabel": ""}
    named = rates.assign(**{by: rates["variant"].map({NAMES[kind]: name for kind, name in names.items()})})
    drawn = named[named[by].notna() & np.isfinite(named["high"])]
    return drawing.panels(drawn, "what", drawing.profile, by=by, x="lr", axes=axes, shared="x")


@drawing.figure(
    "transformer_stabilizers", "QK-norm and z-loss against the learning rate",
    lambda transformer_rates: f"Median and middle 90 % of {transformer_rates['n'].min()} seeds, trained by Adam; where "
    "a line is not seen, another lies on it.",
)  # fmt: skip
def draw_stabilizers(transformer_rates: pd.DataFrame) -> Any:
    """Loss, attention logits and log Z by rate."""
    return _panels(transformer_rates, {"pre": "neither", "qk_norm": "QK-norm", "z_loss": "z-loss"}, "stabilizer")


@drawing.figure(
    "transformer_warmup", "Training loss against the learning rate, with and without warm-up",
    lambda transformer_rates: f"Median and middle 90 % of {transformer_rates['n'].min()} seeds.",
)  # fmt: skip
def draw_warmup(transformer_rates: pd.DataFrame) -> Any:
    """Loss by rate, both orders with and without warm-up."""
    drawn = transformer_rates[transformer_rates["what"].str.startswith("training loss")]
    return _panels(drawn, {kind: NAMES[kind] for kind in ("pre", "pre_cold", "post", "post_cold")}, "variant")


METHOD = f"""**Transformers.** Small decoder-only transformers on 8 x 8 digits, read row by row, the class at the last
row; Adam (0.9, 0.95), gradients clipped at {CLIP:g}, a rate that falls as a cosine after a warm-up over {WARM:.0%} of
the steps, and the range of rates of Wortsman et al. 2023 (arXiv:2309.14322), whose sensitivity and z-loss of
{Z_WEIGHT:g} these are. They report that at high rates attention logits grow without QK-norm, and that output logits
drift without z-loss late in training. Xiong et al. 2020 (arXiv:2002.04745) report that post-LN needs warm-up."""
PART = Part(
    "transformers", (QK_NORM, Z_LOSS, WARMUP), SIZES, grids, run, analyse, (draw_stabilizers, draw_warmup), METHOD,
)  # fmt: skip
