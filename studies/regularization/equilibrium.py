"""Weight decay under normalization: it sets the angle by which weights turn a step, and a rising rate does the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import data, drawing, replicas, stats, theory, training
from depthgauge.frames import by_case, groups, params_of
from depthgauge.initialization import scheme
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.studies.regularization import decays
from depthgauge.studies.regularization.angles import Watch
from depthgauge.studies.regularization.invariant import Invariant
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.theory.equilibrium import Rotating
from depthgauge.verdict import Claim, Sentence

EQUILIBRIUM = Claim(
    "regularization/equilibrium", "under normalization weight decay lets weights turn by a predicted angle a step, "
    "sqrt(2 lr lambda / (1 + b)) with SGD and sqrt(2 lr lambda (1 - b) / (1 + b)) with AdamW, b the momentum",
)  # fmt: skip
MATCHED = Claim(
    "regularization/rate_matched", "without weight decay, at a rate that rises so that normalized weights turn by the "
    "same angle a step, training ends as it does with decay",
)  # fmt: skip
MARGIN = 0.1  # relative: an angle within 10 % of theory's is the predicted one
SAME = 1.1  # training losses and test errors within 10 % are the same
EVERY, SELDOM = 3, 30  # steps between two looks at angles, and between two at test errors
WATCHED = 1 / 3  # share of the steps, the last ones, over which is averaged
BATCH = 32


@dataclass(frozen=True)
class Kind:
    """An optimizer, what its momentum is, and the rate that it trains at."""

    make: Callable[..., replicas.SGD | replicas.Adam]
    rule: Rotating
    momentum: float
    lr: float
    rises: int = 0  # powers of 1 / (1 - lr lambda) a step by which the rate must rise without decay; 0: not asked


KINDS = {
    "SGD": Kind(replicas.SGD, "sgd", 0.0, 1.0, 2),
    "SGD, momentum 0.9": Kind(lambda **rest: replicas.SGD(momentum=0.9, **rest), "sgd", 0.9, 0.1),
    "AdamW, beta1 0": Kind(lambda **rest: replicas.AdamW(betas=(0.0, 0.999), **rest), "adamw", 0.0, 0.004),
    "AdamW": Kind(replicas.AdamW, "adamw", 0.9, 0.004, 1),
    "AdamW, beta2 0.95": Kind(lambda **rest: replicas.AdamW(betas=(0.9, 0.95), **rest), "adamw", 0.9, 0.004, 1),
}
ARMS = ("decay", "matched", "constant")
SIZES = sizes(
    "products steps width seeds", quick=((0.016,), 200, 24, 6), standard=((0.002, 0.008), 1500, 32, 10),
    full=((0.001, 0.002, 0.008), 3000, 32, 20), tiny=((0.02,), 33, 6, 5),
)  # fmt: skip


def grids(products: tuple[float, ...], steps: int, width: int, seeds: int) -> Iterator[Grid]:
    """Every optimizer with decay; two of them without, at a rising and at a constant rate."""
    for arm in ARMS:
        kinds = tuple(name for name, kind in KINDS.items() if arm == "decay" or kind.rises)
        yield Grid(
            {"optimizer": kinds, "product": products},
            {"arm": arm, "steps": steps, "width": width},
            seeds,
            ("seed",),
            1000,
        )


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Mean squared angle and outward part of a step by layer, training loss and test error, over the last steps."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    kind, product, steps = KINDS[shared.text("optimizer")], shared.number("product"), shared.integer("steps")
    given = decays.examples(data.hold_out(digits.train, training.HELD_OUT)[0], "noisy")
    width, arm = shared.integer("width"), shared.text("arm")
    seeds = [case.random_seed("seed", "width") for case in cases]  # of all arms, optimizers and products: paired
    stack = replicas.stack(Invariant((64, width, width, 10)), seeds, scheme("he"), device=context.device)
    looks = range(steps - int(steps * WATCHED), steps - 1, EVERY)
    seldom = looks[:: SELDOM // EVERY]
    watch = Watch(len(cases), 1 - product if arm == "decay" else 1.0, digits.test)

    def inspect(step: int, rows: slice, part: replicas.Stack) -> None:
        (watch.before if step in looks else watch.after)(rows, part)
        if step in seldom:
            watch.look(rows, part)

    optimizer = kind.make(lr=kind.lr, weight_decay=product / kind.lr if arm == "decay" else 0.0)
    loop = replicas.Loop(
        batch=BATCH, steps=steps, checkpoints=tuple(sorted({at + more for at in looks for more in (0, 1)})),
        inspect=inspect, schedule=rising(kind.rises, product) if arm == "matched" else None,
    )  # fmt: skip
    done = replicas.train(stack, given.x, given.y, optimizer, loop)
    loss, error = done.loss[looks.start :].mean(0), torch.stack(watch.errors).sum(0) / len(seldom)
    for i, case in enumerate(cases):
        yield case.rows("train_loss", float(loss[i]))
        yield case.rows("test_error", float(error[i]))
        for place, name in enumerate(watch.squares):
            for metric, lines in (("square", watch.squares[name]), ("outward", watch.outward[name])):
                yield case.rows(metric, float(torch.stack(lines).sum(0)[i]) / len(looks), layer_index=place + 1)


def rising(powers: int, product: float) -> Callable[[int], float]:
    """Factor of the rate at which undecayed weights are decayed ones times a number: nothing that is computed differs.

    Weights that decay by 1 - p a step, divided by (1 - p)^t, make undecayed steps of the rate times (1 - p)^-(2t + 1),
    as a gradient is one over its weight's size (Li and Arora 2020); Adam's steps have no such size: (1 - p)^-(t + 1).
    """
    return lambda step: float((1 - product) ** -(powers * step + 1))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Angles against theory; losses and errors without decay against those with it."""
    if rows.empty:
        return
    params = params_of(rows, "optimizer", "product", "arm", "seed")
    yield from turning(rows, params[params["arm"] == "decay"])
    yield from ends(training.table(rows, "optimizer", "product", "arm", "seed", metrics=("train_loss", "test_error")))


def turning(rows: pd.DataFrame, decayed: pd.DataFrame) -> Iterator[Answer]:
    """Root mean square angles by layer over the predicted ones."""
    wide = {metric: by_case(rows, metric) for metric in ("square", "outward")}
    asked, further = {}, {}
    for (name, product), cases in groups(decayed, ["optimizer", "product"]):
        kind = KINDS[name]
        law = theory.equilibrium_angle(kind.lr, product / kind.lr, momentum=kind.momentum, optimizer=kind.rule)
        turned, outward = (wide[metric].loc[cases.index] for metric in ("square", "outward"))
        for layer in map(int, turned.columns):
            key, squares = (name, product, layer), turned[layer]
            asked[key] = stats.against(np.sqrt(squares.to_numpy()) / law, 1.0, margin=MARGIN)
            further[key] = {
                "angle": float(np.sqrt(squares.mean())),
                "theory": law,
                "outward": (along := float(outward[layer].mean()) / product),
                "left": 1.0 if kind.momentum else math.sqrt(max(0.0, 1 - along)),
            }
    question = Question.of(
        "angles", ("optimizer", "product", "layer"), asked, label="{optimizer}, lr x lambda {product:g}, layer {layer}"
    )
    if not question:
        return
    yield question.table(further)
    yield question.prediction(EQUILIBRIUM, "angles", within=f"{MARGIN:.0%}", unit="measured over predicted")
    off = {key: c for key, c in question.members.items() if agrees(c) is False and c.effect.value < 1}
    off = {key: c for key, c in off.items() if not KINDS[key[0]].momentum and further[key]["outward"] > MARGIN}
    if off:
        key = max(off, key=lambda each: further[each]["outward"])
        at = further[key]
        yield Sentence(
            f"{key[0]}, at lr x lambda {key[1]:g}, turns the weights of layer {key[2]} by {off[key].effect.value:.2f} "
            "of the predicted angle. Its steps are not at right angles to the weight: they lengthen it by "
            f"{at['outward']:.0%} of what decay takes, and what is left should turn it by sqrt(1 - "
            f"{at['outward']:.2f}) = {at['left']:.2f} of that angle.",
            figure="angles", claims=(EQUILIBRIUM.id,),
        )  # fmt: skip


def ends(runs: pd.DataFrame) -> Iterator[Answer]:
    """Training loss and test error of both undecayed arms over those with decay, seed by seed."""
    asked = {}
    for (name, product), own in groups(runs, ["optimizer", "product"]):
        arms = {arm: lines.set_index("seed") for arm, lines in groups(own, "arm")}
        for arm in ARMS[1:] if {*ARMS} <= set(arms) else ():
            both = arms[arm].index.intersection(arms["decay"].index)
            for metric, what in (("train_loss", "training loss"), ("test_error", "test error")):
                pair = arms[arm].loc[both, metric], arms["decay"].loc[both, metric]
                asked[name, product, f"{arm} rate", what] = stats.paired(*pair, log=True, margin=SAME, test="t")
    question = Question.of(
        "without_decay", ("optimizer", "product", "rate", "of"), asked, family=lambda rate, **_: rate,
        label="{of}, {optimizer}, lr x lambda {product:g}, {rate}", reference="decay",
    )  # fmt: skip
    if not question:
        return
    yield question.table()
    matched, constant = question.where(rate="matched rate"), question.where(rate="constant rate")
    yield matched.verdict(
        MATCHED, agrees, unit="times that with decay",
        why=matched.listed(agrees, {True: "the same:", False: "different:", None: "undecided:"}, 8),
        method="mean training loss and test error of the last third of the steps, log ratio to the same seed with "
        f"decay, paired t, within {SAME - 1:.0%}: the same; the rate rises by (1 - lr x lambda)^-2 a step with SGD, by "
        "(1 - lr x lambda)^-1 with AdamW",
    )  # fmt: skip
    key = constant.furthest
    sgd = [agrees(c) for (name, *_), c in matched.members.items() if name == "SGD"]
    if sgd and all(sgd) and constant.members[key].beyond:
        yield Sentence(
            "Under normalization SGD without weight decay ends as with it where its learning rate rises exponentially; "
            f"without decay at a constant rate the {key[3]} is {constant.members[key].effect.value:.2g} times as large "
            f"({key[0]}, lr x lambda {key[1]:g}).",
            figure="without_decay", claims=(MATCHED.id,),
        )  # fmt: skip
    yield from _memory(matched)


def _memory(matched: Question) -> Iterator[Answer]:
    """What of AdamW's ends a rising rate keeps, where it is not all with the longer memory of squares."""
    one = {
        (what, long): [c for (name, *_, of), c in matched.members.items() if name == which and of == what]
        for what in ("training loss", "test error") for long, which in ((True, "AdamW"), (False, "AdamW, beta2 0.95"))
    }  # fmt: skip
    same = {key: bool(members) and all(map(agrees, members)) for key, members in one.items()}
    losses = one["training loss", True]
    if all(same[what, False] for what, _ in one) and any(agrees(c) is False for c in losses):
        told = " and ".join(f"{c.effect.value:.2f}" for c in losses)
        rest = "the test error is the same, but " if same["test error", True] else ""
        yield Sentence(
            "With AdamW a rising rate without weight decay ends as decay does at beta2 0.95; at beta2 0.999 "
            f"{rest}the training loss is {told} times that with decay.",
            figure="without_decay", claims=(MATCHED.id,),
        )  # fmt: skip


@drawing.figure(
    "angles", "The angle by which normalized weights turn a step, over the predicted one",
    lambda angles: f"Root mean square of all units, last third of the steps; mean of {angles['n'].min()} seeds, "
    f"intervals of 95 % at once; {MARGIN:.0%} counts as predicted. Strokes: 1, or without momentum sqrt(1 - a), a what "
    "steps lengthen the weight by over what decay takes.",
)  # fmt: skip
def draw_angles(angles: pd.DataFrame) -> Any:
    """Measured over predicted angle, a row an optimizer, a colour a layer, a panel a product."""
    axes = {"xlabel": "measured over predicted angle"}
    shown = angles.assign(layer="layer " + angles["layer"].astype(str), predicted=angles["left"])
    named = shown.rename(columns={"product": "lr x lambda"})
    return drawing.panels(named, "lr x lambda", drawing.estimates, at="optimizer", by="layer", axes=axes, shared="both")


@drawing.figure(
    "without_decay", "Training without decay against training with it, at a rate that rises and at a constant one",
    lambda without_decay: f"Times the value with decay; geometric mean of {without_decay['n'].min()} seeds, intervals "
    "of 95 % at once. The rising rate gives weights the same angle a step.",
)  # fmt: skip
def draw_ends(without_decay: pd.DataFrame) -> Any:
    """Ratios, a row the optimizer and product, a colour the rate, a panel the figure."""
    product = without_decay["product"].map(lambda value: f"{value:g}")
    shown = without_decay.assign(run=without_decay["optimizer"] + ", lr x lambda " + product)
    axes = {"xscale": "log", "xlabel": "times that with decay"}
    return drawing.panels(shown, "of", drawing.estimates, at="run", by="rate", axes=axes, shared="y")


METHOD = """**Equilibrium.** Networks of three layers, each normalized over the batch without gain, bias or anything
else that has a size, on 300 digits of which a fifth are mislabelled, so that gradients do not vanish. The angle is that
between a unit's weights before and after a step. `theory.equilibrium_angle`; the rising rate is that of Li and Arora
(An exponential learning rate schedule for deep learning, 2020) for SGD without momentum, and its like for AdamW."""
PART = Part(
    "equilibrium", (EQUILIBRIUM, MATCHED), SIZES, grids, run, analyse, (draw_angles, draw_ends), METHOD
)  # fmt: skip
